"""Time and memory of CARE's update and whole step against plain GRPO's, with the same model, functions and sizes.

    python -m benchmarks.step

CARE computes each prompt once and updates the K + 1 rows of the anchored subgroup. Plain GRPO stands for trainers
without a shared prompt: every rollout has its own copy of prompt and image in prefill, scoring and update, and all G
rows are updated. Here it is the same code on G copies of the prompt with one branch each. Both sides have no KL term.

A step is rollout (prefill and decode), score, reflect (CARE only: one repair a group, decoded and scored), batch and
update. Verifiers, and selection (see benchmarks.selection), take milliseconds and are left out. Every group is mixed
and has K failures, the case that costs CARE most; no response stops before R tokens.

Memory is that of the compiled update, arguments (batch, parameters, both Adam moments) and temporaries, with
--memory_prompts prompts in a micro-batch: both sides hold parameters, moments and gradients once, so the ratio depends
on the size of the batch beside them. The ratio at the timed size is printed too. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.made_model import make_prompts, write_folder
from care_jax import models
from care_jax.method import objectives, train_batch
from care_jax.method.loss import policy_loss
from care_jax.method.objectives import Objective
from care_jax.method.train_batch import Reflection
from care_jax.models import QwenVL
from care_jax.models.cache import Prefix
from care_jax.run.stage_timer import StageTimer
from care_jax.stages import rollout
from care_jax.stages.rollout import Sampling
from care_jax.stages.score import score
from care_jax.stages.train_state import TrainState
from care_jax.stages.update import make_update
from care_jax.structs import (
    Array,
    Forced,
    Outcome,
    Prompts,
    Rollouts,
    Scores,
    Subgroup,
    TrainBatch,
    Verdicts,
    zeros,
)

STAGES = ("rollout", "score", "reflect", "batch", "update")


class Side:
    """One way of taking a step: a shared prompt and the rows of a subgroup, or G copies of the prompt and all rows."""

    def __init__(self, args: argparse.Namespace, prompts: Prompts, forbidden_mask: Array, *, shared: bool):
        """Puts the prompts on the device; nothing is computed yet.

        Args:
            args: of `parse`.
            prompts: B prompts, each once.
            forbidden_mask: [V] bool, ids that are not sampled.
            shared: CARE's way; else G copies of each prompt.
        """
        copies = 1 if shared else args.rollouts
        self.args, self.shared, self.forbidden_mask = args, shared, jax.device_put(forbidden_mask)
        self.prompts = jax.device_put(jax.tree.map(lambda x: np.repeat(x, copies, axis=0), prompts))
        self.num_branches = args.rollouts // copies
        self.num_rows = args.negatives + 1 if shared else args.rollouts
        objective = Objective.from_config(objectives.care() if shared else objectives.grpo())
        self.objective = dataclasses.replace(objective, kl_coef=0.0, num_negatives=args.negatives)
        self.sampling = Sampling(args.response_len, 1.0, ())
        self.scoring: dict[str, Any] = {"temperature": 1.0, "chunk": args.chunk}
        self.group_prompts = jax.tree.map(lambda x: x[::copies], self.prompts)  # one a group
        self.assemble = jax.jit(functools.partial(train_batch.assemble, objective=self.objective))

    def collect(self, params: QwenVL, key: Array, timer: StageTimer) -> TrainBatch:
        """Runs everything of a step before its update and returns the update's batch."""
        sample_key, repair_key = jax.random.split(key)
        batch = self.prompts.token_ids.shape[0]
        with timer("rollout"):
            prefix = jax.jit(QwenVL.prefill)(params, self.prompts)
            nothing = rollout.nothing_forced(batch, self.num_branches)
            rollouts = self._generate(params, prefix, nothing, sample_key)
        verdicts = make_verdicts(*rollouts.token_ids.shape)
        with timer("score"):
            scores = self._score(params, rollouts, verdicts)
        reflection = zeros(Reflection, B=self.args.prompts, R=self.args.response_len)
        if self.shared:
            with timer("reflect"):
                reflection = self._reflect(params, prefix, rollouts, repair_key)
        with timer("batch"):
            groups = regroup((rollouts, verdicts, scores), self.args.prompts)
            assembled = self.assemble(self.group_prompts, *groups, self._all_rows(), reflection)
            rows = regroup(assembled.batch.replace(prompts=None), batch)
            return jax.block_until_ready(rows.replace(prompts=self.prompts))

    def compile_update(self, state: TrainState, batch: TrainBatch) -> jax.stages.Compiled:
        """Compiles the update as one program for arrays or shapes."""
        update = make_update(
            make_optimizer(),
            functools.partial(policy_loss, objective=self.objective),
            minibatches=1,
            microbatches=1,
            **self.scoring,
        )
        return jax.jit(update, donate_argnums=0).lower(state, batch, self.forbidden_mask).compile()

    def _generate(self, params: QwenVL, prefix: Prefix, forced: Forced, key: Array) -> Rollouts:
        rollouts = rollout.generate(params, prefix, forced, self.forbidden_mask, key, sampling=self.sampling)
        return jax.block_until_ready(rollouts)

    def _score(self, params: QwenVL, rollouts: Rollouts, verdicts: Verdicts) -> Scores:
        scores = score(params, self.prompts, rollouts, verdicts, self.forbidden_mask, **self.scoring)
        return jax.block_until_ready(scores)

    def _reflect(self, params: QwenVL, prefix: Prefix, rollouts: Rollouts, key: Array) -> Reflection:
        """Decodes one repair a group, which continues from the first tokens of its nearest failure."""
        opening = rollouts.token_ids[:, 1:2, : self.args.forced_len]
        everywhere = jnp.ones(opening.shape[:2], bool)
        forced = Forced(opening, jnp.full(opening.shape[:2], opening.shape[-1], jnp.int32), everywhere)
        repaired = self._generate(params, prefix, forced, key)
        verdicts = make_verdicts(*repaired.token_ids.shape)
        scores = self._score(params, repaired, verdicts)
        return make_reflection(repaired, verdicts, scores)

    def _all_rows(self) -> Subgroup:
        """A subgroup of the first rows of every group, all of them valid."""
        index = jnp.broadcast_to(jnp.arange(self.num_rows, dtype=jnp.int32), (self.args.prompts, self.num_rows))
        row = jnp.ones((self.args.prompts,), jnp.int32)
        return Subgroup(index, jnp.ones_like(index, bool), row * Outcome.MIXED, row * (self.num_rows - 1))


