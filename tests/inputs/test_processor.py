"""The processor of one folder: errors, responses, buckets, and what its files must say. Prompts: test_prompts.py."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from care_jax.errors import InputError
from care_jax.inputs.batch import BatchSizes, Example, blank, collate
from care_jax.inputs.processor import Processor, load_processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.inputs.responses import encode_repairs, encode_rewrites, encode_trace
from care_jax.rewards.response_format import ANSWER_TAGS, BOXED
from care_jax.structs import Record
from tests.families import edit_json
from tests.pictures import encode, picture

SLOW = pytest.mark.slow
DEFAULTS = {
    "response_format": dataclasses.replace(ANSWER_TAGS, request="\nAnswer."),
    "prompt_buckets": (64, 512),
    "patch_buckets": (64, 1024),
    "max_image_tokens": 64,
    "min_image_tokens": 4,
    "overlong": "drop",
}


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> Processor:
    """The processor of the tiny folder."""
    return load_processor(tiny_folder, **DEFAULTS)


def record(prompt: str, *encoded: bytes, **fields) -> Record:
    """A record about encoded images."""
    return Record("row-7", "test", prompt, encoded, **{"answer": "3", "answer_kind": "integer", **fields})


def text_of(processor: Processor, token_ids) -> str:
    """The decoded tokens."""
    return processor.tokenizer.decode(token_ids)


# Images


@pytest.mark.parametrize("encoded", [b"", b"no image", encode(picture(60, 80))[:400]])
def test_unreadable_image_names_the_record(processor, encoded):
    """Catches an error that leaves the user searching for the broken image."""
    with pytest.raises(ValueError, match=rf"'row-7'.*{len(encoded)} bytes are not a readable image"):
        encode_prompt(processor, record("<image>?", encoded))


# Text


def test_chat_layout(processor):
    """Catches a default system prompt and lost line breaks."""
    example = encode_prompt(processor, record("See <image>!", encode(picture(56, 56))))
    assert text_of(processor, example.token_ids) == (
        "<|im_start|>user\nSee <|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>!\nAnswer.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|image_pad|>b", "<|vision_start|>", "<|endoftext|>"])
def test_control_tokens_in_the_question_are_refused(processor, text):
    """Catches a question that ends its own turn or smuggles in an image token."""
    with pytest.raises(ValueError, match=r"'row-7' spells <\|.*\|> in its prompt"):
        encode_prompt(processor, record("What? " + text))


@pytest.mark.parametrize(("prompt", "count"), [("no mark", 1), ("<image> one", 2), ("<image><image>", 1)])
def test_marks_and_images_must_agree(processor, prompt, count):
    """Catches an image that is dropped in silence, and a mark without an image."""
    with pytest.raises(ValueError, match=rf"'row-7' has \d <image> marks in its prompt and {count} images"):
        encode_prompt(processor, record(prompt, *[encode(picture(56, 56))] * count))


def test_forbidden_mask(processor, tiny_folder):
    """Catches stop tokens that can never be sampled, and vision tokens or the unused tail that can."""
    tokenizer = processor.tokenizer
    assert processor.stop_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.pad_token_id)
    forbidden = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>"]
    wanted = {*tokenizer.convert_tokens_to_ids([*forbidden, "<|video_pad|>"]), 284, 285, 286, 287}
    assert set(np.flatnonzero(processor.forbidden_mask).tolist()) == wanted
    assert len(processor.forbidden_mask) == AutoConfig.from_pretrained(tiny_folder).text_config.vocab_size == 288
    assert not processor.forbidden_mask[tokenizer.convert_tokens_to_ids(["<think>", "</answer>", "a"])].any()


# Responses


def test_trace_with_a_draft(processor):
    """Catches a loss on the wrong draft or on the cue, and a trace without its stop token."""
    row = record("?", rationale="it is 3", draft="it is 2")
    trace = encode_trace(processor, row, cue=" No:", response_len=64)
    assert text_of(processor, trace.token_ids) == "<think>it is 2 No:it is 3</think><answer>3</answer><|im_end|>"
    assert text_of(processor, trace.token_ids[~trace.loss_mask]) == "it is 2 No:"
    learned = text_of(processor, trace.token_ids[trace.loss_mask])
    assert learned == "<think>it is 3</think><answer>3</answer><|im_end|>"
    length = len(trace.token_ids)
    assert encode_trace(processor, row, cue=" No:", response_len=length).token_ids[-1] == processor.stop_ids[0]
    assert encode_trace(processor, row, cue=" No:", response_len=length - 1) is None


def test_trace_without_a_draft(processor):
    """Catches a cue where nothing was wrong."""
    row = record("?", rationale="so B", answer="B", answer_kind="choice")
    trace = encode_trace(processor, row, cue=" No:", response_len=64)
    assert text_of(processor, trace.token_ids) == "<think>so B</think><answer>B</answer><|im_end|>"
    assert trace.loss_mask.all()


def test_trace_of_the_boxed_format(processor):
    """Catches a cold start that teaches another layout than the one that is asked for and read."""
    boxed = dataclasses.replace(processor, response_format=BOXED)
    trace = encode_trace(boxed, record("?", rationale="it is 3"), cue=" No:", response_len=64)
    text = text_of(processor, trace.token_ids)
    assert text == r"<think>it is 3</think>\boxed{3}<|im_end|>"
    assert BOXED.parse(text.removesuffix("<|im_end|>").encode()).format_ok


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "'row-7' has no rationale"),
        ({"rationale": "a", "answer": "<|im_end|>"}, r"spells <\|im_end\|> in its answer"),
    ],
)
def test_trace_refuses(processor, fields, message):
    """Catches a trace that teaches control tokens, and a record without a rationale that is trained on."""
    with pytest.raises(ValueError, match=message):
        encode_trace(processor, record("?", **fields), cue="", response_len=64)


@pytest.mark.parametrize("fields", [{"rationale": r"\boxed{4}, so 4"}, {"rationale": "a", "draft": "no</think>"}])
def test_no_trace_of_a_text_with_a_mark_of_the_format(processor, fields):
    """Catches a row of sound data, written for another layout, that ends the run at the step which draws it."""
    boxed = dataclasses.replace(processor, response_format=BOXED)
    assert encode_trace(boxed, record("?", **fields), cue="", response_len=64) is None


def test_repair_opens_like_a_drafted_trace(processor):
    """Catches a reflection that starts from other tokens than the cold start has taught."""
    trace = encode_trace(processor, record("?", rationale="x", draft="user is 22"), cue=" No:", response_len=64)
    repair = encode_repairs(processor, ["user is 22"], cue=" No:", max_rationale_len=32)[0]
    assert trace.token_ids[: len(repair)].tolist() == repair
    assert text_of(processor, repair) == "<think>user is 22 No:"
    assert not trace.loss_mask[1 : len(repair)].any()


def test_repair_cuts_the_rationale_and_keeps_the_cue(processor):
    """Catches a cut that counts the tag, or that loses the cue."""
    assert (
        text_of(processor, encode_repairs(processor, ["abcdef"], cue=" No:", max_rationale_len=3)[0])
        == "<think>abc No:"
    )


def test_sampled_text_cannot_turn_into_control_tokens(processor):
    """Catches a spelled "<|im_end|>" of a sampled response that ends the rewritten one early."""
    rewritten = encode_rewrites(processor, ["<think>a<|im_end|>b</think>"])[0]
    assert rewritten.count(processor.stop_ids[0]) == 1
    assert text_of(processor, rewritten[:-1]) == "<think>a<|im_end|>b</think>"
    repair = encode_repairs(processor, ["<|image_pad|>"], cue="", max_rationale_len=32)[0]
    assert processor.image_token_id not in repair


# Buckets


def overlong(processor: Processor, policy: str, **buckets) -> Processor:
    """The processor with another policy and other buckets."""
    return dataclasses.replace(processor, overlong=policy, **buckets)


# Of the 73 tokens 20 are text and 4 the second image; in 30 tokens 6 remain for the first, in 96 patches 20 and in
# 176 patches 40. The largest squares within are 4, 16 and 36.
@pytest.mark.parametrize(
    ("buckets", "tokens_of_first"),
    [({"prompt_buckets": (30,)}, 4), ({"patch_buckets": (64, 96)}, 16), ({"patch_buckets": (64, 176)}, 36)],
)
def test_overlong_prompts(processor, buckets, tokens_of_first):
    """Catches truncated images, and a shrink that also spoils the images that are small already."""
    row = record("<image>a<image>", encode(picture(196, 196)), encode(picture(56, 56)))
    fitting = encode_prompt(processor, row)
    assert (len(fitting.token_ids), len(fitting.patches)) == (73, 212)
    assert encode_prompt(overlong(processor, "drop", **buckets), row) is None
    with pytest.raises(ValueError, match="'row-7' needs 73 tokens and 212 patches, the largest buckets hold"):
        encode_prompt(overlong(processor, "error", **buckets), row)
    shrunk = overlong(processor, "shrink", **buckets)
    example = encode_prompt(shrunk, row)
    assert int((example.image_ids == 1).sum()) == 4 * tokens_of_first
    assert int((example.image_ids == 2).sum()) == 16
    assert len(example.token_ids) == 20 + tokens_of_first + 4
    collate(shrunk, [example])


def test_shrink_drops_what_no_smaller_image_can_fit(processor):
    """Catches an endless search, or a prompt past its bucket, where the text alone is too long."""
    shrinking = overlong(processor, "shrink", prompt_buckets=(40,))
    assert encode_prompt(shrinking, record("x" * 100)) is None
    assert encode_prompt(shrinking, record("x" * 20 + "<image>", encode(picture(56, 56)))) is None


def test_collate_pads_on_the_right(processor):
    """Catches padding that looks like a feature, a segment or a position of the prompt."""
    plain = encode_prompt(processor, record("hi"))
    pictured = encode_prompt(processor, record("<image>?", encode(picture(84, 84))))
    batch = collate(processor, [plain, pictured])
    assert batch.token_ids.shape == (2, 64)
    assert batch.patches.shape == (2, 64, 588)
    assert batch.prompt_len.tolist() == [len(plain.token_ids), len(pictured.token_ids)]
    assert batch.next_position.tolist() == [plain.next_position, pictured.next_position]
    assert not batch.window_ids[0].any()
    assert not batch.image_ids[0].any()
    assert not batch.patches[0].any()
    assert (batch.vision_index[0] == -1).all()
    for example, row in ((plain, 0), (pictured, 1)):
        size, count = len(example.token_ids), len(example.patches)
        assert np.array_equal(batch.token_ids[row, :size], example.token_ids)
        assert np.array_equal(batch.position_ids[row, :, :size], example.position_ids)
        assert np.array_equal(batch.vision_index[row, :size], example.vision_index)
        assert np.array_equal(batch.patches[row, :count], example.patches)
        assert np.array_equal(batch.window_ids[row, :count], example.window_ids)
        assert (batch.token_ids[row, size:] == processor.pad_token_id).all()
        assert (batch.vision_index[row, size:] == -1).all()
        assert not batch.window_ids[row, count:].any()
    assert batch.pixel_norm.tolist() == [np.float32([processor.image_spec.mean, processor.image_spec.std]).tolist()] * 2
    dtypes = {name: str(value.dtype) for name, value in vars(batch).items() if value.dtype != "int32"}
    assert dtypes == {"patches": "uint8", "pixel_norm": "float32", "grid_weights": "float32"}


def test_sizes_and_padding_by_hand(processor):
    """Catches figures of one row in place of the batch's, and patches counted as tokens."""
    plain = encode_prompt(processor, record("hi"))
    pictured = encode_prompt(processor, record("<image>?", encode(picture(84, 84))))
    figures = BatchSizes.of([plain, pictured]).metrics((64, 128))
    parts = [list(BatchSizes.of([example])) for example in (plain, pictured)]
    assert BatchSizes.join(parts) == BatchSizes.of([plain, pictured])
    real = len(plain.token_ids) + len(pictured.token_ids)
    shares = {"padding/prompt_tokens": 1 - real / 128, "padding/patches": 1 - 36 / 256}
    assert figures == shares | {"prompt_len/mean": real / 2, "patches/mean": 18}


