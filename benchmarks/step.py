"""Time and memory of CARE's update and whole step against plain GRPO's, or against the same step without packing.

    python -m benchmarks.step
    python -m benchmarks.step --lengths=lognormal --mean_share=0.25 --all_correct=0.4 --prompts=16 --stream_len=8192

Both sides have the same model, functions and sizes. CARE computes each prompt once and updates the K + 1 rows of the
anchored subgroup. Plain GRPO stands for trainers without a shared prompt: every rollout has its own copy of prompt and
image in prefill, scoring and update, and all G rows are updated. Here it is the same code on G copies of the prompt
with one branch each. No side has a KL term.

With --lengths=lognormal the other side is CARE in the padded layout (benchmarks/padded.py), which computes every slot
of every group to R tokens and every prompt to P; responses are cut to random lengths, and a share of the groups is all
correct. With --prompt_share prompts are cut to random lengths too, and of each image the same share of its patches.

A step is prefill, rollout, score, reflect (CARE only: one repair a group, decoded and scored), batch and update.
Verifiers, and selection (see benchmarks.selection), take milliseconds and are left out. Without --lengths every group
is mixed and has K failures, the case that costs CARE most, and no response stops before R tokens.

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

from benchmarks import padded
from benchmarks.made_model import SIZED, make_prompts, write_folder
from care_jax import models
from care_jax.method import objectives, train_batch
from care_jax.method.loss import policy_loss
from care_jax.method.objectives import Objective
from care_jax.method.train_batch import Reflection
from care_jax.models import QwenVL
from care_jax.models.cache import Prefix
from care_jax.run.stage_timer import StageTimer
from care_jax.stages import prefill, rollout
from care_jax.stages.packing import PromptLengths, StreamSizes, pack, padding_share
from care_jax.stages.prefill import ChunkSizes
from care_jax.stages.rollout import Sampling
from care_jax.stages.score import score
from care_jax.stages.train_state import TrainState
from care_jax.stages.update import UpdateOutput, make_update
from care_jax.structs import (
    Array,
    Forced,
    Outcome,
    Packing,
    Prompts,
    Rollouts,
    Scores,
    Subgroup,
    TrainBatch,
    Verdicts,
    zeros,
)

STAGES = ("prefill", "rollout", "score", "reflect", "batch", "update")


class Side:
    """One way of taking a step: a shared prompt and the rows of a subgroup, or G copies of the prompt and all rows."""

    def __init__(
        self, args: argparse.Namespace, prompts: Prompts, forbidden_mask: Array, *, shared: bool, packed: bool = True
    ):
        """Puts the prompts on the device; nothing is computed yet.

        Args:
            args: of `parse`.
            prompts: B prompts, each once.
            forbidden_mask: [V] bool, ids that are not sampled.
            shared: CARE's way; else G copies of each prompt.
            packed: in streams; else everything is padded and computed.
        """
        copies = 1 if shared else args.rollouts
        self.args, self.shared, self.forbidden_mask = args, shared, jax.device_put(forbidden_mask)
        self.packed, self.useful = packed, dict[str, float]()  # shares of the tokens computed
        self.num_tokens = dict[str, int]()  # in the streams of a stage
        self.lengths = PromptLengths.of(jax.tree.map(lambda x: np.repeat(x, copies, axis=0), prompts))
        self.prompts = jax.device_put(jax.tree.map(lambda x: np.repeat(x, copies, axis=0), prompts))
        self.num_branches = args.rollouts // copies
        self.num_rows = args.negatives + 1 if shared else args.rollouts
        objective = Objective.from_config(objectives.care() if shared else objectives.grpo())
        self.objective = dataclasses.replace(objective, kl_coef=0.0, num_negatives=args.negatives)
        self.sampling = Sampling(args.response_len, 1.0, ())
        self.scoring: dict[str, Any] = {"temperature": 1.0, "chunk": args.chunk}
        self.group_prompts = jax.tree.map(lambda x: x[::copies], self.prompts)  # one a group
        self.prefill = jax.jit(prefill.prefill if packed else QwenVL.prefill)
        self.assemble = jax.jit(functools.partial(train_batch.assemble, objective=self.objective))

    def collect(self, params: QwenVL, seed: int, timer: StageTimer) -> tuple[TrainBatch, Packing | None]:
        """Runs everything of a step before its update; returns the update's batch, and its streams if it is packed."""
        sample_key, repair_key = jax.random.split(jax.random.key(seed))
        batch = self.prompts.token_ids.shape[0]
        with timer("prefill"):
            prefix = jax.block_until_ready(self.prefill(params, self.prompts))
        with timer("rollout"):
            nothing = rollout.nothing_forced(batch, self.num_branches)
            rollouts = self._generate(params, prefix, nothing, sample_key)
        rollouts = self._cut(rollouts, seed)
        verdicts = regroup(make_verdicts(self.args.prompts, self.args.rollouts, self.args.response_len), batch)
        all_correct = np.arange(self.args.prompts) < round(self.args.all_correct * self.args.prompts)
        all_correct = np.repeat(all_correct, batch // self.args.prompts)
        correct = verdicts.correct | all_correct[:, None]
        verdicts = dataclasses.replace(verdicts, correct=correct, rewards=correct.astype(jnp.float32))
        with timer("score"):
            scores = self._score(params, rollouts, verdicts, np.where(all_correct[:, None], 0, rollouts.response_len))
        reflection = zeros(Reflection, B=self.args.prompts, R=self.args.response_len)
        if self.shared:
            with timer("reflect"):
                reflection = self._reflect(params, prefix, rollouts, repair_key, seed, ~all_correct)
        with timer("batch"):
            groups = regroup((rollouts, verdicts, scores), self.args.prompts)
            subgroup = self._all_rows(groups[1].correct.all(axis=1))
            assembled = self.assemble(self.group_prompts, *groups, subgroup, reflection)
            rows = regroup(assembled.batch.replace(prompts=None), batch)
            packing = self._pack("update", regroup(assembled.taught_len, batch)) if self.packed else None
            return jax.block_until_ready((rows.replace(prompts=self.prompts), packing))

    def compile_update(self, state: TrainState, batch: TrainBatch, packing: Packing | None) -> jax.stages.Compiled:
        """Compiles the update as one program for arrays or shapes."""
        loss = functools.partial(policy_loss, objective=self.objective)
        if packing is None:
            plain = padded.make_update(make_optimizer(), loss, **self.scoring)
            return jax.jit(plain, donate_argnums=0).lower(state, batch, self.forbidden_mask).compile()
        update = make_update(make_optimizer(), loss, minibatches=1, **self.scoring)
        return jax.jit(update, donate_argnums=0).lower(state, batch, packing, self.forbidden_mask).compile()

    def _sizes(self, num_prompts: int, num_rows: int) -> StreamSizes:
        bucket = self.prompts.token_ids.shape[1], self.prompts.patches.shape[1]
        everything = num_prompts * (bucket[0] + num_rows * self.args.response_len)
        return StreamSizes.make(
            num_prompts=num_prompts,
            num_rows=num_rows,
            bucket=bucket,
            row_len=self.args.response_len,
            stream_len=self.args.stream_len or everything,
            shards=1,
        )

    def _pack(self, stage: str, row_len: Array) -> Packing:
        """Streams of the rows whose length is not 0; notes the share of useful tokens under the stage's name."""
        sizes = self._sizes(*row_len.shape)
        packing = pack(sizes, self.lengths, np.asarray(row_len))
        self.useful[stage] = 1 - padding_share(packing, sizes)
        self.num_tokens[stage] = int((packing.streams.source >= 0).sum())
        return jax.device_put(packing)

    def abstract_update(self, batch: TrainBatch, num_prompts: int) -> tuple[TrainBatch, Packing]:
        """The shapes of an update's arguments with `num_prompts` prompts in one micro-batch."""
        copies = 1 if self.shared else self.args.rollouts
        shapes = of_prompts(batch, self.args.prompts, num_prompts)
        return shapes, self._sizes(num_prompts * copies, batch.token_ids.shape[1]).abstract()

    def _cut(self, rollouts: Rollouts, seed: int) -> Rollouts:
        """Rollouts that end at random lengths, the same on both sides."""
        if self.args.lengths == "full":
            return rollouts
        wanted, sigma = self.args.mean_share * self.args.response_len, 0.8
        rng = np.random.default_rng([seed, *rollouts.response_len.shape])
        drawn = rng.lognormal(np.log(wanted) - sigma**2 / 2, sigma, rollouts.response_len.shape)
        lengths = np.clip(drawn, 2, self.args.response_len).astype(np.int32)
        inside = np.arange(self.args.response_len) < lengths[..., None]
        return dataclasses.replace(
            rollouts, response_len=jnp.asarray(lengths), sampled_mask=rollouts.sampled_mask & inside
        )

    def computed(self) -> dict[str, int]:
        """The tokens and patches that prefill computes, and the tokens in the streams of an update."""
        bucket = self.prompts.token_ids.shape[1], self.prompts.patches.shape[1]
        chunks = [(len(self.lengths.tokens), bucket)]
        if self.packed:
            chunks = ChunkSizes.of(bucket, merge_unit=4, tensor=1).computed(self.lengths, shards=1)
        names = "prefill tokens", "prefill patches"
        counts = {name: sum(rows * size[i] for rows, size in chunks) for i, name in enumerate(names)}
        return counts | ({"update tokens": self.num_tokens["update"]} if self.packed else {})

    def _generate(self, params: QwenVL, prefix: Prefix, forced: Forced, key: Array) -> Rollouts:
        rollouts = rollout.generate(params, prefix, forced, self.forbidden_mask, key, sampling=self.sampling)
        return jax.block_until_ready(rollouts)

    def _score(self, params: QwenVL, rollouts: Rollouts, verdicts: Verdicts, wanted_len: Array) -> Scores:
        given = (params, self.prompts, rollouts, verdicts)
        if not self.packed:
            return jax.block_until_ready(padded.score(*given, self.forbidden_mask, **self.scoring))
        stage = "score" if rollouts.token_ids.shape[1] == self.num_branches else "score of reflections"
        packing = self._pack(stage, wanted_len)
        return jax.block_until_ready(score(*given, packing, self.forbidden_mask, **self.scoring))

    def _reflect(
        self, params: QwenVL, prefix: Prefix, rollouts: Rollouts, key: Array, seed: int, tried: Array
    ) -> Reflection:
        """Decodes one repair a group, which continues from the first tokens of its nearest failure."""
        opening = rollouts.token_ids[:, 1:2, : self.args.forced_len]
        forced_len = jnp.full(opening.shape[:2], opening.shape[-1], jnp.int32)
        forced = Forced(opening, forced_len, jnp.asarray(tried)[:, None])
        repaired = self._generate(params, prefix, forced, key)
        repaired = self._cut(repaired, seed)
        verdicts = make_verdicts(*repaired.token_ids.shape)
        scores = self._score(params, repaired, verdicts, np.where(tried[:, None], repaired.response_len, 0))
        return make_reflection(repaired, verdicts, scores)

    def _all_rows(self, all_correct: Array) -> Subgroup:
        """A subgroup of the first rows of every mixed group, all of them valid, and of no row of the others."""
        index = jnp.broadcast_to(jnp.arange(self.num_rows, dtype=jnp.int32), (self.args.prompts, self.num_rows))
        outcome = jnp.where(all_correct, jnp.int32(Outcome.ALL_CORRECT), jnp.int32(Outcome.MIXED))
        valid = jnp.broadcast_to(~all_correct[:, None], index.shape)
        return Subgroup(index, valid, outcome, valid.sum(axis=1, dtype=jnp.int32) - valid[:, 0])


def cut_prompts(prompts: Prompts, mean_share: float) -> Prompts:
    """Prompts that end at random lengths, log-normal with this mean share of P, with that share of their patches."""
    batch, prompt_len = prompts.token_ids.shape
    sigma, rng = 0.6, np.random.default_rng(0)
    drawn = rng.lognormal(np.log(mean_share * prompt_len) - sigma**2 / 2, sigma, batch)
    lengths = np.clip(drawn, min(64, prompt_len), prompt_len).astype(np.int32)
    num_merged = prompts.image_ids.shape[1] * lengths // prompt_len // 4  # whole tokens of four patches
    is_kept = np.arange(prompts.image_ids.shape[1])[None] < 4 * num_merged[:, None]
    is_seen = prompts.vision_index < num_merged[:, None]
    return dataclasses.replace(
        prompts,
        prompt_len=lengths,
        vision_index=np.where(is_seen, prompts.vision_index, np.int32(-1)),
        window_ids=prompts.window_ids * is_kept,
        image_ids=prompts.image_ids * is_kept,
    )


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
        logprobs_sampler=repaired.logprobs[:, 0],
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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {
        "prompts": (1, "B, prompts of a step, updated as one micro-batch"),
        "memory_prompts": (4, "prompts of the micro-batch whose memory is read; it is compiled and not run"),
        "rollouts": (8, "G, rollouts of a prompt"),
        "negatives": (4, "K, negatives of a subgroup"),
        "prompt_len": (1000, "P, tokens with the image's"),
        "image_side": (448, "pixels, a multiple of 28, or of 32 for Qwen3.5"),
        "response_len": (256, "R, tokens"),
        "forced_len": (64, "tokens of a repair that are forced"),
        "layers": (4, "of decoder and tower each"),
        "width": (768, "D, a multiple of 128"),
        "vocabulary": (8192, "V, 288 at least"),
        "chunk": (256, "tokens of one chunk of the head"),
        "repeats": (5, "timed steps of each side"),
    }
    parser.add_argument("--model", default="qwen2_5_vl", choices=SIZED, help="the family (qwen2_5_vl)")
    parser.add_argument("--lengths", default="full", choices=("full", "lognormal"), help="of responses (full)")
    parser.add_argument("--mean_share", type=float, default=0.25, help="mean length as a share of R (0.25)")
    parser.add_argument("--prompt_share", type=float, default=1.0, help="mean length of prompts as a share of P (1)")
    parser.add_argument("--all_correct", type=float, default=0.0, help="share of groups without a failure (0)")
    parser.add_argument("--stream_len", type=int, default=0, help="tokens of a stream; 0: everything in one (0)")
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
        sizes = {"num_layers": args.layers, "width": args.width, "vocab_size": args.vocabulary}
        made = write_folder(Path(folder), **sizes, model_type=args.model)
        config = dataclasses.replace(models.load_model_config(made), compute_dtype=args.dtype, remat="full")
        processor, prompts = make_prompts(
            made, num_prompts=args.prompts, prompt_len=args.prompt_len, image_side=args.image_side
        )
    prompts = cut_prompts(prompts, args.prompt_share) if args.prompt_share < 1 else prompts
    model = models.init_model(config, jax.random.key(0))
    state = TrainState(jnp.int32(0), model, make_optimizer().init(model))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(model))
    sides = {"care": Side(args, prompts, processor.forbidden_mask, shared=True)}
    if args.lengths == "full":
        sides["plain"] = Side(args, prompts, processor.forbidden_mask, shared=False)
    else:
        sides["padded"] = Side(args, prompts, processor.forbidden_mask, shared=True, packed=False)

    timer, updates, memory = StageTimer(), {}, {}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for repeat in range(args.repeats + 1):
        for name, side in sides.items():
            batch, packing = side.collect(state.params, repeat, timer)
            if repeat == 0:
                updates[name] = side.compile_update(state, batch, packing)
                memory[name] = {args.prompts: bytes_of(updates[name])}
                if args.lengths == "full":
                    larger = side.compile_update(state, *side.abstract_update(batch, args.memory_prompts))
                    memory[name][args.memory_prompts] = bytes_of(larger)
            given = (batch, side.forbidden_mask) if packing is None else (batch, packing, side.forbidden_mask)
            with timer("update"):
                state = state_of(jax.block_until_ready(updates[name](state, *given)))
            taken = timer.take()
            if repeat > 0:  # the first step of each side compiles
                times[name].append({stage: taken.get(f"time/{stage}", 0.0) for stage in STAGES})

    counts = {name: side.computed() for name, side in sides.items()}
    return report(args, num_params, times, memory, sides["care"].useful, counts)


