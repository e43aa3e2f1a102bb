"""A model folder whose tokenizer has as many ids as Qwen's, of made words, and records and responses of such words."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.made_model import IMAGE_UNIT, write_folder
from care_jax.structs import Record, Rollouts

VOCABULARY = 151_936  # ids of Qwen3-VL's config.json
FIRST_WORD = 284  # behind the added tokens of the embedded tokenizer
THINK, END_THINK, ANSWER, END_ANSWER, STOP = 280, 281, 282, 283, 274
_SPACE = "\u0120"  # a space in the byte-level alphabet
_IMAGES = 8  # different pictures


def write_wordy_folder(folder: Path, *, vocabulary: int = VOCABULARY) -> Path:
    """Writes a folder of a small model with so many ids; a merge makes each from a shorter one and a letter."""
    folder = write_folder(folder, num_layers=1, width=128, vocab_size=vocabulary)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    model = tokenizer["model"]
    # A tokenizer numbers its added tokens behind the model's, unless the model has them.
    model["vocab"] |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    for word, token_id in zip(_words(), range(FIRST_WORD, vocabulary), strict=False):
        model["vocab"][word] = token_id
        model["merges"].append([word[:-1], word[-1]])
    path.write_text(json.dumps(tokenizer))
    path = folder / "preprocessor_config.json"
    area = {"shortest_edge": 4 * IMAGE_UNIT**2, "longest_edge": 16384 * IMAGE_UNIT**2}  # as the published ones
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": area}))
    return folder


def _words() -> Iterator[str]:
    """A space and one letter, then two ...: all that begin a random word, each after its own beginnings."""
    rng, known = np.random.default_rng(0), {_SPACE}
    while True:
        letters = "".join(map(chr, rng.integers(ord("a"), ord("z") + 1, rng.integers(2, 9))))
        for end in range(1, len(letters) + 1):
            word = _SPACE + letters[:end]
            if word not in known:
                known.add(word)
                yield word


class MadeRecords:
    """Endless records of one photograph-like picture of 1024 x 768 pixels and a question of a hundred words."""

    def __init__(self, size: int) -> None:
        """Makes the few pictures that all records share."""
        self._size = size
        self._images = [_picture(np.random.default_rng(seed)) for seed in range(_IMAGES)]

    def __len__(self) -> int:
        """Returns the number of records."""
        return self._size

    def __getitem__(self, index: int) -> Record:
        """Makes a record."""
        return Record(
            id=str(index),
            source="made",
            prompt="<image>" + " abc" * 100,
            images=(self._images[index % _IMAGES],),
            answer=str(index % 1000),
            answer_kind="integer",
        )


def _picture(rng: np.random.Generator) -> bytes:
    small = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
    stream = io.BytesIO()
    small.resize((1024, 768), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def made_rollouts(golds: list[str], *, num_rollouts: int, response_len: int, vocabulary: int) -> Rollouts:
    """Well-formed responses of full length (NumPy); every second one of a group gives the gold."""
    rng = np.random.default_rng(0)
    token_ids = rng.integers(FIRST_WORD, vocabulary, (len(golds), num_rollouts, response_len), np.int32)
    token_ids[..., 0] = THINK
    for b, gold in enumerate(golds):
        for g in range(num_rollouts):
            digits = [ord(digit) - ord("!") for digit in str(int(gold) + g % 2)]  # ids of the byte-level alphabet
            ending = [END_THINK, ANSWER, *digits, END_ANSWER, STOP]
            token_ids[b, g, -len(ending) :] = ending
    shape = token_ids.shape
    return Rollouts(
        token_ids=token_ids,
        response_len=np.full(shape[:2], response_len, np.int32),
        logprobs=np.full(shape, -1.0, np.float32),
        sampled_mask=np.ones(shape, bool),
        finished=np.ones(shape[:2], bool),
    )
