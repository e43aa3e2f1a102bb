"""Speed of one accelerator: an update, a scoring pass, a prefill, a decode and a whole CARE step of published shapes.

    python -m benchmarks.accelerator          # a GPU with 80 GB: minutes, most of them compiling
    python -m benchmarks.accelerator --tiny   # the same on a CPU, with models of a few layers

For each of --models: random weights, computed in bfloat16, prompts with an image and responses that all have their full
length (device_step.py). The stages of a step run one after the other on one device; medians of --repeats steps after
one that is not counted.

* MFU is the FLOPs that a stage must do (planning/flops.py: each product once, what the backward pass recomputes is not
  counted) over its time and the chip's bfloat16 peak without sparsity.
* The bandwidth share of decoding is the bytes that it must read (for each token the weights once, each prompt's keys
  and values once for all its rollouts, and the rollouts' own) over its time and the chip's memory bandwidth.
* A large matrix product and a large copy are timed beside them: what this card reaches at all.
* Greedy parity: small float32 models of both families decode on this device and on the CPU; tokens and log-probs are
  compared with full float32 products and with the device's default, which on some GPUs is TF32.

On an unknown chip the shares are left out. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks.device_step import DeviceStep, make_prompts
from care_jax import config as config_lib
from care_jax import options
from care_jax.models import ModelConfig, QwenVL, init_model
from care_jax.models.config_json import parse_model_config
from care_jax.models.published import PUBLISHED, published_config
from care_jax.planning import flops
from care_jax.planning.chips import GIB, PEAKS, Peak
from care_jax.planning.sizes import Sizes
from care_jax.stages.model import make_model_config
from care_jax.stages.rollout import Sampling, generate, nothing_forced
from care_jax.structs import Prompts, Rollouts

PARITY_TOKENS = 32


class Run(NamedTuple):
    """One of --models."""

    name: str  # one of PUBLISHED
    prompts: int
    stream_len: int
    remat: str  # one of options.REMAT


def make_config(args: argparse.Namespace, run: Run, patches: int) -> ml_collections.ConfigDict:
    """Full CARE without a KL term, with the sizes of the command."""
    config = config_lib.base()
    config.train.prompts, config.train.minibatches, config.train.stream_len = run.prompts, 1, run.stream_len
    config.rollout.num_rollouts, config.rollout.response_len = args.rollouts, args.response_len
    config.rollout.compact_shares = ()  # for a tail of long responses, which there is not
    config.objective.num_negatives, config.objective.kl_coef = args.negatives, 0.0
    config.model.remat, config.model.logits_chunk = run.remat, args.logits_chunk
    config.data.prompt_buckets, config.data.patch_buckets = (args.prompt_len,), (patches,)
    return config


def architecture(name: str, *, tiny: bool) -> ModelConfig:
    """A published model, or one of two or four layers of the same family."""
    raw = published_config(name)
    if tiny:
        text, tower = raw.get("text_config", raw), raw["vision_config"]
        text.update(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=512)
        text.update(num_attention_heads=4, num_key_value_heads=2)
        tower.update(depth=2, hidden_size=64, intermediate_size=128, num_heads=4, out_hidden_size=64)
        if raw["model_type"] == "qwen3_5":
            text.update(num_hidden_layers=4, layer_types=text["layer_types"][:4], head_dim=32)
            text.update(linear_num_key_heads=2, linear_num_value_heads=4)
            text.update(linear_key_head_dim=16, linear_value_head_dim=16)
            text["rope_parameters"]["mrope_section"] = [2, 1, 1]
        else:
            text["rope_scaling"]["mrope_section"] = [2, 3, 3]
        if raw["model_type"] == "qwen2_5_vl":
            tower["fullatt_block_indexes"] = [1]
        else:
            tower["num_position_embeddings"] = 16
        if raw["model_type"] == "qwen3_vl":
            text["head_dim"] = 16
            tower["deepstack_visual_indexes"] = [0]
    return parse_model_config(raw, f"the published {name}")


def measure(args: argparse.Namespace, run: Run, device: jax.Device) -> dict[str, Any]:
    """The figures of one model."""
    raw = architecture(run.name, tiny=args.tiny)
    sizes: dict[str, int] = {"prompt_len": args.prompt_len, "image_side": args.image_side}
    prompts = make_prompts(raw, num_prompts=run.prompts, **sizes)
    config = make_config(args, run, prompts.patches.shape[1])
    model = make_model_config(config, device.platform, raw)
    stepper = DeviceStep(config, model, prompts, forced_len=args.forced_len, device=device)
    steps = [stepper.run() for _ in range(args.repeats + 1)][1:]
    seconds = {stage: statistics.median(step[stage] for step in steps) for stage in steps[0]}

    of_run = Sizes.of(config, model, stepper.bucket, dict(stepper.setup.mesh.shape))
    work, peak = flops.step_work(of_run, config), PEAKS.get(device.device_kind)
    figures: dict[str, Any] = {
        "parameters": of_run.num_params,
        "prompts": run.prompts,
        "stream_len": run.stream_len,
        "remat": run.remat,
        "compile_s": round(stepper.compile_seconds, 1),
        "stages_ms": {stage: round(1e3 * each, 2) for stage, each in seconds.items()},
        "step_ms": round(1e3 * statistics.median(sum(step.values()) for step in steps), 1),
    }
    for stage in ("update", "score", "prefill"):
        figures[stage] = compute_figures(work[stage], seconds[stage], peak)
    branches = run.prompts * args.rollouts
    return figures | {"decode": decode_figures(work["rollout"], seconds["rollout"], branches, args.response_len, peak)}


def compute_figures(work: flops.Work, seconds: float, peak: Peak | None) -> dict[str, float | None]:
    """Figures of a stage that is bound by matrix products."""
    rate = work.flops / seconds
    return {
        "seconds": round(seconds, 4),
        "tokens_per_s": round(work.tokens / seconds),
        "useful_tflop": round(work.flops / 1e12, 3),
        "tflop_per_s": round(rate / 1e12, 3),
        "mfu": round(rate / peak.flops, 4) if peak else None,
    }


def decode_figures(
    work: flops.Work, seconds: float, branches: int, num_tokens: int, peak: Peak | None
) -> dict[str, float | None]:
    """Figures of a decode of `branches` responses of `num_tokens` each, one token at a time."""
    read = work.parameter_bytes + work.cache_bytes
    return {
        "ms_per_token": round(1e3 * seconds / num_tokens, 4),
        "tokens_per_s": round(branches * num_tokens / seconds),
        "weights_gb_per_token": round(work.parameter_bytes / num_tokens / 1e9, 4),
        "keys_gb_per_token": round(work.cache_bytes / num_tokens / 1e9, 4),
        "gb_per_s": round(read / seconds / 1e9, 2),
        "bandwidth_share": round(read / seconds / peak.bytes_per_s, 4) if peak else None,
    }


def reached(device: jax.Device, *, tiny: bool) -> dict[str, float]:
    """TFLOP/s of a large bfloat16 product and GB/s of a large copy, read and written bytes together."""
    side, numbers = (256, 1 << 16) if tiny else (8192, 1 << 30)
    with jax.default_device(device):
        a, b = jax.random.normal(jax.random.key(0), (2, side, side), jnp.bfloat16)
        product = fastest(lambda: multiply(a, b))
        x = jnp.ones(numbers, jnp.bfloat16)
        copied = fastest(lambda: negate(x))
    return {"tflop_per_s": round(2e-12 * side**3 / product, 2), "gb_per_s": round(2e-9 * x.nbytes / copied, 2)}


multiply = jax.jit(jnp.matmul)
negate = jax.jit(jnp.negative)


def fastest(run: Callable[[], Any], repeats: int = 10) -> float:
    """Least seconds of a call, results ready, after a first one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - started)
    return min(times)


