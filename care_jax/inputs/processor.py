"""The processor of a model folder: its tokenizer, token ids, image settings and the sizes that prompts are padded to.

Everything comes from the files of the model folder (config.json, generation_config.json, the preprocessor's, tokenizer
and chat template); no token id, patch size or image limit is written in this code. `prompts.encode_prompt`,
`responses.encode_trace` and `batch.collate` use it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ml_collections
import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from care_jax.errors import BadRowError, InputError, shown
from care_jax.inputs import images, media
from care_jax.inputs import tokenizer as tokenizer_lib
from care_jax.inputs.preprocessor import read_image_spec
from care_jax.models.config_json import load_model_config
from care_jax.models.model_folder import read_fields
from care_jax.options import OVERLONG, choose_one
from care_jax.rewards.response_format import FORMATS, ResponseFormat
from care_jax.structs import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_VISION_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_VIDEO_TEXT = ("vision_start_token_id", "video_token_id", "vision_end_token_id")


# Of text, more than most; and the words of a beginning that its end may change: an added token has fewer characters.
_CHARACTERS_OF_A_TOKEN, _WORDS_BEFORE_THE_END = 6, 64


@dataclasses.dataclass(frozen=True)
class Processor:
    """The settings for turning records into prompts and texts into responses; `load_processor` makes it."""

    tokenizer: PreTrainedTokenizerFast
    text_tokenizer: Tokenizer  # reads "<|im_end|>" and the like as plain characters
    image_spec: images.ImageSpec
    image_token_id: int
    video_token_id: int
    video_text: str  # the chat template's text for a video
    pad_token_id: int
    stop_ids: tuple[int, ...]  # the end of a turn in the chat template, then those of generation_config.json
    forbidden_mask: npt.NDArray[np.bool_]  # [V] ids that must not be sampled
    special_texts: tuple[str, ...]
    response_format: ResponseFormat
    prompt_buckets: tuple[int, ...]  # tokens, ascending
    patch_buckets: tuple[int, ...]  # patches, ascending
    overlong: str  # drop | shrink | error
    thinking: bool = True  # the chat template's switch, where it has one
    videos: bool = False  # prompts may have some

    @property
    def sent_values(self) -> int:
        """F, the values of a patch that travel to the devices: of all its frames with videos, else of one."""
        return self.image_spec.patch_values if self.videos else self.image_spec.frame_values

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """The pairs of a prompt bucket and a patch bucket that a batch can need.

        A batch is in a patch bucket because a prompt has more patches than the bucket below holds, and in the prompt
        are then more tokens than that, each for the patches of one unit.
        """
        unit = self.image_spec.layout.merge**2
        below = (0, *self.patch_buckets)
        pairs = itertools.product(self.prompt_buckets, zip(self.patch_buckets, below, strict=False))
        return [(tokens, patches) for tokens, (patches, fewer) in pairs if tokens > fewer // unit]

    def encode_text(self, text: str) -> list[int]:
        """Encodes a text; special tokens spelled in it stay plain characters."""
        return self.text_tokenizer.encode(text, add_special_tokens=False).ids

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts, in parallel; special tokens spelled in them stay plain characters."""
        return [encoded.ids for encoded in self.text_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_beginnings(self, texts: Sequence[str], num_tokens: int) -> list[list[int]]:
        """Encodes texts as `encode_texts`, of each the first `num_tokens` tokens, and little of what lies behind them.

        Tokens depend on a text only as far as the word that they lie in, and a little beyond. So those of a text's
        beginning are those of the text, as far as many words lie between them and its end.
        """
        cut = self.text_tokenizer.encode_batch(
            [text[: num_tokens * _CHARACTERS_OF_A_TOKEN] for text in texts], add_special_tokens=False
        )
        uncertain = [
            number
            for number, (text, encoded) in enumerate(zip(texts, cut, strict=True))
            if len(text) > num_tokens * _CHARACTERS_OF_A_TOKEN and not _is_certain(encoded, num_tokens)
        ]
        ids = [encoded.ids[:num_tokens] for encoded in cut]
        for number, whole in zip(uncertain, self.encode_texts([texts[n] for n in uncertain]), strict=True):
            ids[number] = whole[:num_tokens]
        return ids

    def refuse_special_texts(self, record: Record, field: str, text: str | None) -> None:
        """Raises BadRowError if a text of a record spells a special token."""
        found = [mark for mark in self.special_texts if text is not None and mark in text]
        if found:
            raise BadRowError(
                f"record {shown(record.id)} spells {', '.join(found)} in its {field}, which would become control "
                "tokens; remove it from the data"
            )


def _is_certain(beginning: Encoding, num_tokens: int) -> bool:
    """True if the first tokens of a text's beginning are those of the text."""
    words = beginning.word_ids
    if not 0 < num_tokens <= len(words):
        return False
    kept, last = words[num_tokens - 1], words[-1]
    return kept is not None and last is not None and kept + _WORDS_BEFORE_THE_END <= last


def load_processor(
    folder: Path,
    *,
    response_format: ResponseFormat,
    prompt_buckets: Sequence[int],
    patch_buckets: Sequence[int],
    max_image_tokens: int,
    min_image_tokens: int,
    overlong: str,
    thinking: bool = True,
    videos: bool = False,
) -> Processor:
    """Reads the processor of a Hugging Face model folder.

    Args:
        folder: the model folder.
        response_format: the layout that the prompts ask for.
        prompt_buckets: the lengths that prompts are padded to, in tokens.
        patch_buckets: the numbers of patches that images are padded to.
        max_image_tokens: prompt tokens that an image has at most; tightens the limit of the preprocessor's file.
        min_image_tokens: prompt tokens that an image has at least; likewise.
        overlong: one of OVERLONG, for prompts that exceed the largest bucket.
        thinking: for chat templates with such a switch.
        videos: prompts may have some.

    Returns:
        The processor.

    Raises:
        InputError: a missing file or field, files that contradict each other, or a setting that is not allowed.
    """
    folder = Path(folder)
    model = load_model_config(folder)
    config = read_fields(folder / "config.json", *_VISION_TOKENS)
    generation = read_fields(folder / "generation_config.json", "eos_token_id", "pad_token_id")
    eos, vocab_size = generation["eos_token_id"], model.text.vocab_size
    stops_and_padding = [*(eos if isinstance(eos, list) else [eos]), generation["pad_token_id"]]
    vision_ids = [config[name] for name in _VISION_TOKENS]
    tokenizer_lib.check_ids([*vision_ids, *stops_and_padding], vocab_size)
    if taken := sorted({*stops_and_padding} & {*vision_ids}):
        raise InputError(
            f"{folder / 'generation_config.json'} ends or pads texts with {shown(taken)}, which config.json gives to "
            "images and videos; take both from the same checkpoint"
        )
    image_spec = read_image_spec(folder, model.vision, min_image_tokens, max_image_tokens)
    if overlong not in OVERLONG:
        raise InputError(f"data.overlong={overlong!r}: {choose_one(OVERLONG)}")
    unit = image_spec.layout.merge**2
    _check_buckets("data.prompt_buckets", prompt_buckets, 1)
    _check_buckets("data.patch_buckets", patch_buckets, unit)

    tokenizer = tokenizer_lib.load_tokenizer(folder, vocab_size, config["image_token_id"])
    stop_ids = tokenizer_lib.all_stop_ids(folder, tokenizer_lib.end_of_turn(folder, tokenizer), eos)
    text_tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    text_tokenizer.encode_special_tokens = True
    special_texts = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    found = [text for text in (*special_texts, *media.MARKS) if text in response_format.request]
    if found:
        raise InputError(f"the response format's request spells {', '.join(found)}, which are control tokens")
    return Processor(
        tokenizer=tokenizer,
        text_tokenizer=text_tokenizer,
        image_spec=image_spec,
        image_token_id=config["image_token_id"],
        video_token_id=config["video_token_id"],
        video_text=tokenizer_lib.text_of(tokenizer, [config[name] for name in _VIDEO_TEXT]),
        pad_token_id=generation["pad_token_id"],
        stop_ids=stop_ids,
        forbidden_mask=tokenizer_lib.forbidden_mask(tokenizer, vocab_size, stop_ids, vision_ids),
        special_texts=special_texts,
        response_format=response_format,
        prompt_buckets=tuple(prompt_buckets),
        patch_buckets=tuple(patch_buckets),
        overlong=overlong,
        thinking=thinking,
        videos=videos,
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
        thinking=data.thinking,
        videos=data.videos,
    )


def _check_buckets(name: str, buckets: Sequence[int], unit: int) -> None:
    ascending = list(buckets) == sorted(set(buckets))
    if not buckets or not ascending or any(size < 1 or size % unit for size in buckets):
        raise InputError(f"{name} is {tuple(buckets)}; give ascending positive multiples of {unit}")
