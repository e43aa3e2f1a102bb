"""Decoding in pieces: the loop of `rollout.generate`, left after some tokens and entered again, so that answers stream.

A row has one branch, with its own temperature, room and random numbers, so one program serves every question. The state
of the loop stays on the devices between two calls; the host reads the tokens, and says which rows go on.

                 prefill            begin            go on, until none is alive
    prompts  ->  prefix (once)  ->  decoding    <->  decoding, progress

Everything lies as the sampler's layout has it (stages/sampler.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float32, Int32

from care_jax.models import QwenVL
from care_jax.models.cache import BRANCH_CACHE_SPECS, PREFIX_SPECS, Prefix
from care_jax.parallel.collectives import most
from care_jax.parallel.sharding import ROWS, WHOLE, gathered, named, on_shards, param_specs
from care_jax.stages.rollout import Branches, Loop, decode_token, nothing_forced, start_loop
from care_jax.stages.table import DeviceStage, Setup
from care_jax.structs import Array


@struct.dataclass
class Asked:
    """The samples that the rows of a batch draw, one each."""

    room: Int32[Array, "B 1"]  # tokens; 0: nothing is asked in this row
    number: Int32[Array, "B 1"]  # token t is drawn with fold_in(fold_in(key, t), number), whatever row it is in
    temperature: Float32[Array, "B 1"]  # 0 decodes greedily


@struct.dataclass
class Progress:
    """The tokens so far, which the host reads between two calls."""

    token_ids: Int32[Array, "B R"]
    logprobs: Float32[Array, "B R"]
    sampled_len: Int32[Array, "B"]  # tokens so far, the stop token included
    stopped: Bool[Array, "B"]  # a stop token was sampled
    alive: Bool[Array, "B"]  # more is to come


_loop: dict[str, Any] = {"t": WHOLE, "hidden": ROWS, "cache": BRANCH_CACHE_SPECS, "written": ROWS, "alive": ROWS}
_LOOP_SPECS = Loop(**_loop)
_GIVEN_SPECS = (_LOOP_SPECS, ROWS)


def _sampler_specs(sampler: QwenVL) -> Any:
    return gathered(param_specs(sampler))


def _make_begin(setup: Setup) -> Callable[[QwenVL, Prefix, Asked], Loop]:
    """From sampler, prefix and samples to the state before their first token."""

    def begin(sampler: QwenVL, prefix: Prefix, asked: Asked) -> Loop:
        stacks, prefix = sampler.in_stacks(prefix)
        forced = dataclasses.replace(nothing_forced(*asked.room.shape), active=asked.room > 0)
        return start_loop(sampler, stacks, prefix, forced, setup.sampling)

    def specs(sampler: QwenVL, *_: Any) -> tuple[tuple, Any]:
        return (_sampler_specs(sampler), PREFIX_SPECS, ROWS), _LOOP_SPECS

    return on_shards(setup.sampler_mesh, begin, specs)


def _make_go_on(setup: Setup) -> Callable[..., tuple[Loop, Progress]]:
    """Decodes the rows that are alive and in `going` [B, 1], until each has `until` tokens or has ended."""
    sampling = setup.sampling

    def go_on(
        sampler: QwenVL,
        prefix: Prefix,
        asked: Asked,
        decoding: Loop,
        going: Bool[Array, "B 1"],
        until: Int32[Array, ""],
        forbidden_mask: Bool[Array, "V"],
        key: Array,
    ) -> tuple[Loop, Progress]:
        stacks, prefix = sampler.in_stacks(prefix)  # if it splits them, that copies all weights once a call
        branches = Branches(prefix, jnp.zeros_like(asked.room), asked.room, asked.number, asked.temperature)
        decode = functools.partial(
            decode_token,
            branches,
            model=sampler,
            stacks=stacks,
            forbidden_mask=forbidden_mask,
            key=key,
            sampling=sampling,
        )
        last = jnp.minimum(until, sampling.response_len)
        loop = jax.lax.while_loop(
            lambda loop: (loop.t < last) & (most(jnp.sum(loop.alive)) > 0),
            decode,
            dataclasses.replace(decoding, alive=decoding.alive & going),
        )
        written = loop.written
        return loop, Progress(
            token_ids=written.token_ids[:, 0],
            logprobs=written.logprobs[:, 0],
            sampled_len=written.sampled_len[:, 0],
            stopped=written.stopped[:, 0],
            alive=loop.alive[:, 0],
        )

    def specs(sampler: QwenVL, *_: Any) -> tuple[tuple, Any]:
        return (_sampler_specs(sampler), PREFIX_SPECS, ROWS, _LOOP_SPECS, ROWS, WHOLE, WHOLE, WHOLE), _GIVEN_SPECS

    return on_shards(setup.sampler_mesh, go_on, specs)


def _shardings(specs: Any) -> Callable[[Setup], Any]:
    return lambda setup: named(setup.sampler_mesh, specs)


BEGIN = DeviceStage(
    "beginning to decode",
    timer="generate",
    takes=("sampler", "prefix", "asked"),
    gives=("decoding",),
    function=_make_begin,
    on_shards=False,
    out_shardings=_shardings(_LOOP_SPECS),
)
GO_ON = DeviceStage(
    "decoding on",
    timer="generate",
    takes=("sampler", "prefix", "asked", "decoding", "going", "until", "forbidden_mask", "key"),
    gives=("decoding", "progress"),
    function=_make_go_on,
    on_shards=False,
    out_shardings=_shardings(_GIVEN_SPECS),
    donates=("decoding",),
    unpack=lambda output, values: dict(zip(("decoding", "progress"), output, strict=True)),
)
# Where the values lie that the host gives, in the sampler's mesh.
PLACES: dict[str, PartitionSpec] = {"asked": ROWS, "going": ROWS, "until": WHOLE}
