#!/usr/bin/env bash
# Stops what run.sh started, after it has saved. End run.sh first: it would start the command again.
#   stop.sh --name=N --zone=Z --project=P [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "name zone project" "$@"
require name zone project
on_worker all stop
