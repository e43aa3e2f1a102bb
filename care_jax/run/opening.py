"""Opens what a run reads: all that can be refused before anything is written, and the run folder itself."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath
from jax.sharding import Mesh

from care_jax import files
from care_jax.data import accounting, loader
from care_jax.data.outcomes import ALL_TURNS, Turns
from care_jax.errors import InputError
from care_jax.inputs.processor import Processor, make_processor
from care_jax.method.objectives import Objective
from care_jax.parallel import sharding
from care_jax.parallel.processes import HostShare, is_first
from care_jax.rewards import functions, terms
from care_jax.run import history
from care_jax.run import manifest as manifest_lib
from care_jax.run.folder import CONFIG_FILE
from care_jax.run.training_data import Encoder, TrainingData
from care_jax.stages.model import make_mesh


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a run, opened."""

    processor: Processor
    account: list[str]  # lines about the data
    train: loader.RecordSource
    data: TrainingData
    held_out: loader.RecordSource
    mesh: Mesh
    share: HostShare
    settings: dict[str, Any]  # of history.py; empty on every process but the first


def open_inputs(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    stage: str,
    make_encoder: Callable[[Processor], Encoder],
    *,
    allow_change: bool,
) -> Inputs:
    """Opens model folder and data, and takes an account of the data; the arguments are those of `open_session`.

    Raises:
        InputError: something of it cannot be used, or makes another run of the one in `workdir`.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is a file; name a folder")
    manifest_lib.require_stage(workdir, stage)
    for term in terms.read_terms(config.verify.rewards):
        functions.load(term.function)
    processor = make_processor(config)
    train, held_out = loader.open_source(config, "train"), loader.open_source(config, "eval")
    settings: dict[str, Any] = {}
    if is_first():
        settings = history.settings(config, train=train, held_out=held_out)
        history.require_same_run(workdir, settings, allow_change=allow_change)
    mesh = make_mesh(config, training=True)
    # Dynamic sampling moves groups to any row, so there every process has all of them.
    is_whole = Objective.from_config(config.objective).dynamic_sampling
    share = sharding.whole_share(mesh) if is_whole else sharding.own_share(mesh)
    turns = Turns(all_wrong=config.data.turns_if_all_wrong, all_correct=config.data.turns_if_all_correct)
    data = TrainingData(
        train,
        make_encoder(processor),
        batch_size=config.train.prompts,
        seed=config.seed,
        share=share,
        turns=ALL_TURNS if stage == "cold_start" else turns,  # which has no groups
    )
    account = accounting.account_of_run(config, processor, train, held_out, learns_traces=stage == "cold_start")
    return Inputs(processor, account, train, data, held_out, mesh, share, settings)


def lock(workdir: epath.Path, held: contextlib.ExitStack) -> None:
    """Makes the run folder and keeps other runs out of it until `held` is closed, or the process ends in any way.

    A folder in a bucket is not locked. One that was made here goes again with `held` if no run has begun in it.

    Raises:
        InputError: the folder cannot be written, or another process is in it.
    """
    if not is_first():
        return
    try:
        if not workdir.exists():
            held.callback(_remove_unused, workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        if not files.in_bucket(workdir):
            message = f"--workdir={workdir}: another process trains in it; wait for its end"
            held.enter_context(files.locked(Path(workdir) / ".lock", message))
    except OSError as error:
        if files.is_of_the_machine(error):
            raise
        raise InputError(f"--workdir={workdir} cannot be written: {error.strerror or error}; name another") from error


def _remove_unused(workdir: epath.Path) -> None:
    """Removes a run folder whose session was never opened, such as one whose tracker did not start."""
    if workdir.exists() and not (workdir / CONFIG_FILE).exists():
        workdir.rmtree()
