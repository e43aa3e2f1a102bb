"""Turns that go to other prompts since a prompt's last group was uniform: how many, from when, after a restart."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from care_jax.data import loader
from care_jax.data.outcomes import ALL_TURNS, Outcomes, Turns
from care_jax.data.train_stream import TrainStream
from care_jax.errors import InputError
from care_jax.run.training_data import TrainingData
from care_jax.structs import Outcome
from tests.numbers import Numbers

TURNS = Turns(all_wrong=0.5, all_correct=0.1)


def stream_of(turns: Turns, *, sizes: Sequence[int] = (45,), batch_size: int = 6) -> TrainStream[int]:
    """Batches of a mixture whose parts all have the same weight, the records of part i counting from 1000 i."""
    parts = tuple((Numbers(size, 1000 * i), 1.0) for i, size in enumerate(sizes))
    return loader.make_train_iterator(
        loader.Mixture(parts), lambda record: int(record.id), batch_size=batch_size, seed=3, turns=turns
    )


def tell(stream: TrainStream[int], outcomes: Sequence[int]) -> None:
    """Tells the outcomes of the last batch."""
    stream.outcomes.tell(zip(stream.taken, outcomes, strict=True))


def run(stream: TrainStream[int], steps: int, *, is_steady: bool = True) -> Iterator[list[int]]:
    """Yields batches and tells their outcomes; a third of the numbers has each. With `is_steady` they never change."""
    for _ in range(steps):
        batch = next(stream)
        tell(stream, [(number if is_steady else number + batch[0]) % 3 for number in batch])
        yield batch


def test_uniform_prompts_have_their_share_of_turns() -> None:
    """Catches shares of the wrong outcome, and prompts that never come back.

    A turn that is lost goes to any record, and may be lost again: the shares of all turns are 0.5 : 1 : 0.1 of 1.6.
    """
    asked = np.zeros(3)
    for batch in itertools.islice(run(stream_of(TURNS), 900), 20, None):
        np.add.at(asked, np.array(batch) % 3, 1)
    np.testing.assert_allclose(asked / asked.sum(), np.array([0.5, 1, 0.1]) / 1.6, atol=0.03)


@pytest.mark.parametrize("batch_size", [6, 7])
def test_a_mixture_keeps_its_weights(batch_size: int) -> None:
    """Catches turns that go to another source, and those that stay with a prompt: all of the first part are solved."""
    stream, asked = stream_of(Turns(all_correct=0.1), sizes=(30, 30), batch_size=batch_size), list[int]()
    for _ in range(60):
        batch = next(stream)
        tell(stream, [Outcome.ALL_CORRECT if number < 25 else Outcome.MIXED for number in batch])
        asked += batch
    parts = np.array(asked) // 1000
    assert abs(2 * parts.sum() - len(parts)) <= 2
    solved, others = (np.mean([n in which for n in asked[-200:]]) for which in (range(25), range(25, 30)))
    assert solved / 25 < 0.3 * others / 5


def test_without_shares_nothing_changes() -> None:
    """Catches an order that differs by a feature that is off, and a state that grows with it."""
    plain, told = stream_of(ALL_TURNS), stream_of(ALL_TURNS)
    assert [next(plain) for _ in range(70)] == list(run(told, 70))
    assert told.get_state() == plain.get_state()
    assert told.get_state()["outcomes"] == ""


def test_a_prompt_that_is_no_longer_uniform_has_all_its_turns() -> None:
    """Catches an outcome that sticks: each prompt is all correct once, and mixed from then on."""
    stream, seen, counts = stream_of(Turns(all_correct=0.3), sizes=(9,)), set[int](), np.zeros(9)
    for step in range(120):
        batch = next(stream)
        tell(stream, [Outcome.MIXED if number in seen else Outcome.ALL_CORRECT for number in batch])
        seen |= set(batch)
        if step >= 60:
            np.add.at(counts, batch, 1)
    assert counts.min() > 0.8 * counts.mean()


def test_turns_are_drawn_independently() -> None:
    """Catches draws that come in runs: among any 50 turns of a row as many are kept as chance has it."""
    outcomes = Outcomes(2, Turns(all_correct=0.2), seed=1)
    outcomes.tell([(0, Outcome.ALL_CORRECT)])
    outcomes.count()
    kept = np.array([outcomes.record_of_turn(100 * turn, 0, range(2))[1] == 0 for turn in range(10_000)])
    assert kept.mean() == pytest.approx(0.2, abs=0.015)
    assert kept.reshape(-1, 50).sum(axis=1).std() == pytest.approx((50 * 0.2 * 0.8) ** 0.5, rel=0.2)


def test_a_batch_is_full_where_all_are_solved() -> None:
    """Catches a search for another record that has no end."""
    outcomes = Outcomes(3, Turns(all_correct=1e-9), seed=0)
    outcomes.tell([(record, Outcome.ALL_CORRECT) for record in range(3)])
    outcomes.count()
    assert outcomes.record_of_turn(5, 0, range(3))[0] in range(3)


def test_what_is_told_counts_from_the_batch_after_the_next() -> None:
    """Catches draws that depend on whether the next batch had been read when a step ended."""
    drawn = []
    for is_early in (True, False):
        stream, batches = stream_of(TURNS, sizes=(7,)), list[list[int]]()
        for _ in range(25):
            batches.append(next(stream))
            if is_early:
                stream.wait()
            else:
                stream._ahead.drop()  # to be read after what follows
            tell(stream, [(number + batches[-1][0]) % 3 for number in batches[-1]])
        drawn.append(batches)
    assert drawn[0] == drawn[1]


def test_a_state_goes_on_with_the_next_batch() -> None:
    """Catches outcomes, or what was told last, that a checkpoint does not hold."""
    whole = list(run(stream_of(TURNS, sizes=(7,)), 40, is_steady=False))
    first, second = stream_of(TURNS, sizes=(7,)), stream_of(TURNS, sizes=(7,))
    head = list(run(first, 17, is_steady=False))
    list(run(second, 7, is_steady=False))
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert head + list(run(second, 23, is_steady=False)) == whole


@dataclasses.dataclass
class Share:
    """Stands in for a process with some of the rows, and one other process."""

    own: list[int]
    others: list[Any] = dataclasses.field(default_factory=list)  # the values that the other sends next
    is_whole: bool = False

    def rows(self, batch_size: int) -> list[int]:
        """Its rows."""
        return self.own

    def exchange(self, value: Any) -> list[Any]:
        """Its own value, and that of the other process."""
        return [value, *(self.others.pop(0) for _ in self.others[:1])]


def test_processes_draw_what_one_draws() -> None:
    """Catches outcomes that the other process is not told, and a count of turns that is not of all rows.

    Also two groups of one record in a batch that differ: sources are so small that a record often comes twice.
    """
    shares = (Share(list(range(6))), Share([0, 4]), Share([1, 2, 3, 5]))
    whole, *apart = (
        TrainingData(
            Numbers(7),
            lambda record: int(record.id),
            batch_size=6,
            seed=3,
            share=share,
            turns=TURNS,  # type: ignore[arg-type]
        )
        for share in shares
    )
    total = 0
    for step in range(40):
        batch = next(whole)
        for share, other in ((shares[1], apart[1]), (shares[2], apart[0])):
            other.iterator.start_prefetch()
            taken = [row.result() for row in other.iterator._ahead._rows]
            share.others = [[[], sum(one.num_passed_over for one in taken)]]
        parts = [next(data) for data in apart]
        by_row = dict(zip([0, 4, 1, 2, 3, 5], [*parts[0], *parts[1]], strict=True))
        assert [by_row[row] for row in range(6)] == batch
        outcomes = [np.array([(by_row[row] + row + step) % 3 for row in share.own], np.int32) for share in shares]
        for share, other, of_other in ((shares[1], apart[1], outcomes[2]), (shares[2], apart[0], outcomes[1])):
            share.others = [[*zip(other.iterator.taken, of_other.tolist(), strict=True)]]
        for data, own in zip((whole, *apart), outcomes, strict=True):
            data.tell(np.array([[outcome > 0, outcome == 2] for outcome in own]))
        counts = [data.counts()["data/num_passed_over"] for data in (whole, *apart)]
        assert counts[1:] == counts[:1] * 2
        total += counts[0]
    assert total > 40
    assert len({json.dumps(data.iterator.get_state()) for data in (whole, *apart)}) == 1


def test_two_groups_that_differ_are_mixed() -> None:
    """Catches a record whose outcome is that of the group that was told last."""
    told = [[(0, Outcome.ALL_CORRECT), (0, Outcome.ALL_WRONG)], [(0, Outcome.ALL_WRONG), (0, Outcome.ALL_CORRECT)]]
    for pairs in told:
        outcomes = Outcomes(1, TURNS, seed=0)
        outcomes.tell(pairs)
        outcomes.count()
        assert outcomes.to_text() == ""


def test_outcomes_of_other_data_are_refused() -> None:
    """Catches outcomes that are laid on other records."""
    outcomes = Outcomes(5, TURNS, seed=0)
    assert outcomes.to_text() == ""
    outcomes.tell([(4, Outcome.ALL_WRONG)])
    text = outcomes.to_text()
    with pytest.raises(InputError, match=r"^the outcomes are of 5 records, and the training data have 6$"):
        Outcomes(6, TURNS, seed=0).set_text(text)
    outcomes.set_text("")
    assert outcomes.to_text() == ""