def parity(name: str, device: jax.Device) -> dict[str, dict[str, float]]:
    """Greedy decoding of a small float32 model on `device` against the CPU, by the precision of its products."""
    model = dataclasses.replace(architecture(name, tiny=True), scan_decoding=True)
    cpu = jax.devices("cpu")[0]
    prompts = make_prompts(model, num_prompts=4, prompt_len=64, image_side=4)
    with jax.default_device(cpu):
        params = init_model(model, jax.random.key(0))
        wanted = decode(params, prompts, cpu, "highest")
    return {
        precision: difference(decode(params, prompts, device, precision), wanted)
        for precision in ("highest", "default")
    }


def decode(params: QwenVL, prompts: Prompts, device: jax.Device, precision: str) -> Rollouts:
    """Greedy rollouts on one device, as NumPy arrays."""
    forced = nothing_forced(len(prompts.prompt_len), 1)
    nothing = np.zeros(params.config.text.vocab_size, bool)
    given = jax.device_put((params, prompts, forced, nothing, jax.random.key(0)), device)
    with jax.default_device(device), jax.default_matmul_precision(precision):
        params, prompts, *others = given
        prefix = jax.jit(QwenVL.prefill)(params, prompts)
        rollouts: Rollouts = generate(params, prefix, *others, sampling=Sampling(PARITY_TOKENS, 0.0, ()))
    return jax.device_get(rollouts)


