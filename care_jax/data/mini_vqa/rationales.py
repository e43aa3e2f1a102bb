"""The worked rationales of mini_vqa: each function takes the values that were read and gives a text and its result.

An error in `slip`, 0 for right work, is added to the result of one step; drafts are made so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

# From the values that were read and a slip to the rationale and its answer.
Work = Callable[[list[int], int], tuple[str, str]]


def work_sum(values: list[int], slip: int) -> tuple[str, str]:
    """One addition at a time: 3+5=8+2=10."""
    totals = list(itertools.accumulate(values))
    totals[-1] += slip
    return str(values[0]) + "".join(f"+{v}={t}" for v, t in zip(values[1:], totals[1:], strict=True)), str(totals[-1])


def work_range(values: list[int], slip: int) -> tuple[str, str]:
    """Largest minus smallest: 3 5 2:5-2=3."""
    high, low = max(values), min(values)
    return f"{' '.join(map(str, values))}:{high}-{low}={high - low + slip}", str(high - low + slip)


def work_columns(slipping: int, values: list[int], slip: int) -> tuple[str, str]:
    """Three numbers below each other, added by columns from the right, with the digit written and the one carried.

    538, 194 and 725 give "538 194 725;0+8=8+4=12+5=17:7,1;1+3=4+9=13+2=15:5,1;1+5=6+1=7+7=14" and 1457, which stands
    nowhere in the rationale: its digits are the last total and, backwards, the digits written.

    Args:
        slipping: the column whose total has the slip, 0 for the ones.
        values: nine digits, row by row.
        slip: the error.
    """
    rows = [values[i : i + 3] for i in (0, 3, 6)]
    steps, written, carry = [], "", 0
    for column in range(3):
        digits = [row[2 - column] for row in rows]
        step, total = work_sum([carry, *digits], slip if column == slipping else 0)
        if column < 2:
            carry, digit = divmod(int(total), 10)
            step, total = f"{step}:{digit},{carry}", str(digit)
        steps.append(step)
        written = total + written
    numbers = " ".join("".join(map(str, row)) for row in rows)
    return ";".join((numbers, *steps)), str(int(written))


def work_option(options: Sequence[int], values: list[int], slip: int) -> tuple[str, str]:
    """A sum, answered by the letter of the option that it is, "" if it is none."""
    rationale, total = work_sum(values, slip)
    return rationale, dict(zip(map(str, options), first_letters(len(options)), strict=True)).get(total, "")


def work_pair(pair: tuple[str, str], sign: str, values: list[int], slip: int) -> tuple[str, str]:
    """Two bars added or subtracted: A3 C5:3+5=8."""
    first, second = values
    result = (first + second if sign == "+" else first - second) + slip
    return f"{pair[0]}{first} {pair[1]}{second}:{first}{sign}{second}={result}", str(result)


def work_top(values: list[int], slip: int) -> tuple[str, str]:
    """The letter of the largest bar: A3 B5 C2:B."""
    top = (values.index(max(values)) + slip) % len(values)
    return f"{_named(values)}:{first_letters(len(values))[top]}", first_letters(len(values))[top]


def work_peak(sign: str, values: list[int], slip: int) -> tuple[str, str]:
    """The two bars of the letter whose dark bar is largest, added or the smaller subtracted: A3 B5 C2:B7:7-5=2.

    Args:
        sign: + or -.
        values: all dark bars, then all light ones.
        slip: the error of the last step.
    """
    dark, light = values[: len(values) // 2], values[len(values) // 2 :]
    top = dark.index(max(dark))
    high, low = max(dark[top], light[top]), min(dark[top], light[top])
    result = (high + low if sign == "+" else high - low) + slip
    return f"{_named(dark)}:{first_letters(len(dark))[top]}{light[top]}:{high}{sign}{low}={result}", str(result)


def work_exterior(values: list[int], slip: int) -> tuple[str, str]:
    """Tens first: 45+65 is 45+60=105+5=110. Such steps are shared by many pairs, so unseen pairs can be added."""
    first, second = values
    tens, ones = second - second % 10, second % 10
    return work_sum([first, tens, ones] if ones else [first, tens], slip)


def work_third(values: list[int], slip: int) -> tuple[str, str]:
    """The third angle: 45+60=105:75."""
    work, total = work_exterior(values, 5 * slip)
    return f"{work}:{180 - int(total)}", str(180 - int(total))


def work_compared(work: Work, values: list[int], slip: int) -> tuple[str, str]:
    """Work done for each of two images, and the difference of the results: 45+60=105:75 30+60=90:90:90-75=15."""
    half = len(values) // 2
    (first, one), (second, other) = work(values[:half], 0), work(values[half:], slip)
    high, low = max(int(one), int(other)), min(int(one), int(other))
    return f"{first} {second}:{high}-{low}={high - low}", str(high - low)


def first_letters(count: int) -> str:
    """The first letters of the alphabet, at most twelve."""
    return "ABCDEFGHIJKL"[:count]


def _named(values: list[int]) -> str:
    return " ".join(f"{letter}{value}" for letter, value in zip(first_letters(len(values)), values, strict=True))
