#!/usr/bin/env bash
# Requests a slice and waits until it is ready. Leaves a ready slice alone; replaces a preempted or failed one.
#   create.sh --name=N --zone=Z --project=P --type=v5p-64 --version=v2-alpha-tpuv5 [--spot] [--poll=30]
#             [--attempts=100] [--dry-run]
# --poll: seconds between looks; each stock-out doubles them, up to twenty times as many.
# --attempts: requests that may fail before it gives up; a request may wait in the queue without limit.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# 0: asked; 1: no capacity, ask again later. Anything else ends the script.
ask() {
  local errors spot=()
  [[ -z ${flag[spot]:-} ]] || spot=(--spot)
  errors=$(mktemp)
  say "asking for ${flag[type]} as ${flag[name]}"
  if tpus queued-resources create "${flag[name]}" "--node-id=${flag[name]}" "--accelerator-type=${flag[type]}" \
    "--runtime-version=${flag[version]}" --scopes=https://www.googleapis.com/auth/cloud-platform \
    ${spot[@]+"${spot[@]}"} 2>"$errors"; then
    rm "$errors"
    return 0
  fi
  local message
  message=$(<"$errors")
  rm "$errors"
  echo "$message" >&2
  ! grep -qi 'quota' <<<"$message" || fail "the project's quota does not allow it; README.md says where to ask" 1
  ! grep -qiE 'capacity|RESOURCE_EXHAUSTED|UNAVAILABLE|stockout|internal error' <<<"$message" || return 1
  fail "the request was refused, as above" 1
}

# 0: ready; 1: on its way; 2: must be asked for; 3: failed, which is mostly a stock-out.
look() {
  case $(request_state) in
    ACTIVE)
      case $(node_state) in
        READY) return 0 ;;
        ABSENT | PREEMPTED | STOPPED | TERMINATED) delete_request && return 2 ;;
        *) return 1 ;;
      esac
      ;;
    SUSPENDED) delete_request && return 2 ;;
    FAILED) delete_request && return 3 ;;
    ABSENT) return 2 ;;
    *) return 1 ;; # on its way in or out, or gcloud cannot say
  esac
}

parse "name zone project type version spot poll attempts" "$@"
require name zone project type version
number poll 30
number attempts 100

if is_dry_run; then
  look || ask
  exit
fi
failed=0
pause=${flag[poll]}
while ((failed < flag[attempts])); do
  found=0
  look || found=$?
  if ((found == 0)); then
    say "${flag[name]} is ready"
    exit 0
  elif ((found == 3)) || { ((found == 2)) && ! ask; }; then
    failed=$((failed + 1))
    say "no capacity ($failed of ${flag[attempts]}); again in $pause s"
    sleep "$pause"
    pause=$((2 * pause < 20 * flag[poll] ? 2 * pause : 20 * flag[poll]))
  else
    sleep "${flag[poll]}"
  fi
done
fail "no capacity after ${flag[attempts]} requests; try another zone or size" 1