def difference(found: Rollouts, wanted: Rollouts) -> dict[str, float]:
    """The share of tokens before the first that differs, and the largest difference of their log-probs."""
    same = np.cumprod(found.token_ids == wanted.token_ids, axis=-1).astype(bool)
    gap = np.abs(found.logprobs - wanted.logprobs)[same]
    return {"same_tokens": float(same.mean()), "largest_logprob_gap": float(gap.max(initial=0.0))}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        default="Qwen3-VL-2B:32:3584:dots,Qwen2.5-VL-3B:8:3584:full",
        help="NAME:prompts of a step:tokens of a stream:model.remat, ... (%(default)s, which fits 80 GB)",
    )
    parser.add_argument("--tiny", action="store_true", help="a few layers of each family, and small sizes by default")
    sizes = {
        "rollouts": (8, 4, "G, rollouts of a prompt"),
        "negatives": (4, 2, "K, negatives of a subgroup"),
        "prompt_len": (1024, 48, "P, tokens with the image's"),
        "image_side": (16, 4, "tokens a side of the image"),
        "response_len": (512, 12, "R, tokens"),
        "logits_chunk": (2048, 16, "tokens of a chunk of the head"),
        "forced_len": (128, 4, "tokens of a repair that are forced"),
        "repeats": (2, 1, "timed steps of each model"),
    }
    for name, (default, tiny, text) in sizes.items():
        parser.add_argument(f"--{name}", type=int, help=f"{text} ({default}; with --tiny {tiny})")
    args = parser.parse_args(argv)
    for name, (default, tiny, _) in sizes.items():
        if getattr(args, name) is None:
            setattr(args, name, tiny if args.tiny else default)
        elif getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.negatives >= args.rollouts or args.forced_len >= args.response_len:
        parser.error("--negatives must be below --rollouts, and --forced_len below --response_len")
    if args.image_side**2 + 8 > args.prompt_len:
        parser.error(f"--prompt_len {args.prompt_len} has no room for {args.image_side**2} image tokens and a text")
    args.models = [read_run(parser, word) for word in args.models.split(",")]
    if (shortest := min(run.stream_len for run in args.models)) < args.prompt_len + args.response_len:
        parser.error(f"streams of {shortest} tokens have no room for a prompt and a response")
    return args


def read_run(parser: argparse.ArgumentParser, word: str) -> Run:
    """One of --models, or the parser's error."""
    name, *counts = word.split(":")
    numbers, remat = counts[:2], counts[2:]
    is_known = name in PUBLISHED and len(remat) == 1 and remat[0] in options.REMAT
    if not is_known or not all(number.isdigit() and int(number) for number in numbers):
        parser.error(
            f"--models {word!r}: give NAME:prompts:stream_len:remat, NAME one of {', '.join(PUBLISHED)}, "
            f"remat one of {', '.join(options.REMAT)}"
        )
    return Run(name, int(numbers[0]), int(numbers[1]), remat[0])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures every model on the first device and returns the figures that it prints."""
    args = parse(argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.93")  # JAX leaves a quarter of a GPU otherwise
    device = jax.devices()[0]
    peak = PEAKS.get(device.device_kind)
    figures: dict[str, Any] = {
        "benchmark": "accelerator",
        "device": device.device_kind,
        "jax": jax.__version__,
        **{name: value for name, value in vars(args).items() if name != "models"},
        "peak_tflop_per_s": peak.flops / 1e12 if peak else None,
        "peak_gb_per_s": peak.bytes_per_s / 1e9 if peak else None,
        "reached": reached(device, tiny=args.tiny),
        "parity": {run.name: parity(run.name, device) for run in args.models},
        "models": {},
    }
    for run in args.models:
        figures["models"][run.name] = measure(args, run, device)
        report(run, figures["models"][run.name])
        gc.collect()  # the state of this model, before the next one's is made
    memory = device.memory_stats() or {}
    figures["peak_gib"] = round(memory.get("peak_bytes_in_use", 0) / GIB, 2) or None
    print(json.dumps(figures))
    return figures


def report(run: Run, figures: dict[str, Any]) -> None:
    """Prints the figures of one model as a table."""
    print(
        f"{run.name}: {run.prompts} prompts, streams of {run.stream_len} tokens, remat {run.remat}, "
        f"step {figures['step_ms']:.0f} ms"
    )
    for stage, milliseconds in figures["stages_ms"].items():
        print(f"  {stage:<24}{milliseconds:>12.2f} ms")
    for stage in ("update", "score", "prefill"):
        of_stage = figures[stage]
        share = f", MFU {of_stage['mfu']:.3f}" if of_stage["mfu"] is not None else ""
        print(f"  {stage:<24}{of_stage['tflop_per_s']:>12.2f} TFLOP/s{share}")
    decode, share = figures["decode"], ""
    if decode["bandwidth_share"] is not None:
        share = f", {decode['bandwidth_share']:.3f} of the bandwidth"
    print(
        f"  {'decode':<24}{decode['ms_per_token']:>12.3f} ms a token, {decode['gb_per_s']:.1f} GB/s{share}", flush=True
    )


if __name__ == "__main__":
    main(sys.argv[1:])
