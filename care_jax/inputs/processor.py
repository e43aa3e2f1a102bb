"""Records to model inputs on the host: chat template, image placeholders, M-RoPE ids and per-patch tables.

Everything comes from the files of the model folder (config.json, preprocessor_config.json, generation_config.json,
tokenizer and chat template); nothing here knows a token id, a patch size or a picture limit of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from care_jax.inputs import images, media, positions, vocabulary
from care_jax.inputs.media import Clip
from care_jax.inputs.positions import Grid
from care_jax.models.model_config import load_model_config
from care_jax.options import OVERLONG, choose_one
from care_jax.rewards.response_format import FORMATS, ResponseFormat
from care_jax.structs import Prompts, Record

_VISION_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_VIDEO_TEXT = ("vision_start_token_id", "video_token_id", "vision_end_token_id")


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt before padding: P tokens, I patches in window order."""

    record: Record
    token_ids: npt.NDArray[np.int32]  # [P]
    position_ids: npt.NDArray[np.int32]  # [3, P] (time, height, width)
    next_position: int  # of the first response token
    vision_index: npt.NDArray[np.int32]  # [P] row of the merged features, -1 at text
    patches: npt.NDArray[np.float32]  # [I, F]
    patch_position_ids: npt.NDArray[np.int32]  # [I, 2] (height, width)
    window_ids: npt.NDArray[np.int32]  # [I] from 1
    image_ids: npt.NDArray[np.int32]  # [I] from 1, one an image or frame
    grid_index: npt.NDArray[np.int32]  # [I, 4 or 0] cells of the learned position grid
    grid_weights: npt.NDArray[np.float32]  # [I, 4 or 0]


@dataclasses.dataclass(frozen=True)
class Trace:
    """A cold-start response. `loss_mask` is False on the draft and the cue."""

    token_ids: npt.NDArray[np.int32]  # [n]
    loss_mask: npt.NDArray[np.bool_]  # [n]


