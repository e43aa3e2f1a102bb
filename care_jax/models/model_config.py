"""The architecture of a Qwen-VL model, read from a Hugging Face config.json. A missing key is an error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from care_jax.errors import InputError
from care_jax.models.layers import ACTIVATIONS

MODEL_TYPES = ("qwen2_5_vl", "qwen3_vl")
_VISION_ROPE_THETA = 10000.0  # fixed in Qwen's code; transformers 5 also writes it down


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
    def patch_values(self) -> int:
        """F, values of one flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

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


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Both towers, and how they are computed (the last five come from the run's config, not from config.json)."""

    model_type: str  # one of MODEL_TYPES
    vision: VisionConfig
    text: TextConfig
    compute_dtype: str = "float32"
    remat: str = "none"  # what of a layer is recomputed in the backward pass, one of options.REMAT
    attention: str = "xla"  # of full sequences, one of attention.IMPLEMENTATIONS
    freeze_vision: bool = False  # no gradient into the vision tower
    scan_decoding: bool = True  # over all layers as one stack; else each large one is a stack alone (QwenVL.in_stacks)

    def mesh_needs(self, patch_buckets: Iterable[int]) -> dict[str, tuple[int, tuple[str, ...]]]:
        """Numbers that the axes of a mesh have to divide (parallel.mesh.Needs), with batches of these patch buckets."""
        text, vision = self.text, self.vision
        tokens = [size // vision.merge_unit for size in patch_buckets]
        return {
            f"hidden_size {text.hidden_size}": (text.hidden_size, ("fsdp",)),
            f"the vision tower's hidden_size {vision.hidden_size}": (vision.hidden_size, ("fsdp",)),
            f"{text.num_attention_heads} heads": (text.num_attention_heads, ("tensor",)),
            f"{text.num_key_value_heads} key/value heads": (text.num_key_value_heads, ("tensor",)),
            f"the vision tower's {vision.num_heads} heads": (vision.num_heads, ("tensor",)),
            f"intermediate_size {text.intermediate_size}": (text.intermediate_size, ("tensor",)),
            f"vocab_size {text.vocab_size}": (text.vocab_size, ("tensor",)),
            **{f"{count} image tokens of data.patch_buckets": (count, ("tensor",)) for count in tokens},
        }


class _Fields:
    """Reads fields of a JSON object; a missing one is an error that names file and field."""

    def __init__(self, values: dict[str, Any], where: str):
        self.values, self.where = values, where

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise InputError(f"{self.where} has no field {name!r}; it is needed to build the model")
        return self.values[name]

    def first(self, *names: str) -> Any:
        """The field under the first of its names that is there (the hub and transformers 5 differ)."""
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        return self[names[0]]

    def sub(self, *names: str) -> _Fields:
        """The JSON object in a field, under the first of its names that is there."""
        return _Fields(self._typed("an object", lambda x: isinstance(x, dict), *names), f"{self.where} ({names[0]})")

    def count(self, *names: str) -> int:
        """A whole number from 1 up."""
        return self._typed("a whole number from 1 up", lambda x: type(x) is int and x > 0, *names)

    def real(self, *names: str) -> float:
        """A number above 0."""
        return self._typed("a number above 0", lambda x: type(x) in (int, float) and x > 0, *names)

    def indexes(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers from 0 up."""
        return tuple(
            self._typed(
                "a list of whole numbers",
                lambda x: isinstance(x, list) and all(type(each) is int and each >= 0 for each in x),
                name,
            )
        )

    def _typed(self, kind: str, is_kind: Callable[[Any], bool], *names: str) -> Any:
        value = self.first(*names)
        if not is_kind(value):
            raise InputError(f"{self.where} has {names[0]} {value!r}; it must be {kind}")
        return value

    def one_of(self, name: str, allowed: tuple[Any, ...], *, missing: Any = None) -> Any:
        """A field that must have one of the values `allowed`; where it is not there, `missing`, if that is given."""
        value = self[name] if missing is None else self.values.get(name, missing)
        if value not in allowed:
            raise InputError(f"{self.where} has {name} {value!r}; supported: {', '.join(map(repr, allowed))}")
        return value


def load_model_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json`, in the hub's layout or the one transformers 5 writes.

    Raises:
        InputError: no such file, no JSON, an unknown model_type or variant, a field (named) that is missing or of
            another type, or sizes that do not go together.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(f"no config.json in {folder}; give the folder of a Hugging Face Qwen-VL model")
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); copy it from the source checkpoint") from error
    return parse_model_config(raw, str(path))


def parse_model_config(raw: dict[str, Any], where: str) -> ModelConfig:
    """Reads the object that a config.json holds; `where` names it in errors."""
    outer = _Fields(raw, where)
    model_type = outer.one_of("model_type", MODEL_TYPES)
    is_qwen3 = model_type == "qwen3_vl"
    vision = _read_vision(outer.sub("vision_config"), is_qwen3)
    text = _read_text(outer, is_qwen3)
    laws = {
        "num_key_value_heads must divide num_attention_heads": text.num_attention_heads % text.num_key_value_heads == 0,
        "mrope_section must be three sizes that add up to half of a head's channels": len(text.mrope_section) == 3
        and 2 * sum(text.mrope_section) == text.head_dim,
        "hidden_size of vision_config must be a multiple of 4 num_heads": vision.hidden_size % (4 * vision.num_heads)
        == 0,
        "out_hidden_size of vision_config must be hidden_size": vision.out_hidden_size == text.hidden_size,
    }
    if broken := [law for law, holds in laws.items() if not holds]:
        raise InputError(f"{where}: {'; '.join(broken)}; copy the file from the source checkpoint")
    return ModelConfig(model_type=model_type, vision=vision, text=text)


def _read_vision(vision: _Fields, is_qwen3: bool) -> VisionConfig:
    rope = vision.values.get("rope_parameters") or {}
    family: dict[str, Any]
    if is_qwen3:
        indexes, cells = vision.indexes("deepstack_visual_indexes"), vision.count("num_position_embeddings")
        if list(indexes) != sorted(set(indexes)) or not all(index < vision.count("depth") for index in indexes):
            raise InputError(f"{vision.where} has deepstack_visual_indexes {indexes}; they must be ascending blocks")
        if round(cells**0.5) ** 2 != cells:
            raise InputError(f"{vision.where} has num_position_embeddings {cells}; it must be a square number")
        family = {"num_position_embeddings": cells, "deepstack_visual_indexes": indexes}
    else:
        family = {
            "window_size": vision.count("window_size"),
            "fullatt_block_indexes": vision.indexes("fullatt_block_indexes"),
            "tokens_per_second": vision.real("tokens_per_second"),
        }
    return VisionConfig(
        depth=vision.count("depth"),
        hidden_size=vision.count("hidden_size"),
        intermediate_size=vision.count("intermediate_size"),
        num_heads=vision.count("num_heads"),
        in_channels=vision.count("in_channels", "in_chans"),
        patch_size=vision.count("patch_size"),
        temporal_patch_size=vision.count("temporal_patch_size"),
        spatial_merge_size=vision.count("spatial_merge_size"),
        out_hidden_size=vision.count("out_hidden_size"),
        hidden_act=vision.one_of("hidden_act", tuple(ACTIVATIONS)),
        rope_theta=rope.get("rope_theta", _VISION_ROPE_THETA),
        **family,
    )


def _read_text(outer: _Fields, is_qwen3: bool) -> TextConfig:
    text = outer.sub("text_config") if is_qwen3 or "text_config" in outer.values else outer
    rope = text.sub("rope_scaling", "rope_parameters")
    for name in ("rope_type", "type"):  # of transformers 5, and of the hub
        rope.one_of(name, ("default", "mrope"), missing="default")
    rope.one_of("mrope_interleaved", (is_qwen3,), missing=is_qwen3)
    text.one_of("use_sliding_window", (False, None), missing=False)
    width, heads = text.count("hidden_size"), text.count("num_attention_heads")
    bias = text.one_of("attention_bias", (False, True)) if is_qwen3 else False
    return TextConfig(
        vocab_size=text.count("vocab_size"),
        hidden_size=width,
        intermediate_size=text.count("intermediate_size"),
        num_hidden_layers=text.count("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=text.count("num_key_value_heads"),
        head_dim=text.count("head_dim") if is_qwen3 else width // heads,
        hidden_act=text.one_of("hidden_act", tuple(ACTIVATIONS)),
        rms_norm_eps=text.real("rms_norm_eps"),
        rope_theta=(rope if "rope_theta" in rope.values else text).real("rope_theta"),
        mrope_section=rope.indexes("mrope_section"),
        mrope_interleaved=is_qwen3,
        qkv_bias=bias or not is_qwen3,  # Qwen2.5-VL's code has it whatever config.json says
        o_bias=bias,
        qk_norm=is_qwen3,
        # Nested text configs of some hub files contradict the outer flag; the outer one is right.
        tie_word_embeddings=outer.one_of("tie_word_embeddings", (False, True)),
    )
