#!/usr/bin/env bash
# Shows the state of the request, the slice and every worker, and the last lines of the log and of the metrics.
#   watch.sh --name=N --zone=Z --project=P [--run=runs/R] [--every=SECONDS] [--dry-run]
# --run: the run folder in the bucket whose metrics are shown. --every: repeats until Ctrl-C.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

show() {
  local request node
  request=$(request_state)
  node=$(node_state)
  is_dry_run || printf 'request: %s\nslice: %s\n' "$request" "$node"
  if is_dry_run || [[ $node == READY ]]; then
    on_worker all status || echo "some workers cannot be reached"
    on_worker 0 tail ${flag[run]+"bucket/${flag[run]}/metrics.jsonl"} || true
  fi
}

parse "name zone project run every" "$@"
require name zone project
number every 0
show
if ((flag[every] > 0)) && ! is_dry_run; then
  while sleep "${flag[every]}"; do show; done
fi
