"""Turns that are passed over since a prompt's last group was uniform: how many, from when, and after a restart."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest

from care_jax.data import loader
from care_jax.data.outcomes import Outcomes, Turns
from care_jax.data.train_stream import Moved, TrainStream
from care_jax.errors import InputError
from care_jax.structs import Record

WRONG, MIXED, RIGHT = [[False, False], [True, False], [True, True]]
TURNS = Turns(all_wrong=0.5, all_correct=0.1)


@dataclasses.dataclass
class Numbers:
    """Records whose ids count from 0."""

    size: int

    def __len__(self) -> int:
        """The number of records."""
        return self.size

    def __getitem__(self, index: int) -> Record:
        """The record of an index."""
        return Record(str(index), "numbers", "?", (), "1", "integer")


def stream_of(turns: Turns, *, size: int = 45, rows: list[int] | None = None) -> TrainStream[int]:
    """Batches of 6."""
    source = loader.Mixture(((Numbers(size), 1.0), (Numbers(size), 1.0)))
    return loader.make_train_iterator(
        source, lambda record: int(record.id), batch_size=6, seed=3, rows=rows, turns=turns
    )


def group_of(number: int) -> list[bool]:
    """A third of the records each is solved, is never solved, and has a contrast."""
    return (WRONG, MIXED, RIGHT)[number % 3]


def run(stream: TrainStream[int], steps: int, *, is_steady: bool = True) -> Iterator[list[int]]:
    """Batches, of each of which the outcome is told before the next; a record has always the same, if `is_steady`."""
    for _ in range(steps):
        batch = next(stream)
        groups = [group_of(number if is_steady else number + batch[0]) for number in batch]
        stream.outcomes.tell(stream.outcomes_of(np.array(groups)))
        yield batch


def test_uniform_prompts_have_their_share_of_turns():
    """Catches shares of the wrong outcome, a pass over that is forgotten, and prompts that never come back."""
    stream = stream_of(TURNS, size=30)
    asked = np.zeros(3)
    for batch in itertools.islice(run(stream, 400), 20, None):
        np.add.at(asked, np.array(batch) % 3, 1)
    shares = asked / asked[1]
    assert shares[0] == pytest.approx(TURNS.all_wrong, abs=0.06)
    assert shares[2] == pytest.approx(TURNS.all_correct, abs=0.03)


def test_without_shares_nothing_changes():
    """Catches an order that differs by a feature that is off, and a state that grows with it."""
    plain, told = stream_of(Turns()), stream_of(Turns())
    assert [next(plain) for _ in range(70)] == list(run(told, 70))
    assert not told.outcomes.are_used


def test_a_prompt_that_is_no_longer_uniform_has_all_its_turns():
    """Catches an outcome that sticks: each prompt is all correct once, and mixed from then on."""
    stream, seen, counts = stream_of(Turns(all_correct=0.3), size=9), set(), np.zeros(9)
    for step in range(120):
        batch = next(stream)
        stream.outcomes.tell(stream.outcomes_of(np.array([MIXED if number in seen else RIGHT for number in batch])))
        seen |= set(batch)
        if step >= 60:
            np.add.at(counts, batch, 1)
    assert counts.min() > 0.8 * counts.mean()


def test_what_is_told_counts_from_the_step_after_the_next():
    """Catches draws that depend on whether the next batch had been read when a step ended."""
    first, second = (stream_of(TURNS, size=4) for _ in range(2))
    for stream, is_early in ((first, True), (second, False)):
        for _ in range(25):
            batch = next(stream)
            if is_early:
                stream.wait()
            stream.outcomes.tell(stream.outcomes_of(np.array([group_of(number) for number in batch])))
    assert first.get_state() == second.get_state()


def test_a_state_goes_on_with_the_next_batch():
    """Catches outcomes, or what was told last, that a checkpoint does not hold."""
    whole = list(run(stream_of(TURNS, size=4), 40, is_steady=False))
    first, second = stream_of(TURNS, size=4), stream_of(TURNS, size=4)
    head = list(run(first, 17, is_steady=False))
    list(run(second, 7, is_steady=False))
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert head + list(run(second, 23, is_steady=False)) == whole


def test_processes_draw_what_one_draws():
    """Catches a process that does not know another's outcomes, or how far its rows have come."""
    whole_stream, rows = stream_of(TURNS, size=4), ([0, 4], [1, 2, 3, 5])
    streams = [stream_of(TURNS, size=4, rows=own) for own in rows]
    passed_over = 0
    for batch in run(whole_stream, 40):
        parts = [next(stream) for stream in streams]
        by_row = dict(zip(itertools.chain(*rows), itertools.chain(*parts), strict=True))
        assert [by_row[row] for row in range(6)] == batch
        groups = [np.array([group_of(number) for number in part]) for part in parts]
        told = [stream.outcomes_of(correct) for stream, correct in zip(streams, groups, strict=True)]
        for stream, other in itertools.permutations(streams, 2):
            moved = json.loads(json.dumps(list(other.moved.items())))
            stream.follow({row: Moved(*one) for row, one in moved})
        for stream, outcomes in itertools.product(streams, told):
            stream.outcomes.tell(outcomes)
        assert {stream.num_passed_over for stream in streams} == {whole_stream.num_passed_over}
        passed_over += whole_stream.num_passed_over
    assert passed_over > 40
    assert len({json.dumps(stream.get_state()) for stream in (*streams, whole_stream)}) == 1


def test_outcomes_of_other_data_are_refused():
    """Catches outcomes that are laid on other records."""
    outcomes = Outcomes(5, TURNS, seed=0)
    outcomes.tell([(4, 1)])
    text = outcomes.to_text()
    assert Outcomes(5, TURNS, seed=0).to_text() == ""
    with pytest.raises(InputError, match=r"^the outcomes are of 5 records, and the training data have 6$"):
        Outcomes(6, TURNS, seed=0).set_text(text)
    outcomes.set_text("")
    assert outcomes.to_text() == ""
