"""Speed of rollouts: against transformers' generate, over prompt lengths, and with a long tail of response lengths.

    python -m benchmarks.rollout          # about ten minutes on 2 cores
    python -m benchmarks.rollout --width 128 --layers 2 --prompt_len 48 --response_len 8 --repeats 1

1. One prompt with an image, G rollouts of exactly R tokens, greedy and sampled. Both sides have the same
   weights, start from the patches and end with the tokens; torch keeps its default number of threads. The lower ratio
   counts. Beside it, what a token costs at least here: the products of G rows with the weights that decoding reads, and
   the time in which this machine sums up the same bytes.
2. The same at the demo's size: the 1 M-parameter model, 16 prompts of 28 tokens, 32 new ones.
3. The time to decode R tokens, prefill not counted, after a prompt of 2,048 tokens over that after 256.
4. Response lengths with a roughly geometric distribution of mean R / 8: a share 8 / R of all ids ends a response, and
   random weights favour none of them. A decode that waits for the longest branch is compared with one that continues
   the last branches as a smaller batch (rollout.compact_shares).

The sides alternate after a warm-up; medians. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import made_model
from care_jax import config as config_lib
from care_jax.checkpoints.load import load_params
from care_jax.configs import demo as demo_config
from care_jax.convert import hf_to_jax
from care_jax.inputs.processor import Processor
from care_jax.models import QwenVL, load_model_config, params_from_dict
from care_jax.models.vision import pixels
from care_jax.stages import rollout
from care_jax.stages.rollout import Sampling
from care_jax.structs import Prompts, Rollouts

NUM_ROLLOUTS = 8  # G


@dataclasses.dataclass(frozen=True)
class Sides:
    """Makes one set of weights for both libraries."""

    ours: QwenVL
    theirs: Any  # transformers' model


def make_sides(folder: Path) -> Sides:
    """Makes random weights with transformers, saves and converts them."""
    import torch
    import transformers

    torch.manual_seed(0)
    hub_config = transformers.AutoConfig.from_pretrained(folder)
    theirs = transformers.AutoModelForImageTextToText.from_config(hub_config).eval()
    saved, converted = (folder.parent / f"{folder.name}-{kind}" for kind in ("hub", "jax"))
    theirs.save_pretrained(saved)
    hf_to_jax.convert(saved, converted)
    config = dataclasses.replace(load_model_config(saved), scan_decoding=jax.default_backend() == "tpu")  # as in a run
    ours = params_from_dict(config, jax.device_put(load_params(converted)))
    return Sides(ours, theirs)


def seconds_of(run: Callable[[], Any]) -> float:
    """Wall time of one call, results ready."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def alternate(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Calls each once to warm up, then all in turn; returns median seconds by name."""
    for run in runs.values():
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds_of(run))
    return {name: statistics.median(values) for name, values in times.items()}


def roll_out(
    model: QwenVL, processor: Processor, prompts: Prompts, sampling: Sampling, *, num_rollouts: int = NUM_ROLLOUTS
) -> Callable[[], Rollouts]:
    """A call that prefills every prompt and decodes G rollouts of it."""
    prompts, forbidden = jax.device_put((prompts, processor.forbidden_mask))
    forced = rollout.nothing_forced(len(prompts.prompt_len), num_rollouts)

    def run() -> Rollouts:
        prefix = jax.jit(QwenVL.prefill)(model, prompts)
        return rollout.generate(model, prefix, forced, forbidden, jax.random.key(0), sampling=sampling)

    return run


def hub_generate(model: Any, prompts: Prompts, sampling: Sampling) -> Callable[[], Any]:
    """Makes the equivalent call of transformers: patches in reading order, exactly R new tokens."""
    import torch

    vision = model.config.vision_config
    unit, num_frames = vision.spatial_merge_size**2, vision.temporal_patch_size
    values = pixels(prompts.patches, prompts.pixel_norm, patch_size=vision.patch_size, num_frames=num_frames)
    ours, grids = [], []
    for patches, vision_index in zip(np.asarray(values), prompts.vision_index, strict=True):
        in_order = patches.reshape(-1, unit, patches.shape[-1])[vision_index[vision_index >= 0]]
        ours.append(in_order.reshape(-1, patches.shape[-1]))
        side = int(len(ours[-1]) ** 0.5)  # square pictures
        grids.append([1, side, side])
    ids = torch.from_numpy(np.asarray(prompts.token_ids)).long()
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == model.config.image_token_id).int(),
        "pixel_values": torch.from_numpy(np.concatenate(ours)),
        "image_grid_thw": torch.tensor(grids),
    }
    drawing: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        drawing = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    new_tokens = {"max_new_tokens": sampling.response_len, "min_new_tokens": sampling.response_len}

    def run() -> Any:
        if not drawing["do_sample"]:  # generate returns several sequences only if it samples: rows are repeated here
            rows = {name: _repeat(name, value) for name, value in inputs.items()}
            return model.generate(**rows, **drawing, **new_tokens)
        return model.generate(**inputs, **drawing, **new_tokens, num_return_sequences=NUM_ROLLOUTS)

    return run