def regroup(tree: Any, batch: int) -> Any:
    """Reshapes arrays [a, b, ...] to [batch, a * b / batch, ...]: from copies with one branch to groups, or back."""
    return jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[2:]), tree)


def make_verdicts(batch: int, num_branches: int, response_len: int) -> Verdicts:
    """Verdicts with the first branch of each prompt right, and half of each response rationale, half answer."""
    correct = jnp.broadcast_to(jnp.arange(num_branches) == 0, (batch, num_branches))
    is_think = jnp.broadcast_to(jnp.arange(response_len) < response_len // 2, (batch, num_branches, response_len))
    return Verdicts(correct, correct, correct, correct.astype(jnp.float32), is_think, ~is_think)


def make_reflection(repaired: Rollouts, verdicts: Verdicts, scores: Scores) -> Reflection:
    """One repair a group, all of them tried, from arrays with one branch a prompt."""
    return Reflection(
        tried=jnp.ones(repaired.token_ids.shape[:1], bool),
        token_ids=repaired.token_ids[:, 0],
        response_len=repaired.response_len[:, 0],
        sampled_mask=repaired.sampled_mask[:, 0],
        logprobs_old=scores.logprobs[:, 0],
        correct=verdicts.correct[:, 0],
        rewards=verdicts.rewards[:, 0],
        think_mask=verdicts.think_mask[:, 0],
        answer_mask=verdicts.answer_mask[:, 0],
    )


def make_optimizer() -> optax.GradientTransformation:
    """AdamW behind a clip, as in training."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))


def of_prompts(batch: TrainBatch, num_prompts: int, wanted: int) -> TrainBatch:
    """The shapes that a batch of `num_prompts` prompts has with `wanted` prompts."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] // num_prompts * wanted, *x.shape[1:]), x.dtype), batch
    )


