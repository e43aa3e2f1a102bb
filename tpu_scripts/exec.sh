#!/usr/bin/env bash
# Runs one command on worker 0, in the repository, and waits for it: a download, a conversion, an export.
#   exec.sh --name=N --zone=Z --project=P [--dry-run] -- python -m convert.hf_to_jax --hf=DIR --out=DIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "name zone project --" "$@"
require name zone project
((${#COMMAND[@]})) || fail "the command is missing: put it after --"
on_worker 0 exec "${COMMAND[@]}"
