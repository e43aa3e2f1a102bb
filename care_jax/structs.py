"""The arrays that travel between the stages, and the one key to their dimensions.

Dimension key (a letter means the same thing everywhere in the project):

    B prompts of a batch          G rollouts of a prompt       S rows of a subgroup (K + positives, or G)
    K target negatives            M pre-selected neighbours    J branches of a forward pass (any count)
    P prompt tokens, padded       R response tokens, padded    T tokens of one stream
    A streams of a packing
    W forced tokens of a branch   D hidden width               V vocabulary
    L layers                      H query heads                N key/value heads
    C channels of a head          I patches of a prompt        Q queries a key/value head (H = N * Q)
    U merged patches (I / 4)      X grid cells of a patch      F values of a patch (channels * frames * height * width)
    O axes of a position (2, 3)   Y rotary frequencies         Z what a row is compared with (a query's keys)
    E decoder layers that get deepstack features (Qwen3-VL)

The annotation of a field is the one place that states its shape and dtype. `abstract` and `zeros` make any struct
from its annotations; the tests check the annotations of structs and functions on every call (tests/shape_checks.py).
Masks come from lengths, never from comparing ids. Prompts and responses are padded on the right.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from flax import struct
from jaxtyping import AbstractArray, Bool, Float, Float32, Int32, UInt8

Array = jax.Array | np.ndarray  # on the device, or its copy on the host


@dataclasses.dataclass(frozen=True)
class Video:
    """The frames that the model sees, already sampled from the recording."""

    frames: tuple[bytes, ...]  # encoded like images, all of one size
    fps: float  # frames per second of the recording


@dataclasses.dataclass(frozen=True)
class Record:
    """A question about images or videos with a verifiable answer. Every reader of data ends here.

    `prompt` holds one literal "<image>" for each entry of `images` and one "<video>" for each entry of `videos`, in
    order.
    """

    id: str
    source: str  # skill or data set; metrics and the report group by it
    prompt: str
    images: tuple[bytes, ...]  # encoded as found on disk (PNG, JPEG, ...)
    answer: str
    answer_kind: str  # one of verifiers.ANSWER_KINDS or module:function, from the data, never guessed from the answer
    choices: tuple[str, ...] | None = None  # option texts, for answer_kind "choice"
    rationale: str | None = None  # text of the think block, for the cold start
    draft: str | None = None  # a wrong rationale shown before the cue; the cold start has no loss on it
    videos: tuple[Video, ...] = ()
    meta: str | None = None  # a JSON object, for reward functions; the model never sees it


class Outcome(enum.IntEnum):
    """The outcome of a prompt's G rollouts. Decided once, by `subgroup.classify`."""

    ALL_WRONG = 0
    MIXED = 1
    ALL_CORRECT = 2


@struct.dataclass
class Prompts:
    """Prompts with their images as tables; everything that depends on the data is made on the host.

    Patches lie in window order, in units of one merged token (`spatial_merge_size` squared rows), so
    no permutation runs on the device: `vision_index` names the merged row of each image token.
    """

    token_ids: Int32[Array, "B P"]
    prompt_len: Int32[Array, "B"]  # tokens
    position_ids: Int32[Array, "B 3 P"]  # M-RoPE (time, height, width)
    next_position: Int32[Array, "B"]  # position of the first response token, the same on all three axes
    vision_index: Int32[Array, "B P"]  # row of the merged vision features, -1 at text tokens
    # Pixels as bytes; with data.videos all frames of a patch, else the one of a still picture. The devices repeat the
    # frame and normalise (models.vision.pixels).
    patches: UInt8[Array, "B I F"]
    pixel_norm: Float32[Array, "B 2 3"]  # mean and deviation of each channel, of pixels from 0 to 1
    patch_position_ids: Int32[Array, "B I 2"]  # (height, width)
    window_ids: Int32[Array, "B I"]  # attention segment in windowed blocks; 0 is padding
    image_ids: Int32[Array, "B I"]  # attention segment in full blocks (one per image or frame); 0 is padding
    # The learned position grid of Qwen3-VL: X is 4, and 0 in a model without one.
    grid_index: Int32[Array, "B I X"]  # cells of the grid around each patch
    grid_weights: Float32[Array, "B I X"]  # their bilinear weights


