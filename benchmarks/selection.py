"""Speed of selection and advantages, jitted over all prompts at once, against a plain numpy loop over the groups.

    python -m benchmarks.selection --prompts 512 --rollouts 8 --width 3584

Both sides get the same float32 arrays, already in memory; their outputs are compared before anything is timed. The loop
is written to be quick: one matrix product a group, choices on Python lists, numpy for the advantages. The last line is
one JSON object.

On a CPU the jitted side cannot be faster than memory is read: its floor is the time of one sum over the states, which
is timed and printed too. It was measured there as 2.8 to 5 times as fast as the loop, since both sides are bound by
reading the same states.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from care_jax.method import objectives
from care_jax.method.advantage import subgroup_advantages
from care_jax.method.objectives import Objective
from care_jax.method.subgroup import select_subgroup
from care_jax.structs import Array, Outcome

RESPONSE_LEN = 128  # tokens; only the rescue looks at them
Inputs = dict[str, np.ndarray]
Outputs = dict[str, np.ndarray]


def make_inputs(prompts: int, rollouts: int, width: int, seed: int = 0) -> Inputs:
    """Random groups of mixed difficulty: all-wrong, mixed and all-correct ones, some spans missing."""
    rng = np.random.default_rng(seed)
    correct = rng.random((prompts, rollouts)) < rng.uniform(0.0, 1.0, (prompts, 1))
    format_ok = rng.random((prompts, rollouts)) < 0.8
    states = rng.standard_normal((prompts, rollouts, width), dtype=np.float32)
    response_len = rng.integers(RESPONSE_LEN // 2, RESPONSE_LEN + 1, (prompts, rollouts), dtype=np.int32)
    has_think = rng.random((prompts, rollouts)) < 0.9
    return {
        "correct": correct,
        "rewards": (0.9 * correct + 0.1 * format_ok).astype(np.float32),
        "think_len": np.where(has_think, response_len - 10, 0).astype(np.int32),
        "answer_len": rng.integers(0, 6, (prompts, rollouts), dtype=np.int32),
        "response_len": response_len,
        "logprobs_old": -rng.exponential(1.0, (prompts, rollouts, RESPONSE_LEN)).astype(np.float32),
        "sampled_mask": np.arange(RESPONSE_LEN) < response_len[..., None],
        "think_states": states / np.linalg.norm(states, axis=-1, keepdims=True),
    }


def select_and_weigh(inputs: dict[str, Array], *, objective: Objective) -> dict[str, Array]:
    """The code that training runs, over all prompts at once."""
    arrays = {name: value for name, value in inputs.items() if name != "rewards"}
    subgroup = select_subgroup(**arrays, key=None, objective=objective)
    correct = jnp.take_along_axis(inputs["correct"], subgroup.index, axis=1)
    advantages = subgroup_advantages(
        rewards=jnp.take_along_axis(inputs["rewards"], subgroup.index, axis=1),
        correct=correct,
        reflected=jnp.zeros_like(correct),
        subgroup=subgroup,
        objective=objective,
    )
    return {"index": subgroup.index, "valid": subgroup.valid, "advantages": advantages.final}


def loop_over_groups(inputs: Inputs, *, objective: Objective) -> Outputs:
    """Selects and weighs in numpy, group by group."""
    prompts, num_slots = len(inputs["correct"]), objective.num_negatives + 1
    index = np.zeros((prompts, num_slots), np.int32)
    valid = np.zeros((prompts, num_slots), bool)
    advantages = np.zeros((prompts, num_slots), np.float32)
    for b in range(prompts):
        group = {name: value[b] for name, value in inputs.items()}
        rows, rewards = select_group(group, objective)
        index[b, : len(rows)] = rows
        valid[b, : len(rows)] = True
        advantages[b, : len(rows)] = weigh_group(rewards, objective)
    return {"index": index, "valid": valid, "advantages": advantages}


def select_group(group: Inputs, objective: Objective) -> tuple[list[int], np.ndarray]:
    """The rows of one group, anchor first, and their (pseudo-)rewards; none for an all-correct group."""
    correct = group["correct"].tolist()
    rollouts = range(len(correct))
    if all(correct):
        return [], np.zeros(0, np.float32)
    distance = (1.0 - group["think_states"] @ group["think_states"].T).tolist()
    mixed = any(correct)
    if mixed:
        think, answer, response = (group[name].tolist() for name in ("think_len", "answer_len", "response_len"))
        anchor = min(
            (g for g in rollouts if correct[g]), key=lambda g: (think[g] or response[g], answer[g] or response[g], g)
        )
        failures = [g for g in rollouts if not correct[g]]
        pool = sorted(failures, key=lambda g: (distance[anchor][g], g))[: objective.num_neighbours]
        chosen = pool[:1]
    else:
        anchor = int(np.where(group["sampled_mask"], group["logprobs_old"], 0.0).sum(axis=1).argmax())
        pool = [g for g in rollouts if g != anchor]
        chosen = [max(pool, key=lambda g: (distance[anchor][g], -g))]
    while len(chosen) < min(objective.num_negatives, len(pool)):
        rest = [g for g in pool if g not in chosen]
        chosen.append(max(rest, key=lambda g: (min(distance[g][c] for c in chosen), -g)))
    rows = [anchor, *sorted(chosen, key=lambda g: (distance[anchor][g], g))]
    if mixed:
        return rows, group["rewards"][rows]
    delta = objective.rescue.delta
    return rows, np.array([delta] + [-delta / len(chosen)] * len(chosen), np.float32)


def weigh_group(rewards: np.ndarray, objective: Objective) -> np.ndarray:
    """Advantages of one group's rows, anchor first."""
    if not len(rewards):
        return rewards
    raw = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    final = -objective.negative_scale * np.abs(raw)
    final[0] = raw[0]
    return final * np.sqrt(objective.num_negatives / (len(rewards) - 1))