@pytest.mark.parametrize("videos", [False, True])
def test_patches_have_one_width_whatever_the_batch(processor, videos):
    """Catches a batch of still pictures, or of none, that is narrower than the one with a video beside it."""
    processor = dataclasses.replace(processor, videos=videos)
    spec = processor.image_spec
    still = encode_prompt(processor, record("<image>?", encode(picture(84, 84))))
    widths = {collate(processor, examples).patches.shape[-1] for examples in ([still], [blank(spec)])}
    assert widths == {processor.sent_values} == {(2 if videos else 1) * 3 * 14 * 14}
    one = encode_prompt(dataclasses.replace(processor, videos=False), record("<image>?", encode(picture(84, 84))))
    pixels = still.patches.reshape(36, 3, -1, 14 * 14)
    assert all(np.array_equal(pixels[:, :, frame], one.patches.reshape(36, 3, 196)) for frame in range(pixels.shape[2]))


def test_collate_takes_the_smallest_bucket_that_holds_all(processor):
    """Catches padding to the largest bucket, and a prompt that is cut to fit."""

    def with_length(tokens: int) -> Example:
        text = "x" * (tokens - len(encode_prompt(processor, record("")).token_ids))
        return encode_prompt(processor, record(text))

    assert collate(processor, [with_length(64)]).token_ids.shape == (1, 64)
    assert collate(processor, [with_length(30), with_length(65)]).token_ids.shape == (2, 512)
    tight = dataclasses.replace(processor, prompt_buckets=(40,))
    with pytest.raises(ValueError, match=r"a prompt of 65 tokens exceeds the largest of data\.prompt_buckets, 40;"):
        collate(tight, [with_length(65)])


