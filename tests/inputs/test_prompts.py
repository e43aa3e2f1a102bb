"""Prompts of both families against transformers' processors and models, and by hand where those have no answer."""

from __future__ import annotations

import copy
import dataclasses
import functools
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, Qwen2_5_VLProcessor, Qwen3VLProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5Model
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_hf
from transformers.video_utils import VideoMetadata
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_window_index

from benchmarks.made_model import FACTOR
from care_jax.inputs import images, media
from care_jax.inputs.processor import Processor, load_processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.rewards.response_format import ANSWER_TAGS
from care_jax.structs import Video
from tests.families import CHAT_TEMPLATE, FAMILIES, SYSTEM, make_folder
from tests.pictures import encode, frames_of, hub_order, hub_video, normalised, picture, question, segments

SETTINGS = {
    "response_format": dataclasses.replace(ANSWER_TAGS, request="\nAnswer."),
    "prompt_buckets": (64, 512),
    "patch_buckets": (64, 1024),
    "max_image_tokens": 64,
    "min_image_tokens": 4,
    "overlong": "drop",
}


class WithoutVideos:
    """Lets transformers' processors run without their video part, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        """Accepts any class."""
        return type(argument)


class HubQwen25(WithoutVideos, Qwen2_5_VLProcessor):
    """transformers' processor of Qwen2.5-VL, without videos."""


class HubQwen3(WithoutVideos, Qwen3VLProcessor):
    """transformers' processor of Qwen3-VL, without videos."""


class Family(NamedTuple):
    """A model folder of one family, as this project and as transformers read it."""

    name: str
    processor: Processor
    hub: WithoutVideos
    config: AutoConfig

    @property
    def factor(self) -> int:
        """Pixels a side of one merged token."""
        return FACTOR[self.name]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tiny_folder, tmp_path_factory) -> Family:
    """Each family, over a tiny folder with its own chat template."""
    name = request.param
    folder = make_folder(name, tiny_folder, tmp_path_factory.mktemp("prompts") / "model")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE[name])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    image_processor.size = {"shortest_edge": 4 * FACTOR[name] ** 2, "longest_edge": 64 * FACTOR[name] ** 2}
    hub_class = {"qwen2_5_vl": HubQwen25, "qwen3_vl": HubQwen3, "qwen3_5": HubQwen3}[name]
    hub = hub_class(image_processor, tokenizer, None, chat_template=tokenizer.chat_template)
    hub.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    return Family(name, load_processor(folder, **SETTINGS, videos=True), hub, AutoConfig.from_pretrained(folder))


def video_of(num_frames: int, height: int, width: int, fps: float = 2.0) -> Video:
    """A video of random frames."""
    return Video(tuple(map(encode, frames_of(num_frames, height, width))), fps)


@pytest.mark.parametrize(
    ("prompt", "sizes"),
    [
        ("<image>How many red squares? 12.5%", [(84, 84)]),
        ("Compare <image> with <image>, naïve Ａ <think>ok</think>", [(140, 84), (28, 112)]),  # noqa: RUF001
        ("<image><image>", [(56, 56), (56, 56)]),
        ("What is 2 + 2?\n\n", []),
    ],
)
def test_token_ids_equal_transformers(family, prompt, sizes):
    """Catches a missing generation prompt, a wrong number of image tokens and text tokenised apart from the turn."""
    pictures = [picture(*size) for size in sizes]
    pieces = (prompt + "\nAnswer.").split("<image>")
    content = [{"type": "text", "text": pieces[0]}]
    for piece in pieces[1:]:
        content += [{"type": "image"}, {"type": "text", "text": piece}]
    turns = [{"role": "user", "content": content}]
    chat = family.hub.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    chat = chat.removesuffix("<think>\n")  # which the response writes
    wanted = family.hub(text=[chat], images=pictures or None, return_tensors="np")
    example = encode_prompt(family.processor, question(prompt, *[encode(each) for each in pictures]))
    assert example.token_ids.tolist() == wanted["input_ids"][0].tolist()
    assert chat.startswith(SYSTEM[family.name] + "<|im_start|>user\n")