def _repeat(name: str, value: Any) -> Any:
    """G copies of each row; patches are laid end to end, so a prompt's are repeated as a block."""
    if name == "pixel_values":
        return value.repeat(NUM_ROLLOUTS, 1)
    return value.repeat(NUM_ROLLOUTS, *[1] * (value.ndim - 1))


def against_transformers(
    sides: Sides, processor: Processor, prompts: Prompts, response_len: int, repeats: int
) -> dict[str, float]:
    """Tokens per second of ours over theirs, greedy and sampled."""
    ratios = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        sampling = Sampling(response_len, temperature, stop_ids=())
        medians = alternate(
            {
                "ours": roll_out(sides.ours, processor, prompts, sampling),
                "theirs": hub_generate(sides.theirs, prompts, sampling),
            },
            repeats,
        )
        tokens = len(prompts.prompt_len) * NUM_ROLLOUTS * response_len
        print(
            f"{name:<10}{tokens / medians['ours']:>10.1f} tokens/s, transformers {tokens / medians['theirs']:>8.1f}"
            f"{medians['theirs'] / medians['ours']:>8.2f} x"
        )
        ratios[name] = medians["theirs"] / medians["ours"]
    return ratios


def least_of_a_token(model: QwenVL, repeats: int) -> dict[str, float]:
    """Milliseconds of a token's products with the weights, "products", and of reading the weights once, "reading"."""
    model = model.for_sampling()
    leaves = jax.tree_util.tree_leaves_with_path(model.layers)
    stacks = [leaf for path, leaf in leaves if "kernel" in jax.tree_util.keystr(path)]
    kernels = [part[0] for stack in stacks for part in jnp.split(stack, len(stack))]  # apart, as decoding reads them
    table = model.embed_tokens.weight[...]  # the head of these models

    @jax.jit
    def multiply(kernels: list[jax.Array], table: jax.Array) -> list[jax.Array]:
        rows = {size: jnp.ones((NUM_ROLLOUTS, size), table.dtype) for size in {len(kernel) for kernel in kernels}}
        return [rows[len(kernel)] @ kernel for kernel in kernels] + [jnp.ones_like(table[:NUM_ROLLOUTS]) @ table.T]

    @jax.jit
    def read(kernels: list[jax.Array], table: jax.Array) -> list[jax.Array]:
        return [jnp.sum(each) for each in (*kernels, table)]

    runs = {"products": lambda: multiply(kernels, table), "reading": lambda: read(kernels, table)}
    milliseconds = {name: 1e3 * seconds for name, seconds in alternate(runs, repeats).items()}
    megabytes = sum(each.nbytes for each in (*kernels, table)) / 1e6
    for name, each in milliseconds.items():
        print(f"{name:<10}{each:>10.1f} ms a token, {megabytes / each:.1f} GB/s of {megabytes:.0f} MB")
    return milliseconds


def prompt_growth(model: QwenVL, folder: Path, response_len: int, lengths: tuple[int, int], repeats: int) -> float:
    """The ratio of decoding time after the longer prompt to that after the shorter one."""
    runs = {}
    for length in lengths:
        side = 3 * made_model.image_unit(folder)
        processor, prompts = made_model.make_prompts(folder, num_prompts=1, prompt_len=length, image_side=side)
        prefix = jax.block_until_ready(jax.jit(QwenVL.prefill)(model, jax.device_put(prompts)))
        forced = rollout.nothing_forced(1, NUM_ROLLOUTS)
        runs[str(length)] = functools.partial(
            rollout.generate,
            model,
            prefix,
            forced,
            jax.device_put(processor.forbidden_mask),
            jax.random.key(0),
            sampling=Sampling(response_len, 1.0, stop_ids=()),
        )
    medians = alternate(runs, repeats)
    for name, seconds in medians.items():
        print(f"prompt of {name:>5} tokens{seconds:>10.3f} s to decode {response_len}")
    return medians[str(lengths[1])] / medians[str(lengths[0])]


