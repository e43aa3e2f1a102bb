#!/usr/bin/env bash
# Stops the command that run.sh started, after it has saved. End run.sh first, or it starts the command again.
#   stop.sh --name=N --zone=Z --project=P [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "name zone project" "$@"
require name zone project
on_worker all stop