@pytest.mark.parametrize(("thinking", "opened"), [(True, ""), (False, "<think>\n\n</think>\n\n")])
def test_the_switch_of_a_template_that_thinks(family, thinking, opened):
    """Catches a rationale that prompt and response both open, and a switch that does not reach the template."""
    processor = dataclasses.replace(family.processor, thinking=thinking)
    text = processor.tokenizer.decode(encode_prompt(processor, question("1+1=?")).token_ids)
    assert text.endswith("<|im_start|>assistant\n" + (opened if family.name == "qwen3_5" else ""))


@pytest.mark.parametrize("sizes", [[], [(84, 84)], [(28, 196), (140, 84)], [(56, 56), (500, 333), (20, 300)]])
def test_mrope_equals_transformers(family, sizes):
    """Catches text that continues at the count of image tokens, and a response that starts one position off."""
    spec = family.processor.image_spec
    prompt = "Look: " + " then ".join(["<image>"] * len(sizes)) + " how many?"
    example = encode_prompt(family.processor, question(prompt, *[encode(picture(*size)) for size in sizes]))
    grids = [images.image_grid(*size, spec, spec.max_pixels) for size in sizes]
    hub_model = {"qwen2_5_vl": Qwen2_5_VLModel, "qwen3_vl": Qwen3VLModel, "qwen3_5": Qwen3_5Model}[family.name]
    model = SimpleNamespace(config=family.config)
    model.get_vision_position_ids = functools.partial(hub_model.get_vision_position_ids, model)
    types = torch.from_numpy((example.token_ids == family.processor.image_token_id)[None].astype(np.int64))
    grid_thw = torch.tensor(grids) if grids else None
    positions, delta = hub_model.get_rope_index(model, types, types, image_grid_thw=grid_thw)
    assert np.array_equal(example.position_ids, positions[:, 0].numpy())
    assert example.next_position == int(delta) + len(example.token_ids)


