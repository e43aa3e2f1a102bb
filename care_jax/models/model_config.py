"""The architecture of a Qwen-VL model, read from a Hugging Face config.json, as transformers reads it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from care_jax.errors import InputError, shown
from care_jax.models.layers import ACTIVATIONS
from care_jax.models.model_folder import Fields, read_fields

MODEL_TYPES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
LAYER_TYPES = ("full_attention", "linear_attention")
_MOST_LAYERS, _MOST_PATCH = 1024, 1024  # bounds that keep a broken file from being built
# The values of fields that a file leaves out: transformers 4.49 leaves out those at their default. Source: the
# configuration files of transformers 4.49 to 5.23, which agree.
_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "depth": 32,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu",
        "hidden_size": 3584,
        "in_channels": 3,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 4,
        "window_size": 112,
    },
    "qwen3_vl": {
        "deepstack_visual_indexes": [8, 16, 24],
        "depth": 27,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "in_channels": 3,
        "intermediate_size": 4304,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 3584,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "qwen3_5": {
        "depth": 27,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "in_channels": 3,
        "intermediate_size": 4304,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 3584,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "hidden_act": "silu",
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
    },
    "qwen3_vl": {
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e5,
        "tie_word_embeddings": False,
        "vocab_size": 151936,
    },
    "qwen3_5": {
        "attention_bias": False,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
        "vocab_size": 248320,
    },
}
_ROPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"mrope_interleaved": False, "mrope_section": [16, 24, 24]},
    "qwen3_vl": {"mrope_interleaved": True, "mrope_section": [24, 20, 20]},
    "qwen3_5": {"mrope_interleaved": True, "mrope_section": [11, 11, 10]},
}
_VISION_ROPE_DEFAULTS = {"rope_theta": 10000.0}  # fixed in Qwen's code; transformers 5 also writes it down


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


def load_model_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json`, in the hub's layout or in one that transformers 4 or 5 writes.

    Raises:
        InputError: no such file, no JSON, an unknown model_type or variant, a field (named) that is missing, of another
            type or out of bounds, or sizes that do not go together.
    """
    path = Path(folder) / "config.json"
    return parse_model_config(read_fields(path), str(path))


def parse_model_config(raw: dict[str, Any], where: str) -> ModelConfig:
    """Reads the object that a config.json holds; `where` names it in errors."""
    outer = Fields(raw, where)
    model_type = outer.one_of("model_type", MODEL_TYPES)
    vision, text = _read_vision(outer, model_type), _read_text(outer, model_type)
    has_windows = "window_size" in _VISION_DEFAULTS[model_type]
    laws = {
        "num_key_value_heads must divide num_attention_heads": text.num_attention_heads % text.num_key_value_heads == 0,
        "num_attention_heads must divide hidden_size": "head_dim" in _TEXT_DEFAULTS[model_type]
        or text.hidden_size % text.num_attention_heads == 0,
        "mrope_section must be three sizes that add up to half of a head's channels, or of those that turn": len(
            text.mrope_section
        )
        == 3
        and 2 * sum(text.mrope_section) == text.rotary_dim,
        "linear_num_key_heads must divide linear_num_value_heads": "linear_attention" not in text.period
        or text.linear_num_value_heads % text.linear_num_key_heads == 0,
        "some of layer_types must be full_attention": "full_attention" in text.period,
        "hidden_size of vision_config must be a multiple of 4 num_heads": vision.hidden_size % (4 * vision.num_heads)
        == 0,
        "out_hidden_size of vision_config must be hidden_size": vision.out_hidden_size == text.hidden_size,
        "window_size of vision_config must be at least a merged token": not has_windows
        or vision.window_size >= vision.patch_size * vision.spatial_merge_size,
    }
    if broken := [law for law, holds in laws.items() if not holds]:
        raise InputError(f"{where}: {'; '.join(broken)}; copy the file from the source checkpoint")
    return ModelConfig(model_type=model_type, vision=vision, text=text)