# The folder


def edited(folder: Path, target: Path, name: str, **changes) -> Path:
    """A copy of the folder with fields of one file changed; None takes a field out."""
    copy = Path(shutil.copytree(folder, target / "model"))
    edit_json(copy / name, **changes)
    return copy


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("preprocessor_config.json", {"image_mean": None}, "preprocessor_config.json has no field 'image_mean'"),
        ("preprocessor_config.json", {"size": None}, "neither 'min_pixels' nor 'shortest_edge'"),
        ("preprocessor_config.json", {"patch_size": 16}, "has patch_size 16, config.json 14"),
        ("preprocessor_config.json", {"resample": 2}, "has resample 2; only 3 is supported"),
        ("preprocessor_config.json", {"max_pixels": 784}, "leave 4 to 1 tokens"),
        ("preprocessor_config.json", {"size": 448}, "neither 'min_pixels' nor 'shortest_edge'"),
        ("preprocessor_config.json", {"image_mean": 0.5}, "has image_mean 0.5; it must be a list of 3 numbers"),
        ("preprocessor_config.json", {"image_std": [0, 0, 0]}, "image_std above 0"),
        ("config.json", {"image_token_id": None}, "config.json has no field 'image_token_id'"),
        ("config.json", {"vocab_size": 280}, r"token ids \[283\] lie outside vocab_size 280"),
        ("config.json", {"image_token_id": "278"}, r"token ids \['278'\] lie outside vocab_size 288"),
        ("generation_config.json", {"eos_token_id": None}, "generation_config.json has no field 'eos_token_id'"),
        ("generation_config.json", {"eos_token_id": [274, -1]}, r"token ids \[-1\] lie outside vocab_size 288"),
        ("generation_config.json", {"pad_token_id": 288}, r"token ids \[288\] lie outside vocab_size 288"),
        ("generation_config.json", {"pad_token_id": 278}, r"ends or pads texts with \[278\], which config.json gives"),
        ("generation_config.json", {"eos_token_id": [274, 279]}, r"ends or pads texts with \[279\]"),
        ("generation_config.json", {"eos_token_id": 275, "pad_token_id": 276}, r"pads texts with \[275, 276\]"),
    ],
)
def test_incomplete_or_contradicting_folders_are_refused(tiny_folder, tmp_path, name, changes, message):
    """Catches a default that silently stands in for what the checkpoint says."""
    with pytest.raises(ValueError, match=message):
        load_processor(edited(tiny_folder, tmp_path, name, **changes), **DEFAULTS)


