"""The sizes of a model and a run: parameters, bytes, and the products of one prompt, branch or response.

They are those of full buckets, as in flops.py, which counts a step from them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from care_jax import step
from care_jax.models import ModelConfig, QwenVL, abstract_model
from care_jax.models.trained import is_trained, partition
from care_jax.parallel.sharding import is_matrix, map_params, mesh_axes
from care_jax.planning.passes import Backward
from care_jax.stages.packing import stream_patches
from care_jax.stages.table import Bucket

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a model, a run and one bucket, on which the counts depend."""

    model: ModelConfig
    params: QwenVL  # shapes in place of arrays
    bucket: Bucket
    prompts: int  # B
    num_rollouts: int  # G
    num_rows: int  # S, of a subgroup
    response_len: int  # R
    stream_len: int  # tokens of a stream
    minibatches: int
    mesh: dict[str, int]
    sampler: QwenVL  # as decoding reads it, shapes in place of arrays
    decode_tensor: int  # chips that divide the model while decoding

    @classmethod
    def of(
        cls, config: ml_collections.ConfigDict, model: ModelConfig, bucket: Bucket, mesh: Mapping[str, int]
    ) -> Sizes:
        """The sizes of a run."""
        train, params = config.train, abstract_model(model)
        sampler = functools.partial(QwenVL.for_sampling, weights=config.rollout.weights)
        return cls(
            model=model,
            params=params,
            bucket=bucket,
            prompts=train.prompts,
            num_rollouts=config.rollout.num_rollouts,
            num_rows=step.num_updated(config),
            response_len=config.rollout.response_len,
            stream_len=train.stream_len,
            minibatches=train.minibatches,
            mesh=dict(mesh),
            sampler=jax.eval_shape(sampler, params),
            decode_tensor=config.rollout.tensor or mesh["tensor"],
        )

    @property
    def num_chips(self) -> int:
        """Chips of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def num_params(self) -> int:
        """Parameters of the whole model."""
        return _count(self.params)

    @property
    def num_trained(self) -> int:
        """Parameters that are trained."""
        return _count(partition(self.params)[0])

    @functools.cached_property
    def backward(self) -> Backward:
        """The work of a backward pass, by what is trained."""
        model, trained = self.params, partition(self.params)[0]

        def share(module: Any, of: Any) -> float:
            return _count_in_matrices(module) / _count_in_matrices(of)

        tower = share(trained.visual, model.visual)
        tower += 1.0 if is_trained(model.visual.parts()[0]) else tower
        reaches_layers = is_trained((model.visual, model.embed_tokens, model.layers))
        layers = share(trained.layers, model.layers) + (1.0 if reaches_layers else 0.0)
        reaches_head = reaches_layers or is_trained(model.norm)
        head = (1.0 if is_trained(model.head) else 0.0) + (1.0 if reaches_head else 0.0)
        return Backward(tower, layers, head)

    @property
    def decode_bytes(self) -> int:
        """Bytes of parameters that decoding reads for each token: decoder and head, but of an embedding only rows."""
        return count_bytes((self.sampler.layers, self.sampler.norm, self.sampler.head))

    @property
    def sampler_bytes(self) -> int:
        """Bytes of the parameters that the sampler holds: all but the vision tower's."""
        return count_bytes(self.sampler)

    @property
    def head(self) -> int:
        """Parameters of the LM head, its own or the embedding table."""
        text = self.model.text
        return text.vocab_size * text.hidden_size

    def vision_flops(self) -> float:
        """The vision tower over the patches of one prompt."""
        patches = self.bucket[1]
        return self.tower_flops(patches, patches**2, patches * min(patches, self.model.vision.window_len))

    def tower_flops(self, patches: float, frame_pairs: float, window_pairs: float) -> float:
        """The vision tower over patches, of which so many pairs lie in one image or frame, and in one window."""
        vision = self.model.vision
        full = len(vision.fullatt_block_indexes) if vision.window_size else vision.depth
        pairs = frame_pairs * full + window_pairs * (vision.depth - full)
        of_patches, of_tokens = (_count_in_matrices(modules) for modules in self.params.visual.parts())
        return 2 * patches * (of_patches + of_tokens / vision.merge_unit) + 4 * vision.hidden_size * pairs

    def prompt_flops(self) -> float:
        """The decoder over one prompt."""
        length = self.bucket[0]
        return self.decoder_flops(length, length * (length + 1) / 2)

    def branch_flops(self) -> float:
        """The decoder over one response, which sees its prompt."""
        prompt, length = self.bucket[0], self.response_len
        return self.decoder_flops(length, length * prompt + length * (length + 1) / 2)

    def decoder_flops(self, tokens: float, pairs: float) -> float:
        """The decoder over tokens, of which so many pairs of a query and a key meet; the LM head is not counted."""
        text = self.model.text
        full, linear = self._num_full_layers, text.num_hidden_layers - self._num_full_layers
        attended = 4 * text.num_attention_heads * text.head_dim * full * pairs
        recurred = 6 * self._state_size * linear * tokens
        return 2 * tokens * _count_in_matrices(self.params.layers) + attended + recurred

    def head_flops(self) -> float:
        """The LM head over one response."""
        return 2 * self.response_len * self.head

    @property
    def weight_bytes(self) -> int:
        """Bytes of one parameter in the type it is computed with."""
        return _BYTES[self.model.compute_dtype]

    def key_bytes(self, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens in all layers of full attention."""
        text = self.model.text
        per_token = 2 * self._num_full_layers * text.num_key_value_heads * text.head_dim
        return tokens * per_token * _BYTES[self.model.compute_dtype]

    @property
    def state_bytes(self) -> int:
        """Bytes of a sequence's states in all layers of linear attention."""
        text = self.model.text
        linear = text.num_hidden_layers - self._num_full_layers
        conv = max(text.linear_conv_kernel_dim - 1, 0) * text.linear_channels * self.weight_bytes
        return linear * (conv + 4 * self._state_size)

    def cache_bytes(self, keys: float, tokens: float) -> float:
        """Bytes of so many keys and their values, and of states, read and written, for so many decoded tokens."""
        return keys * self.key_bytes(1) + 2 * tokens * self.state_bytes

    @property
    def _num_full_layers(self) -> int:
        return len(self.model.text.layers_of("full_attention"))

    @property
    def _state_size(self) -> int:
        """Numbers in the states of one layer of linear attention."""
        text = self.model.text
        return text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim

    def num_streams(self, rows: int, parts: int = 1) -> int:
        """Streams that each shard has for all prompts with `rows` rows each; parts take turns of the prompts."""
        groups = self.prompts / parts / self.row_shards
        return parts * math.ceil(groups * (self.bucket[0] + rows * self.response_len) / self.stream_len)

    @property
    def micro_batches(self) -> int:
        """Streams of an update on each shard."""
        return self.num_streams(self.num_rows, self.minibatches)

    def activation_bytes(self) -> int:
        """Bytes that a chip keeps of one stream's forward pass if layers are recomputed: the layers' inputs."""
        text, vision = self.model.text, self.model.vision
        of_decoder = text.num_hidden_layers * self.stream_len * text.hidden_size
        patches = stream_patches(self.stream_len, self.bucket, self.response_len)
        of_tower = vision.depth * patches * vision.hidden_size // self.mesh["tensor"]
        return (of_decoder + of_tower) * self.weight_bytes

    @property
    def row_shards(self) -> int:
        """The number of parts that prompts are divided into."""
        return self.mesh["data"] * self.mesh["fsdp"]

    def gathered_bytes(self, *modules: Any) -> float:
        """Bytes that a chip receives when fsdp gathers the parameters of modules in the type they are computed with."""
        num_parts = self.mesh["fsdp"]

        def received(axes: tuple[str, ...], x: Any) -> float:
            divided_by = mesh_axes(axes)
            return x.size / (self.mesh["tensor"] if "tensor" in divided_by else 1) if "fsdp" in divided_by else 0

        return self.weight_bytes * sum(jax.tree.leaves(map_params(received, modules))) * (num_parts - 1) / num_parts

    def gathered_modules(self, model: QwenVL) -> tuple[Any, ...]:
        """Modules whose parameters are gathered for a forward pass: all but a table that is only looked up."""
        table = model.embed_tokens if self.model.text.tie_word_embeddings else None
        return table, model.layers, model.lm_head, model.norm, model.visual

    def fsdp_minimum(self) -> float:
        """Bytes that a chip must receive in an update.

        For every micro-batch the parameters once, those of layers that are recomputed twice, and float32 gradients of
        what is trained once.
        """
        once = self.gathered_bytes(*self.gathered_modules(self.params))
        gradients = 4 / self.weight_bytes * self.gathered_bytes(*self.gathered_modules(partition(self.params)[0]))
        again = self.gathered_bytes(self.params.layers, self.params.visual) if self.model.remat != "none" else 0
        return self.micro_batches * (once + gradients + again)

    def summed_bytes(self, tokens: float, sums: int, parts: int | None = None) -> float:
        """Bytes that a chip receives when `parts` chips add up `sums` [tokens, D] arrays in every layer of the decoder.

        None: those of the mesh's tensor.
        """
        parts, text = parts or self.mesh["tensor"], self.model.text
        size = tokens * parts / self.num_chips * text.hidden_size * self.weight_bytes
        return sums * text.num_hidden_layers * size * 2 * (parts - 1) / parts


def _count(tree: Any) -> int:
    """Numbers in all arrays of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def count_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _count_in_matrices(tree: Any) -> int:
    """Numbers in the matrices alone; each is a product and a sum for every token."""
    return sum(jax.tree.leaves(map_params(lambda axes, x: x.size if is_matrix(axes) else 0, tree)))
