"""Token bytes, and masks over the tokens of a response: rationale and answer, from the byte spans of its text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from care_jax.errors import InputError
from care_jax.rewards.response_format import TAGS, ParsedResponse, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TAG = re.compile(b"|".join(TAGS))


def token_spans(token_bytes: Sequence[bytes]) -> np.ndarray:
    """Return the byte offsets of n tokens, [n + 1] int64: token t covers offsets[t] to offsets[t + 1]."""
    offsets = np.zeros(len(token_bytes) + 1, np.int64)
    np.cumsum(list(map(len, token_bytes)), out=offsets[1:])
    return offsets


def span_masks(token_bytes: Sequence[bytes], parsed: ParsedResponse) -> tuple[np.ndarray, np.ndarray]:
    r"""Assign each token of a response to the region that it touches; the answer wins over the rationale.

        token   <th|ink>|two|</think>\n|<answer>4|</answer>|<|im_end|>
        think    0    0   1        0          0       0         0
        answer   0    0   0        0          1       0         0

    Args:
        token_bytes: the bytes of the response's n tokens, forced ones too; special tokens are b"".
        parsed: the spans in the concatenated bytes.

    Returns:
        think_mask and answer_mask, [n] bool each, never both True. A token without bytes is in neither.
    """
    offsets = token_spans(token_bytes)
    answer_mask = _touches(offsets, parsed.answer)
    return _touches(offsets, parsed.think) & ~answer_mask, answer_mask


def _touches(offsets: np.ndarray, span: Span | None) -> np.ndarray:
    starts, ends = offsets[:-1], offsets[1:]
    if span is None or span[0] >= span[1]:
        return np.zeros(len(starts), bool)
    return (starts < span[1]) & (ends > span[0]) & (ends > starts)


class TokenBytes(tuple[bytes, ...]):
    """The bytes of every token id of a byte-level BPE tokenizer; joined, they are the text's UTF-8.

    A character may be split over several tokens, so tokens are joined as bytes and decoded afterwards. Special tokens
    are b"", other added tokens (Qwen3's <think>) their content.
    """

    def __new__(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Read the tokenizer's vocabulary.

        Raises:
            InputError: the tokenizer is not byte-level, or it marks a tag as a special token.
        """
        added = tokenizer.added_tokens_decoder
        vocabulary = tokenizer.get_vocab()
        table = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, token_id in vocabulary.items():
            if token_id not in added:
                table[token_id] = _raw_bytes(token)
        for token_id, added_token in added.items():
            content = added_token.content.encode()
            if added_token.special and _TAG.search(content):
                raise InputError(
                    f"the tokenizer marks {added_token.content!r} as special, so no response could be well formed; "
                    "add it with special=False"
                )
            table[token_id] = b"" if added_token.special else content
        return super().__new__(cls, table)

    def text(self, token_ids: Iterable[int]) -> str:
        """Return the decoded text for reading; bytes that are not UTF-8 become U+FFFD."""
        return b"".join([self[token_id] for token_id in token_ids]).decode(errors="replace")


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of the byte-level alphabet (Radford et al. 2019, GPT-2's encoder).

    Printable Latin-1 stands for itself; the other bytes, in order, are the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


def _raw_bytes(token: str) -> bytes:
    foreign = [character for character in token if character not in _BYTE_OF]
    if foreign:
        raise InputError(
            f"token {token!r} holds {foreign[0]!r}, which is not in the byte-level alphabet; "
            "use a byte-level BPE tokenizer such as Qwen's"
        )
    return bytes([_BYTE_OF[character] for character in token])
