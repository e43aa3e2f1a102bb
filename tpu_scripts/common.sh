# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it: flags, quoting, calls of gcloud.
set -euo pipefail
((BASH_VERSINFO[0] >= 4)) || {
  echo "error: bash $BASH_VERSION is too old; install bash 4 or later" >&2
  exit 2
}
exec 3>&1 # where a dry run prints, from inside $(...) too

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) # the repository
SWITCHES=" checkpoints dry-run spot yes "
declare -A flag=()
COMMAND=()

fail() { # MESSAGE [EXIT_CODE]
  echo "error: $1" >&2
  exit "${2:-2}"
}

say() { echo "$(date +%T) $*" >&2; }

# parse "NAME ..." "$@": fills flag[NAME] from --NAME=VALUE. If the names end in --, a command may follow that word and
# goes to COMMAND.
parse() {
  local names=$1 allowed="${1% --} dry-run" name
  shift
  while (($#)); do
    name=${1#--}
    name=${name%%=*}
    case $1 in
      --)
        [[ $names == *" --" ]] || fail "this script takes no command"
        shift
        COMMAND=("$@")
        return
        ;;
      --help)
        awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
        exit 0
        ;;
      --?*)
        [[ " $allowed " == *" $name "* ]] || fail "unknown flag --$name; allowed: --${allowed// / --}"
        if [[ $SWITCHES == *" $name "* ]]; then
          [[ $1 == "--$name" ]] || fail "--$name takes no value"
          flag[$name]=1
        else
          [[ $1 == --*=?* ]] || fail "--$name needs a value: --$name=VALUE"
          flag[$name]=${1#*=}
        fi
        ;;
      *) fail "unexpected word '$1'; flags are --NAME=VALUE, a command comes after --" ;;
    esac
    shift
  done
}

require() { # NAME ...
  local name
  for name; do
    [[ -n ${flag[$name]:-} ]] || fail "--$name=VALUE is needed; see --help"
  done
}

# number NAME DEFAULT: the value of a flag that is a whole number.
number() {
  local value=${flag[$1]:-$2}
  [[ $value =~ ^[0-9]+$ ]] || fail "--$1=$value must be a whole number"
  flag[$1]=$((10#$value))
}

# Puts the flags of these names into FLAGS, as they were given.
flags_again() { # NAME ...
  local name
  FLAGS=()
  for name; do
    [[ -n ${flag[$name]:-} ]] || continue
    if [[ $SWITCHES == *" $name "* ]]; then FLAGS+=("--$name"); else FLAGS+=("--$name=${flag[$name]}"); fi
  done
}

is_dry_run() { [[ -n ${flag[dry-run]:-} ]]; }

# Prints the words as one line that any POSIX shell reads back as the same words.
quote() {
  local word quoted="'\\''" words=()
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) words+=("'${word//"'"/"$quoted"}'") ;;
      *) words+=("$word") ;;
    esac
  done
  printf '%s\n' "${words[*]}"
}

# Runs a command; a dry run prints it instead.
run() {
  if is_dry_run; then quote "$@" >&3; else "$@"; fi
}

tpus() { # WORD ...
  run gcloud compute tpus "$@" "--zone=${flag[zone]}" "--project=${flag[project]}" --quiet
}

# Runs a verb of on_worker.sh on worker 0, 1, ... or on all at once; the exit code is the first that is not 0.
on_worker() { # WORKER VERB [WORD ...]
  local worker=$1
  shift
  tpus tpu-vm ssh "${flag[name]}" "--worker=$worker" --ssh-flag=-oServerAliveInterval=30 \
    "--command=$(quote bash on_worker.sh "$@")"
}

# The state of the request for the slice, and of the slice itself: gcloud's word, ABSENT, or UNKNOWN if gcloud fails, as
# in a dry run.
request_state() { describe queued-resources state.state; }
node_state() { describe tpu-vm state; }

describe() { # GROUP FIELD
  local errors out
  errors=$(mktemp)
  if out=$(tpus "$1" describe "${flag[name]}" "--format=value($2)" 2>"$errors"); then
    echo "${out:-UNKNOWN}"
  elif grep -qi 'not.found' "$errors"; then
    echo ABSENT
  else
    cat "$errors" >&2
    echo UNKNOWN
  fi
  rm "$errors"
}

delete_request() { tpus queued-resources delete "${flag[name]}" --force; }
