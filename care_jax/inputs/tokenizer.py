"""The tokenizer of a model folder: its chat template, its ids, and the mask of those that must not be sampled."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from care_jax.errors import InputError, shown
from care_jax.inputs import tokenizer_files
from care_jax.models.model_folder import read_bytes, read_fields, require_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)


def load_tokenizer(folder: Path, vocab_size: int, image_token_id: int) -> Any:
    """Loads the tokenizer, with the chat template that transformers' processor uses.

    Args:
        folder: the model folder.
        vocab_size: ids of the model.
        image_token_id: the token that stands for an image in a rendered turn.

    Returns:
        transformers' tokenizer.

    Raises:
        InputError: files are missing or unreadable, take too much time or memory, the template has no image token, or
            a token lies outside the vocabulary.
    """
    require_file(folder / "tokenizer.json")
    if (folder / "chat_template.json").exists():
        read_fields(folder / "chat_template.json", "chat_template")
    contents = tuple((name, read_bytes(folder / name)) for name in _FILES if os.path.lexists(folder / name))
    if fault := tokenizer_files.try_apart(contents):
        raise InputError(f"{folder} has {fault}; copy them from the source checkpoint")
    with tokenizer_files.written(contents) as copies:
        tokenizer = tokenizer_files.open_tokenizer(copies)
    if tokenizer.chat_template is None:
        raise InputError(f"{folder} has no chat_template.jinja; copy it from the source checkpoint")
    check_ids([max(tokenizer.get_vocab().values())], vocab_size)
    turn = _encode(tokenizer, tokenizer_files.render_question(tokenizer))
    if (found := turn.count(image_token_id)) != 1:
        raise InputError(
            f"the chat template of {folder} renders {found} image tokens where 1 is needed; copy chat_template.json or "
            "chat_template.jinja of the vision-language checkpoint"
        )
    return tokenizer


def end_of_turn(folder: Path, tokenizer: Any) -> int:
    """The token that the chat template puts behind an assistant's turn, at which an answer must stop.

    Raises:
        InputError: it puts none there.
    """
    end = tokenizer_files.render_end(tokenizer)
    for token_id in _encode(tokenizer, end):
        if token_id in tokenizer.added_tokens_decoder:
            return token_id
    raise InputError(
        f"the chat template of {folder} puts no control token behind an assistant's turn ({shown(end)}), so no answer "
        "would end; copy the template of the vision-language checkpoint"
    )


def all_stop_ids(folder: Path, end_id: int, eos: Any) -> tuple[int, ...]:
    """The ids at which an answer stops, `end_id` first; says so on stderr if generation_config.json leaves it out.

    Args:
        folder: the model folder.
        end_id: `end_of_turn`.
        eos: eos_token_id of generation_config.json, one id or a list.
    """
    eos_ids = eos if isinstance(eos, list) else [eos]
    if end_id not in eos_ids:
        print(
            f"note: eos_token_id of {folder / 'generation_config.json'} leaves out {end_id}, with which the chat "
            "template ends a turn; answers stop there too",
            file=sys.stderr,
        )
    return (end_id, *(each for each in eos_ids if each != end_id))


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def text_of(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Spells out tokens, special ones included."""
    return "".join(tokenizer.convert_ids_to_tokens(token_ids))


def check_ids(token_ids: Iterable[Any], vocab_size: int) -> None:
    """Raises InputError if one of the ids is not in the vocabulary."""
    outside = [i for i in token_ids if type(i) is not int or not 0 <= i < vocab_size]
    if outside:
        raise InputError(
            f"token ids {shown(outside)} lie outside vocab_size {vocab_size} of config.json; take it, "
            "generation_config.json and the tokenizer from the same checkpoint"
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