@struct.dataclass
class VisionFeatures:
    """The vision tower's output in the order of the patches: one row per merged token."""

    merged: Float[Array, "B U D"]
    deepstack: Float[Array, "E B U D"]  # added after the decoder's first E layers; E is 0 in Qwen2.5-VL


@struct.dataclass
class Forced:
    """Tokens that each branch starts with, padded on the right; W may be 0."""

    token_ids: Int32[Array, "B J W"]
    forced_len: Int32[Array, "B J"]
    active: Bool[Array, "B J"]  # inactive branches sample nothing


@struct.dataclass
class Rollouts:
    """Responses to the prompts. `sampled_mask` is False at forced tokens and behind the end."""

    token_ids: Int32[Array, "B G R"]
    response_len: Int32[Array, "B G"]  # forced and sampled tokens, the stop token included
    logprobs: Float32[Array, "B G R"]  # the sampler's, from untruncated logits / temperature; 0 if not sampled
    sampled_mask: Bool[Array, "B G R"]
    finished: Bool[Array, "B G"]  # a stop token was sampled (False: cut off at R)
    # Kept if the sampler's scores stand in for a scoring pass.
    entropy: Float32[Array, "B G R"] | None = None  # nats
    states: Float[Array, "B G R D"] | None = None  # at each token, after the final norm


@struct.dataclass
class Verdicts:
    """The verifiers' verdicts, and the spans of the responses."""

    correct: Bool[Array, "B G"]  # the answer equals the gold
    parsed: Bool[Array, "B G"]  # an answer could be read at all
    format_ok: Bool[Array, "B G"]  # exactly one <think>..</think><answer>..</answer>
    rewards: Float32[Array, "B G"]  # weighted sum of correct and format_ok
    think_mask: Bool[Array, "B G R"]  # tokens of the rationale
    answer_mask: Bool[Array, "B G R"]  # tokens of the answer


@struct.dataclass
class Scores:
    """The output of one scoring pass with the trainer's own graph."""

    logprobs: Float32[Array, "B J R"]
    entropy: Float32[Array, "B J R"]  # nats
    think_states: Float32[Array, "B J D"]  # unit length, no gradient


@struct.dataclass
class Subgroup:
    """The rows of each group that are updated; unused slots are valid=False, never a shorter array.

    Slot 0 is the anchor (or pseudo-anchor); slots 1..K are negatives, nearest first unless reflect.failure puts
    another one into slot 1. Slots behind them are further correct rollouts, shortest first.
    """

    index: Int32[Array, "B S"]  # which of the G rollouts
    valid: Bool[Array, "B S"]
    outcome: Int32[Array, "B"]  # an Outcome
    num_negatives: Int32[Array, "B"]  # K'


@struct.dataclass
class Streams:
    """Streams of T tokens: a prompt, its rows behind it, the next prompt.

    A shard's streams lie side by side, as its prompts do, and sources count in its own part of the batch. A group that
    no stream has room for lies in several, each with the prompt.
    """

    source: Int32[Array, "A T"]  # of each token in prompts [B * P], then rows [B * J * R]; -1 is padding
    group: Int32[Array, "A T"]  # from 1, one a group; 0 is padding
    branch: Int32[Array, "A T"]  # from 1 in the rows of a group; 0 in its prompt
    target: Int32[Array, "A T"]  # places of the rows' tokens, first to last; 0 behind the last
    predictor: Int32[Array, "A T"]  # the place whose state predicts each of them
    num_targets: Int32[Array, "A"]  # 0 in a stream that is not used; those that are come first
    patch_source: Int32[Array, "A patches"]  # of each patch in prompts [B * I]; -1 is padding


@struct.dataclass
class Packing:
    """The shard that computes each group, and the places of its prompt and rows in that shard's streams."""

    order: Int32[Array, "B"]  # the group of the batch that is computed at each place
    home: Int32[Array, "B"]  # the place where each group of the batch is computed
    streams: Streams


