"""The arrays that travel between the stages, and the one key to their dimensions.

Dimension key (no letter has a second meaning anywhere in the project):

    B prompts of a batch          G rollouts of a prompt       S rows of a subgroup (K + 1, or G)
    K target negatives            M pre-selected neighbours    J branches of a forward pass (any count)
    P prompt tokens, padded       R response tokens, padded    T tokens of one stream (P + J * R)
    D hidden width                V vocabulary                 L layers
    H query heads                 N key/value heads            Q queries a key/value head (H = N * Q)
    C channels of a head          I patches of a prompt        F values of a patch (channels * time * height * width)
    E decoder layers that get deepstack features (Qwen3-VL)

Masks come from lengths, never from comparing ids. Prompts and responses are padded on the right.
"""

from __future__ import annotations

import dataclasses
import enum

import jax
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray  # on the device, or its copy on the host


@dataclasses.dataclass(frozen=True)
class Video:
    """The frames a model is to see, already sampled from the recording."""

    frames: tuple[bytes, ...]  # encoded like images, all of one size
    fps: float  # how many of these frames a second of the recording has


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


class Outcome(enum.IntEnum):
    """What a prompt's G rollouts came to. Decided once, by `subgroup.classify`."""

    ALL_WRONG = 0
    MIXED = 1
    ALL_CORRECT = 2


@struct.dataclass
class Prompts:
    """Prompts with their images as tables; everything that depends on the data is made on the host.

    Patches lie in window order, in units of one merged token (`spatial_merge_size` squared rows), so
    no permutation runs on the device: `vision_index` names the merged row of each image token.
    """

    token_ids: Array  # [B, P] int32
    prompt_len: Array  # [B] int32, tokens
    position_ids: Array  # [B, 3, P] int32, M-RoPE (time, height, width)
    next_position: Array  # [B] int32, position of the first response token, the same on all three axes
    vision_index: Array  # [B, P] int32, row of the merged vision features, -1 at text tokens
    patches: Array  # [B, I, F] float32
    patch_position_ids: Array  # [B, I, 2] int32 (height, width)
    window_ids: Array  # [B, I] int32, attention segment in windowed blocks; 0 is padding
    image_ids: Array  # [B, I] int32, attention segment in full blocks (one an image or frame); 0 is padding
    # Qwen3-VL; [B, I, 0] where the model has no learned position grid
    grid_index: Array  # [B, I, 4] int32, cells of the position grid around each patch
    grid_weights: Array  # [B, I, 4] float32, and their bilinear weights


@struct.dataclass
class VisionFeatures:
    """What a vision tower makes of a batch's patches, in their order, a row for each merged token."""

    merged: Array  # [B, I / merge_unit, D]
    deepstack: Array  # [E, B, I / merge_unit, D], added after the decoder's first E layers; E is 0 in Qwen2.5-VL


@struct.dataclass
class Forced:
    """Tokens each branch starts with, padded on the right; F may be 0."""

    token_ids: Array  # [B, J, F] int32
    forced_len: Array  # [B, J] int32
    active: Array  # [B, J] bool; inactive branches sample nothing


@struct.dataclass
class Rollouts:
    """Responses to the prompts. `sampled_mask` is False at forced tokens and behind the end."""

    token_ids: Array  # [B, G, R] int32
    response_len: Array  # [B, G] int32, forced and sampled tokens, the stop token included
    logprobs: Array  # [B, G, R] float32, the sampler's, from untruncated logits / temperature; 0 where not sampled
    sampled_mask: Array  # [B, G, R] bool
    finished: Array  # [B, G] bool, a stop token was sampled (False: cut off at R)
    entropy: Array | None = None  # [B, G, R] float32, nats; where the sampler's scores are used
    states: Array | None = None  # [B, G, R, D], at each token after the final norm; likewise


@struct.dataclass
class Verdicts:
    """What the verifiers said, and where the spans of the responses lie."""

    correct: Array  # [B, G] bool, the answer equals the gold
    parsed: Array  # [B, G] bool, an answer could be read at all
    format_ok: Array  # [B, G] bool, exactly one <think>..</think><answer>..</answer>
    rewards: Array  # [B, G] float32, weighted sum of correct and format_ok
    think_mask: Array  # [B, G, R] bool, tokens of the rationale
    answer_mask: Array  # [B, G, R] bool, tokens of the answer


@struct.dataclass
class Scores:
    """One scoring pass with the trainer's own graph."""

    logprobs: Array  # [B, J, R] float32
    entropy: Array  # [B, J, R] float32, nats
    think_states: Array  # [B, J, D] float32, unit length, no gradient


@struct.dataclass
class Subgroup:
    """The rows of each group that are updated; unused slots are valid=False, never a shorter array.

    Slot 0 is the anchor (or pseudo-anchor); slots 1..K are negatives, nearest first.
    """

    index: Array  # [B, S] int32, which of the G rollouts
    valid: Array  # [B, S] bool
    outcome: Array  # [B] int32, an Outcome
    num_negatives: Array  # [B] int32, K'


@struct.dataclass
class TrainBatch:
    """Everything an update needs; it never learns which objective made it."""

    prompts: Prompts
    token_ids: Array  # [B, S, R] int32
    response_len: Array  # [B, S] int32
    sampled_mask: Array  # [B, S, R] bool
    logprobs_old: Array  # [B, S, R] float32
    logprobs_ref: Array  # [B, S, R] float32; logprobs_old when no reference is used
    advantages: Array  # [B, S] float32
    token_weights: Array  # [B, S, R] float32, region weights, 0 where nothing was sampled
    row_mask: Array  # [B, S] bool, rows that count in the denominators
