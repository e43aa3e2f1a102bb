"""Spans of the response format, masks over tokens, and the bytes of tokens."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from care_jax.regions import TAGS, ParsedResponse, TokenBytes, parse_response, span_masks, token_spans

WELL_FORMED = b"<think>1+1</think><answer>2</answer>"


def contents(text: bytes) -> tuple[bytes | None, bytes | None, bool]:
    """The spans as the text that they hold."""
    parsed = parse_response(text)
    think, answer = (None if span is None else text[slice(*span)] for span in (parsed.think, parsed.answer))
    return think, answer, parsed.format_ok


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WELL_FORMED, (b"1+1", b"2", True)),
        (b"\n <think>1+1</think>\n\n<answer>2</answer>\t\n", (b"1+1", b"2", True)),
        (b"<think></think><answer></answer>", (b"", b"", True)),
        (b"<think>a<b</think><answer></x></answer>", (b"a<b", b"</x>", True)),
        (b"", (None, None, False)),
        (b"2", (None, None, False)),
        (b"Well: " + WELL_FORMED, (b"1+1", b"2", False)),
        (WELL_FORMED + b".", (b"1+1", b"2", False)),
        (b"<think>1+1</think> so <answer>2</answer>", (b"1+1", b"2", False)),
        (b"\0" + WELL_FORMED, (b"1+1", b"2", False)),
        ("\u00a0".encode() + WELL_FORMED, (b"1+1", b"2", False)),
        (WELL_FORMED * 2, (b"1+1", b"2", False)),
        (WELL_FORMED + b"<answer>3</answer>", (b"1+1", b"3", False)),
        (WELL_FORMED + b"<answer>3", (b"1+1", b"2", False)),
        (WELL_FORMED + b"</answer>", (b"1+1", b"2", False)),
        (b"<think>" + WELL_FORMED, (b"<think>1+1", b"2", False)),
        (b"<answer>2</answer><think>1+1</think>", (b"1+1", b"2", False)),
        (b"</think><think>1+1<answer>2</answer>", (b"1+1", b"2", False)),
        (b"<think>1+1<answer>2</answer></think>", (b"1+1<answer>2</answer>", b"2", False)),
        (b"<think>1+1", (b"1+1", None, False)),
        (b"<think>1+1</think><answer>2", (b"1+1", None, False)),
        (b"<think>1+1<answer>2", (b"1+1", None, False)),
        (b"<think>1+1</think></answer>2<answer>", (b"1+1", None, False)),
        (b"<think>1+1</think><answer>2<answer>3</answer>", (b"1+1", b"3", False)),
        (b"<Think>1+1</Think><answer>2</answer>", (None, b"2", False)),
        (b"<think >1+1</think><answer>2</answer>", (None, b"2", False)),
        (b"<think><think>1+1</think></think><answer>2</answer>", (b"<think>1+1", b"2", False)),
        (b"<<think>1+1</think><answer>2</answer>>", (b"1+1", b"2", False)),
    ],
)
def test_spans_and_format(text, expected):
    """Catches a format reward for text outside the tags, and a second or unclosed answer taken for the answer."""
    assert contents(text) == expected


def reference(text: bytes) -> ParsedResponse:
    """The definition once more: one byte at a time, no pattern, no search."""
    found, i = [], 0
    while i < len(text):
        here = [tag for tag in TAGS if text[i : i + len(tag)] == tag]
        if here:
            found.append((here[0], i, i + len(here[0])))
            i += len(here[0])
        else:
            i += 1
    think = answer = None
    for tag, _, end in found:
        if tag == b"<think>" and think is None:
            closings = [start for name, start, _ in found if name == b"</think>" and start >= end]
            answers = [start for name, start, _ in found if name == b"<answer>" and start >= end]
            think = (end, (closings or answers or [len(text)])[0])
    opened = None
    for tag, start, end in found:
        if tag == b"<answer>":
            opened = end
        elif tag == b"</answer>" and opened is not None:
            answer, opened = (opened, start), None
    skeleton, position = [], 0
    for tag, start, end in [*found, (b"", len(text), len(text))]:
        between = text[position:start]
        inside = tag in (b"</think>", b"</answer>")
        skeleton.append(b"" if inside or not between.strip() else b"text")
        skeleton.append(tag)
        position = end
    return ParsedResponse(think, answer, b"".join(skeleton) == b"<think></think><answer></answer>")


def test_random_orders_of_tags_agree_with_the_reference():
    """Catches a wrong span for any order, number and nesting of tags."""
    rng = random.Random(0)
    parts = [*TAGS, *TAGS, b" ", b"\n", b"x", b"<", b"think>", "é".encode(), b"\xff"]
    well_formed = 0
    for _ in range(20_000):
        text = b"".join(rng.choices(parts, k=rng.randrange(9)))
        if rng.random() < 0.3:
            shuffled = [*TAGS, *rng.choices([b" ", b"x", b""], k=3)]
            rng.shuffle(shuffled)
            text = b"".join(shuffled)
        assert parse_response(text) == reference(text), text
        well_formed += parse_response(text).format_ok
    assert well_formed > 10  # the property is not empty


def test_parsing_is_linear():
    """Catches a pattern that needs quadratic time for many open tags: 1 MB would take minutes."""
    text = b"<answer>" * 130_000 + b"<think>" * 10
    assert parse_response(text).answer is None


def mask_text(tokens: list[bytes]) -> str:
    """The masks as one letter a token: t think, a answer, . neither."""
    think_mask, answer_mask = span_masks(tokens, parse_response(b"".join(tokens)))
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


SAMPLE = "<think>60° − café, 三角形 🙂\n</think> <answer>½</answer>"


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
    think_mask, _ = span_masks(tokens, parse_response(b"".join(tokens)))
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
    think_mask, answer_mask = span_masks([], parse_response(b""))
    assert isinstance(think_mask, np.ndarray) and think_mask.shape == answer_mask.shape == (0,)
