"""The records of mini_vqa: questions with a worked rationale each, and train and held-out sources kept apart.

    digits     real handwriting (scikit-learn's load_digits); held out: scans from 1300 on, the tail of the file
    chart      windows of real tables; held out: the last quarter of every table's time axis
    geometry   triangles drawn to scale; held out: about one unordered pair of angles in six, by hash
    columns    handwriting too: three numbers of three digits added, a long rationale that the answer does not end
    options    handwriting too: the letter of the sum among twelve options
    series     two columns of a table in one chart, which is read twice
    triangles  two images, a triangle each, whose angles are compared

The first three are the default. The others are harder, for studies of what failures teach (configs/failures.py).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from care_jax.data.mini_vqa import skills
from care_jax.data.mini_vqa.difficulty import Difficulty
from care_jax.data.mini_vqa.skills import Question
from care_jax.errors import InputError
from care_jax.options import EVERY_SKILL
from care_jax.structs import Record

SPLITS = ("train", "heldout")
DRAFT_SHARE = 0.25  # of the train records

_SKILLS: Mapping[str, skills.Skill] = {
    "digits": skills.digits,
    "chart": skills.chart,
    "geometry": skills.geometry,
    "columns": skills.columns,
    "options": skills.options,
    "series": skills.series,
    "triangles": skills.triangles,
}
_NEGATIVE = re.compile(r"[=:]-")  # as the result of a step


def generate(split: str, difficulty: Difficulty) -> Iterator[Record]:
    """Draws all records of a split, the skills in turn; no id comes twice and equal input gives equal bytes.

    Args:
        split: "train" (a quarter of the records carry a wrong draft) or "heldout" (none does).
        difficulty: the knobs.

    Raises:
        InputError: unknown split, or a skill has fewer different questions than asked for.
    """
    if split not in SPLITS:
        raise InputError(f"mini_vqa has no split {split!r}; choose one of {', '.join(SPLITS)}")
    total = difficulty.num_heldout if split == "heldout" else difficulty.num_train
    streams = [_unique(_records(skill, split, difficulty), skill) for skill in difficulty.skills]
    yield from itertools.islice(itertools.chain.from_iterable(zip(*streams, strict=True)), total)


def _records(skill: str, split: str, difficulty: Difficulty) -> Iterator[tuple[str, Callable[[], Record]]]:
    """The ids of a skill's questions without end, and what makes the record of each."""
    rng = np.random.default_rng([difficulty.seed, SPLITS.index(split), EVERY_SKILL.index(skill)])
    heldout = split == "heldout"
    for question in _SKILLS[skill](rng, heldout, difficulty):
        yield question.id, functools.partial(_record, question, skill, 0.0 if heldout else DRAFT_SHARE, rng)


def _unique(stream: Iterator[tuple[str, Callable[[], Record]]], skill: str) -> Iterator[Record]:
    """Draws each id once; nothing is drawn until an id is known to be new."""
    seen: set[str] = set()
    repeats = 0
    for record_id, draw in stream:
        if record_id not in seen:
            seen.add(record_id)
            repeats = 0
            yield draw()
            continue
        repeats += 1
        if repeats > 5_000:
            raise InputError(
                f"mini_vqa {skill}: only {len(seen)} different questions at this difficulty; ask for fewer records"
            )


def _record(question: Question, skill: str, draft_share: float, rng: np.random.Generator) -> Record:
    rationale, answer = question.work(question.values, 0)
    draft = _wrong_draft(question, answer, rng) if draft_share and rng.random() < draft_share else None
    kind = "integer" if question.choices is None else "choice"
    prompt = "<image>" * len(question.images) + question.text
    images = tuple(draw() for draw in question.images)
    return Record(question.id, skill, prompt, images, answer, kind, question.choices, rationale, draft)


def _wrong_draft(question: Question, answer: str, rng: np.random.Generator) -> str:
    """A rationale with one value misread or one step wrong, a wrong result, and no negative number."""
    while True:
        read, slip = list(question.values), 0
        if rng.random() < 0.6:
            i = rng.integers(len(read))
            read[i] = question.misread(rng, read[i])
        else:
            slip = int(rng.choice((-2, -1, 1, 2)))
        draft, result = question.work(read, slip)
        if result != answer and not _NEGATIVE.search(draft):
            return draft
