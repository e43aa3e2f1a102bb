"""Rollouts and updates against google-tunix's GRPO learner, on a text-only model of the same size, side by side.

    python -m benchmarks.peer_tunix                       # minutes to install the first time, then about ten

google-tunix is installed from PyPI into an environment of its own (--env), with the versions of jax, flax and optax
that run here. Its side is a process that does one job at a time on request, so the two take turns on the same cores and
neither runs while the other is timed.

Rollout: G sampled responses of exactly R tokens to each prompt, from token ids to token ids. Their side is the
learner's own engine (`RLCluster.generate`), which prefills every copy of a prompt. Both sample at temperature 1 from
the whole vocabulary; ours also returns the log-probs.

Update: one GRPO step on all G rows, no KL, AdamW behind a clip, no rematerialised layers on either side, as one
micro-batch. Their side is `RLCluster.update_actor` with the learner's loss. Our side has the same rows as branches of a
shared prompt; our model is a whole Qwen2.5-VL, whose vision tower runs over four empty patches.

Both sides compute in float32. Speeds count the G * R response tokens of a prompt, the same on both sides. The last line
is one JSON object; a ratio that could not be measured is null, and `why` gives the reason.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.made_model import make_prompts, write_folder
from benchmarks.rollout import alternate, roll_out
from benchmarks.step import make_optimizer
from care_jax import models
from care_jax.method.loss import policy_loss
from care_jax.method.objectives import Objective
from care_jax.models.model_config import ModelConfig
from care_jax.stages.packing import PromptLengths, StreamSizes, pack
from care_jax.stages.rollout import Sampling
from care_jax.stages.train_state import TrainState
from care_jax.stages.update import make_update
from care_jax.structs import TrainBatch

TUNIX = "google-tunix==0.1.7"
SHARED = ("jax", "jaxlib", "flax", "optax", "numpy")  # in the same versions on both sides
_REPO = Path(__file__).parents[1]
_SIDE = Path(__file__).with_name("peer_tunix_side.py")


def make_environment(folder: Path) -> Path:
    """The Python of an environment with google-tunix, which is made if it does not exist yet.

    Raises:
        ValueError: it cannot be installed; has pip's last line.
    """
    python, ready = folder / "bin" / "python", folder / "ready"
    wanted = [TUNIX, *(f"{name}=={importlib.metadata.version(name)}" for name in SHARED)]
    if ready.is_file() and ready.read_text().split() == wanted:
        return python
    print(f"installing {TUNIX} into {folder} ...", file=sys.stderr)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *wanted],
    ):
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise ValueError(f"{TUNIX} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    ready.write_text("\n".join(wanted))
    return python


class Peer:
    """google-tunix's process."""

    def __init__(self, python: Path, sizes: dict[str, int], told: IO[str]):
        """Starts the process and waits for its number of parameters.

        Args:
            python: the interpreter of its environment.
            sizes: of the model and the jobs.
            told: a file for its stderr.
        """
        command = [str(python), str(_SIDE), json.dumps(sizes)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1"}
        self._told = told  # a file: a pipe that nobody reads would fill up
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told, text=True, env=environment
        )
        self.parameters = int(self._read())

    def run(self, job: str) -> None:
        """Does a job and waits for its result."""
        assert self._process.stdin is not None
        self._process.stdin.write(job + "\n")
        self._process.stdin.flush()
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._told.seek(0)
            last = self._told.read().strip().splitlines()[-1:]
            raise ValueError(f"google-tunix's process ended: {last}")
        return line.strip()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.communicate()