def _read_vision(outer: Fields, model_type: str) -> VisionConfig:
    vision = outer.sub("vision_config", defaults=_VISION_DEFAULTS[model_type])
    depth = vision.count("depth", most=_MOST_LAYERS)
    family: dict[str, Any]
    if "num_position_embeddings" in _VISION_DEFAULTS[model_type]:
        cells = vision.count("num_position_embeddings")
        has_deepstack = "deepstack_visual_indexes" in _VISION_DEFAULTS[model_type]
        indexes = vision.indexes("deepstack_visual_indexes") if has_deepstack else ()
        if list(indexes) != sorted(set(indexes)) or not all(index < depth for index in indexes):
            raise InputError(
                f"{vision.where} has deepstack_visual_indexes {shown(indexes)}; they must be ascending blocks"
            )
        if math.isqrt(cells) ** 2 != cells:
            raise InputError(f"{vision.where} has num_position_embeddings {cells}; it must be a square number")
        family = {"num_position_embeddings": cells, "deepstack_visual_indexes": indexes}
    else:
        family = {
            "window_size": vision.count("window_size"),
            "fullatt_block_indexes": vision.indexes("fullatt_block_indexes"),
            "tokens_per_second": vision.real("tokens_per_second"),
        }
    return VisionConfig(
        depth=depth,
        hidden_size=vision.count("hidden_size"),
        intermediate_size=vision.count("intermediate_size"),
        num_heads=vision.count("num_heads"),
        in_channels=vision.count("in_channels", most=_MOST_PATCH),
        patch_size=vision.count("patch_size", most=_MOST_PATCH),
        temporal_patch_size=vision.count("temporal_patch_size", most=_MOST_PATCH),
        spatial_merge_size=vision.count("spatial_merge_size", most=_MOST_PATCH),
        out_hidden_size=vision.count("out_hidden_size"),
        hidden_act=vision.one_of("hidden_act", tuple(ACTIVATIONS)),
        rope_theta=_rope_of(vision, _VISION_ROPE_DEFAULTS).real("rope_theta"),
        **family,
    )


def _read_text(outer: Fields, model_type: str) -> TextConfig:
    is_qwen3, defaults = model_type != "qwen2_5_vl", _TEXT_DEFAULTS[model_type]
    nested = is_qwen3 or outer.has("text_config")
    text = outer.sub("text_config", defaults=defaults) if nested else Fields(outer.values, outer.where, defaults)
    outside = {name: text.values[name] for name in ("rope_theta", "partial_rotary_factor") if text.has(name)}
    rope = _rope_of(text, {**outside, **_ROPE_DEFAULTS[model_type]})
    for name in ("rope_type", "type"):  # of transformers 5, and of the hub
        rope.one_of(name, ("default", "mrope", None))
    rope.one_of("mrope_interleaved", (is_qwen3,))
    text.one_of("use_sliding_window", (False, None))
    width, heads = text.count("hidden_size"), text.count("num_attention_heads")
    bias = text.one_of("attention_bias", (False, True)) if is_qwen3 else False
    # Nested text configs of some hub files contradict the outer flag; the outer one is right.
    tied = outer if outer.has("tie_word_embeddings") else text
    return TextConfig(
        vocab_size=text.count("vocab_size"),
        hidden_size=width,
        intermediate_size=text.count("intermediate_size"),
        num_hidden_layers=text.count("num_hidden_layers", most=_MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=text.count("num_key_value_heads") if text.has("num_key_value_heads") else heads,
        head_dim=text.count("head_dim") if is_qwen3 else width // heads,
        hidden_act=text.one_of("hidden_act", tuple(ACTIVATIONS)),
        rms_norm_eps=text.real("rms_norm_eps"),
        rope_theta=rope.real("rope_theta"),
        mrope_section=rope.indexes("mrope_section"),
        mrope_interleaved=is_qwen3,
        qkv_bias=bias or not is_qwen3,  # Qwen2.5-VL's code has it whatever config.json says
        o_bias=bias,
        qk_norm=is_qwen3,
        tie_word_embeddings=tied.one_of("tie_word_embeddings", (False, True)),
        **(_read_hybrid(text, rope) if "linear_key_head_dim" in defaults else {}),
    )


def _read_hybrid(text: Fields, rope: Fields) -> dict[str, Any]:
    """The fields of a decoder whose layers are of two kinds, as Qwen3.5's."""
    text.one_of("attn_output_gate", (True, None))
    layers = text.count("num_hidden_layers", most=_MOST_LAYERS)
    if text.has("layer_types"):
        kinds = text.words("layer_types", LAYER_TYPES)
    else:
        interval = text.count("full_attention_interval")
        kinds = tuple("full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(layers))
    if len(kinds) != layers:
        raise InputError(
            f"{text.where} has {len(kinds)} layer_types for num_hidden_layers {layers}; copy the file from the source "
            "checkpoint"
        )
    lengths = (length for length in range(1, layers + 1) if layers % length == 0)
    period = next(kinds[:length] for length in lengths if kinds == kinds[:length] * (layers // length))
    sizes = ("linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim")
    heads = ("linear_num_key_heads", "linear_num_value_heads")
    return {
        "period": period,
        "zero_centered_norm": True,
        "output_gate": True,
        "partial_rotary_factor": rope.real("partial_rotary_factor"),
        **{name: text.count(name) for name in (*sizes, *heads)},
    }


def _rope_of(tower: Fields, defaults: dict[str, Any]) -> Fields:
    """The object with a tower's rotary settings, under the name of transformers 4 or 5; an empty one if it has none."""
    has_one = tower.has("rope_scaling") or tower.has("rope_parameters")
    return (
        tower.sub("rope_scaling", "rope_parameters", defaults=defaults)
        if has_one
        else Fields({}, tower.where, defaults)
    )