def require_equal(ours: dict[str, Array], theirs: Outputs) -> int:
    """Compares the two sides and returns the number of groups that a rounding tie orders differently.

    Raises:
        ValueError: the rows differ in more than one group of 200, or an advantage differs.
    """
    arrays = {name: np.asarray(value) for name, value in ours.items()}
    same = (arrays["index"] == theirs["index"]).all(axis=1)
    differing = int((~same).sum())
    # Distances are summed in another order, which can swap two rows that are equal up to rounding.
    if differing > len(same) // 200 or not (arrays["valid"] == theirs["valid"]).all():
        raise ValueError(f"the two sides chose other rows in {differing} of {len(same)} groups; they must agree")
    gap = float(np.abs(arrays["advantages"] - theirs["advantages"])[same].max(initial=0.0))
    if gap > 1e-4:
        raise ValueError(f"advantages of the two sides differ by {gap:.2e}; allowed is 1e-4")
    return differing


def seconds_of(run: Callable[[], object]) -> float:
    """Wall time of one call, results ready."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Runs both sides alternately and returns the figures that it prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512, help="B, groups")
    parser.add_argument("--rollouts", type=int, default=8, help="G, rollouts of a group")
    parser.add_argument("--width", type=int, default=3584, help="D, hidden width")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each side")
    args = parser.parse_args(argv)
    if args.prompts < 1 or args.rollouts < 2 or args.width < 1 or args.repeats < 1:
        parser.error("--prompts, --width and --repeats must be at least 1, --rollouts at least 2")

    objective = Objective.from_config(objectives.care_no_rgr())
    inputs = make_inputs(args.prompts, args.rollouts, args.width)
    on_device = jax.device_put(inputs)
    jitted = jax.jit(functools.partial(select_and_weigh, objective=objective))
    differing = require_equal(jitted(on_device), loop_over_groups(inputs, objective=objective))  # and warm-up

    read_states = jax.jit(jnp.sum)
    read_states(on_device["think_states"])
    jit_times, loop_times, read_times = [], [], []
    for _ in range(args.repeats):
        read_times.append(seconds_of(lambda: read_states(on_device["think_states"])))
        jit_times.append(seconds_of(lambda: jitted(on_device)))
        loop_times.append(seconds_of(lambda: loop_over_groups(inputs, objective=objective)))
    loop_ms, jit_ms, read_ms = (1e3 * statistics.median(times) for times in (loop_times, jit_times, read_times))
    outcomes = {o.name.lower(): int((np.asarray(_outcomes(inputs)) == o).sum()) for o in Outcome}
    figures: dict[str, object] = {
        "benchmark": "selection",
        "device": jax.devices()[0].device_kind,
        "prompts": args.prompts,
        "rollouts": args.rollouts,
        "width": args.width,
        "groups": outcomes,
        "differing_groups": differing,
        "loop_ms": round(loop_ms, 3),
        "jit_ms": round(jit_ms, 3),
        "read_floor_ms": round(read_ms, 3),
        "speedup": round(loop_ms / jit_ms, 1),
    }
    print(f"{args.prompts} prompts x {args.rollouts} rollouts x {args.width} wide; medians of {args.repeats}")
    print(f"{'numpy loop over groups':<24}{loop_ms:>10.2f} ms")
    print(f"{'jitted, all groups':<24}{jit_ms:>10.2f} ms")
    print(f"{'one sum over the states':<24}{read_ms:>10.2f} ms (floor)")
    print(f"{'speedup':<24}{loop_ms / jit_ms:>10.1f} x")
    print(json.dumps(figures))
    return figures


def _outcomes(inputs: Inputs) -> np.ndarray:
    right = inputs["correct"].sum(axis=1)
    size = inputs["correct"].shape[1]
    return np.where(right == 0, Outcome.ALL_WRONG, np.where(right == size, Outcome.ALL_CORRECT, Outcome.MIXED))


if __name__ == "__main__":
    main(sys.argv[1:])
