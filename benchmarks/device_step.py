"""A CARE step on the devices alone: the table of step.py, with made-up values in place of what its host stages give.

Prompts are random tokens around one square image of noise. The verdicts are always the same: the first rollout of a
prompt and its repair are right, the others are wrong; half of a response is rationale, the rest answer. So every
group is mixed, has K failures and is repaired once, which is the case that costs CARE most. No response stops before R
tokens, because the ids that stop one are forbidden. Needs no tokenizer, image file or data set.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks.step import make_reflection, make_verdicts
from care_jax import step
from care_jax.inputs.positions import PatchLayout, mrope_position_ids, patch_tables
from care_jax.models import ModelConfig, init_model
from care_jax.parallel import sharding
from care_jax.parallel.mesh import create_device_mesh
from care_jax.planning.estimate import planned_setup
from care_jax.stages.compiled import CompiledStages, compile_all
from care_jax.stages.keys import stage_key
from care_jax.stages.packing import PromptLengths, pack
from care_jax.stages.rollout import nothing_forced
from care_jax.stages.table import DeviceStage, HostStage, Setup
from care_jax.stages.train_state import TrainState
from care_jax.structs import Array, Forced, Packing, Prompts

_BEFORE_IMAGE = 4  # text tokens


def make_prompts(model: ModelConfig, *, num_prompts: int, prompt_len: int, image_side: int) -> Prompts:
    """Makes prompts of exactly `prompt_len` tokens.

    Args:
        model: the architecture that they are for.
        num_prompts: B.
        prompt_len: P, tokens with those of the image.
        image_side: tokens a side of the image; it has four times their number of patches.

    Returns:
        Prompts of NumPy arrays.
    """
    vision, rng = model.vision, np.random.default_rng(0)
    merge = vision.spatial_merge_size
    grid = (1, merge * image_side, merge * image_side)
    window = vision.window_size // merge // vision.patch_size
    tables = patch_tables(grid, PatchLayout(merge=merge, window=window, side=vision.grid_side))
    vision_index = np.full(prompt_len, -1, np.int32)
    vision_index[_BEFORE_IMAGE : _BEFORE_IMAGE + image_side**2] = tables.vision_index
    positions = mrope_position_ids(vision_index >= 0, [grid], [1.0], merge=merge)

    def for_each(x: np.ndarray) -> np.ndarray:
        return np.repeat(x[None], num_prompts, axis=0)

    return Prompts(
        token_ids=rng.integers(2, model.text.vocab_size, (num_prompts, prompt_len), np.int32),
        prompt_len=np.full(num_prompts, prompt_len, np.int32),
        position_ids=for_each(positions),
        next_position=np.full(num_prompts, positions.max() + 1, np.int32),
        vision_index=for_each(vision_index),
        patches=rng.integers(0, 256, (num_prompts, len(tables.window_ids), vision.frame_values), np.uint8),
        pixel_norm=np.full((num_prompts, 2, 3), 0.5, np.float32),
        patch_position_ids=for_each(tables.patch_position_ids),
        window_ids=for_each(tables.window_ids),
        image_ids=for_each(tables.frame_ids),
        grid_index=for_each(tables.grid_index),
        grid_weights=for_each(tables.grid_weights),
    )


class DeviceStep:
    """The compiled stages of a step on one device, and the training state that it goes on from.

    Args:
        config: the run's config; its buckets are one size each.
        model: the architecture and how it is computed.
        prompts: B prompts of these sizes.
        forced_len: tokens that a repair starts from.
        device: runs everything.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model: ModelConfig,
        prompts: Prompts,
        *,
        forced_len: int,
        device: jax.Device,
    ):
        """Compiles, then makes random weights; takes minutes for a large model."""
        mesh = create_device_mesh(dict.fromkeys(sharding.AXES, 1), [device])
        self.setup = dataclasses.replace(planned_setup(config, model, mesh), num_forced=forced_len)
        self.bucket = prompts.token_ids.shape[1], prompts.patches.shape[1]
        started = time.perf_counter()
        self.stages = CompiledStages(step.STEP, self.setup, [self.bucket])
        compile_all(self.stages)
        self.compile_seconds = time.perf_counter() - started
        self.state = _make_state(self.setup, model)
        self._prompts = prompts
        self._steps = 0
        stops = np.isin(np.arange(model.text.vocab_size), self.setup.stop_ids)
        self._start = {
            "unforced": self._put(jax.device_get(nothing_forced(len(prompts.prompt_len), self.setup.num_rollouts))),
            "forbidden_mask": sharding.put(mesh, stops, sharding.WHOLE),
        }

    def run(self) -> dict[str, float]:
        """Takes one step.

        Returns:
            The seconds of each device stage, by its name. What stands in for the host's stages is not counted.
        """
        values: dict[str, Any] = self._start | {"state": self.state, "params": self.state.params}
        seconds = {}
        for stage in self.stages.table.stages:
            if isinstance(stage, HostStage):
                values |= {name: self._put(self._made(name, values)) for name in stage.puts}
            else:
                values |= self._key(stage)
                jax.block_until_ready(values)
                started = time.perf_counter()
                values |= jax.block_until_ready(self.stages.run(stage, self.bucket, values))
                seconds[stage.name] = time.perf_counter() - started
            for name in self.stages.ends[stage.name]:
                values.pop(name, None)
        self.state = values["state"]
        self._steps += 1
        return seconds

    def _put(self, tree: Any) -> Any:
        return sharding.put(self.setup.mesh, tree)

    def _key(self, stage: DeviceStage) -> dict[str, jax.Array]:
        if stage.random is None:
            return {}
        return {"key": stage_key(self._steps, stage.random, seed=0, mesh=self.setup.mesh)}

    def _made(self, name: str, values: Mapping[str, Any]) -> Any:
        """The value that stands in for the one called `name` of a host stage."""
        match name:
            case "prompts":
                return self._prompts
            case "verdicts":
                return make_verdicts(*values["rollouts"].token_ids.shape)
            case "forced":  # the beginning of a failure
                token_ids = values["rollouts"].token_ids[:, 1:2, : self.setup.num_forced]
                everywhere = jnp.ones(token_ids.shape[:2], bool)
                return Forced(token_ids, jnp.full(everywhere.shape, token_ids.shape[-1], jnp.int32), everywhere)
            case "responses":
                return values["repaired"]
            case "repair_verdicts":
                return make_verdicts(*values["repaired"].token_ids.shape)
            case "rollout_packing":
                return self._packing(values["rollouts"].response_len)
            case "repair_packing":
                return self._packing(values["repaired"].response_len)  # the responses
            case "batch_packing":
                return self._packing(values["taught_len"], parts=self.setup.config.train.minibatches)
            case "reflection":
                verdicts = make_verdicts(*values["responses"].token_ids.shape)
                return make_reflection(values["responses"], verdicts, values["repair_scores"])
        raise ValueError(f"no made-up value for {name!r}, which a host stage of step.py gives; add one")

    def _packing(self, row_len: Array, *, parts: int = 1) -> Packing:
        """Streams of the rows whose length is not 0."""
        sizes = self.setup.stream_sizes(self.bucket, row_len.shape[1], parts=parts)
        return pack(sizes, PromptLengths.of(self._prompts), np.asarray(row_len))


def _make_state(setup: Setup, model: ModelConfig) -> TrainState:
    """Step 0 with random weights, made where it lies."""
    optimizer = setup.optimizer
    assert optimizer is not None

    def make(key: jax.Array) -> TrainState:
        params = init_model(model, key)
        return TrainState.start(params, optimizer)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, setup.state)
    state: TrainState = jax.jit(make, out_shardings=shardings)(jax.random.key(0))
    return state
