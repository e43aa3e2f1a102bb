"""A slow numpy reference for selection, advantages and loss, written from the method's text alone.

One group, one row, one token at a time, in float64, without a vector operation beside the inner
product: each function is meant to be read next to the paragraph of the method it repeats. It shares no
code with care_jax but the records of an objective and a correction, and is the oracle of the tests.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from care_jax.method.importance import Correction
from care_jax.method.objectives import Objective

ALL_WRONG, MIXED, ALL_CORRECT = 0, 1, 2
EPS = 1e-6


@dataclasses.dataclass
class Group:
    """The rows of one group that are updated: no padding, anchor, negatives, nearest first, other positives."""

    rows: list[int]
    outcome: int
    num_negatives: int


# Section 1, item 4: the outcome of a prompt.
def classify(correct: Sequence[bool]) -> int:
    """0 all wrong, 1 mixed, 2 all correct (section 1)."""
    right = 0
    for is_correct in correct:
        if is_correct:
            right += 1
    if right == 0:
        return ALL_WRONG
    if right == len(correct):
        return ALL_CORRECT
    return MIXED


# Section 2: anchor and hard negatives.
def positives_by_length(correct, think_len, answer_len, response_len) -> list[int]:
    """The correct rollouts, the one with the fewest think tokens first (section 2)."""

    def key(g: int) -> tuple[int, int, int]:
        think = think_len[g] if think_len[g] > 0 else response_len[g]
        answer = answer_len[g] if answer_len[g] > 0 else response_len[g]
        return think, answer, g

    return sorted((g for g in range(len(correct)) if correct[g]), key=key)


def distance(state_a: np.ndarray, state_b: np.ndarray) -> float:
    """1 - cosine of two unit states."""
    return 1.0 - float(np.dot(state_a.astype(np.float64), state_b.astype(np.float64)))


def farthest_first(states: np.ndarray, candidates: list[int], start: int, count: int) -> list[int]:
    """Greedy spread: each time the candidate whose smallest distance to those chosen is largest."""
    chosen = [start]
    while len(chosen) < count:
        best_row, best_gap = None, None
        for row in sorted(candidates):
            if row in chosen:
                continue
            gap = min(distance(states[row], states[other]) for other in chosen)
            if best_gap is None or gap > best_gap:
                best_row, best_gap = row, gap
        chosen.append(best_row)
    return chosen


def select_negatives(states, correct, anchor: int, num_negatives: int, num_neighbours: int, selector: str) -> list[int]:
    """The hard negatives of a mixed group, nearest first (section 2)."""
    failures = [g for g in range(len(correct)) if not correct[g]]
    count = min(num_negatives, num_neighbours, len(failures))
    to_anchor = {g: distance(states[g], states[anchor]) for g in failures}
    nearest_first = sorted(failures, key=lambda g: (to_anchor[g], g))
    farthest = sorted(failures, key=lambda g: (-to_anchor[g], g))
    if selector == "nearest":
        chosen = nearest_first[:count]
    elif selector == "farthest":
        chosen = farthest[:count]
    elif selector == "mixed":  # the odd one goes to the nearest
        chosen = nearest_first[: count - count // 2]
        chosen += [g for g in farthest if g not in chosen][: count // 2]
    elif selector == "farthest_first":
        chosen = farthest_first(states, nearest_first[:num_neighbours], nearest_first[0], count)
    else:
        raise ValueError(f"the reference has no selector {selector!r}")
    return sorted(chosen, key=lambda g: (to_anchor[g], g))


# Section 4: the all-wrong group.
def likelihood(logprobs_old: np.ndarray, sampled_mask: np.ndarray, rank_by: str) -> float:
    """The old log-prob of one row, its sum or its mean (section 4)."""
    total, count = 0.0, 0
    for t in range(len(logprobs_old)):
        if sampled_mask[t]:
            total += float(logprobs_old[t])
            count += 1
    return -math.inf if count == 0 else total if rank_by == "sum" else total / count


def choose_pseudo_anchor(logprobs_old: np.ndarray, sampled_mask: np.ndarray, rank_by: str) -> int:
    """The failure with the largest old log-prob (section 4)."""
    best_row, best_score = None, None
    for g in range(len(logprobs_old)):
        score = likelihood(logprobs_old[g], sampled_mask[g], rank_by)
        if best_score is None or score > best_score:
            best_row, best_score = g, score
    return best_row


def select_rescue(states, pseudo_anchor: int, num_negatives: int) -> list[int]:
    """The representatives of an all-wrong group, nearest to the pseudo-anchor first (section 4)."""
    others = [g for g in range(len(states)) if g != pseudo_anchor]
    to_anchor = {g: distance(states[g], states[pseudo_anchor]) for g in others}
    start = min(others, key=lambda g: (-to_anchor[g], g))
    chosen = farthest_first(states, others, start, min(num_negatives, len(others)))
    return sorted(chosen, key=lambda g: (to_anchor[g], g))


# Section 3: the negative that is repaired.
def put_first(negatives: list[int], preference: Sequence[float]) -> list[int]:
    """The negatives with the most preferred one before the others."""
    first = None
    for row in negatives:
        if first is None or preference[row] > preference[first]:
            first = row
    return [row for row in negatives if row == first] + [row for row in negatives if row != first]


def count_alike(token_ids, answer_mask, correct) -> list[int]:
    """Failures of one group with each row's answer; 0 for a row without one (section 3)."""
    answers = [
        [int(ids[t]) for t in range(len(ids)) if mask[t]] for ids, mask in zip(token_ids, answer_mask, strict=True)
    ]
    return [
        sum(1 for g in range(len(answers)) if not correct[g] and answers[g] == answer) if answer else 0
        for answer in answers
    ]


