"""The questions of mini_vqa: three skills, a short worked rationale each, and train and held-out sources kept apart.

    digits    real handwriting (scikit-learn's load_digits); held out: scans from 1300 on, the tail of the file
    chart     windows of real tables; held out: the last quarter of every table's time axis
    geometry  triangles drawn to scale; held out: about one unordered pair of angles in six, by hash

A record's id carries its sources, so that the separation can be checked on the finished data:
"digits/s12-s903-s44/sum", "chart/us-employment:construction:12-16/A+B" (rows, both ends included),
"geometry/45-60/third/r135m" (rotation in degrees, m: mirrored).
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from care_jax.data.mini_vqa import chart_tables, drawing
from care_jax.errors import InputError
from care_jax.options import SKILLS
from care_jax.structs import Record

SPLITS = ("train", "heldout")
FIRST_HELDOUT_SCAN = 1300
DRAFT_SHARE = 0.25  # of the train records
MIN_ANGLE = 20  # degrees, of all three corners

# Draws a new value for one that is misread.
Misread = Callable[[np.random.Generator, int], int]
# From values and an error made in one step to the rationale and its result.
Work = Callable[[list[int], int], tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """The knobs of the task; each setting is a data set of its own. Their defaults are in config.py (data.mini_vqa).

    Raises:
        InputError: a knob is out of range, or a split would be empty.
    """

    skills: tuple[str, ...]  # of options.SKILLS
    num_digits: int  # scans in an image, 2 to 6; a rationale about six has 26 tokens, the others at most 22
    min_bars: int  # values of a chart, 2 to 5
    max_bars: int
    num_levels: int  # values go from 1 to this, 3 to 21
    angle_step: int  # degrees; printed angles are multiples of it: 1, 5 or 10
    num_train: int  # records, spread evenly over the skills
    num_heldout: int
    seed: int

    def __post_init__(self) -> None:
        """Checks the knobs."""
        if not self.skills or not set(self.skills) <= set(SKILLS):
            raise InputError(f"mini_vqa skills={self.skills}: choose some of {', '.join(SKILLS)}")
        for knob, value, low, high in (
            ("num_digits", self.num_digits, 2, 6),
            ("min_bars", self.min_bars, 2, 5),
            ("max_bars", self.max_bars, 2, 5),
            ("num_levels", self.num_levels, 3, 21),
        ):
            if not low <= value <= high:
                raise InputError(f"mini_vqa {knob}={value}: choose a value from {low} to {high}")
        if self.min_bars > self.max_bars:
            raise InputError(f"mini_vqa min_bars={self.min_bars} is above max_bars={self.max_bars}; lower min_bars")
        if self.angle_step not in (1, 5, 10):
            raise InputError(f"mini_vqa angle_step={self.angle_step}: choose 1, 5 or 10 degrees")
        if min(self.num_train, self.num_heldout) < len(self.skills):
            raise InputError(
                f"mini_vqa num_train={self.num_train}, num_heldout={self.num_heldout}: choose at least "
                f"{len(self.skills)}"
            )

    @property
    def name(self) -> str:
        """The folder of this setting, all knobs in it."""
        bars = f"bars{self.min_bars}-{self.max_bars}_levels{self.num_levels}"
        size = f"n{self.num_train}-{self.num_heldout}_seed{self.seed}"
        only = "" if set(self.skills) == set(SKILLS) else f"only-{'-'.join(self.skills)}_"
        return f"{only}digits{self.num_digits}_{bars}_step{self.angle_step}_{size}"


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
    heldout = split == "heldout"
    total = difficulty.num_heldout if heldout else difficulty.num_train
    makers = {"digits": _digits_maker, "chart": _chart_maker, "geometry": _geometry_maker}
    streams = []
    for skill in difficulty.skills:
        rng = np.random.default_rng([difficulty.seed, SPLITS.index(split), SKILLS.index(skill)])
        streams.append(_unique(makers[skill](rng, heldout, difficulty), skill))
    yield from itertools.islice(itertools.chain.from_iterable(zip(*streams, strict=True)), total)


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


def _digits_maker(
    rng: np.random.Generator, heldout: bool, difficulty: Difficulty
) -> Iterator[tuple[str, Callable[[], Record]]]:
    from sklearn.datasets import load_digits  # seconds to import, and only a build needs it

    scans, labels = load_digits(return_X_y=True)
    low, high = (FIRST_HELDOUT_SCAN, len(scans)) if heldout else (0, FIRST_HELDOUT_SCAN)

    def misread(rng: np.random.Generator, value: int) -> int:
        return (value + int(rng.integers(1, 10))) % 10

    while True:
        chosen = [int(i) for i in rng.integers(low, high, difficulty.num_digits)]
        tilts = [_tilt(rng, heldout) for _ in chosen]
        question = ("sum", "range")[rng.integers(2)]
        record_id = f"digits/{'-'.join(f's{i}' for i in chosen)}/{question}"

        def draw(
            chosen: list[int] = chosen,
            tilts: list[drawing.Tilt] = tilts,
            question: str = question,
            record_id: str = record_id,
        ) -> Record:
            image = drawing.draw_digits([scans[i].reshape(8, 8) for i in chosen], tilts)
            values = [int(labels[i]) for i in chosen]
            work = _work_sum if question == "sum" else _work_range
            return _record(record_id, "digits", question, image, values, work, misread, rng, heldout)

        yield record_id, draw


def _tilt(rng: np.random.Generator, heldout: bool) -> drawing.Tilt:
    """Returns a small random tilt for train scans, since there are few of them; held-out scans stay as they are."""
    if heldout:
        return drawing.Tilt(0.0, 0, 0)
    return drawing.Tilt(float(rng.uniform(-12, 12)), *(int(x) for x in rng.integers(-2, 3, 2)))


def _chart_maker(
    rng: np.random.Generator, heldout: bool, difficulty: Difficulty
) -> Iterator[tuple[str, Callable[[], Record]]]:
    tables: dict[str, list[chart_tables.Series]] = {}
    for series in chart_tables.load_series():
        tables.setdefault(series.table, []).append(series)
    by_table = list(tables.values())

    def misread(rng: np.random.Generator, value: int) -> int:
        near = [v for v in (value - 2, value - 1, value + 1, value + 2) if 1 <= v <= difficulty.num_levels]
        return near[rng.integers(len(near))]

    while True:
        table = by_table[rng.integers(len(by_table))]
        series = table[rng.integers(len(table))]
        count = int(rng.integers(difficulty.min_bars, difficulty.max_bars + 1))
        cut = len(series.values) * 3 // 4
        first, end = (cut, len(series.values)) if heldout else (0, cut)
        stride = int(rng.integers(1, 7))
        span = stride * (count - 1)  # rows between the first and the last of a window
        if first + span >= end:
            continue
        start = int(rng.integers(first, end - span))
        values = _quantise(series.values[start : start + span + 1 : stride], difficulty.num_levels, rng)
        asked = _chart_question(values, rng)
        if asked is None:
            continue
        question, read, work = asked
        record_id = f"chart/{series.key}:{start}-{start + span}/{question}"
        line = bool(rng.random() < 0.4)

        def draw(
            values: list[int] = values,
            read: list[int] = read,
            work: Work = work,
            question: str = question,
            record_id: str = record_id,
            line: bool = line,
        ) -> Record:
            image = drawing.draw_chart(values, num_levels=difficulty.num_levels, line=line)
            choices = tuple(_letters(len(values))) if question == "top" else None
            return _record(record_id, "chart", question, image, read, work, misread, rng, heldout, choices)

        yield record_id, draw


def _quantise(window: tuple[float, ...], num_levels: int, rng: np.random.Generator) -> list[int]:
    """Scales a window to levels from 1 to num_levels, on an axis that extends past it by random amounts."""
    low, high = min(window), max(window)
    below, above = rng.random(2) * 0.6 * (high - low)
    low, width = low - below, (high - low) + below + above
    return [1 + round((v - low) / width * (num_levels - 1)) if width else 1 for v in window]


def _chart_question(values: list[int], rng: np.random.Generator) -> tuple[str, list[int], Work] | None:
    """Returns a question, the values it needs, and how to work it out; None if the values allow no clear question."""
    if len(set(values)) == 1:
        return None
    letters = _letters(len(values))
    form = int(rng.integers(3))
    if form == 2:
        unique = values.count(max(values)) == 1
        return ("top", values, lambda read, slip: _work_top(letters, read, slip)) if unique else None
    i, j = sorted(int(i) for i in rng.choice(len(values), 2, replace=False))
    if form == 1 and values[i] < values[j]:
        i, j = j, i  # a difference is asked so that it is not negative
    sign = "+-"[form]
    pair = (letters[i], letters[j])
    return f"{pair[0]}{sign}{pair[1]}", [values[i], values[j]], lambda read, slip: _work_pair(pair, sign, read, slip)


def _geometry_maker(
    rng: np.random.Generator, heldout: bool, difficulty: Difficulty
) -> Iterator[tuple[str, Callable[[], Record]]]:
    step = difficulty.angle_step
    angles = range(MIN_ANGLE, 180, step)
    pairs = [(a, b) for a in angles for b in angles if a <= b and a + b <= 180 - MIN_ANGLE]
    pairs = [(a, b) for a, b in pairs if (zlib.crc32(f"{a}-{b}".encode()) % 6 == 0) == heldout]

    def misread(rng: np.random.Generator, value: int) -> int:
        return value + step * int(rng.choice((-2, -1, 1, 2)))

    while True:
        a, b = pairs[rng.integers(len(pairs))]
        question = ("third", "exterior")[rng.integers(2)]
        rotation, mirrored = 5 * int(rng.integers(72)), bool(rng.random() < 0.5)
        record_id = f"geometry/{a}-{b}/{question}/r{rotation}{'m' if mirrored else ''}"
        layout = drawing.lay_out_triangle(a, b, rotation=rotation, mirrored=mirrored)
        if layout is None:
            continue

        def draw(
            layout: drawing.TriangleLayout = layout, question: str = question, record_id: str = record_id
        ) -> Record:
            image, read = drawing.draw_triangle(layout)
            work = _work_third if question == "third" else _work_exterior
            return _record(record_id, "geometry", question, image, list(read), work, misread, rng, heldout)

        yield record_id, draw


def _record(
    record_id: str,
    skill: str,
    question: str,
    image: bytes,
    values: list[int],
    work: Work,
    misread: Misread,
    rng: np.random.Generator,
    heldout: bool,
    choices: tuple[str, ...] | None = None,
) -> Record:
    rationale, answer = work(values, 0)
    draft = _wrong_draft(values, answer, work, misread, rng) if not heldout and rng.random() < DRAFT_SHARE else None
    kind = "integer" if choices is None else "choice"
    return Record(record_id, skill, f"<image>{question}?", (image,), answer, kind, choices, rationale, draft)


def _wrong_draft(values: list[int], answer: str, work: Work, misread: Misread, rng: np.random.Generator) -> str:
    """A rationale with one value misread or one step wrong, and its wrong, non-negative result."""
    while True:
        read, slip = list(values), 0
        if rng.random() < 0.6:
            i = rng.integers(len(read))
            read[i] = misread(rng, read[i])
        else:
            slip = int(rng.choice((-2, -1, 1, 2)))
        draft, result = work(read, slip)
        if result != answer and not result.startswith("-"):
            return draft


def _work_sum(values: list[int], slip: int) -> tuple[str, str]:
    """One addition at a time: 3+5=8+2=10."""
    totals = list(itertools.accumulate(values))
    totals[-1] += slip
    return str(values[0]) + "".join(f"+{v}={t}" for v, t in zip(values[1:], totals[1:], strict=True)), str(totals[-1])


def _work_range(values: list[int], slip: int) -> tuple[str, str]:
    high, low = max(values), min(values)
    return f"{' '.join(map(str, values))}:{high}-{low}={high - low + slip}", str(high - low + slip)


def _work_pair(letters: tuple[str, str], sign: str, values: list[int], slip: int) -> tuple[str, str]:
    first, second = values
    result = (first + second if sign == "+" else first - second) + slip
    return f"{letters[0]}{first} {letters[1]}{second}:{first}{sign}{second}={result}", str(result)


def _work_top(letters: str, values: list[int], slip: int) -> tuple[str, str]:
    top = letters[(values.index(max(values)) + slip) % len(values)]
    return f"{' '.join(f'{x}{v}' for x, v in zip(letters, values, strict=True))}:{top}", top


def _work_exterior(values: list[int], slip: int) -> tuple[str, str]:
    """Tens first: 45+65 is 45+60=105+5=110. Such steps are shared by many pairs, so unseen pairs can be added."""
    first, second = values
    tens, ones = second - second % 10, second % 10
    return _work_sum([first, tens, ones] if ones else [first, tens], slip)


def _work_third(values: list[int], slip: int) -> tuple[str, str]:
    work, total = _work_exterior(values, 5 * slip)
    return f"{work}:{180 - int(total)}", str(180 - int(total))


def _letters(count: int) -> str:
    return "ABCDE"[:count]
