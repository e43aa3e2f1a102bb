"""Masks over tokens, and the bytes of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from care_jax.rewards.response_format import ANSWER_TAGS
from care_jax.rewards.spans import TokenBytes, span_masks, token_spans


def mask_text(tokens: list[bytes]) -> str:
    """The masks as one letter a token: t think, a answer, . neither."""
    think_mask, answer_mask = span_masks(tokens, ANSWER_TAGS.parse(b"".join(tokens)))
    assert think_mask.dtype == answer_mask.dtype == bool
    assert not (think_mask & answer_mask).any()
    return "".join("a" if a else "t" if t else "." for t, a in zip(think_mask, answer_mask, strict=True))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([b"<think>", b"1", b"+1", b"</think>", b"<answer>", b"2", b"</answer>", b""], ".tt..a.."),
        # Merged with the text before and behind, as Qwen's BPE does it.
        (
            [b"<th", b"ink", b">1", b"+1</", b"think", b">\n<", b"answer", b">2", b"</", b"answer", b">", b""],
            "..tt...a....",
        ),
        # A token that touches both regions belongs to the answer.
        ([b"<think>1", b"+1</think><answer>2", b"</answer>"], "ta."),
        # Nothing between the tags: no token, not even the one that spans the empty place.
        ([b"<think", b"></", b"think><answer", b"></", b"answer>"], "....."),
        ([b"<think>1", b"</think><answer>", b"2"], "t.."),
        ([b"<think>1", b"2", b""], "tt."),
        # An empty token inside a span belongs to nothing.
        ([b"<think>1", b"", b"2</think>"], "t.t"),
        # An answer inside the rationale.
        ([b"<think>", b"1", b"<answer>", b"2", b"</answer>", b"</think>"], ".ttat."),
        ([b"no", b" tags"], ".."),
        ([], ""),
    ],
)
def test_masks(tokens, expected):
    """Catches masks that are off by one token, or that miss the token where a tag merges with its neighbour."""
    assert mask_text(tokens) == expected


def test_token_spans_count_bytes():
    """Catches offsets counted in characters."""
    assert token_spans(["é".encode(), b"", b"ab"]).tolist() == [0, 2, 2, 4]
    assert token_spans([]).tolist() == [0]


SAMPLE = "<think>60° − café, 三角形 🙂\n</think> <answer>½</answer>"  # noqa: RUF001


@pytest.fixture(scope="module")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with merges across tag borders, special tokens and one added token that is not special."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    model.train_from_iterator([SAMPLE] * 3 + ["x+1</think>"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<|end|>")
    tokenizer.add_tokens(
        [tokenizers.AddedToken("</answer>", special=False), tokenizers.AddedToken("→é", special=False)]
    )
    return tokenizer


@pytest.mark.parametrize(
    "text", [SAMPLE, "é", "°", "三角形三", "🙂", "→é", "a\x00\x7f\xad\xa0b", "".join(map(chr, range(1, 0x180)))]
)
def test_token_bytes_join_to_the_text(byte_level_tokenizer, text):
    """Catches a wrong alphabet and tokens decoded one by one, which turns split characters into U+FFFD."""
    table = TokenBytes(byte_level_tokenizer)
    ids = byte_level_tokenizer(text, add_special_tokens=False).input_ids
    assert b"".join(table[i] for i in ids) == text.encode()
    assert table.text(ids) == text


def test_token_bytes_of_every_kind_of_token(byte_level_tokenizer):
    """Catches special tokens in the text (the format would break) and tags lost because they are added tokens."""
    table = TokenBytes(byte_level_tokenizer)
    ids = byte_level_tokenizer.convert_tokens_to_ids
    assert len(table) == len(byte_level_tokenizer)
    assert table[ids("<|end|>")] == b""
    assert table[ids("</answer>")] == b"</answer>"
    assert table[ids("→é")] == "→é".encode()
    single = {table[i] for i in range(len(table)) if len(table[i]) == 1}
    assert single == {bytes([byte]) for byte in range(256)}
    assert table.text([ids("Ã"), ids("<|end|>")]) == "\ufffd"


def test_masks_of_merged_tokens(byte_level_tokenizer):
    """Catches a search for tag ids: here "1</think>" ends in a token that no tag alone has."""
    table = TokenBytes(byte_level_tokenizer)
    ids = byte_level_tokenizer("<think>x+1</think><answer>2</answer>", add_special_tokens=False).input_ids
    tokens = [table[i] for i in ids]
    merged = [t for t in tokens if t.endswith(b"1</think>")]
    assert merged, tokens
    think_mask, _ = span_masks(tokens, ANSWER_TAGS.parse(b"".join(tokens)))
    assert think_mask[tokens.index(merged[0])]


def test_token_bytes_of_the_tiny_qwen(tiny_folder):
    """Catches the default task's tags being added as special tokens, which leaves every format wrong."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    table = TokenBytes(tokenizer)
    ids = tokenizer("<think>3+5=8</think><answer>8</answer><|im_end|>").input_ids
    assert table.text(ids) == "<think>3+5=8</think><answer>8</answer>"
    assert table[ids[-1]] == b""


def test_special_tags_are_refused(byte_level_tokenizer):
    """Catches tags that vanish from the decoded text."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()))
    tokenizer.add_tokens([tokenizers.AddedToken("<think>", special=True)], special_tokens=True)
    with pytest.raises(ValueError, match="special=False"):
        TokenBytes(tokenizer)


def test_other_tokenizers_are_refused():
    """Catches a SentencePiece-style vocabulary read as bytes: its space is another character."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"▁the": 0}, merges=[]))
    with pytest.raises(ValueError, match="byte-level"):
        TokenBytes(PreTrainedTokenizerFast(tokenizer_object=model))


def test_masks_are_arrays_even_when_empty():
    """Catches a None or a float array for a response of no tokens."""
    think_mask, answer_mask = span_masks([], ANSWER_TAGS.parse(b""))
    assert isinstance(think_mask, np.ndarray)
    assert think_mask.shape == answer_mask.shape == (0,)
