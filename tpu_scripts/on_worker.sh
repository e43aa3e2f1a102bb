#!/usr/bin/env bash
# The part of the scripts that runs on a worker; setup.sh copies this file into the home folder there.
#   setup BUCKET            code, pinned packages, bucket
#   start NAME WORD ...     the command in the background; exit code 2 if another one runs
#   status                  one line: HOST running | exit CODE | stopped | lost | none
#   stop                    SIGTERM, so that it saves, and SIGKILL a minute later
#   exec WORD ...           a command in the foreground
#   tail [FILE]             the last lines of the log, and of a file
set -euo pipefail
cd

UV_VERSION=0.13.9
REPOSITORY=$HOME/care_jax
MOUNT=$REPOSITORY/bucket
JOB=$HOME/job # pid, command, log, end: the exit code, or "stopped"

setup() { # BUCKET
  mkdir -p "$REPOSITORY"
  cd "$REPOSITORY"
  git init -q
  git fetch -q "$HOME/care_jax.bundle" HEAD
  git checkout -q --force --detach FETCH_HEAD
  [[ -x $HOME/.local/bin/uv ]] || python3 -m pip install -q --user "uv==$UV_VERSION"
  [[ -x .venv/bin/python ]] || "$HOME/.local/bin/uv" venv -q --python 3.11 .venv
  "$HOME/.local/bin/uv" pip install -q --python .venv/bin/python -c constraints.txt -e '.[tpu]'
  mount_bucket "$1"
}

mount_bucket() { # BUCKET
  if mountpoint -q "$MOUNT"; then return; fi
  command -v gcsfuse >/dev/null || install_gcsfuse
  sudo umount -l "$MOUNT" 2>/dev/null || true # what a gcsfuse that died leaves
  mkdir -p "$MOUNT"
  # Without caches: the workers read what the others wrote a moment ago.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" "$MOUNT"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
  curl -fsSL "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq install -y gcsfuse
}

is_running() { [[ -s $JOB/pid ]] && kill -0 "$(<"$JOB/pid")" 2>/dev/null; }

start() { # NAME WORD ...
  mkdir -p "$JOB"
  local command
  command=$(printf '%q ' "$@")
  if is_running; then
    [[ $command == "$(<"$JOB/command")" ]] && return
    echo "error: $(hostname) runs another command; stop.sh stops it" >&2
    exit 2
  fi
  rm -f "$JOB/end"
  echo "$command" >"$JOB/command"
  setsid nohup bash "$HOME/on_worker.sh" job "$@" </dev/null >>"$JOB/log" 2>&1 3>&- &
  echo $! >"$JOB/pid"
}

# The parent of the command: notes how it ended, and keeps a copy of the log where it outlives the slice.
job() { # NAME WORD ...
  local logs=$MOUNT/logs/$1 child='' code=0 stopped=''
  shift
  mkdir -p "$logs"
  cd "$REPOSITORY"
  trap 'stopped=1; [[ -z $child ]] || kill -TERM "$child" || true' TERM
  PATH=$REPOSITORY/.venv/bin:$PATH "$@" &
  child=$!
  while sleep 60; do cp "$JOB/log" "$logs/$(hostname).log"; done &
  local copier=$!
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child" || code=$?; done # a signal ends the first wait
  kill "$copier"
  cp "$JOB/log" "$logs/$(hostname).log" || true
  # A run that SIGTERM ends exits with 4 and is not done: the machine is about to go, or stop was asked for.
  if [[ -n $stopped ]]; then echo stopped; else echo "exit $code"; fi >"$JOB/end.new"
  mv "$JOB/end.new" "$JOB/end"
}

status() {
  local state=none
  if [[ -e $JOB/end ]]; then
    state=$(<"$JOB/end")
  elif is_running; then
    state=running
  elif [[ -e $JOB/pid ]]; then
    state=lost
  fi
  echo "$(hostname) $state"
}

stop() {
  is_running || return 0
  local seconds pid
  pid=$(<"$JOB/pid")
  kill -TERM "$pid" 2>/dev/null || true
  for ((seconds = 0; seconds < 60; seconds++)); do
    is_running || return 0
    sleep 1
  done
  kill -KILL -- "-$pid" 2>/dev/null || true # setsid made it a group of its own
}

case $1 in
  setup | start | job | status | stop) "$@" ;;
  exec)
    shift
    cd "$REPOSITORY"
    PATH=$REPOSITORY/.venv/bin:$PATH exec "$@"
    ;;
  tail)
    [[ ! -e $JOB/log ]] || tail -n 15 "$JOB/log"
    [[ -z ${2:-} ]] || tail -n 3 "$REPOSITORY/$2"
    ;;
  *)
    echo "error: unknown verb $1" >&2
    exit 2
    ;;
esac
