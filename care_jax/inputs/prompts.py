"""Records to prompts: chat template, image and video tokens, patches, and the tables of their positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from care_jax.errors import BadRowError, InputError, shown
from care_jax.inputs import images, media, positions
from care_jax.inputs.batch import Example
from care_jax.inputs.media import VisionItem
from care_jax.inputs.positions import GridTHW
from care_jax.rewards.response_format import OPENING
from care_jax.structs import Record

if TYPE_CHECKING:
    from care_jax.inputs.processor import Processor


def encode_prompt(processor: Processor, record: Record) -> Example | None:
    """Encodes the user turn of a record, the request of the response format, and the opening of the assistant's turn.

    Args:
        processor: that of the model folder.
        record: the question with its images and videos.

    Returns:
        The example, or None if it does not fit the largest bucket: with `overlong` "drop" whenever it is too long, with
        "shrink" if the text alone leaves no room for the smallest images.

    Raises:
        BadRowError: the text spells a special token, the <image> or <video> marks differ in number from the images or
            videos, or an image cannot be read. The message names the record.
        InputError: the prompt is too long and `overlong` is "error", it has videos and the processor takes none, or the
            chat template has no place for images.
    """
    spec = processor.image_spec
    _refuse_videos(processor, record)
    items = media.decode_items(record, spec)
    text_ids = _encode_turn(processor, record, items)
    is_vision = _are_vision(processor, text_ids)
    demand = _demand(processor, record, text_ids, items)
    item_grids = _fit_grids(processor, record, demand, items)
    if item_grids is None:
        return None
    pairs = list(zip(items, item_grids, strict=True))
    runs = [run for item, grid in pairs for run in media.token_runs(item, grid, spec)]
    run_grids = [grid for grid, _ in runs]
    tables = [positions.patch_tables(grid, spec.layout) for grid in run_grids]
    tokens = [len(table.order) for table in tables]

    repeats = np.ones(len(text_ids), np.int64)
    repeats[is_vision] = tokens
    token_ids = np.repeat(text_ids, repeats)
    is_vision = np.repeat(is_vision, repeats)
    position_ids = positions.mrope_position_ids(
        is_vision, run_grids, [step for _, step in runs], merge=spec.layout.merge
    )
    vision_index = np.full(len(token_ids), -1, np.int32)
    vision_index[is_vision] = _join_ids([table.vision_index for table in tables], tokens)
    patches = [images.patchify(item.frames, grid, spec) for item, grid in pairs]
    values = processor.sent_values
    windows = [int(table.window_ids[-1]) for table in tables]
    return Example(
        record=record,
        token_ids=token_ids,
        position_ids=position_ids,
        next_position=int(position_ids.max()) + 1,
        vision_index=vision_index,
        patches=_join([images.with_frames(part, values, spec) for part in patches], (values,), np.uint8),
        patch_position_ids=_join([table.patch_position_ids for table in tables], (2,), np.int32),
        window_ids=_join_ids([table.window_ids for table in tables], windows),
        image_ids=_join_ids([table.frame_ids for table in tables], [t for t, _, _ in run_grids]),
        grid_index=_join([table.grid_index for table in tables], (spec.grid_cells,), np.int32),
        grid_weights=_join([table.grid_weights for table in tables], (spec.grid_cells,), np.float32),
    )


class PromptSize(NamedTuple):
    """The size of a prompt whose images are as large as the limits of a single image allow."""

    num_tokens: int
    num_patches: int
    is_usable: bool  # `encode_prompt` takes it, with smaller images if `overlong` is "shrink"


def measure_prompt(processor: Processor, record: Record) -> PromptSize:
    """Measures a prompt as `encode_prompt` would encode it, without decoding a pixel.

    Raises:
        BadRowError: as `encode_prompt`.
        InputError: the prompt has videos and the processor takes none, or the chat template has no place for images.
    """
    _refuse_videos(processor, record)
    items = media.decode_items(record, processor.image_spec, images.open_image)
    demand = _demand(processor, record, _encode_turn(processor, record, items), items)
    is_usable = demand.needed <= demand.room
    if not is_usable and processor.overlong == "shrink":
        is_usable = media.fit_grids(items, processor.image_spec, demand.room) is not None
    unit = processor.image_spec.layout.merge**2
    return PromptSize(demand.text_len + demand.needed, demand.needed * unit, is_usable)


def _refuse_videos(processor: Processor, record: Record) -> None:
    if record.videos and not processor.videos:
        raise InputError(f"record {shown(record.id)} has a video; set --config.data.videos=True")


def _are_vision(processor: Processor, token_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    return (token_ids == processor.image_token_id) | (token_ids == processor.video_token_id)


def _encode_turn(processor: Processor, record: Record, items: Sequence[VisionItem]) -> npt.NDArray[np.int32]:
    """Encodes the rendered turn, [tokens], with one vision token in place of each run of them.

    A rationale that the chat template opens (Qwen3-VL Thinking, Qwen3.5) is left out: responses open it themselves.
    """
    question = record.prompt + processor.response_format.request
    processor.refuse_special_texts(record, "prompt", question)
    content = [
        {"type": text.strip("<>")} if text in media.MARKS else {"type": "text", "text": text}
        for text in media.MARK_PATTERN.split(question)
        if text
    ]
    turns: list[Any] = [{"role": "user", "content": content}]
    rendered = str(
        processor.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=processor.thinking
        )
    )
    if (opened := rendered.rstrip()).endswith(OPENING):
        rendered = opened.removesuffix(OPENING)
    videos = [media.video_texts(item, processor.image_spec, processor.video_text) for item in items if item.fps]
    pieces = rendered.split(processor.video_text)
    if len(pieces) == len(videos) + 1:  # otherwise the counts below do not agree
        rendered = pieces[0] + "".join("".join(texts) + rest for texts, rest in zip(videos, pieces[1:], strict=True))
    backend = processor.tokenizer.backend_tokenizer
    token_ids = np.array(backend.encode(rendered, add_special_tokens=False).ids, np.int32)
    for name, token_id, needed in (
        ("image", processor.image_token_id, len(items) - len(videos)),
        ("video", processor.video_token_id, sum(len(texts) for texts in videos)),
    ):
        if (found := int((token_ids == token_id).sum())) != needed:
            raise InputError(
                f"the chat template renders {found} {name} tokens where {needed} are needed; use the template of "
                "the vision-language checkpoint"
            )
    return token_ids


class _Demand(NamedTuple):
    """The tokens of a prompt."""

    text_len: int
    grids: list[GridTHW]  # of images and videos as large as their limits allow
    needed: int  # tokens of the grids
    room: int  # tokens that the largest buckets leave for them


def _demand(
    processor: Processor, record: Record, text_ids: npt.NDArray[np.int32], items: Sequence[VisionItem]
) -> _Demand:
    """Counts the tokens of a prompt; `text_ids` has one vision token in place of each run of them."""
    spec, unit = processor.image_spec, processor.image_spec.layout.merge**2
    text_len = len(text_ids) - int(_are_vision(processor, text_ids).sum())
    try:
        grids = [media.item_grid(item, spec, spec.max_pixels) for item in items]
    except InputError as error:
        raise BadRowError(f"record {shown(record.id)}: {error}", "unusable image") from error
    needed = positions.count_tokens(grids, spec.layout.merge)
    room = min(processor.prompt_buckets[-1] - text_len, processor.patch_buckets[-1] // unit)
    return _Demand(text_len, grids, needed, room)


def _fit_grids(
    processor: Processor, record: Record, demand: _Demand, items: Sequence[VisionItem]
) -> list[GridTHW] | None:
    """Returns the grids of the items within the largest buckets; if they do not fit, `overlong` decides."""
    spec, unit = processor.image_spec, processor.image_spec.layout.merge**2
    if demand.needed <= demand.room:
        return demand.grids
    if processor.overlong == "error":
        raise InputError(
            f"record {shown(record.id)} needs {demand.text_len + demand.needed} tokens and {demand.needed * unit} "
            f"patches, the largest buckets hold {processor.prompt_buckets[-1]} and {processor.patch_buckets[-1]}; "
            "raise data.prompt_buckets or data.patch_buckets, lower data.max_image_tokens, or set data.overlong to "
            "shrink"
        )
    return media.fit_grids(items, spec, demand.room) if processor.overlong == "shrink" else None


def _join(parts: Sequence[npt.NDArray], tail: tuple[int, ...], dtype: Any) -> npt.NDArray:
    """Joins parts along the first axis; without parts the result is empty."""
    return np.concatenate([np.zeros((0, *tail), dtype), *parts])


def _join_ids(parts: Sequence[npt.NDArray[np.int32]], counts: Sequence[int]) -> npt.NDArray[np.int32]:
    """Joins ids that start anew in every part: each part is shifted by the `counts` of the parts before it."""
    offsets = np.cumsum([0, *counts], dtype=np.int32)
    return _join([part + offset for part, offset in zip(parts, offsets, strict=False)], (), np.int32)
