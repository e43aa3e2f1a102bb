"""Random and hostile responses through the whole of verification: bytes, format, worker processes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from care_jax.rewards.judge import RewardConfig, Verifier, judge
from care_jax.rewards.response_format import ANSWER_TAGS, BOXED
from tests.adversaries import ANSWERS, Attack, attacks
from tests.made_rollouts import rollouts_of

BYTES = [bytes([byte]) for byte in range(256)]  # a tokenizer of single bytes
DEADLINE = 5.0  # seconds


def judge_one_by_one(verifier: Verifier, batch: list[Attack], response_format) -> list[tuple[bool, str]]:
    """Returns for each response whether it is correct, and the reason."""
    raw = [attack.response.encode(errors="surrogatepass") for attack in batch]
    ids = np.zeros((len(raw), 1, max(map(len, raw))), np.int32)
    for row, text in enumerate(raw):
        ids[row, 0, : len(text)] = np.frombuffer(text, np.uint8)
    lengths = np.array([[len(text)] for text in raw], np.int32)
    config = RewardConfig(response_format, correct_weight=0.9, format_weight=0.1)
    judged = judge(verifier, [attack.record for attack in batch], rollouts_of(ids, lengths), BYTES, config)
    return list(zip(judged.verdicts.correct[:, 0].tolist(), (r[0] for r in judged.reasons), strict=True))


def check(verifier: Verifier, count: int, seed: int) -> None:
    """Asserts that no attack crashes or hangs a worker, or is rewarded for a wrong answer."""
    stream = attacks(seed)
    done = 0
    while done < count:
        batch = list(itertools.islice(stream, min(1000, count - done)))
        long = [
            attack for attack in batch if len(attack.response) > 1_000
        ]  # each alone, or all rows would be padded to it
        for part in ([a for a in batch if len(a.response) <= 1_000], *([attack] for attack in long)):
            verdicts = judge_one_by_one(verifier, part, ANSWER_TAGS)
            for attack, (correct, reason) in zip(part, verdicts, strict=True):
                assert reason not in ("deadline", "worker died"), attack
                assert not (correct and attack.is_wrong), attack
        done += len(batch)


@pytest.fixture(scope="module")
def verifier():
    """A pool of two workers."""
    with Verifier(workers=2, deadline=DEADLINE, tolerance=0.01) as pool:
        yield pool


def test_thousands_of_attacks(verifier):
    """Catches a crash, a hang, and a reward for two answers at once or for an answer that brings its own verdict."""
    check(verifier, 3_000, seed=0)


@pytest.mark.slow
def test_a_hundred_thousand_attacks(verifier):
    """Catches rarer failures of the same kinds."""
    check(verifier, 100_000, seed=1)


@pytest.mark.parametrize(("kind", "gold", "other", "options"), ANSWERS)
def test_the_golds_of_the_attacks_are_paid_for(verifier, kind, gold, other, options):
    """Catches attacks that fail because nothing is ever accepted."""
    attack = next(a for a in attacks(0) if (a.record.answer, a.record.choices) == (gold, options))
    right = [Attack(attack.record, f"<think></think><answer>{text}</answer>", False) for text in (gold, other)]
    assert [correct for correct, _ in judge_one_by_one(verifier, right, ANSWER_TAGS)] == [True, False]


@pytest.mark.parametrize(("kind", "gold", "other", "options"), ANSWERS)
def test_two_boxes_are_wrong(verifier, kind, gold, other, options):
    """Catches the last box counting although another box holds another answer."""
    attack = next(a for a in attacks(0) if (a.record.answer, a.record.choices) == (gold, options))
    texts = [
        rf"<think>\boxed{{{other}}}</think>\boxed{{{gold}}}",
        rf"<think></think>\boxed{{{other}}} \boxed{{{gold}}}",
    ]
    batch = [Attack(attack.record, text, False) for text in texts]
    assert [correct for correct, _ in judge_one_by_one(verifier, batch, BOXED)] == [True, False]