@pytest.mark.parametrize("missing", ["preprocessor_config.json", "tokenizer.json", "chat_template.jinja"])
def test_missing_files_are_named(tiny_folder, tmp_path, missing):
    """Catches an error that does not say which file to copy."""
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (copy / missing).unlink()
    with pytest.raises(ValueError, match=f"has no {missing}"):
        load_processor(copy, **DEFAULTS)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "{", "model has unreadable tokenizer files"),
        pytest.param(
            "chat_template.jinja", "{% for x in %}", "model has a chat template that cannot be rendered", marks=SLOW
        ),
        pytest.param(
            "chat_template.jinja", "{{ messages[0].content }}", "renders 0 image tokens where 1 is needed", marks=SLOW
        ),
        ("chat_template.json", "{}", "chat_template.json has no field 'chat_template'"),
    ],
)
def test_broken_tokenizers_and_templates_are_told_at_the_start(tiny_folder, tmp_path, name, text, message):
    """Catches a traceback of a library, and a template without images that is noticed at the first prompt."""
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (copy / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_processor(copy, **DEFAULTS)


def test_the_processors_template_goes_before_the_tokenizers(processor, tiny_folder, tmp_path):
    """Catches images left out: the hub's Qwen2.5-VL has the template of a text model in tokenizer_config.json."""
    copy = edited(tiny_folder, tmp_path, "tokenizer_config.json", chat_template="{{ messages[0].content }}")
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    row = record("See <image>!", encode(picture(56, 56)))
    expected = encode_prompt(processor, row).token_ids
    assert encode_prompt(load_processor(copy, **DEFAULTS), row).token_ids.tolist() == expected.tolist()


def test_hub_spelling_of_the_limits_and_a_single_stop_id(tiny_folder, tmp_path):
    """Catches limits that are read from `size` only: the hub's Qwen2.5-VL files write min_pixels and max_pixels."""
    copy = edited(
        tiny_folder, tmp_path, "preprocessor_config.json", size=None, min_pixels=7840, max_pixels=15680, resample=None
    )
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": 274, "pad_token_id": 272}))
    loaded = load_processor(copy, **DEFAULTS)
    assert (loaded.image_spec.min_pixels, loaded.image_spec.max_pixels) == (7840, 15680)
    assert loaded.stop_ids == (274,)
    assert loaded.forbidden_mask[272]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"prompt_buckets": (64, 32)}, r"data.prompt_buckets is \(64, 32\); give ascending"),
        ({"patch_buckets": (62,)}, r"data.patch_buckets is \(62,\); give ascending positive multiples of 4"),
        ({"patch_buckets": ()}, "data.patch_buckets is "),
        ({"overlong": "truncate"}, "data.overlong='truncate': choose one of drop, shrink, error"),
        ({"min_image_tokens": 65}, "leave 65 to 64 tokens"),
        (
            {"response_format": dataclasses.replace(ANSWER_TAGS, request="<|im_end|>")},
            r"the response format's request spells <\|im_end\|>",
        ),
    ],
)
def test_settings_outside_what_is_allowed_are_refused(tiny_folder, setting, message):
    """Catches a bad setting that fails only in the middle of a run."""
    with pytest.raises(ValueError, match=message):
        load_processor(tiny_folder, **{**DEFAULTS, **setting})