@struct.dataclass
class TrainBatch:
    """Everything an update needs; it never learns which objective made it."""

    prompts: Prompts
    token_ids: Int32[Array, "B S R"]
    response_len: Int32[Array, "B S"]
    sampled_mask: Bool[Array, "B S R"]
    logprobs_old: Float32[Array, "B S R"]
    logprobs_ref: Float32[Array, "B S R"]  # logprobs_old if no reference is used
    advantages: Float32[Array, "B S"]
    token_weights: Float32[Array, "B S R"]  # region weights, 0 where nothing was sampled
    row_mask: Bool[Array, "B S"]  # rows that count in the denominators
    logprobs_sampler: Float32[Array, "B S R"] | None = None  # kept for importance weights


Struct = TypeVar("Struct")


def abstract(struct_type: type[Struct], *optional: str, **dims: int) -> Struct:
    """Makes a struct of shapes and dtypes, for example `abstract(Forced, B=8, J=1, W=0)`.

    Args:
        struct_type: a struct whose fields are annotated arrays of one dtype, or such structs themselves.
        *optional: names of optional fields to make; the others stay None.
        **dims: the size of every dimension that these fields have.

    Returns:
        The struct with a jax.ShapeDtypeStruct for each array.

    Raises:
        ValueError: a dimension is missing or is in none of the fields, `optional` names another field, or an
            annotation leaves shape or dtype open.
    """
    return _fill(struct_type, jax.ShapeDtypeStruct, optional, dims)


def zeros(struct_type: type[Struct], *optional: str, **dims: int) -> Struct:
    """Makes a struct of NumPy zeros; arguments and errors are those of `abstract`."""
    return _fill(struct_type, np.zeros, optional, dims)


def _fill(struct_type: type[Struct], make: Callable, optional: tuple[str, ...], dims: dict[str, int]) -> Struct:
    annotations = _annotations(struct_type, optional)
    used = {dim for leaf in jax.tree.leaves(annotations) for dim in leaf.dim_str.split() if not dim.isdigit()}
    if used != dims.keys():
        missing, unknown = sorted(used - dims.keys()), sorted(dims.keys() - used)
        raise ValueError(
            f"{struct_type.__name__} has the dimensions {', '.join(sorted(used))}; missing here: "
            f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )

    def fill(annotation: Any) -> Any:
        shape = tuple(int(dim) if dim.isdigit() else dims[dim] for dim in annotation.dim_str.split())
        return make(shape, annotation.dtypes[0])

    return jax.tree.map(fill, annotations)


def _annotations(struct_type: type[Struct], optional: tuple[str, ...]) -> Struct:
    """The struct with each array's jaxtyping annotation in its place."""
    hints = typing.get_type_hints(struct_type)
    fields: Any = dataclasses.fields(struct_type)  # type: ignore[arg-type]
    has_default = {field.name for field in fields if field.default is None}
    if unknown := set(optional) - has_default:
        raise ValueError(f"{struct_type.__name__} has no optional field {', '.join(sorted(unknown))}")
    found: dict[str, Any] = {}
    for name in [field.name for field in fields if field.name not in has_default or field.name in optional]:
        hint = hints[name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found[name] = _annotations(hint, ())
            continue
        found[name] = next(iter(typing.get_args(hint)), hint)
        if not _is_exact(found[name]):
            raise ValueError(f"{struct_type.__name__}.{name} leaves its shape or dtype open: {hint}")
    return struct_type(**found)


def _is_exact(annotation: Any) -> bool:
    """True for a jaxtyping annotation with one dtype and a fixed number of dimensions, each a name or a number."""
    return (
        isinstance(annotation, type)
        and issubclass(annotation, AbstractArray)
        and len({dtype.rstrip("_") for dtype in annotation.dtypes}) == 1  # Bool has two names for its one dtype
        and all(dim.isalnum() for dim in annotation.dim_str.split())
    )
