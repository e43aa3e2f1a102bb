"""The tokenizer of a model folder: its chat template, its ids, and the mask of those that must not be sampled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from care_jax.errors import InputError
from care_jax.inputs.model_folder import read_fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(folder: Path, image_token_id: int) -> Any:
    """Loads the tokenizer, with the chat template that transformers' processor uses.

    A chat_template.json comes before the template in tokenizer_config.json: the hub's Qwen2.5-VL has both, and the
    second is that of a text model, without images.

    Args:
        folder: the model folder.
        image_token_id: the token that stands for an image in a rendered turn.

    Returns:
        transformers' tokenizer.

    Raises:
        InputError: files are missing or unreadable, or the template has no image token.
    """
    from transformers import AutoTokenizer  # takes seconds to import, and a step's table needs none of it

    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder} has no tokenizer.json; copy it from the source checkpoint")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except ValueError as error:
        raise InputError(
            f"{folder} has unreadable tokenizer files ({error}); copy them from the source checkpoint"
        ) from error
    own = folder / "chat_template.json"
    if own.is_file():
        tokenizer.chat_template = read_fields(own, "chat_template")["chat_template"]
    if tokenizer.chat_template is None:
        raise InputError(f"{folder} has no chat_template.jinja; copy it from the source checkpoint")
    _check_template(folder, tokenizer, image_token_id)
    return tokenizer


def _check_template(folder: Path, tokenizer: Any, image_token_id: int) -> None:
    """Raises InputError unless a turn with one image holds one image token."""
    turns = [{"role": "user", "content": [{"type": "image"}]}]
    try:
        rendered = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise InputError(f"the chat template of {folder} cannot be rendered ({error}); copy it again") from error
    if (found := rendered.count(text_of(tokenizer, [image_token_id]))) != 1:
        raise InputError(
            f"the chat template of {folder} renders {found} image tokens where 1 is needed; copy chat_template.json or "
            "chat_template.jinja of the vision-language checkpoint"
        )


def text_of(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Spells out tokens, special ones included."""
    return "".join(tokenizer.convert_ids_to_tokens(token_ids))


def check_ids(token_ids: Iterable[Any], vocab_size: int) -> None:
    """Raises InputError if one of the ids is not in the vocabulary."""
    outside = [i for i in token_ids if type(i) is not int or not 0 <= i < vocab_size]
    if outside:
        raise InputError(
            f"token ids {outside} lie outside vocab_size {vocab_size} of config.json; take it, generation_config.json "
            "and the tokenizer from the same checkpoint"
        )


def forbidden_mask(
    tokenizer: PreTrainedTokenizerFast, vocab_size: int, stop_ids: Sequence[int], vision_ids: Sequence[int]
) -> npt.NDArray[np.bool_]:
    """Marks the ids that must not be sampled, [V]: those without a token, and special ones except the stop ids.

    Ids without a token are the tail of the model's vocabulary behind the tokenizer's.
    """
    known = list(tokenizer.get_vocab().values())
    mask = np.ones(vocab_size, np.bool_)
    mask[known] = False
    mask[[i for i, token in tokenizer.added_tokens_decoder.items() if token.special]] = True
    mask[list(vision_ids)] = True
    mask[list(stop_ids)] = False
    return mask