def bytes_of(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a program's arguments (donated ones are reused for the results) and of its temporaries."""
    memory: Any = compiled.memory_analysis()
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {"arguments": memory.argument_size_in_bytes + fresh, "temporaries": memory.temp_size_in_bytes}


def update_tokens(args: argparse.Namespace, *, shared: bool) -> int:
    """Decoder tokens that the update of one prompt computes."""
    if shared:
        return args.prompt_len + (args.negatives + 1) * args.response_len
    return args.rollouts * (args.prompt_len + args.response_len)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {
        "prompts": (1, "B, prompts of a step, updated as one micro-batch"),
        "memory_prompts": (4, "prompts of the micro-batch whose memory is read; it is compiled and not run"),
        "rollouts": (8, "G, rollouts of a prompt"),
        "negatives": (4, "K, negatives of a subgroup"),
        "prompt_len": (1000, "P, tokens with the image's"),
        "image_side": (448, "pixels, a multiple of 28"),
        "response_len": (256, "R, tokens"),
        "forced_len": (64, "tokens of a repair that are forced"),
        "layers": (4, "of decoder and tower each"),
        "width": (768, "D, a multiple of 128"),
        "vocabulary": (8192, "V, 288 at least"),
        "chunk": (256, "tokens of one chunk of the head"),
        "repeats": (5, "timed steps of each side"),
    }
    for name, (default, text) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="computation type (float32)"
    )
    args = parser.parse_args(argv)
    if min(getattr(args, name) for name in sizes) < 1:
        parser.error("every size must be at least 1")
    if args.negatives >= args.rollouts or args.forced_len >= args.response_len:
        parser.error("--negatives must be below --rollouts, and --forced_len below --response_len")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Takes steps of both sides in turn and returns the figures that it prints."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        made = write_folder(Path(folder), num_layers=args.layers, width=args.width, vocab_size=args.vocabulary)
        config = dataclasses.replace(models.load_model_config(made), compute_dtype=args.dtype, remat="full")
        processor, prompts = make_prompts(
            made, num_prompts=args.prompts, prompt_len=args.prompt_len, image_side=args.image_side
        )
    model = models.init_model(config, jax.random.key(0))
    state = TrainState(jnp.int32(0), model, make_optimizer().init(model))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(model))
    sides = {
        "care": Side(args, prompts, processor.forbidden_mask, shared=True),
        "plain": Side(args, prompts, processor.forbidden_mask, shared=False),
    }

    timer, updates, memory = StageTimer(), {}, {}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for repeat in range(args.repeats + 1):
        for name, side in sides.items():
            batch = side.collect(state.params, jax.random.key(repeat), timer)
            if repeat == 0:
                updates[name] = side.compile_update(state, batch)
                larger = side.compile_update(state, of_prompts(batch, args.prompts, args.memory_prompts))
                memory[name] = {args.prompts: bytes_of(updates[name]), args.memory_prompts: bytes_of(larger)}
            with timer("update"):
                output = jax.block_until_ready(updates[name](state, batch, side.forbidden_mask))
            state = output.state
            taken = timer.take()
            if repeat > 0:  # the first step of each side compiles
                times[name].append({stage: taken.get(f"time/{stage}", 0.0) for stage in STAGES})

    return report(args, num_params, times, memory)


def report(
    args: argparse.Namespace,
    num_params: int,
    times: dict[str, list[dict[str, float]]],
    memory: dict[str, dict[int, dict[str, int]]],
) -> dict[str, Any]:
    """Prints medians side by side, and their ratios as the last line. `memory` is by side and prompts."""
    rows: dict[str, dict[str, float]] = {
        f"{stage}, s": {name: statistics.median(step[stage] for step in steps) for name, steps in times.items()}
        for stage in STAGES
    }
    rows["step, s"] = {name: statistics.median(sum(step.values()) for step in steps) for name, steps in times.items()}
    for count in sorted({args.prompts, args.memory_prompts}):
        for part in ("arguments", "temporaries"):
            rows[f"update {part}, MB, {count} prompts"] = {name: memory[name][count][part] / 1e6 for name in memory}
        rows[f"update memory, MB, {count} prompts"] = {name: sum(memory[name][count].values()) / 1e6 for name in memory}
    rows["update tokens a prompt"] = {name: update_tokens(args, shared=name == "care") for name in times}
    ratios = {label: row["care"] / row["plain"] for label, row in rows.items() if row["plain"]}

    figures: dict[str, Any] = {
        "benchmark": "step",
        "device": jax.devices()[0].device_kind,
        **vars(args),
        "parameters": num_params,
        "figures": {label: {name: round(value, 3) for name, value in row.items()} for label, row in rows.items()},
        "predicted_update_ratio": round(ratios["update tokens a prompt"], 4),
        "update_time_ratio": round(ratios["update, s"], 4),
        "update_memory_ratio": round(ratios[f"update memory, MB, {args.memory_prompts} prompts"], 4),
        "update_memory_ratio_timed": round(ratios[f"update memory, MB, {args.prompts} prompts"], 4),
        "step_time_ratio": round(ratios["step, s"], 4),
    }
    print(f"{num_params / 1e6:.1f} M parameters, {args.prompts} prompts of {args.prompt_len} tokens, G {args.rollouts}")
    print(f"{'medians of ' + str(args.repeats) + ' steps':<36}{'CARE':>12}{'plain':>12}{'ratio':>8}")
    for label, row in rows.items():
        ratio = f"{ratios[label]:.3f}" if label in ratios else "-"
        print(f"{label:<36}{row['care']:>12.3f}{row['plain']:>12.3f}{ratio:>8}")
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
