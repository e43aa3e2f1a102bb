#!/usr/bin/env bash
# Runs a command on all workers to its end: creates the slice and sets it up if needed, starts the command in the
# background there, and watches it. After a preemption it makes the slice again and starts the same command, which
# resumes. If the command is already running, it only watches it.
#   run.sh --name=N --zone=Z --project=P --type=T --version=V [--spot] --bucket=B [--poll=30] [--restarts=5]
#          [--dry-run] -- python -m care_jax.train --config=configs/F.py --workdir=bucket/runs/R [--config.a.b=v]
# --restarts: how often a failed command is started again; preemptions, and runs that a SIGTERM has stopped (exit code 4),
# do not count. Exit code 2, bad input, ends everything at once; docs/run_folder.md lists the codes.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "name zone project type version spot bucket poll restarts --" "$@"
require name zone project type version bucket
number poll 30
number restarts 5
((${#COMMAND[@]})) || fail "the command is missing: put it after --"
flags_again name zone project type version spot poll dry-run
CREATE=("$ROOT/tpu_scripts/create.sh" "${FLAGS[@]}")
flags_again name zone project bucket dry-run
SETUP=("$ROOT/tpu_scripts/setup.sh" "${FLAGS[@]}")

# Starts the command on a slice that is ready. 1: it cannot be reached, or cannot be set up.
start() {
  "${CREATE[@]}" || exit $?
  local code=0
  "${SETUP[@]}" || code=$?
  ((code != 2)) || exit 2
  ((code == 0)) || return 1
  on_worker all start "${flag[name]}" "${COMMAND[@]}" || code=$?
  ((code != 2)) || exit 2
  ((code == 0))
}

# Returns when the command has ended. 0: it succeeded on all workers; 1: it failed on one; 2: bad input; 3: the slice
# is gone; 4: a SIGTERM has stopped it.
follow() {
  local lines unreachable=0
  while :; do
    if lines=$(on_worker all status); then
      unreachable=0
      ! grep -q ' exit 2$' <<<"$lines" || return 2
      if grep -vqE ' (running|exit 0)$' <<<"$lines"; then
        echo "$lines" >&2
        ! grep -vqE ' (running|exit 0|exit 4|stopped)$' <<<"$lines" || return 1
        return 4
      fi
      grep -q ' running$' <<<"$lines" || return 0
    else
      case $(node_state) in
        READY | UNKNOWN) ((++unreachable < 10)) || return 1 ;; # the network, or one worker is lost
        *) return 3 ;;
      esac
    fi
    sleep "${flag[poll]}"
  done
}

failed=0
if is_dry_run; then
  start
  on_worker all status
  exit
fi
while :; do
  outcome=1
  if start; then
    outcome=0
    follow || outcome=$?
  fi
  case $outcome in
    0)
      say "done"
      exit 0
      ;;
    2)
      on_worker 0 tail || true
      fail "the command rejected its input, as above"
      ;;
    3) say "the slice is gone; making it anew" ;;
    4)
      say "stopped; starting it again"
      on_worker all stop || true # others may still be saving
      sleep "${flag[poll]}"
      ;;
    *)
      case $(node_state) in
        READY | UNKNOWN)
          on_worker 0 tail || true
          on_worker all stop || true # the others wait for the one that failed
          ((++failed <= flag[restarts])) || fail "failed $failed times; its logs are in gs://${flag[bucket]}/logs" 1
          say "failed; start $failed of ${flag[restarts]} after that"
          sleep "${flag[poll]}"
          ;;
        *) say "the slice is gone; making it anew" ;;
      esac
      ;;
  esac
done