def test_images_of_a_prompt_never_share_a_segment(family):
    """Catches window or image ids that start again at the second image, which would let images attend each other."""
    spec, sizes = family.processor.image_spec, [(140, 84), (28, 112), (84, 140)]
    encoded = [encode(picture(*size)) for size in sizes]
    example = encode_prompt(family.processor, question("<image>a<image>b<image>", *encoded))
    grids = [images.image_grid(*size, spec, spec.max_pixels) for size in sizes]
    tensor = torch.tensor(grids)
    assert np.array_equal(example.image_ids, segments(np.diff(get_vision_cu_seqlens(tensor).numpy())))
    index = np.arange(len(example.patches) // 4)
    if family.name == "qwen2_5_vl":
        _, cumulative = get_vision_window_index(tensor, 2, 56, 14)
        assert np.array_equal(example.window_ids, segments(np.diff(cumulative.numpy())))
        index = torch.argsort(torch.from_numpy(hub_order(grids))).numpy()
    assert np.array_equal(example.vision_index[example.vision_index >= 0], index)
    assert np.array_equal(example.vision_index >= 0, example.token_ids == family.processor.image_token_id)


def test_vision_index_reads_the_picture_in_reading_order(family):
    """Catches the inverse permutation swapped with the permutation: cell n of a mosaic is grey level 20 n."""
    cells = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    mosaic = encode(Image.fromarray(np.kron(cells, np.ones((family.factor, family.factor), np.uint8))))
    black = encode(Image.new("L", (3 * family.factor, 3 * family.factor)))
    example = encode_prompt(family.processor, question("<image> and <image>", black, mosaic))
    spec = family.processor.image_spec
    levels = normalised(example.patches, spec)[:, : spec.patch_size**2].mean(axis=1) * spec.std[0] + spec.mean[0]
    merged = (levels * 255).reshape(-1, 4).mean(axis=1)
    read = merged[example.vision_index[example.vision_index >= 0]]
    assert np.round(read[9:]).tolist() == [20 * n for n in range(12)]
    assert np.round(np.abs(read[:9])).tolist() == [0] * 9


# Videos


@pytest.mark.parametrize(
    ("num_frames", "fps", "times"),
    [(5, 2.0, ["0.2", "1.2", "2.0"]), (2, 0.5, ["1.0"]), (4, 30.0, ["0.0", "0.1"]), (3, 2.4, ["0.2", "0.8"])],
)
def test_video_in_the_prompt(family, num_frames, fps, times):
    """Catches wrong times, wrong runs and a wrong last frame of a video.

    The time is that of the middle of two frames, not of the first; each run has its own start and end; an odd frame at
    the end is neither forgotten nor counted twice.
    """
    frames = frames_of(num_frames, 64, 96)
    example = encode_prompt(family.processor, question("a<video>b", videos=(Video(tuple(map(encode, frames)), fps),)))
    grid = media.item_grid(media.VisionItem(tuple(frames), fps), family.processor.image_spec, 10**6)
    assert grid[0] == len(times) == -(-num_frames // 2)
    run = "<|vision_start|>" + "<|video_pad|>" * (grid[1] * grid[2] // 4) + "<|vision_end|>"
    if family.name == "qwen2_5_vl":
        expected = "<|vision_start|>" + "<|video_pad|>" * (grid[0] * grid[1] * grid[2] // 4) + "<|vision_end|>"
    else:
        expected = "".join(f"<{time} seconds>{run}" for time in times)
    metadata = VideoMetadata(total_num_frames=num_frames, fps=fps, frames_indices=list(range(num_frames)))
    theirs = family.hub.replace_video_token({"video_grid_thw": np.array([grid]), "video_metadata": [metadata]}, 0)
    assert expected == theirs if family.name != "qwen2_5_vl" else theirs in expected
    rendered = f"{SYSTEM[family.name]}<|im_start|>user\na{expected}b\nAnswer.<|im_end|>\n<|im_start|>assistant\n"
    assert example.token_ids.tolist() == family.processor.tokenizer.encode(rendered)


@pytest.mark.parametrize("num_frames", [3, 4])
def test_video_patches_are_those_of_its_frames(family, num_frames):
    """Catches frames out of order, a patch in time that holds one frame twice, and frames that attend each other."""
    frames = frames_of(num_frames, 64, 96)
    example = encode_prompt(family.processor, question("<video>", videos=(Video(tuple(map(encode, frames)), 2.0),)))
    patches, grid = hub_video(family.hub.image_processor, frames)
    order = hub_order([tuple(grid)], 4) if family.name == "qwen2_5_vl" else slice(None)
    assert np.array_equal(normalised(example.patches, family.processor.image_spec), patches.numpy()[order])
    assert np.array_equal(example.image_ids, segments(np.array([grid[1] * grid[2]] * 2)))


def test_video_positions_by_hand(family):
    """Catches a second of video that takes other positions than config.json says, or any for Qwen3-VL."""
    record = question("<video>", videos=(video_of(4, 2 * family.factor, 2 * family.factor, fps=1.0),))
    example = encode_prompt(family.processor, record)
    at = np.flatnonzero(example.vision_index >= 0)
    seen = example.position_ids[:, at] - example.position_ids[0, at[0]]
    if family.name == "qwen2_5_vl":  # two frames are two seconds of two positions each
        assert seen.tolist() == [[0] * 4 + [4] * 4, [0, 0, 1, 1] * 2, [0, 1, 0, 1] * 2]
        assert (example.position_ids[:, at[-1] + 1] - example.position_ids[0, at[0]]).tolist() == [5] * 3
    else:  # behind the four positions of a frame: its end, the time in characters, and the start of the next
        gap = len("<2.5 seconds>") + 2 + 2
        assert seen[:, :4].tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]]
        assert np.array_equal(seen[:, 4:], seen[:, :4] + gap)


def test_video_sizes_equal_transformers(family):
    """Catches Qwen3-VL's limits taken for a single frame, and Qwen2.5-VL's for all of them."""
    low, high, factor = 40_000, 400_000, family.factor
    spec = dataclasses.replace(family.processor.image_spec, video_min_pixels=low, video_max_pixels=high)
    for num_frames in (2, 3, 5, 10, 64):
        for height, width in ((20, 30), (64, 64), (100, 333), (480, 640), (31, 2000), (1080, 1920)):
            if family.name != "qwen2_5_vl":
                size = smart_resize_hf(num_frames, height, width, 2, factor, low, high)
            else:
                size = images.smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)
            side = factor // 2
            wanted = (-(-num_frames // 2), size[0] // side, size[1] // side)
            assert media.video_grid(num_frames, height, width, spec, 10**9) == wanted


def test_image_tokens_limit_each_frame_of_a_video(family):
    """Catches data.max_image_tokens that holds for images only."""
    spec = family.processor.image_spec
    for num_frames in (2, 7):
        _, height, width = media.video_grid(num_frames, 1080, 1920, spec, spec.max_pixels)
        assert 32 <= height * width // 4 <= 64


def test_images_and_videos_keep_the_order_of_their_marks(family):
    """Catches images and videos that are put together by kind: black picture, white video, black picture."""
    side = 2 * family.factor
    black, white = (encode(Image.new("L", (side, side), level)) for level in (0, 255))
    record = question("<image><video><image>", black, black, videos=(Video((white, white), 1.0),))
    example = encode_prompt(family.processor, record)
    spec, kinds = family.processor.image_spec, example.token_ids[example.vision_index >= 0]
    level = (normalised(example.patches, spec).mean(axis=1) * spec.std[0] + spec.mean[0]).reshape(-1, 4).mean(axis=1)
    read = level[example.vision_index[example.vision_index >= 0]]
    assert np.round(read, 2).tolist() == [0] * 4 + [1] * 4 + [0] * 4
    assert (kinds == family.processor.video_token_id).tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_shrinking_holds_for_videos(family):
    """Catches a video that is never shrunk, or that loses frames."""
    record = question("<video>?", videos=(video_of(6, 300, 300),))
    whole = encode_prompt(family.processor, record)
    tight = dataclasses.replace(family.processor, overlong="shrink", patch_buckets=(128,))
    shrunk = encode_prompt(tight, record)
    assert len(whole.patches) > 128 >= len(shrunk.patches)
    assert shrunk.image_ids.max() == whole.image_ids.max() == 3
    assert encode_prompt(dataclasses.replace(tight, overlong="drop"), record) is None


@pytest.mark.parametrize(
    ("prompt", "videos", "message"),
    [
        ("no mark", (video_of(2, 64, 64),), "has 0 <video> marks in its prompt and 1 videos"),
        ("<video>", (), "has 1 <video> marks in its prompt and 0 videos"),
        ("<video>", (Video((), 2.0),), "'row': a video of 0 frames at 2.0 a second; give [12] or more"),
        ("<video>", (video_of(2, 64, 64, fps=0.0),), "a video of 2 frames at 0.0 a second"),
        ("<video>", (Video((b"?", b"?"), 2.0),), "'row': 1 bytes are not a readable image"),
        (
            "<video>",
            (Video((encode(picture(64, 64)), encode(picture(64, 70))), 2.0),),
            r"have sizes \[\(64, 64\), \(70, 64\)\]; give frames of one size",
        ),
    ],
)
def test_videos_that_are_refused(family, prompt, videos, message):
    """Catches a bad video that fails deep inside, or is dropped in silence."""
    with pytest.raises(ValueError, match=message):
        encode_prompt(family.processor, question(prompt, videos=videos))


def test_a_template_without_videos_is_refused(family):
    """Catches a video that is dropped in silence."""
    template = family.processor.tokenizer.chat_template
    tokenizer = copy.deepcopy(family.processor.tokenizer)
    tokenizer.chat_template = template.replace("part.type ~", "'image' ~")
    blind = dataclasses.replace(family.processor, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="renders 1 image tokens where 0 are needed; use the template"):
        encode_prompt(blind, question("<video>", videos=(video_of(4, 64, 64),)))
