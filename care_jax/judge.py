r"""Judges pairs of gold and response: try a reward before you pay for a run.

    python -m care_jax.judge --file=pairs.jsonl [--format=answer_tags|boxed|any|bare] [--allow=module:function ...]
        [--rewards=NAME=WEIGHT ...] [--correct_when=NAME>=NUMBER]

A line of the file is one JSON object:

    {"gold": "3/4", "response": "So it is \\boxed{0.75}.", "kind": "latex", "choices": null, "expected": true}

`kind` is an answer_kind (docs/rewards.md), and `choices` has the option texts of a choice. `expected` is the verdict to
compare with; files of published verdicts call it `theirs`. `choices` and the verdict may be left out. `--format` says
where the answer is in a response (rewards/response_format.py); with "bare" the whole response is the answer.
`--rewards` and `--correct_when` are verify.rewards and verify.correct_when of a config (rewards/functions.py). For such
functions, a line may also have "prompt", "images" (as in own data) and "meta".

Each pair is printed as one line with tabs between the fields: its number; right, wrong, unparsed, or bad for a line
that cannot be judged; the reason; the answer that was found; the value of each reward; and the expected verdict, if it
differs. The last line is JSON: n, right, unparsed (no readable answer), bad, and the same by kind. With expected
verdicts it also counts compared, agree, refused_right (right by theirs alone) and accepted_wrong (right by ours alone).
With rewards it has the mean of each, and the number of pairs for which it is missing.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from care_jax import cli
from care_jax.config import base
from care_jax.data.file_formats import line_rows
from care_jax.data.image_column import image_bytes, images_of
from care_jax.data.parsing import is_number, meta_field
from care_jax.data.validation import BadRowError, check_gold_of
from care_jax.errors import InputError, printable, shown
from care_jax.files import require_readable
from care_jax.rewards.judge import JudgedText, Verifier, judge_texts
from care_jax.rewards.response_format import READABLE, ResponseFormat
from care_jax.structs import Record

_AT_ONCE = 512  # pairs that are in memory, with their images
_EXPECTED = ("expected", "theirs")


class Pair(NamedTuple):
    """One line of the file."""

    number: int  # of the line, from 1
    record: Record
    response: str
    expected: bool | None


class Tally:
    """The counts that the last line shows."""

    def __init__(self) -> None:
        """Starts at zero."""
        self._all: collections.Counter[str] = collections.Counter(n=0, right=0, unparsed=0)
        self._by_kind: dict[str, collections.Counter[str]] = {}
        self._parts: dict[str, list[float]] = {}  # by the name of a reward
        self.bad = 0

    def add(self, pair: Pair, judged: JudgedText) -> None:
        """Counts a judged pair."""
        correct = judged.verdict.correct
        one = collections.Counter(n=1, right=int(correct), unparsed=int(not judged.verdict.parsed))
        if pair.expected is not None:
            one.update(
                compared=1,
                agree=int(correct == pair.expected),
                refused_right=int(pair.expected and not correct),
                accepted_wrong=int(correct and not pair.expected),
            )
        kind = self._by_kind.setdefault(pair.record.answer_kind, collections.Counter())
        for counts in (self._all, kind):
            counts.update(one)
        for name, value in judged.parts.items():
            self._parts.setdefault(name, []).append(value)

    def figures(self) -> dict[str, Any]:
        """The counts as JSON shows them."""
        per_kind = {kind: dict(counts) for kind, counts in sorted(self._by_kind.items())}
        rewards = {}
        for name, values in self._parts.items():
            given = [value for value in values if not math.isnan(value)]
            mean = math.fsum(given) / len(given) if given else None
            rewards[name] = {"mean": mean, "missing": len(values) - len(given)}
        return {**self._all, "bad": self.bad, "per_kind": per_kind} | ({"rewards": rewards} if rewards else {})


def run(
    path: Path,
    response_format: ResponseFormat,
    allow: Collection[str],
    *,
    rewards: Sequence[str] = (),
    correct_when: str = "",
) -> Iterator[str]:
    """Judges the pairs of a file.

    Args:
        path: JSON lines, as the module says.
        response_format: how the answer is found in a response.
        allow: the functions "module:function" that a pair may name as its kind.
        rewards: parts of the reward to compute, as verify.rewards has them.
        correct_when: the part that says which responses are correct, as verify.correct_when has it.

    Yields:
        The lines to print.

    Raises:
        InputError: no such file, no line of it can be judged, or a reward cannot be computed at all.
    """
    require_readable(path, f"--file={path}: no such file; give one with a JSON object a line")
    tally, config = Tally(), base()
    config.verify.update(allow=tuple(allow), rewards=tuple(rewards), correct_when=correct_when)
    with Verifier.from_config(config) as verifier:
        pairs = (_read(number, raw, path.parent, allow) for number, raw in line_rows(path))
        while some := list(itertools.islice(pairs, _AT_ONCE)):
            yield from _judge(verifier, some, response_format, tally)
    if not tally.figures()["n"]:
        raise InputError(f"--file={path}: none of its {tally.bad} lines can be judged")
    yield json.dumps(tally.figures())


def _judge(
    verifier: Verifier, pairs: Sequence[Pair | tuple[int, str]], response_format: ResponseFormat, tally: Tally
) -> Iterator[str]:
    """The lines of some pairs, and of the bad lines between them."""
    asked = [(pair.record, pair.response) for pair in pairs if isinstance(pair, Pair)]
    verdicts = iter(judge_texts(verifier, asked, response_format, with_parts=True))
    for pair in pairs:
        if not isinstance(pair, Pair):
            number, problem = pair
            tally.bad += 1
            yield f"{number}\tbad\t{problem}"
            continue
        judged = next(verdicts)
        tally.add(pair, judged)
        correct, parsed, reason = judged.verdict
        word = "right" if correct else "wrong" if parsed else "unparsed"
        found = "" if judged.extracted is None else shown(judged.extracted)
        differs = pair.expected is not None and pair.expected != correct
        expected = f"\texpected {'right' if pair.expected else 'wrong'}" if differs else ""
        rewards = "".join(f"\t{name} {_value(value)}" for name, value in judged.parts.items())
        yield f"{pair.number}\t{word}\t{printable(reason)}\t{found}{rewards}{expected}"


def _value(value: float) -> str:
    return "missing" if math.isnan(value) else f"{value:.6g}"


def _read(
    number: int, raw: dict[str, Any] | BadRowError, folder: Path, allow: Collection[str]
) -> Pair | tuple[int, str]:
    """The pair of a line, or its number and what is wrong with it."""
    try:
        if isinstance(raw, BadRowError):
            raise raw
        if missing := [key for key in ("gold", "response", "kind") if key not in raw]:
            raise BadRowError(f"no {', '.join(missing)}")
        gold, response, kind = (_text(key, raw[key]) for key in ("gold", "response", "kind"))
        record = Record(
            id=str(number),
            source="",
            prompt=_text("prompt", raw.get("prompt", "")),
            images=tuple(map(image_bytes, images_of(raw.get("images"), folder))),
            answer=gold,
            answer_kind=kind,
            choices=_choices(raw.get("choices")),
            meta=meta_field(raw.get("meta")),
        )
        check_gold_of(record, allow)
        expected = next((raw[key] for key in _EXPECTED if raw.get(key) is not None), None)
        if not isinstance(expected, bool | None):
            raise BadRowError(f"expected must be true or false, not {shown(expected)}")
    except BadRowError as error:
        return number, str(error)
    return Pair(number, record, response, expected)


def _text(key: str, value: Any) -> str:
    """A text, or a number as one."""
    if isinstance(value, str) or is_number(value):
        return str(value)
    raise BadRowError(f"{key} must be a text or a number, not {shown(value)}")


def _choices(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise BadRowError(f"choices must be a list of texts, not {shown(value)}")
    return tuple(value) or None


def main() -> None:
    """Prints what the flags ask for."""
    args = flags.FLAGS
    rewards = {"rewards": args.rewards, "correct_when": args.correct_when}
    for line in run(Path(args.file), READABLE[args.format], args.allow, **rewards):
        print(line)


if __name__ == "__main__":
    flags.DEFINE_string("file", None, "Pairs to judge, one JSON object a line.", required=True)
    flags.DEFINE_enum("format", "any", list(READABLE), "How the answer is found in a response.")
    flags.DEFINE_multi_string("allow", [], "module:function, a verifier of yours that pairs may name as their kind.")
    flags.DEFINE_multi_string("rewards", [], "NAME=WEIGHT, a reward to compute, as verify.rewards has it.")
    flags.DEFINE_string("correct_when", "", "NAME>=NUMBER, the reward that says which responses are correct.")
    cli.run_flags(main)