# The end of a turn


@pytest.mark.parametrize(
    ("eos", "expected", "is_told"),
    [
        (272, (274, 272), True),
        ([272], (274, 272), True),
        ([], (274,), True),
        ([272, 273], (274, 272, 273), True),
        ([272, 274], (274, 272), False),
        ([274, 272], (274, 272), False),
        (274, (274,), False),
    ],
)
def test_answers_stop_where_the_template_ends_a_turn(tiny_folder, tmp_path, capsys, eos, expected, is_told):
    """Catches answers that never end: a fine-tune's generation_config.json often names <|endoftext|> alone."""
    loaded = load_processor(edited(tiny_folder, tmp_path, "generation_config.json", eos_token_id=eos), **DEFAULTS)
    assert loaded.stop_ids == expected
    assert not loaded.forbidden_mask[list(expected)].any()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == is_told
    assert all("leaves out 274" in line for line in told)
    assert encode_rewrites(loaded, ["a"])[0][-1] == 274


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{{ m.content if m.content is string else m.content[0].text or '<|image_pad|>' }}<|endoftext|>", 272),
        pytest.param("<|im_start|>{{ m.content[0].text or '<|image_pad|>' }}\n<|im_end|>\n", 274, marks=SLOW),
        pytest.param("{{ '<|image_pad|>' if m.role == 'user' else m.content + '<|vision_pad|>' }}", 277, marks=SLOW),
    ],
    ids=["another token", "a line before it", "an answer that is a string"],
)
def test_the_end_is_that_of_the_template(tiny_folder, tmp_path, template, end):
    """Catches a name of a token written into the code, and a template that takes another form of answers."""
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (copy / "chat_template.jinja").write_text("{% for m in messages %}" + template + "{% endfor %}")
    assert load_processor(copy, **DEFAULTS).stop_ids[0] == end


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("<|image_pad|>", marks=SLOW),
        pytest.param(
            "{% for m in messages %}{% if m.role == 'user' %}<|image_pad|>{% endif %}<|im_end|>{% endfor %}", marks=SLOW
        ),
        "{% for m in messages %}{{ m.content if m.content is string else '<|image_pad|>' }}\n{% endfor %}",
    ],
    ids=["no turns", "no answers", "no end"],
)
def test_a_template_that_does_not_end_a_turn_is_refused(tiny_folder, tmp_path, template):
    """Catches a model that is trained and sampled without an end."""
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match="puts no control token behind an assistant's turn"):
        load_processor(copy, **DEFAULTS)