def make_jobs(args: argparse.Namespace, config: ModelConfig, folder: Path) -> dict[str, Callable[[], Any]]:
    """Our side of both jobs by name, compiled on the first call."""
    processor, prompts = make_prompts(folder, num_prompts=args.prompts, prompt_len=args.prompt_len, image_side=0)
    model = models.init_model(config, jax.random.key(0))
    optimizer = make_optimizer()
    shape = (args.prompts, args.rollouts, args.response_len)
    rng = np.random.default_rng(0)
    everywhere, ones = np.ones(shape, bool), np.ones(shape, np.float32)
    batch = TrainBatch(
        prompts=prompts,
        token_ids=rng.integers(1, 256, shape).astype(np.int32),
        response_len=np.full(shape[:2], args.response_len, np.int32),
        sampled_mask=everywhere,
        logprobs_old=-5 * ones,
        logprobs_ref=-5 * ones,
        advantages=rng.normal(size=shape[:2]).astype(np.float32),
        token_weights=ones,
        row_mask=everywhere[..., 0],
    )
    objective = Objective(kl_coef=0.0)  # GRPO
    step = make_update(
        optimizer,
        functools.partial(policy_loss, objective=objective),
        minibatches=1,
        temperature=1.0,
        chunk=args.chunk,
    )
    update = jax.jit(step, donate_argnums=0)
    sizes = StreamSizes.make(
        num_prompts=args.prompts,
        num_rows=args.rollouts,
        bucket=(prompts.token_ids.shape[1], prompts.patches.shape[1]),
        row_len=args.response_len,
        stream_len=args.prompts * (prompts.token_ids.shape[1] + args.rollouts * args.response_len),
        shards=1,
    )
    packing = pack(sizes, PromptLengths.of(prompts), batch.response_len)
    batch, packing, forbidden = jax.device_put((batch, packing, processor.forbidden_mask))
    # The update donates its state, so it gets a copy of the parameters.
    held = [TrainState(jnp.int32(0), jax.tree.map(jnp.copy, model), optimizer.init(model))]

    def run_update() -> TrainState:
        held[0] = update(held[0], batch, packing, forbidden).state
        return held[0]

    sampling = Sampling(args.response_len, 1.0, stop_ids=())
    rollout = roll_out(model, processor, prompts, sampling, num_rollouts=args.rollouts)
    return {"rollout": rollout, "update": run_update}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {
        "layers": (12, "of the decoder"),
        "width": (512, "of the decoder, a multiple of 128"),
        "vocabulary": (32_768, "ids"),
        "prompts": (1, "B"),
        "rollouts": (8, "G, of a prompt"),
        "prompt_len": (512, "P, tokens"),
        "response_len": (128, "R, tokens"),
        "chunk": (256, "tokens of one chunk of our head"),
        "repeats": (5, "timed calls of each side"),
    }
    for name, (default, text) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--env", type=Path, default=_REPO / "build" / "tunix", help="folder of their environment")
    args = parser.parse_args(argv)
    if min(getattr(args, name) for name in sizes) < 1:
        parser.error("every size must be at least 1")
    return args


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Times both jobs on both sides.

    Raises:
        ValueError: google-tunix cannot be installed or run, or its model differs.
    """
    python = make_environment(args.env)
    with tempfile.TemporaryDirectory() as folder:
        made = write_folder(Path(folder), num_layers=args.layers, width=args.width, vocab_size=args.vocabulary)
        config = models.load_model_config(made)
        jobs = make_jobs(args, config, made)
    text = config.text
    sizes = {name: getattr(args, name) for name in ("layers", "width", "vocabulary", "prompts", "rollouts")}
    sizes |= {"prompt_len": args.prompt_len, "response_len": args.response_len, "intermediate": text.intermediate_size}
    sizes |= {"heads": text.num_attention_heads, "kv_heads": text.num_key_value_heads}
    ours = sum(
        leaf.size for name, leaf in models.params_to_dict(models.abstract_model(config)).items() if "visual" not in name
    )
    tokens = args.prompts * args.rollouts * args.response_len
    figures: dict[str, Any] = {"parameters": ours}
    with tempfile.TemporaryFile("w+") as told, Peer(python, sizes, told) as peer:
        if peer.parameters != ours:
            raise ValueError(f"the models differ: {ours:,} parameters of ours, {peer.parameters:,} of theirs")
        rows = f"{args.prompts} x {args.rollouts} rows of {args.prompt_len} + {args.response_len} tokens"
        print(f"{ours / 1e6:.1f} M parameters, {rows}")
        print(f"{'response tokens a second':<28}{'ours':>12}{'tunix':>12}{'ratio':>8}")
        for name, job in jobs.items():
            medians = alternate({"ours": job, "tunix": functools.partial(peer.run, name)}, args.repeats)
            speed = {side: tokens / seconds for side, seconds in medians.items()}
            figures[f"{name}_ratio"] = round(speed["ours"] / speed["tunix"], 2)
            figures[f"{name}_tokens_per_s"] = {side: round(value, 1) for side, value in speed.items()}
            print(f"{name:<28}{speed['ours']:>12.1f}{speed['tunix']:>12.1f}{figures[f'{name}_ratio']:>8.2f}")
    return figures


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the comparison and returns the figures that it prints."""
    args = parse(argv)
    missing: dict[str, Any] = {"rollout_ratio": None, "update_ratio": None}
    try:
        found = compare(args)
    except ValueError as error:
        print(error, file=sys.stderr)
        found = {"why": str(error)}
    figures = {
        "benchmark": "peer_tunix",
        "peer": TUNIX,
        "device": jax.devices()[0].device_kind,
        **{name: value for name, value in vars(args).items() if name != "env"},
        **missing,
        **found,
    }
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