def state_of(output: UpdateOutput | TrainState) -> TrainState:
    """The new state of either update."""
    return output if isinstance(output, TrainState) else output.state


def report(
    args: argparse.Namespace,
    num_params: int,
    times: dict[str, list[dict[str, float]]],
    memory: dict[str, dict[int, dict[str, int]]],
    useful: dict[str, float],
    counts: dict[str, dict[str, int]],
) -> dict[str, Any]:
    """Prints medians side by side, and their ratios as the last line.

    `memory` is by side and prompts, `useful` has the shares of useful tokens in the programs of CARE's side, and
    `counts` is what each side has computed.
    """
    other = next(name for name in times if name != "care")
    rows: dict[str, dict[str, float]] = {
        f"{stage}, s": {name: statistics.median(step[stage] for step in steps) for name, steps in times.items()}
        for stage in STAGES
    }
    rows["step, s"] = {name: statistics.median(sum(step.values()) for step in steps) for name, steps in times.items()}
    for count in sorted(memory[other]):
        for part in ("arguments", "temporaries"):
            rows[f"update {part}, MB, {count} prompts"] = {name: memory[name][count][part] / 1e6 for name in memory}
        rows[f"update memory, MB, {count} prompts"] = {name: sum(memory[name][count].values()) / 1e6 for name in memory}
    rows |= {label: {name: of[label] for name, of in counts.items()} for label in counts[other]}
    ratios = {label: row["care"] / row[other] for label, row in rows.items() if row[other]}

    figures: dict[str, Any] = {
        "benchmark": "step",
        "device": jax.devices()[0].device_kind,
        **vars(args),
        "parameters": num_params,
        "figures": {label: {name: round(value, 3) for name, value in row.items()} for label, row in rows.items()},
        "useful_token_share": {stage: round(share, 4) for stage, share in useful.items()},
    }
    if other == "plain":
        figures |= {
            "predicted_update_ratio": round(ratios["update tokens"], 4),
            "update_time_ratio": round(ratios["update, s"], 4),
            "update_memory_ratio": round(ratios[f"update memory, MB, {args.memory_prompts} prompts"], 4),
            "update_memory_ratio_timed": round(ratios[f"update memory, MB, {args.prompts} prompts"], 4),
            "step_time_ratio": round(ratios["step, s"], 4),
        }
    else:
        figures |= {
            f"{part}_speedup": round(1 / ratios[f"{part}, s"], 3) for part in (*STAGES, "step") if part != "batch"
        }
    print(f"{num_params / 1e6:.1f} M parameters, {args.prompts} prompts of {args.prompt_len} tokens, G {args.rollouts}")
    print(f"{'medians of ' + str(args.repeats) + ' steps':<36}{'CARE':>12}{other:>12}{'ratio':>8}")
    for label, row in rows.items():
        ratio = f"{ratios[label]:.3f}" if label in ratios else "-"
        print(f"{label:<36}{row['care']:>12.3f}{row[other]:>12.3f}{ratio:>8}")
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