def select_subgroup(
    correct,
    think_len,
    answer_len,
    response_len,
    logprobs_old,
    sampled_mask,
    states,
    objective: Objective,
    num_alike=None,
) -> Group:
    """The rows of one group that are updated, in the order of their slots (sections 2 to 4)."""
    group = choose_rows(correct, think_len, answer_len, response_len, logprobs_old, sampled_mask, states, objective)
    if not (objective.reflect.enabled and group.rows):
        return group
    end = 1 + group.num_negatives
    anchor, negatives, further = group.rows[0], group.rows[1:end], group.rows[end:]
    if objective.reflect.failure == "likeliest":
        rank_by = objective.rescue.rank_by
        scores = [likelihood(logprobs_old[g], sampled_mask[g], rank_by) for g in range(len(correct))]
        negatives = put_first(negatives, scores)
    elif objective.reflect.failure == "commonest":
        negatives = put_first(negatives, num_alike)
    return dataclasses.replace(group, rows=[anchor, *negatives, *further])


def choose_rows(
    correct,
    think_len,
    answer_len,
    response_len,
    logprobs_old,
    sampled_mask,
    states,
    objective: Objective,
) -> Group:
    """The rows of one group that are updated, negatives nearest first (sections 2 and 4)."""
    outcome = classify(correct)
    if not objective.anchored:
        return Group(list(range(len(correct))), outcome, 0)
    if outcome == MIXED:
        anchor, *others = positives_by_length(correct, think_len, answer_len, response_len)
        negatives = select_negatives(
            states, correct, anchor, objective.num_negatives, objective.num_neighbours, objective.selector
        )
        return Group([anchor, *negatives, *others[: objective.num_positives - 1]], outcome, len(negatives))
    if outcome == ALL_WRONG and objective.rescue.enabled:
        anchor = choose_pseudo_anchor(logprobs_old, sampled_mask, objective.rescue.rank_by)
        negatives = select_rescue(states, anchor, objective.num_negatives)
        return Group([anchor, *negatives], outcome, len(negatives))
    return Group([], outcome, 0)


# Section 2: advantages of one group's rows.
def z_score(values: Sequence[float], normalise_std: bool) -> list[float]:
    """Rewards less their mean, over their population standard deviation if asked for."""
    mean = sum(float(v) for v in values) / len(values)
    variance = sum((float(v) - mean) ** 2 for v in values) / len(values)
    scale = math.sqrt(variance) + EPS if normalise_std else 1.0
    return [(float(v) - mean) / scale for v in values]


def pseudo_rewards(num_negatives: int, delta: float) -> list[float]:
    """Rewards of an all-wrong group: delta, then -delta / K' each (section 4)."""
    return [delta] + [-delta / num_negatives] * num_negatives


