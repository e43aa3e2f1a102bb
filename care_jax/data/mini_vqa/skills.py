"""The skills of mini_vqa: each draws questions about real scans, tables or angles without end, from one split's alone.

A question's sources are named in its id, so that the separation of the splits can be checked on the finished data:
"digits/s12-s903-s44/sum", "chart/us-employment:construction:12-16/A+B" (rows, both ends included),
"geometry/45-60/third/r135m" (rotation in degrees, m: mirrored), "columns/s12-...", "options/s12-...",
"triangles/45-60/30-60/third/r135m-r20", "series/us-employment:mining:12-16/us-employment:construction:12-16/peak+".
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from care_jax.data.mini_vqa import chart_tables, drawing
from care_jax.data.mini_vqa.difficulty import Difficulty
from care_jax.data.mini_vqa.rationales import (
    Work,
    first_letters,
    work_columns,
    work_compared,
    work_exterior,
    work_option,
    work_pair,
    work_peak,
    work_range,
    work_sum,
    work_third,
    work_top,
)

FIRST_HELDOUT_SCAN = 1300
MIN_ANGLE = 20  # degrees, of all three corners
NUM_OPTIONS = 12  # as many as the verifier of choices reads: half of all groups of eight guesses are all wrong

# Draws a new value for one that is misread.
Misread = Callable[[np.random.Generator, int], int]


class Question(NamedTuple):
    """A question, of which nothing is drawn yet."""

    id: str
    text: str
    images: tuple[Callable[[], bytes], ...]  # draw one each
    values: list[int]  # what must be read
    work: Work
    misread: Misread
    choices: tuple[str, ...] | None = None


# From a random generator, the split (True: held-out) and the knobs.
Skill = Callable[[np.random.Generator, bool, Difficulty], Iterator[Question]]


def digits(rng: np.random.Generator, heldout: bool, difficulty: Difficulty) -> Iterator[Question]:
    """The sum or the range of handwritten digits."""
    for key, image, values in _handwriting(rng, heldout, difficulty.num_digits):
        asked = ("sum", "range")[rng.integers(2)]
        yield Question(f"digits/{key}/{asked}", f"{asked}?", (image,), values, _DIGIT_WORK[asked], _misread_digit)


def columns(rng: np.random.Generator, heldout: bool, difficulty: Difficulty) -> Iterator[Question]:
    """The sum of three numbers of three handwritten digits, below each other: a rationale of 61 to 70 tokens."""
    for key, image, values in _handwriting(rng, heldout, 9):
        work = functools.partial(work_columns, int(rng.integers(3)))
        yield Question(f"columns/{key}", "add?", (image,), values, work, _misread_digit)


def options(rng: np.random.Generator, heldout: bool, difficulty: Difficulty) -> Iterator[Question]:
    """The sum of handwritten digits, answered by the letter of one of twelve consecutive numbers in random order."""
    for key, image, values in _handwriting(rng, heldout, difficulty.num_digits):
        lowest = max(0, sum(values) - int(rng.integers(NUM_OPTIONS)))
        numbers = [lowest + int(i) for i in rng.permutation(NUM_OPTIONS)]
        letters = first_letters(NUM_OPTIONS)
        text = "sum? " + " ".join(f"{letter}{number}" for letter, number in zip(letters, numbers, strict=True))
        work = functools.partial(work_option, numbers)
        # The letters are the choices: a number without its letter is no answer.
        yield Question(f"options/{key}", text, (image,), values, work, _misread_digit, tuple(letters))


_DIGIT_WORK: Mapping[str, Work] = {"sum": work_sum, "range": work_range}


class _Picture(NamedTuple):
    key: str  # of its scans
    image: Callable[[], bytes]
    values: list[int]


def _handwriting(rng: np.random.Generator, heldout: bool, count: int) -> Iterator[_Picture]:
    from sklearn.datasets import load_digits  # seconds to import, and only a build needs it

    scans, labels = load_digits(return_X_y=True)
    low, high = (FIRST_HELDOUT_SCAN, len(scans)) if heldout else (0, FIRST_HELDOUT_SCAN)
    while True:
        chosen = [int(i) for i in rng.integers(low, high, count)]
        tilts = [_tilt(rng, heldout) for _ in chosen]
        image = functools.partial(drawing.draw_digits, [scans[i].reshape(8, 8) for i in chosen], tilts)
        yield _Picture("-".join(f"s{i}" for i in chosen), image, [int(labels[i]) for i in chosen])


def _tilt(rng: np.random.Generator, heldout: bool) -> drawing.Tilt:
    """Returns a small random tilt for train scans, since there are few of them; held-out scans stay as they are."""
    if heldout:
        return drawing.Tilt(0.0, 0, 0)
    return drawing.Tilt(float(rng.uniform(-12, 12)), *(int(x) for x in rng.integers(-2, 3, 2)))


def _misread_digit(rng: np.random.Generator, value: int) -> int:
    return (value + int(rng.integers(1, 10))) % 10


def chart(rng: np.random.Generator, heldout: bool, difficulty: Difficulty) -> Iterator[Question]:
    """Two named values of a chart added or subtracted, or the letter of its largest."""
    tables, misread = _tables(), functools.partial(_misread_level, difficulty.num_levels)
    while True:
        table = tables[rng.integers(len(tables))]
        series = table[rng.integers(len(table))]
        rows = _window(rng, len(series.values), heldout, difficulty)
        if rows is None:
            continue
        values = _quantise(series, rows, difficulty.num_levels, rng)
        asked = _chart_question(values, rng)
        if asked is None:
            continue
        question, read, work = asked
        line = bool(rng.random() < 0.4)
        image = functools.partial(drawing.draw_chart, [values], num_levels=difficulty.num_levels, line=line)
        choices = tuple(first_letters(len(values))) if question == "top" else None
        record_id = f"chart/{_window_key(series, rows)}/{question}"
        yield Question(record_id, f"{question}?", (image,), read, work, misread, choices)


def series(rng: np.random.Generator, heldout: bool, difficulty: Difficulty) -> Iterator[Question]:
    """A chart of two columns of one table that is read twice: where the dark bars peak, and both bars there."""
    tables = [table for table in _tables() if len(table) > 1 and len({len(each.values) for each in table}) == 1]
    misread = functools.partial(_misread_level, difficulty.num_levels)
    while True:
        table = tables[rng.integers(len(tables))]
        pair = [table[i] for i in rng.choice(len(table), 2, replace=False)]
        rows = _window(rng, len(table[0].values), heldout, difficulty)
        if rows is None:
            continue
        dark, light = (_quantise(each, rows, difficulty.num_levels, rng) for each in pair)
        if dark.count(max(dark)) > 1:
            continue
        sign = "+-"[rng.integers(2)]
        image = functools.partial(drawing.draw_chart, [dark, light], num_levels=difficulty.num_levels, line=False)
        record_id = f"series/{'/'.join(_window_key(each, rows) for each in pair)}/peak{sign}"
        work = functools.partial(work_peak, sign)
        yield Question(record_id, f"peak{sign}?", (image,), [*dark, *light], work, misread)


def _tables() -> list[list[chart_tables.Series]]:
    tables: dict[str, list[chart_tables.Series]] = {}
    for each in chart_tables.load_series():
        tables.setdefault(each.table, []).append(each)
    return list(tables.values())


def _window(rng: np.random.Generator, num_rows: int, heldout: bool, difficulty: Difficulty) -> range | None:
    """Draws rows of a table at equal distances, all from one split; None if they would pass its end."""
    count = int(rng.integers(difficulty.min_bars, difficulty.max_bars + 1))
    cut = num_rows * 3 // 4
    first, end = (cut, num_rows) if heldout else (0, cut)
    stride = int(rng.integers(1, 7))
    span = stride * (count - 1)  # rows between the first and the last of a window
    if first + span >= end:
        return None
    start = int(rng.integers(first, end - span))
    return range(start, start + span + 1, stride)


def _window_key(series: chart_tables.Series, rows: range) -> str:
    return f"{series.key}:{rows[0]}-{rows[-1]}"


def _quantise(series: chart_tables.Series, rows: range, num_levels: int, rng: np.random.Generator) -> list[int]:
    """Scales a window to levels from 1 to num_levels, on an axis that extends past it by random amounts."""
    window = [series.values[row] for row in rows]
    low, high = min(window), max(window)
    below, above = rng.random(2) * 0.6 * (high - low)
    low, width = low - below, (high - low) + below + above
    return [1 + round((v - low) / width * (num_levels - 1)) if width else 1 for v in window]


def _misread_level(num_levels: int, rng: np.random.Generator, value: int) -> int:
    near = [v for v in (value - 2, value - 1, value + 1, value + 2) if 1 <= v <= num_levels]
    return near[rng.integers(len(near))]


def _chart_question(values: list[int], rng: np.random.Generator) -> tuple[str, list[int], Work] | None:
    """Returns a question, the values it needs, and how to work it out; None if the values allow no clear question."""
    if len(set(values)) == 1:
        return None
    letters = first_letters(len(values))
    form = int(rng.integers(3))
    if form == 2:
        unique = values.count(max(values)) == 1
        return ("top", values, work_top) if unique else None
    i, j = sorted(int(i) for i in rng.choice(len(values), 2, replace=False))
    if form == 1 and values[i] < values[j]:
        i, j = j, i  # a difference is asked so that it is not negative
    sign = "+-"[form]
    pair = (letters[i], letters[j])
    return f"{pair[0]}{sign}{pair[1]}", [values[i], values[j]], functools.partial(work_pair, pair, sign)


def geometry(rng: np.random.Generator, heldout: bool, difficulty: Difficulty) -> Iterator[Question]:
    """A triangle's third or exterior angle."""
    pairs, misread = _angle_pairs(heldout, difficulty), functools.partial(_misread_angle, difficulty.angle_step)
    while True:
        a, b = pairs[rng.integers(len(pairs))]
        asked = ("third", "exterior")[rng.integers(2)]
        turn, layout = _turned(a, b, rng)
        if layout is None:
            continue
        image = functools.partial(drawing.draw_triangle, layout)
        record_id = f"geometry/{a}-{b}/{asked}/{turn}"
        yield Question(record_id, f"{asked}?", (image,), list(layout.read), _ANGLE_WORK[asked], misread)