def long_tail(model: QwenVL, folder: Path, num_prompts: int, response_len: int, repeats: int) -> dict[str, float]:
    """Compares a decode that waits for the longest branch with one that compacts the batch.

    Returns:
        "ratio" of their seconds, and "mean_len" of the responses.

    Raises:
        ValueError: the two sampled different responses.
    """
    side = 3 * made_model.image_unit(folder)
    processor, prompts = made_model.make_prompts(folder, num_prompts=num_prompts, prompt_len=64, image_side=side)
    allowed = np.flatnonzero(~processor.forbidden_mask)
    stop_ids = np.random.default_rng(0).permutation(allowed)[: round(8 * len(allowed) / response_len)]
    waiting = Sampling(response_len, 1.0, stop_ids=tuple(map(int, stop_ids)))
    compacting = dataclasses.replace(waiting, compact_shares=tuple(config_lib.base().rollout.compact_shares))
    runs = {
        "waits": roll_out(model, processor, prompts, waiting),
        "compacts": roll_out(model, processor, prompts, compacting),
    }
    lengths = np.asarray(runs["compacts"]().response_len)
    if not (lengths == np.asarray(runs["waits"]().response_len)).all():
        raise ValueError("the two sides sampled different responses; they must do the same work")
    medians = alternate(runs, repeats)
    print(
        f"{lengths.size} branches, lengths mean {lengths.mean():.1f}, longest {lengths.max()} of {response_len}: "
        f"{medians['waits']:.2f} s waiting for the longest, {medians['compacts']:.2f} s"
    )
    return {"ratio": medians["waits"] / medians["compacts"], "mean_len": float(lengths.mean())}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the four parts and returns the figures that it prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2_5_vl", choices=made_model.SIZED, help="the family")
    parser.add_argument("--layers", type=int, default=12, help="of decoder and vision tower")
    parser.add_argument("--width", type=int, default=512, help="of the decoder")
    parser.add_argument("--vocab", type=int, default=32_768, help="ids")
    parser.add_argument("--prompt_len", type=int, default=1024, help="tokens, a quarter of them the image's")
    parser.add_argument("--response_len", type=int, default=128, help="R, tokens")
    parser.add_argument("--growth", type=int, nargs=2, default=(256, 2048), help="the two prompt lengths, tokens")
    parser.add_argument("--tail_prompts", type=int, default=16, help="prompts of the long tail")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each side")
    args = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as temporary:
        folder = made_model.write_folder(
            Path(temporary) / "model",
            num_layers=args.layers,
            width=args.width,
            vocab_size=args.vocab,
            model_type=args.model,
        )
        sides = make_sides(folder)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(sides.ours))
        side = made_model.image_unit(folder) * max(1, int((args.prompt_len / 4) ** 0.5))
        print(f"{parameters / 1e6:.1f} M parameters, prompt of {args.prompt_len} tokens, {side} x {side} pixels")
        processor, prompts = made_model.make_prompts(folder, num_prompts=1, prompt_len=args.prompt_len, image_side=side)
        ratios = against_transformers(sides, processor, prompts, args.response_len, args.repeats)
        least = least_of_a_token(sides.ours, args.repeats)
        growth = prompt_growth(sides.ours, folder, args.response_len, tuple(args.growth), args.repeats)
        tail = long_tail(sides.ours, folder, args.tail_prompts, args.response_len, args.repeats)

        demo = demo_config.cold_start()
        tiny = Path(shutil.copytree(demo.model.folder, Path(temporary) / "tiny"))
        processor, prompts = made_model.make_prompts(
            tiny, num_prompts=16, prompt_len=demo.data.prompt_buckets[0], image_side=84
        )
        print("the demo's model, 16 prompts")
        demo_ratios = against_transformers(
            make_sides(tiny), processor, prompts, demo.rollout.response_len, args.repeats
        )

    figures: dict[str, Any] = {
        "benchmark": "rollout",
        "model": args.model,
        "device": jax.devices()[0].device_kind,
        "parameters": parameters,
        "greedy_ratio": round(ratios["greedy"], 2),
        "sampled_ratio": round(ratios["sampled"], 2),
        "tail_mean_len": round(tail["mean_len"], 1),
        "products_ms": round(least["products"], 2),
        "reading_ms": round(least["reading"], 2),
        "tokens_per_s_ratio": round(min(ratios.values()), 2),
        "tokens_per_s_ratio_demo": round(min(demo_ratios.values()), 2),
        "prompt_growth_ratio": round(growth, 3),
        "long_tail_ratio": round(tail["ratio"], 2),
    }
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