def subgroup_advantages(
    rewards, correct, reflected, group: Group, objective: Objective
) -> tuple[list[float], list[float]]:
    """`rewards`, `correct`, `reflected`: of the group's rows in their order. Returns raw, final."""
    if not group.rows:
        return [], []
    if objective.anchored and group.outcome == ALL_WRONG:
        rewards = pseudo_rewards(group.num_negatives, objective.rescue.delta)
    if not objective.anchored:
        others = [objective.virtual_reward] if objective.virtual_reward > 0 else []
        raw = z_score([*rewards, *others], objective.normalise_std)[: len(rewards)]
        return raw, list(raw)
    raw = z_score(rewards, objective.normalise_std)
    final = []
    for slot, advantage in enumerate(raw):
        if slot == 0 or correct[slot]:
            value = advantage
        elif reflected[slot]:
            value = -objective.reflected_scale * abs(advantage)
        else:
            value = -objective.negative_scale * abs(advantage)
        if objective.equalise:
            value *= math.sqrt(objective.num_negatives / group.num_negatives)
        if group.outcome == ALL_WRONG and objective.rescue.scale == "delta":
            value *= objective.rescue.delta
        final.append(value)
    return raw, final


# Section 5: what the rationales of one group's rows share with their anchor's.
def common_beginning(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Tokens before the first difference."""
    count = 0
    while count < min(len(ours), len(theirs)) and ours[count] == theirs[count]:
        count += 1
    return count


def shared_with_anchor(token_ids, think_mask, correct) -> list[list[bool]]:
    """Shared tokens of the rows of one group, anchor first: arrays [rows, R] (section 5)."""
    spans = [[t for t in range(len(row)) if row[t]] for row in think_mask]
    rationales = [[int(ids[t]) for t in span] for ids, span in zip(token_ids, spans, strict=True)]
    lengths = [common_beginning(rationale, rationales[0]) for rationale in rationales]
    opposed = [lengths[row] for row in range(1, len(lengths)) if not correct[row]]
    least = min(opposed) if opposed else 0
    lengths = [min(length, least) if row == 0 or correct[row] else length for row, length in enumerate(lengths)]
    return [
        [t in span[:length] for t in range(len(row))]
        for row, span, length in zip(token_ids, spans, lengths, strict=True)
    ]


# Section 5: token weights of one response.
def token_weights(
    think_mask, answer_mask, sampled_mask, correct: bool, objective: Objective, shared_mask=None
) -> list[float]:
    """Region weights of one response's tokens (section 5)."""
    has_answer = False
    for t in range(len(answer_mask)):
        if answer_mask[t]:
            has_answer = True
    region = objective.region
    per_region = {
        "answer": 1.0,
        "rationale": region.gamma_pos if correct else region.gamma_neg,
        "form": region.format_weight,
        "shared": 0.0,
    }
    regions = []
    for t in range(len(sampled_mask)):
        if not sampled_mask[t]:
            regions.append(None)
        elif not region.enabled or not has_answer or answer_mask[t]:
            regions.append("answer")
        elif shared_mask is not None and shared_mask[t]:
            regions.append("shared")
        elif think_mask[t]:
            regions.append("rationale")
        else:
            regions.append("form")
    if region.enabled and region.unit == "region":
        sizes = {name: regions.count(name) for name in per_region}
        total = sum(per_region[name] for name in per_region if sizes[name])
        for name, size in sizes.items():
            if size and total:
                per_region[name] *= sum(sizes.values()) / (size * total)
    return [0.0 if name is None else per_region[name] for name in regions]


# Section 5: importance weights of one row.
def at_level(gaps: dict[int, float], t: int, level: str) -> float:
    """The ratio of token t ("token"), or the product ("sequence") or geometric mean of a row's ratios."""
    if level == "token":
        return math.exp(gaps[t])
    product = 1.0
    for gap in gaps.values():
        product *= math.exp(gap)
    return product if level == "sequence" else product ** (1 / len(gaps))


def importance(gaps: dict[int, float], t: int, correction: Correction) -> tuple[float, bool]:
    """Weight of token t, and whether it is kept. `gaps`: policy minus sampler at the row's sampled tokens."""
    bounded = at_level(gaps, t, correction.mask_level)
    if correction.mask_low and bounded < correction.mask_low:
        return 0.0, False
    if correction.mask_high and bounded > correction.mask_high:
        return 0.0, False
    if not correction.tis_cap:
        return 1.0, True
    return min(at_level(gaps, t, correction.tis_level), correction.tis_cap), True


# Section 5: ratios and surrogates.
def token_ratio(gaps: dict[int, float], fixed_gaps: dict[int, float], t: int, ratio: str) -> float:
    """The ratio of token t; `gaps`: new minus old at the row's sampled tokens, `fixed_gaps`: those without gradient."""
    if ratio == "token":
        return math.exp(gaps[t])
    if ratio == "sequence":
        return math.exp(sum(gaps.values()) / len(gaps))
    return math.exp(sum(fixed_gaps.values()) / len(gaps)) * math.exp(gaps[t] - fixed_gaps[t])


def clip(ratio: float, objective: Objective) -> float:
    """A ratio between the bounds."""
    return min(max(ratio, 1.0 - objective.clip_low), 1.0 + objective.clip_high)


def surrogate(ratio: float, advantage: float, objective: Objective) -> float:
    """The loss of a token, hard or softly limited."""
    if objective.surrogate == "clip":
        return -min(ratio * advantage, clip(ratio, objective) * advantage)
    tau = objective.sapo_tau_pos if advantage > 0 else objective.sapo_tau_neg
    return -advantage * (4.0 / tau) / (1.0 + math.exp(-tau * (ratio - 1.0)))


# Section 5: the loss of a batch of rows.
def policy_loss(
    logprobs,
    logprobs_old,
    logprobs_ref,
    sampled_mask,
    weights,
    advantages,
    row_mask,
    objective: Objective,
    correction: Correction | None = None,
    logprobs_sampler=None,
    logprobs_proximal=None,
    logprobs_fixed=None,
) -> float:
    """Arrays of rows [rows, R]; rows with row_mask False are as if absent. The mean is over all rows given.

    `logprobs_proximal`: what the weights hold against the sampler; `logprobs_fixed`: what has a value and no gradient
    in a ratio, `logprobs` itself if None. Finite differences of `logprobs` move neither.
    """
    logprobs_fixed = logprobs if logprobs_fixed is None else logprobs_fixed
    num_rows, num_tokens = 0, 0
    for i in range(len(row_mask)):
        if row_mask[i]:
            num_rows += 1
            num_tokens += sum(1 for sampled in sampled_mask[i] if sampled)
    total = 0.0
    for i in range(len(row_mask)):
        if not row_mask[i]:
            continue
        tokens = [t for t in range(len(sampled_mask[i])) if sampled_mask[i][t]]
        if not tokens:
            continue
        gaps = {t: float(logprobs[i][t]) - float(logprobs_old[i][t]) for t in tokens}
        fixed = {t: float(logprobs_fixed[i][t]) for t in tokens}
        fixed_gaps = {t: fixed[t] - float(logprobs_old[i][t]) for t in tokens}
        weight_sum = sum(float(weights[i][t]) for t in tokens)
        for t in tokens:
            advantage = float(advantages[i])
            if objective.surrogate == "cispo":
                weight_of_ratio = clip(token_ratio(fixed_gaps, fixed_gaps, t, objective.ratio), objective)
                token_loss = -weight_of_ratio * advantage * float(logprobs[i][t])
            else:
                token_loss = surrogate(token_ratio(gaps, fixed_gaps, t, objective.ratio), advantage, objective)
            gap_ref = float(logprobs_ref[i][t]) - float(logprobs[i][t])
            kl = math.exp(gap_ref) - gap_ref - 1.0
            weight = float(weights[i][t])
            if correction is not None:
                off = {t: float(logprobs_proximal[i][t]) - float(logprobs_sampler[i][t]) for t in tokens}
                of_token, is_kept = importance(off, t, correction)
                token_loss, kl = of_token * token_loss, kl if is_kept else 0.0
            if objective.aggregate == "sequence":
                total += weight / (weight_sum + EPS) * token_loss / num_rows
                total += objective.kl_coef * kl / (len(tokens) + EPS) / num_rows
            elif objective.aggregate == "token":
                total += (weight * token_loss + objective.kl_coef * kl) / num_tokens
            else:
                total += (weight * token_loss + objective.kl_coef * kl) / (num_rows * len(sampled_mask[i]))
    return total