def triangles(rng: np.random.Generator, heldout: bool, difficulty: Difficulty) -> Iterator[Question]:
    """Two images with a triangle each: the difference of their third, or of their exterior, angles."""
    pairs, misread = _angle_pairs(heldout, difficulty), functools.partial(_misread_angle, difficulty.angle_step)
    while True:
        both = [pairs[i] for i in rng.integers(len(pairs), size=2)]
        asked = ("third", "exterior")[rng.integers(2)]
        turned = [_turned(a, b, rng) for a, b in both]
        layouts = [layout for _, layout in turned if layout is not None]
        if len(layouts) < 2:
            continue
        angles, turns = "/".join(f"{a}-{b}" for a, b in both), "-".join(turn for turn, _ in turned)
        yield Question(
            f"triangles/{angles}/{asked}/{turns}",
            f"{asked}?",
            tuple(functools.partial(drawing.draw_triangle, layout) for layout in layouts),
            [angle for layout in layouts for angle in layout.read],
            functools.partial(work_compared, _ANGLE_WORK[asked]),
            misread,
        )


_ANGLE_WORK: Mapping[str, Work] = {"third": work_third, "exterior": work_exterior}


def _angle_pairs(heldout: bool, difficulty: Difficulty) -> list[tuple[int, int]]:
    angles = range(MIN_ANGLE, 180, difficulty.angle_step)
    pairs = [(a, b) for a in angles for b in angles if a <= b and a + b <= 180 - MIN_ANGLE]
    return [(a, b) for a, b in pairs if (zlib.crc32(f"{a}-{b}".encode()) % 6 == 0) == heldout]


def _turned(a: int, b: int, rng: np.random.Generator) -> tuple[str, drawing.TriangleLayout | None]:
    """Lays out a triangle, turned and mirrored at random; returns the key of how, and None if its labels don't fit."""
    rotation, mirrored = 5 * int(rng.integers(72)), bool(rng.random() < 0.5)
    return f"r{rotation}{'m' if mirrored else ''}", drawing.lay_out_triangle(a, b, rotation=rotation, mirrored=mirrored)


def _misread_angle(step: int, rng: np.random.Generator, value: int) -> int:
    return value + step * int(rng.choice((-2, -1, 1, 2)))
