#!/usr/bin/env bash
# Copies a run folder and the workers' logs from the bucket, and writes the run's report beside them. Needs no slice.
#   fetch.sh --name=N --bucket=B --run=runs/R --out=DIR [--checkpoints] [--dry-run]
# --checkpoints: copies the checkpoints too; they are large. PYTHON: the interpreter that care_jax is installed for.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "name bucket run out checkpoints" "$@"
require name bucket run out

skip=('--exclude=^checkpoints/')
[[ -z ${flag[checkpoints]:-} ]] || skip=()
run mkdir -p "${flag[out]}/logs"
run gcloud storage rsync --recursive ${skip[@]+"${skip[@]}"} "gs://${flag[bucket]}/${flag[run]}" "${flag[out]}"
run gcloud storage rsync --recursive "gs://${flag[bucket]}/logs/${flag[name]}" "${flag[out]}/logs"

python=${PYTHON:-$ROOT/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
run env "PYTHONPATH=$ROOT" "$python" -m care_jax.report "--workdir=${flag[out]}" "--out=${flag[out]}/report.html"