# Files that hang, or are no files


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", marks=SLOW),
        pytest.param("{{ 7 ** (9 ** 9) }}", marks=SLOW),
        pytest.param(
            "{% set n = namespace(x='a' * 99999) %}{% for i in range(99999) %}{% set n.x = n.x + n.x %}{% endfor %}",
            marks=SLOW,
        ),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
    ids=["loops", "a power", "memory", "recursion"],
)
def test_a_template_that_does_not_come_to_an_end_is_refused(tiny_folder, tmp_path, template):
    """Catches a start that hangs or takes all memory: transformers' sandbox stops neither."""
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=r"chat template that (take more than|cannot be rendered)") as error:
        load_processor(copy, **DEFAULTS)
    assert len(str(error.value).splitlines()) == 1


def fifo(path: Path) -> None:
    """Puts a pipe that nobody writes to in the place of a file."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def endless(path: Path) -> None:
    """Puts a link to a device that never ends in the place of a file."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def folder_in_place(path: Path) -> None:
    """Puts a folder in the place of a file."""
    path.unlink(missing_ok=True)
    path.mkdir()


@pytest.mark.parametrize("put", [fifo, endless, folder_in_place])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "added_tokens.json",
    ],
)
def test_a_file_that_is_none_is_refused(tiny_folder, tmp_path, name, put):
    """Catches a start that waits for ever or fills the memory."""
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    put(copy / name)
    with pytest.raises(InputError, match=f"{name} is not a regular file"):
        load_processor(copy, **DEFAULTS)


