"""The architecture of a Qwen-VL model, and how it is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

MODEL_TYPES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
LAYER_TYPES = ("full_attention", "linear_attention")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Sizes are in patches or channels, `window_size` in pixels."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    out_hidden_size: int
    hidden_act: str
    rope_theta: float
    # Qwen2.5-VL
    window_size: int = 0  # 0: full attention in every block
    fullatt_block_indexes: tuple[int, ...] = ()
    tokens_per_second: float = 0.0  # M-RoPE positions of a second of video; 0: the text tells the time of each frame
    # Qwen3-VL
    num_position_embeddings: int = 0  # cells of the learned, square position grid; 0: there is none
    deepstack_visual_indexes: tuple[int, ...] = ()  # blocks whose features go to the decoder's first layers

    @property
    def window_len(self) -> int:
        """The most patches of a window."""
        return (self.window_size // self.patch_size) ** 2

    @property
    def merge_unit(self) -> int:
        """Patches of one merged token."""
        return self.spatial_merge_size**2

    @property
    def frame_values(self) -> int:
        """Values of one frame of a patch."""
        return self.in_channels * self.patch_size**2

    @property
    def patch_values(self) -> int:
        """Values of one flattened patch with all its frames."""
        return self.frame_values * self.temporal_patch_size

    @property
    def grid_side(self) -> int:
        """Cells a side of the learned position grid."""
        return round(self.num_position_embeddings**0.5)

    @property
    def grid_cells(self) -> int:
        """Cells of the learned position grid that a patch takes its position from."""
        return 4 if self.grid_side else 0


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int  # C, channels of a head
    hidden_act: str
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, ...]  # frequencies of time, height and width
    mrope_interleaved: bool  # the axes take turns frequency by frequency, not section by section
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool  # RMSNorm on each head of q and k
    tie_word_embeddings: bool
    # The kinds of a few layers, of LAYER_TYPES, which repeat to all layers.
    period: tuple[str, ...] = ("full_attention",)
    # Qwen3.5
    zero_centered_norm: bool = False  # norms multiply by 1 + weight
    output_gate: bool = False  # of full attention: its q_proj also makes a gate of each output
    partial_rotary_factor: float = 1.0  # share of a head's channels that is turned
    linear_conv_kernel_dim: int = 0  # taps; of linear attention, as what follows
    linear_key_head_dim: int = 0
    linear_value_head_dim: int = 0
    linear_num_key_heads: int = 0
    linear_num_value_heads: int = 0

    @property
    def rotary_dim(self) -> int:
        """The channels of a head that the rotary embedding turns."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def values_per_key(self) -> int:
        """Value heads that share a key head of linear attention."""
        return self.linear_num_value_heads // self.linear_num_key_heads

    @property
    def linear_channels(self) -> int:
        """Channels of q, k and v of all heads of linear attention."""
        return (
            2 * self.linear_num_key_heads * self.linear_key_head_dim
            + self.linear_num_value_heads * self.linear_value_head_dim
        )

    def layers_of(self, kind: str) -> tuple[int, ...]:
        """The numbers of the layers of a kind."""
        return tuple(i for i in range(self.num_hidden_layers) if self.period[i % len(self.period)] == kind)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The adapters beside the linears of a model."""

    rank: int
    alpha: float
    rank_stabilised: bool
    targets: tuple[str, ...]  # patterns of the linears' names

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> LoraConfig | None:
        """The adapters of a run's model.lora, or of what a checkpoint has recorded of it; None with rank 0."""
        return cls(**{**settings, "targets": tuple(settings["targets"])}) if settings["rank"] > 0 else None

    @property
    def scale(self) -> float:
        """The factor of an adapter's output."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Both towers, and how they are computed (the last six come from the run's config, not from config.json)."""

    model_type: str  # one of MODEL_TYPES
    vision: VisionConfig
    text: TextConfig
    compute_dtype: str = "float32"
    remat: str = "none"  # what of a layer is recomputed in the backward pass, one of options.REMAT
    attention: str = "xla"  # of full sequences, one of attention.IMPLEMENTATIONS
    freeze: tuple[str, ...] = ()  # parts that are not trained, some of options.GROUPS
    lora: LoraConfig | None = None  # adapters, which are then all that is trained
    scan_decoding: bool = True  # over all layers as one stack; else each large one is a stack alone (QwenVL.in_stacks)

    def decoder_needs(self) -> dict[str, int]:
        """Numbers of the decoder that the devices along `tensor` have to divide."""
        text = self.text
        linear = {f"{text.linear_num_key_heads} key heads of linear attention": text.linear_num_key_heads}
        return {
            f"{text.num_attention_heads} heads": text.num_attention_heads,
            f"{text.num_key_value_heads} key/value heads": text.num_key_value_heads,
            **(linear if "linear_attention" in text.period else {}),
            f"intermediate_size {text.intermediate_size}": text.intermediate_size,
            f"vocab_size {text.vocab_size}": text.vocab_size,
        }

    def mesh_needs(self, patch_buckets: Iterable[int]) -> dict[str, tuple[int, tuple[str, ...]]]:
        """Numbers that the axes of a mesh have to divide (parallel.mesh.Needs), with batches of these patch buckets."""
        text, vision = self.text, self.vision
        tokens = [size // vision.merge_unit for size in patch_buckets]
        adapters = {} if self.lora is None else {f"model.lora.rank {self.lora.rank}": (self.lora.rank, ("fsdp",))}
        return {
            **adapters,
            f"hidden_size {text.hidden_size}": (text.hidden_size, ("fsdp",)),
            f"the vision tower's hidden_size {vision.hidden_size}": (vision.hidden_size, ("fsdp",)),
            **{what: (count, ("tensor",)) for what, count in self.decoder_needs().items()},
            f"the vision tower's {vision.num_heads} heads": (vision.num_heads, ("tensor",)),
            **{f"{count} image tokens of data.patch_buckets": (count, ("tensor",)) for count in tokens},
        }
