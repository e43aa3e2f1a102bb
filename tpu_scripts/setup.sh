#!/usr/bin/env bash
# Puts the committed code, its pinned packages and the bucket (as the folder bucket/) on all workers. May be repeated.
#   setup.sh --name=N --zone=Z --project=P --bucket=B [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "name zone project bucket" "$@"
require name zone project bucket

cd "$ROOT"
[[ -z $(git status --porcelain) ]] || fail "uncommitted changes would not reach the workers: commit or stash them"
bundle=$(git rev-parse --git-path care_jax.bundle)
run git bundle create -q "$bundle" HEAD
tpus tpu-vm scp "$bundle" tpu_scripts/on_worker.sh "${flag[name]}:" --worker=all
on_worker all setup "${flag[bucket]}"
