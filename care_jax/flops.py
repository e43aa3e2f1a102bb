"""How much a step must compute and read, counted from the architecture and the run's sizes alone.

Counts are of full buckets: every prompt of P tokens and I patches in one image, every response of R tokens, a forced
prefix included. A matrix product of m x k by k x n has 2 m k n FLOPs; a query and a key that meet have 4 C a head (the
score and its share of the value). Norms, activations and rotations, about one per cent, are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ml_collections

from care_jax.chips import Chip
from care_jax.models import ModelConfig, abstract_model, params_to_dict
from care_jax.programs import Bucket

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class Work:
    """What one stage of a step needs, over all chips."""

    tokens: int  # of the decoder
    flops: float  # each product once; of an update also those of the backward pass
    recomputed: float  # FLOPs of products that the backward pass computes again
    parameter_bytes: (
        float  # read of parameters, and read and written of the optimizer's state, where nothing is divided
    )
    cache_bytes: float  # read of keys and values while decoding


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the counts depend on, of a model, a run and one bucket."""

    model: ModelConfig
    params: dict[str, int]  # numbers of every parameter, by name
    bucket: Bucket
    prompts: int  # B
    num_rollouts: int  # G
    num_rows: int  # S, of a subgroup
    response_len: int  # R
    pieces: int  # micro-batches of a step
    minibatches: int

    @classmethod
    def of(cls, config: ml_collections.ConfigDict, model: ModelConfig, bucket: Bucket) -> Sizes:
        """The sizes of a run."""
        objective, train = config.objective, config.train
        params = params_to_dict(abstract_model(model))
        return cls(
            model=model,
            params={name: leaf.size for name, leaf in params.items()},
            bucket=bucket,
            prompts=train.prompts,
            num_rollouts=config.rollout.num_rollouts,
            num_rows=objective.num_negatives + 1 if objective.anchored else config.rollout.num_rollouts,
            response_len=config.rollout.response_len,
            pieces=train.minibatches * train.microbatches,
            minibatches=train.minibatches,
        )

    def count(self, *prefixes: str, kernels: bool = False) -> int:
        """Parameters under any of the prefixes; the matrices alone."""
        return sum(
            size
            for name, size in self.params.items()
            if name.startswith(prefixes) and (name.endswith("kernel") or not kernels)
        )

    @property
    def head(self) -> int:
        """Parameters of the LM head, its own or the embedding table."""
        text = self.model.text
        return text.vocab_size * text.hidden_size

    def vision_flops(self) -> float:
        """The vision tower over the patches of one prompt."""
        vision, patches = self.model.vision, self.bucket[1]
        full = len(vision.fullatt_block_indexes) if vision.window_size else vision.depth
        pairs = patches * (patches * full + min(patches, vision.window_len) * (vision.depth - full))
        of_patches = self.count("visual.patch_embed.", "visual.blocks.", kernels=True)
        of_tokens = self.count("visual.merger.", "visual.deepstack_merger_list.", kernels=True)
        return 2 * patches * (of_patches + of_tokens / vision.merge_unit) + 4 * vision.hidden_size * pairs

    def prompt_flops(self) -> float:
        """The decoder over one prompt."""
        length = self.bucket[0]
        return self._decoder_flops(length, length * (length + 1) / 2)

    def branch_flops(self) -> float:
        """The decoder over one response, which sees its prompt."""
        prompt, length = self.bucket[0], self.response_len
        return self._decoder_flops(length, length * prompt + length * (length + 1) / 2)

    def _decoder_flops(self, tokens: int, pairs: float) -> float:
        text = self.model.text
        attended = 4 * text.num_attention_heads * text.head_dim * text.num_hidden_layers * pairs
        return 2 * tokens * self.count("layers.", kernels=True) + attended

    def head_flops(self) -> float:
        """The LM head over one response."""
        return 2 * self.response_len * self.head

    @property
    def weight_bytes(self) -> int:
        """Of one parameter, in the type it is computed with."""
        return _BYTES[self.model.compute_dtype]

    def key_bytes(self, tokens: int) -> int:
        """Keys and values of so many tokens, all layers."""
        text = self.model.text
        per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        return tokens * per_token * _BYTES[self.model.compute_dtype]


def step_work(sizes: Sizes, *, reflects: bool, kl: bool, scores: bool) -> dict[str, Work]:
    """The stages of a step, by the names of their programs; the last three say which of the optional ones there are."""
    length, prompts = sizes.response_len, sizes.prompts
    whole = sizes.count("") * sizes.weight_bytes

    def passes(rows: int) -> Work:
        """Prompt and `rows` full branches of each prompt in one forward pass."""
        flops = sizes.vision_flops() + sizes.prompt_flops() + rows * (sizes.branch_flops() + sizes.head_flops())
        tokens = sizes.bucket[0] + rows * length
        return Work(prompts * tokens, prompts * flops, 0, whole, 0)

    def decodes(rows: int) -> Work:
        """`rows` branches of each prompt, a token at a time."""
        weights = (sizes.count("layers.", "norm.") + sizes.head) * sizes.weight_bytes
        keys = sizes.key_bytes(sizes.bucket[0]) * length + rows * sizes.key_bytes(length * (length + 1) // 2)
        flops = rows * (sizes.branch_flops() + sizes.head_flops())
        return Work(prompts * rows * length, prompts * flops, 0, weights * length, prompts * keys)

    forward = passes(sizes.num_rows)
    vision = prompts * sizes.vision_flops()
    trained = forward.flops - (vision if sizes.model.freeze_vision else 0)
    head = prompts * sizes.num_rows * sizes.head_flops()
    remat = trained if sizes.model.remat else head  # chunks of the head are recomputed in any case
    update = Work(
        tokens=forward.tokens,
        flops=forward.flops + 2 * trained,
        recomputed=remat,
        # Weights once a pass; then parameter, gradient and Adam's two moments are read, all but the gradient written.
        parameter_bytes=sizes.pieces * 2 * whole + sizes.minibatches * 7 * 4 * sizes.count(""),
        cache_bytes=0,
    )
    prefill = Work(prompts * sizes.bucket[0], prompts * (sizes.vision_flops() + sizes.prompt_flops()), 0, whole, 0)
    stages = {"prefill": prefill, "rollout": decodes(sizes.num_rollouts)}
    if scores:
        stages["score"] = passes(sizes.num_rollouts)
    if reflects:
        stages |= {"reflect": decodes(1), "score of reflections": passes(1)}
    if kl:
        stages["reference"] = passes(sizes.num_rows)
    return stages | {"update": update}


def floors(work: Work, chip: Chip, mesh: Mapping[str, int]) -> dict[str, float]:
    """Seconds that a stage takes at the least, were it bound by FLOPs alone or by reading HBM alone.

    Each chip reads the parameters that it uses, which are divided over tensor alone, and its own part of the cache.
    """
    num_chips = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
    read = work.parameter_bytes / mesh["tensor"] + work.cache_bytes / num_chips
    return {
        "compute": (work.flops + work.recomputed) / (num_chips * chip.peak_flops),
        "memory": read / chip.hbm_bytes_per_s,
    }