@pytest.mark.parametrize("text", ["null", "[]", "3", "[" * 100_000, '{"a": ' * 3000, "9" * 5000, "\x00", b"\xff{}", ""])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "preprocessor_config.json"])
def test_json_that_is_no_object_is_refused(tiny_folder, tmp_path, name, text):
    """Catches the tracebacks of a reader that expects an object: nesting, digits, other types and encodings."""
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (copy / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=name) as error:
        load_processor(copy, **DEFAULTS)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("tokenizer.json", ("model",), {"type": "BPE"}),
        ("tokenizer.json", ("model", "vocab"), {}),
        ("tokenizer.json", ("added_tokens",), [{"id": 10**12}]),
        ("tokenizer.json", ("pre_tokenizer",), {"type": "Split", "pattern": {"Regex": "("}}),
        ("tokenizer_config.json", ("tokenizer_class",), 7),
        ("tokenizer_config.json", ("added_tokens_decoder",), {"a": {}}),
        ("tokenizer_config.json", ("added_tokens_decoder",), {"9999999999999": {"content": "x"}}),
        ("tokenizer_config.json", ("chat_template",), 7),
        ("tokenizer_config.json", ("eos_token",), ["x"]),
        ("config.json", ("image_token_id",), 287),
        ("generation_config.json", ("eos_token_id",), {}),
        ("preprocessor_config.json", ("size",), {"shortest_edge": "9", "longest_edge": 9}),
        ("preprocessor_config.json", ("size",), {"shortest_edge": 9, "longest_edge": -9}),
        ("preprocessor_config.json", ("image_std",), [1, 1, float("nan")]),
        ("preprocessor_config.json", ("patch_size",), {}),
        ("processor_config.json", ("image_processor",), [1]),
    ],
)
def test_values_of_another_type_are_refused_or_read_over(tiny_folder, tmp_path, processor, name, path, value):
    """Catches a traceback, or a panic, of the libraries that read the files; what transformers reads over is right."""
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    if path == ("chat_template",):
        (copy / "chat_template.jinja").unlink()
    fields = json.loads((copy / name).read_text()) if (copy / name).exists() else {}
    place = fields
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (copy / name).write_text(json.dumps(fields))
    told, loaded = refusal(copy)
    assert len(told.splitlines()) == (loaded is None), told
    if loaded is not None:
        row = record("See <image>!", encode(picture(56, 56)))
        assert encode_prompt(loaded, row).token_ids.tolist() == encode_prompt(processor, row).token_ids.tolist()


def refusal(folder: Path) -> tuple[str, Processor | None]:
    """The error that loading gives, or "" and what was loaded."""
    try:
        return "", load_processor(folder, **DEFAULTS)
    except InputError as error:
        return str(error), None


WITHOUT_TORCH = """
import importlib.util, sys
from pathlib import Path

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
from care_jax.inputs import tokenizer_files

tokenizer_files.open_tokenizer(Path(sys.argv[1]))
"""


def test_a_command_does_not_open_with_a_word_about_pytorch(tiny_folder):
    """Catches "[transformers] PyTorch was not found" on every start: the program is made to run without it."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(tiny_folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "PyTorch" not in done.stderr


@pytest.mark.parametrize("tokens", [(16, 64, 256), (8, 9, 40), (300,)])
@pytest.mark.parametrize("patches", [(64, 256, 1024), (4, 32, 36, 160)])
def test_only_buckets_that_a_batch_can_need_are_compiled(processor, tokens, patches):
    """Catches a pair of buckets that a batch needs and that is missing, and one that is compiled for nothing."""
    processor = dataclasses.replace(processor, prompt_buckets=tokens, patch_buckets=patches)
    needed = set()
    for num_patches in range(0, patches[-1] + 1, 4):
        for length in range(max(num_patches // 4, 1), tokens[-1] + 1):  # a token for each unit of patches
            held = next(size for size in tokens if length <= size), next(x for x in patches if num_patches <= x)
            needed.add(held)
    assert len(processor.buckets) == len(needed)
    assert set(processor.buckets) == needed