@dataclasses.dataclass(frozen=True)
class Processor:
    """Turns records into prompts and texts into responses for one model folder; built by `load_processor`."""

    tokenizer: PreTrainedTokenizerFast
    text_tokenizer: Tokenizer  # reads "<|im_end|>" and the like as plain characters
    image_spec: images.ImageSpec
    image_token_id: int
    video_token_id: int
    video_text: str  # what the chat template writes for a video
    pad_token_id: int
    stop_ids: tuple[int, ...]  # from generation_config.json, the end of a turn first
    forbidden_mask: npt.NDArray[np.bool_]  # [V] ids that must not be sampled
    special_texts: tuple[str, ...]
    response_format: ResponseFormat
    prompt_buckets: tuple[int, ...]  # tokens, ascending
    patch_buckets: tuple[int, ...]  # patches, ascending
    overlong: str  # drop | shrink | error

    def encode_prompt(self, record: Record) -> Example | None:
        """The user turn of a record, its suffix and the opening of the assistant's turn.

        Returns None where the prompt passes the largest bucket and `overlong` is "drop", or is "shrink" and the
        text alone leaves no room for the smallest images. Raises ValueError, naming the record, for text that
        spells a special token, a count of <image> or <video> marks that differs from the images or videos, an
        unreadable image, and for a prompt that is too long when `overlong` is "error".
        """
        spec = self.image_spec
        given = media.decode_clips(record, spec)
        text_ids = self._encode_turn(record, given)
        is_vision = (text_ids == self.image_token_id) | (text_ids == self.video_token_id)
        clip_grids = self._fit_grids(record, len(text_ids) - int(is_vision.sum()), given)
        if clip_grids is None:
            return None
        pairs = list(zip(given, clip_grids, strict=True))
        runs = [run for clip, grid in pairs for run in media.token_runs(clip, grid, spec)]
        run_grids = [grid for grid, _ in runs]
        tables = [positions.grid_tables(grid, spec.layout) for grid in run_grids]
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
        patches = [images.patchify(clip.frames, grid, spec) for clip, grid in pairs]
        windows = [int(table.window_ids[-1]) for table in tables]
        return Example(
            record=record,
            token_ids=token_ids,
            position_ids=position_ids,
            next_position=int(position_ids.max()) + 1,
            vision_index=vision_index,
            patches=_join(patches, (spec.patch_values,), np.float32),
            patch_position_ids=_join([table.patch_position_ids for table in tables], (2,), np.int32),
            window_ids=_join_ids([table.window_ids for table in tables], windows),
            image_ids=_join_ids([table.frame_ids for table in tables], [t for t, _, _ in run_grids]),
            grid_index=_join([table.grid_index for table in tables], (spec.grid_cells,), np.int32),
            grid_weights=_join([table.grid_weights for table in tables], (spec.grid_cells,), np.float32),
        )

    def collate(self, examples: Sequence[Example]) -> Prompts:
        """Pads examples on the right to the smallest prompt bucket and patch bucket that hold them all (numpy)."""
        prompt_len = np.array([len(example.token_ids) for example in examples], np.int32)
        patch_len = max(len(example.patches) for example in examples)
        size = _bucket(int(prompt_len.max()), self.prompt_buckets, "data.prompt_buckets")
        room = _bucket(patch_len, self.patch_buckets, "data.patch_buckets")
        fields: dict[str, Any] = {
            "token_ids": _pad([e.token_ids for e in examples], size, self.pad_token_id),
            "prompt_len": prompt_len,
            "position_ids": _pad([e.position_ids.T for e in examples], size, 0).transpose(0, 2, 1).copy(),
            "next_position": np.array([e.next_position for e in examples], np.int32),
            "vision_index": _pad([e.vision_index for e in examples], size, -1),
            "patches": _pad([e.patches for e in examples], room, 0),
            "patch_position_ids": _pad([e.patch_position_ids for e in examples], room, 0),
            "window_ids": _pad([e.window_ids for e in examples], room, 0),
            "image_ids": _pad([e.image_ids for e in examples], room, 0),
            "grid_index": _pad([e.grid_index for e in examples], room, 0),
            "grid_weights": _pad([e.grid_weights for e in examples], room, 0),
        }
        return Prompts(**fields)

    def encode_trace(self, record: Record, *, cue: str, response_len: int) -> Trace | None:
        """The response the cold start learns: <think>[draft cue] rationale</think>, the answer in its marks, a stop.

        Draft and cue are read, not learned: their `loss_mask` is False. They are tokenised apart from what follows,
        as `encode_repair` does, so that training and reflection see the same tokens. Returns None past
        `response_len` tokens, and where a text spells a mark of the format: data that are sound for one format may not
        be for another. Raises ValueError without a rationale, or where a text holds a special token.
        """
        if record.rationale is None:
            raise ValueError(f"record {record.id!r} has no rationale; the cold start needs one in every record")
        texts = {"rationale": record.rationale, "answer": record.answer, "draft": record.draft}
        for field, text in texts.items():
            self._refuse_texts(record, field, text, self.special_texts)
        if any(mark in text for text in texts.values() if text for mark in self.response_format.marks):
            return None
        ending = self.response_format.ending(record.rationale, record.answer)
        if record.draft is None:
            token_ids = self._encode_text("<think>" + ending)
            loss_mask = [True] * len(token_ids)
        else:
            opening = self.text_tokenizer.encode("<think>" + record.draft, add_special_tokens=False)
            cue_ids, ending_ids = self._encode_text(cue), self._encode_text(ending)
            token_ids = [*opening.ids, *cue_ids, *ending_ids]
            # Offsets, not ids: the tag's last token may also hold the draft's first character.
            in_tag = [start < len("<think>") for start, _ in opening.offsets]
            loss_mask = [*in_tag, *[False] * len(cue_ids), *[True] * len(ending_ids)]
        if len(token_ids) + 1 > response_len:
            return None
        return Trace(np.array([*token_ids, self.stop_ids[0]], np.int32), np.array([*loss_mask, True], np.bool_))

    def encode_repair(self, rationale: str, *, cue: str, max_rationale_len: int) -> list[int]:
        """The forced opening of a reflection: <think>, the first `max_rationale_len` tokens of the failed rationale
        (its text without the tag), and the cue. A special token spelled in the text stays plain characters."""
        opening = self._encode_text("<think>" + rationale)
        return opening[: len(self._encode_text("<think>")) + max_rationale_len] + self._encode_text(cue)

    def encode_rewrite(self, response: str) -> list[int]:
        """A whole response, tags included, and the stop token that ends it."""
        return [*self._encode_text(response), self.stop_ids[0]]

    def _encode_text(self, text: str) -> list[int]:
        return self.text_tokenizer.encode(text, add_special_tokens=False).ids

    def _encode_turn(self, record: Record, given: Sequence[Clip]) -> npt.NDArray[np.int32]:
        """[tokens] of the rendered turn, one vision token for each run of them."""
        question = record.prompt + self.response_format.request
        self._refuse_texts(record, "prompt", question, self.special_texts)
        content = [
            {"type": text.strip("<>")} if text in media.MARKS else {"type": "text", "text": text}
            for text in media.MARK_PATTERN.split(question)
            if text
        ]
        turns: list[Any] = [{"role": "user", "content": content}]
        rendered = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        videos = [media.video_texts(clip, self.image_spec, self.video_text) for clip in given if clip.fps]
        pieces = rendered.split(self.video_text)
        if len(pieces) == len(videos) + 1:  # else the counts below do not agree
            rendered = pieces[0] + "".join(
                "".join(texts) + rest for texts, rest in zip(videos, pieces[1:], strict=True)
            )
        token_ids = np.array(self.tokenizer.backend_tokenizer.encode(rendered, add_special_tokens=False).ids, np.int32)
        for name, token_id, needed in (
            ("image", self.image_token_id, len(given) - len(videos)),
            ("video", self.video_token_id, sum(len(texts) for texts in videos)),
        ):
            if (found := int((token_ids == token_id).sum())) != needed:
                raise ValueError(
                    f"the chat template renders {found} {name} tokens where {needed} are needed; use the template of "
                    "the vision-language checkpoint"
                )
        return token_ids

    def _refuse_texts(self, record: Record, field: str, text: str | None, refused: Sequence[str]) -> None:
        found = [mark for mark in refused if text is not None and mark in text]
        if found:
            raise ValueError(
                f"record {record.id!r} spells {', '.join(found)} in its {field}, which would become control tokens; "
                "take it out of the data"
            )

    def _fit_grids(self, record: Record, text_len: int, given: Sequence[Clip]) -> list[Grid] | None:
        """The clips' grids within the largest buckets, or what `overlong` says where they do not fit."""
        spec, unit = self.image_spec, self.image_spec.layout.merge**2
        try:
            clip_grids = [media.clip_grid(clip, spec, spec.max_pixels) for clip in given]
        except ValueError as error:
            raise ValueError(f"record {record.id!r}: {error}") from error
        needed = positions.count_tokens(clip_grids, spec.layout.merge)
        room = min(self.prompt_buckets[-1] - text_len, self.patch_buckets[-1] // unit)
        if needed <= room:
            return clip_grids
        if self.overlong == "error":
            raise ValueError(
                f"record {record.id!r} needs {text_len + needed} tokens and {needed * unit} patches, the largest "
                f"buckets hold {self.prompt_buckets[-1]} and {self.patch_buckets[-1]}; raise data.prompt_buckets or "
                "data.patch_buckets, lower data.max_image_tokens, or set data.overlong to drop or shrink"
            )
        return media.fit_grids(given, spec, room) if self.overlong == "shrink" else None


def padding_shares(examples: Sequence[Example], bucket: tuple[int, int]) -> dict[str, float]:
    """What of the prompt tokens and patches of a batch in a bucket is padding, as metrics."""
    tokens, patches = (size * len(examples) for size in bucket)
    return {
        "padding/prompt_tokens": 1 - sum(len(example.token_ids) for example in examples) / tokens,
        "padding/patches": 1 - sum(len(example.patches) for example in examples) / patches,
    }


def load_processor(
    folder: Path,
    *,
    response_format: ResponseFormat,
    prompt_buckets: Sequence[int],
    patch_buckets: Sequence[int],
    max_image_tokens: int,
    min_image_tokens: int,
    overlong: str,
) -> Processor:
    """Reads the processor of a Hugging Face model folder.

    `response_format` is what the prompts ask for; the other keywords are the fields of `config.data` of the same
    names: buckets in tokens and patches, image limits in prompt tokens, which tighten those of the preprocessor and
    never widen them. Raises ValueError for a missing file or field, files that contradict each other, and settings
    outside what is allowed, naming each.
    """
    folder = Path(folder)
    model = load_model_config(folder)
    config = images.read_fields(folder / "config.json", *_VISION_TOKENS)
    generation = images.read_fields(folder / "generation_config.json", "eos_token_id", "pad_token_id")
    eos = generation["eos_token_id"]
    stop_ids = tuple(eos) if isinstance(eos, list) else (eos,)
    vision_ids = [config[name] for name in _VISION_TOKENS]
    vocabulary.check_ids((*vision_ids, *stop_ids, generation["pad_token_id"]), model.text.vocab_size)
    image_spec = images.read_image_spec(folder, model.vision, min_image_tokens, max_image_tokens)
    if overlong not in OVERLONG:
        raise ValueError(f"data.overlong={overlong!r}: {choose_one(OVERLONG)}")
    unit = image_spec.layout.merge**2
    _check_buckets("data.prompt_buckets", prompt_buckets, 1)
    _check_buckets("data.patch_buckets", patch_buckets, unit)

    tokenizer = vocabulary.load_tokenizer(folder, config["image_token_id"])
    vocabulary.check_ids([max(tokenizer.get_vocab().values())], model.text.vocab_size)
    text_tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    text_tokenizer.encode_special_tokens = True
    special_texts = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    found = [text for text in (*special_texts, *media.MARKS) if text in response_format.request]
    if found:
        raise ValueError(f"the response format's request spells {', '.join(found)}, which are control tokens")
    return Processor(
        tokenizer=tokenizer,
        text_tokenizer=text_tokenizer,
        image_spec=image_spec,
        image_token_id=config["image_token_id"],
        video_token_id=config["video_token_id"],
        video_text=vocabulary.text_of(tokenizer, [config[name] for name in _VIDEO_TEXT]),
        pad_token_id=generation["pad_token_id"],
        stop_ids=stop_ids,
        forbidden_mask=vocabulary.forbidden_mask(tokenizer, model.text.vocab_size, stop_ids, vision_ids),
        special_texts=special_texts,
        response_format=response_format,
        prompt_buckets=tuple(prompt_buckets),
        patch_buckets=tuple(patch_buckets),
        overlong=overlong,
    )


def make_processor(config: ml_collections.ConfigDict) -> Processor:
    """Reads the processor of the config's model folder, with the limits and the response format of `config.data`."""
    data = config.data
    response_format = FORMATS[data.response_format]
    if not data.ask_for_format:
        response_format = dataclasses.replace(response_format, request="")
    return load_processor(
        Path(config.model.folder),
        response_format=response_format,
        prompt_buckets=tuple(data.prompt_buckets),
        patch_buckets=tuple(data.patch_buckets),
        max_image_tokens=data.max_image_tokens,
        min_image_tokens=data.min_image_tokens,
        overlong=data.overlong,
    )


def _check_buckets(name: str, buckets: Sequence[int], unit: int) -> None:
    ascending = list(buckets) == sorted(set(buckets))
    if not buckets or not ascending or any(size < 1 or size % unit for size in buckets):
        raise ValueError(f"{name} is {tuple(buckets)}; give ascending positive multiples of {unit}")


def _join(parts: Sequence[npt.NDArray], tail: tuple[int, ...], dtype: Any) -> npt.NDArray:
    """Joins parts along the first axis; no part gives an empty array."""
    return np.concatenate([np.zeros((0, *tail), dtype), *parts])


def _join_ids(parts: Sequence[npt.NDArray[np.int32]], counts: Sequence[int]) -> npt.NDArray[np.int32]:
    """Joins ids that count from the same start in every part, each part past the `counts` ids before it."""
    offsets = np.cumsum([0, *counts], dtype=np.int32)
    return _join([part + offset for part, offset in zip(parts, offsets, strict=False)], (), np.int32)


def _bucket(needed: int, buckets: tuple[int, ...], name: str) -> int:
    for bucket in buckets:
        if needed <= bucket:
            return bucket
    raise ValueError(f"{needed} do not fit {name} {buckets}; raise the largest one")


def _pad(rows: Sequence[npt.NDArray], length: int, value: int) -> npt.NDArray:
    """Stacks rows [n, ...] of several lengths into [B, length, ...], filled on the right."""
    padded = np.full((len(rows), length, *rows[0].shape[1:]), value, rows[0].dtype)
    for row, target in zip(rows, padded, strict=True):
        target[: len(row)] = row
    return padded
