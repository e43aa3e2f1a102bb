"""A device function compiled ahead of time, once for every bucket.

A call outside the buckets is an error and not a silent compilation (a new image size costs minutes on a TPU).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from absl import logging
from jax.sharding import Mesh

from care_jax.parallel.sharding import named, on_shards
from care_jax.structs import Prompts

Bucket = tuple[int, int]  # prompt tokens, patches
EVERY_BUCKET = (0, 0)  # of a program whose shapes do not depend on the prompts


def bucket_of(prompts: Prompts) -> Bucket:
    """The bucket a batch was padded to."""
    return prompts.token_ids.shape[1], prompts.patches.shape[1]


def all_buckets(config: ml_collections.ConfigDict) -> list[Bucket]:
    """Every pair of a prompt and a patch bucket."""
    return list(itertools.product(config.data.prompt_buckets, config.data.patch_buckets))


class Program:
    """A function compiled ahead of time for the shapes and shardings of its arguments, once for every bucket.

    Args:
        name: what logs and plans call it.
        function: arrays to arrays.
        mesh: the devices.
        specs: makes the PartitionSpecs of arguments and results from the arguments, as `sharding.on_shards` takes
            them: the function then runs on each device's part. Without it the function sees whole arrays.
        out_shardings: how the results of a function without `specs` are divided.
        donate: arguments whose memory the results may take.
    """

    def __init__(
        self,
        name: str,
        function: Callable,
        mesh: Mesh,
        *,
        specs: Callable[..., tuple[tuple, Any]] | None = None,
        out_shardings: Any = None,
        donate: tuple[int, ...] = (),
    ):
        """See the class; nothing is compiled yet."""
        self.name = name
        self._mesh, self._specs, self._out_shardings = mesh, specs, out_shardings
        if specs is not None:
            function = on_shards(mesh, function, specs)
        self._jitted = jax.jit(function, donate_argnums=donate, out_shardings=out_shardings)
        self._compiled: dict[Bucket, Any] = {}

    def compile(self, bucket: Bucket, *args: Any) -> None:
        """Compiles for the shapes and shardings of `args`, which are arrays or ShapeDtypeStructs."""
        started = time.time()
        self._compiled[bucket] = self.lower(*args).compile()
        logging.info("compiled %s for %d tokens, %d patches in %.1f s", self.name, *bucket, time.time() - started)

    def is_compiled(self, bucket: Bucket) -> bool:
        """True once `compile` has run for the bucket."""
        return bucket in self._compiled

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """The program for the shapes and shardings of `args`, traced and not yet compiled."""
        return self._jitted.lower(*args)

    def output(self, *args: Any) -> Any:
        """Shapes and shardings of the result for those of `args`; nothing is compiled."""
        shapes = jax.eval_shape(self._jitted, *args)
        shardings = self._out_shardings
        if self._specs is not None:
            shardings = named(self._mesh, self._specs(*args)[1])
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            jax.tree.broadcast(shardings, shapes),
        )

    def __call__(self, bucket: Bucket, *args: Any) -> Any:
        """The result for arguments of a compiled bucket."""
        return self._compiled[bucket](*args)
