"""The training state, and how it is divided among devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Int32

from care_jax.models import QwenVL
from care_jax.models.trained import partition
from care_jax.parallel.sharding import WHOLE, param_specs
from care_jax.structs import Array


@struct.dataclass
class TrainState:
    """All that training carries from step to step; a checkpoint holds it beside the data iterator."""

    step: Int32[Array, ""]  # batches of prompts trained on; each is train.minibatches optimizer updates
    params: QwenVL  # a module is a pytree
    opt_state: Any  # of the trained part of the params; optax.OptState, whose recursive type no checker can resolve

    @classmethod
    def start(cls, params: QwenVL, optimizer: optax.GradientTransformation) -> TrainState:
        """The state before the first step."""
        return cls(step=jnp.int32(0), params=params, opt_state=optimizer.init(partition(params)[0]))


def state_specs(state: TrainState) -> TrainState:
    """PartitionSpecs of a training state."""
    whole: Any = WHOLE
    return dataclasses.replace(
        state, step=whole, params=param_specs(state.params), opt_state=param_specs(state.opt_state)
    )
