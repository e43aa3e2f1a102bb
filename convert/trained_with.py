"""The settings that a run trained with: its pixel limits go into the export, and a snippet shows how to ask it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from etils import epath

from care_jax.checkpoints.load import run_of
from care_jax.inputs.preprocessor import read_image_spec, write_pixel_limits
from care_jax.models import load_model_config
from care_jax.rewards.response_format import FORMATS
from care_jax.run import history
from care_jax.run.folder import CONFIG_FILE, read_object


@dataclasses.dataclass(frozen=True)
class TrainedWith:
    """The settings of a run that its prompts and responses depend on."""

    workdir: epath.Path
    min_image_tokens: int
    max_image_tokens: int
    overlong: str
    largest_prompt: int  # tokens
    largest_patches: int  # patches of a prompt's images
    request: str  # appended to every question
    thinking: bool  # the chat template's switch
    response_len: int  # tokens


def read(params: epath.Path) -> TrainedWith | None:
    """Reads the settings of the run that a checkpoint's parameters lie in; None if they lie in no run folder.

    Raises:
        InputError: the run's config.json is damaged.
    """
    found = run_of(params)
    if found is None or not (found[0] / CONFIG_FILE).is_file():
        return None
    workdir = found[0]
    config = read_object(workdir / CONFIG_FILE)
    try:
        data = config["data"]
        return TrainedWith(
            workdir=workdir,
            min_image_tokens=int(data["min_image_tokens"]),
            max_image_tokens=int(data["max_image_tokens"]),
            overlong=str(data["overlong"]),
            largest_prompt=int(max(data["prompt_buckets"])),
            largest_patches=int(max(data["patch_buckets"])),
            request=FORMATS[data["response_format"]].request if data["ask_for_format"] else "",
            thinking=bool(data.get("thinking", True)),
            response_len=int(config["rollout"]["response_len"]),
        )
    except (KeyError, TypeError, ValueError):  # of another version of this program
        return None


def apply(trained: TrainedWith | None, params: epath.Path, source: Path, new: Path) -> list[str]:
    """Writes what the run trained with into `new`, an export in the making.

    Args:
        trained: the run's settings.
        params: where its parameters lie, for the notes.
        source: the Hugging Face folder that the other files were copied from.
        new: the export.

    Returns:
        A line for each thing that the export cannot take over.

    Raises:
        InputError: the limits of the run and those of `source` leave no image size, or the run's history.json is
            damaged.
    """
    if trained is None:
        if not params.parent.name.isdecimal():
            return []  # a converted model, which nothing has trained
        return [
            f"{params} lies in no run folder, so nothing says which pixel limits it was trained with: the export has "
            f"those of {source}"
        ]
    spec = read_image_spec(new, load_model_config(new).vision, trained.min_image_tokens, trained.max_image_tokens)
    unit, area = spec.layout.merge**2, (spec.patch_size * spec.layout.merge) ** 2
    notes = [
        f"{name} of {source} is not the file that the run trained with"
        for name in history.changed_files(trained.workdir, source)
    ]
    if trained.overlong == "shrink":
        most = max(spec.min_pixels, min(spec.max_pixels, trained.largest_patches // unit * area))
        spec = dataclasses.replace(spec, max_pixels=most)
        notes.append(
            f"the run shrank images further if a prompt passed {trained.largest_prompt} tokens or "
            f"{trained.largest_patches} patches; the export limits each image alone"
        )
    if not spec.tokens_per_second and spec.max_pixels < spec.video_max_pixels:
        notes.append(
            f"the run limited each frame of a video to {spec.max_pixels // area} tokens; the export limits whole videos"
        )
    write_pixel_limits(new, spec)
    return notes


def snippet(out: Path, trained: TrainedWith) -> str:
    """A program for transformers that asks the exported model as the run's evaluation does, greedily."""
    switch = "" if trained.thinking else " enable_thinking=False,"
    return f"""from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained({str(out)!r}, dtype="auto")
processor = AutoProcessor.from_pretrained({str(out)!r})
picture, question = Image.open("picture.png"), "What is shown?"
content = [{{"type": "image", "image": picture}}, {{"type": "text", "text": question + {trained.request!r}}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",{switch}
)
ids = model.generate(**inputs, do_sample=False, repetition_penalty=1.0, max_new_tokens={trained.response_len})
print(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
