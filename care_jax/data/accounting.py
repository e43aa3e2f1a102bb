"""An account of the data before the first step: what is usable, what is too long for which option, what would keep it.

The lines of 4,000 rows, of which some are left out:

    data my_data/train.jsonl: 3,790 of 4,000 rows are usable
      without a rationale: 40
      too long for rollout.response_len=32: 170, of up to 33 tokens; 33 keeps all
      too long for data.prompt_buckets=(24,) or data.patch_buckets=(16,): 0
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import ml_collections

from care_jax.data.loader import DataSource, Mixture
from care_jax.data.own_data import JsonlSource
from care_jax.errors import BadRowError, InputError
from care_jax.inputs.processor import Processor
from care_jax.inputs.prompts import PromptSize, measure_prompt
from care_jax.inputs.responses import whole_trace
from care_jax.structs import Record

# Rows that are looked at, of more as many, evenly spread: a millisecond each. Prepared data were counted before.
_MOST_OWN_ROWS, _MOST_PREPARED_ROWS = 20_000, 1_000
_THREADS = 4
_WORDS = re.compile(r"[^\W\d_]{2,}")  # a cue that says something
_MOST_OF_THEM = 0.99  # share of the responses


class _Measured(NamedTuple):
    """A row's sizes."""

    prompt: PromptSize | None = None  # None: it cannot be read
    trace_len: int | None = None  # tokens of what the response must hold; None without it
    has_rationale: bool = False
    has_draft: bool = False


@dataclasses.dataclass(frozen=True)
class Account:
    """The sizes of a source's rows, held against the limits of a run."""

    name: str  # of the source
    num_rows: int
    num_broken: int  # rows that the reader has left out
    response_len: int  # tokens, rollout.response_len
    prompt_buckets: tuple[int, ...]
    patch_buckets: tuple[int, ...]
    learns_traces: bool  # the stage is the cold start
    rows: Sequence[_Measured]  # those that were looked at

    @property
    def is_whole(self) -> bool:
        """True if every row was looked at."""
        return len(self.rows) == self.num_rows

    @property
    def num_usable(self) -> int:
        """Rows of those looked at that the stage can train on."""
        return sum(map(self._is_usable, self.rows))

    @property
    def num_drafts(self) -> int:
        """Rows of those looked at that have a draft."""
        return sum(row.has_draft for row in self.rows)

    @property
    def has_long_prompts(self) -> bool:
        """True if a prompt passes the buckets, shrunk where that is allowed."""
        return any(row.prompt is not None and not row.prompt.is_usable for row in self.rows)

    def _is_usable(self, row: _Measured) -> bool:
        if row.prompt is None or not row.prompt.is_usable:
            return False
        return not self.learns_traces or (row.trace_len is not None and row.trace_len <= self.response_len)

    def lines(self) -> list[str]:
        """The account in four lines."""
        some = "" if self.is_whole else f" ({self.num_rows:,} in all, of which these are a sample)"
        broken = f"; {self.num_broken:,} more are broken" if self.num_broken else ""
        without = sum(row.prompt is not None and not row.has_rationale for row in self.rows)
        unfit = sum(self._is_unfit(row) for row in self.rows)
        what = f"; unreadable, or spelling a tag of the response format: {unfit:,}" if unfit else ""
        needless = "" if self.learns_traces or not without else ", which only the cold start needs"
        traces = [row.trace_len for row in self.rows if row.trace_len is not None]
        long = [length for length in traces if length > self.response_len]
        whose = "" if self.learns_traces else " by the answer alone"
        return [
            f"data {self.name}: {self.num_usable:,} of {len(self.rows):,} rows are usable{some}{broken}",
            f"  without a rationale: {without:,}{needless}{what}",
            f"  too long for rollout.response_len={self.response_len}: " + _responses_told(long, traces, whose),
            f"  too long for data.prompt_buckets={self.prompt_buckets} or data.patch_buckets={self.patch_buckets}: "
            + self.prompts_told(),
        ]

    def _is_unfit(self, row: _Measured) -> bool:
        return row.prompt is None or (self.learns_traces and row.has_rationale and row.trace_len is None)

    def prompts_told(self) -> str:
        """Tells the number of prompts that are too long, their sizes, and the buckets that would keep them."""
        long = [row.prompt for row in self.rows if row.prompt is not None and not row.prompt.is_usable]
        if not long:
            return "0"
        tokens, patches = max(size.num_tokens for size in long), max(size.num_patches for size in long)
        wanted = {
            "data.prompt_buckets": (self.prompt_buckets, tokens),
            "data.patch_buckets": (self.patch_buckets, patches),
        }
        keeps = " and ".join(
            f"{name}={(*buckets[:-1], most)}" for name, (buckets, most) in wanted.items() if most > buckets[-1]
        )
        return f"{len(long):,}, of up to {tokens:,} tokens and {patches:,} patches; {keeps} keeps all"

    def require(self, num_needed: int) -> None:
        """Refuses data of which fewer rows are usable than a step needs.

        Raises:
            InputError: with the account in one line.
        """
        if self.num_usable >= (num_needed if self.is_whole else 1):
            return
        first, *others = self.lines()
        raise InputError(
            f"{first}, and a step needs {num_needed} different ones; {'; '.join(line.strip() for line in others)}; "
            "raise the option that leaves most of them out, or lower train.prompts"
        )


def account_of_run(
    config: ml_collections.ConfigDict,
    processor: Processor,
    train: DataSource,
    held_out: DataSource,
    *,
    learns_traces: bool,
) -> list[str]:
    """The account of a run's data: four lines for each source, and one for each thing that may surprise.

    Raises:
        InputError: fewer rows are usable than a step needs, or no held-out prompt is short enough.
    """
    reflect, limits = config.objective.reflect, {"response_len": config.rollout.response_len}
    parts = take_account(train, processor, **limits, cue=reflect.cue, learns_traces=learns_traces)
    asked = take_account(held_out, processor, **limits, cue="", learns_traces=False)
    for part in parts:
        part.require(config.train.prompts if len(parts) == 1 else 1)
    for part in (*parts, *asked) if config.data.overlong == "error" else ():
        if part.has_long_prompts:
            raise InputError(
                f"data.overlong='error', and prompts of {part.name} are too long: {part.prompts_told()}; or set it to "
                "drop or shrink"
            )
    lines = [line for part in parts for line in part.lines()]
    num_drafts = sum(part.num_drafts for part in parts)
    if not reflect.enabled and config.objective.anchored:
        taught = f"; {num_drafts:,} rows have a draft that teaches the cue: set it to True" if num_drafts else ""
        lines.append(f"no reflection: objective.reflect.enabled is False, so no failure is repaired{taught}")
    elif reflect.enabled and learns_traces and not num_drafts:
        lines.append(_cue_told(reflect.cue))
    for part in asked:
        if not part.num_usable:
            raise InputError(f"every prompt of the held-out {part.name} is too long: {part.prompts_told()}")
        if part.has_long_prompts:
            lines.append(f"held-out {part.name}: prompts that are too long count as wrong: {part.prompts_told()}")
    return lines


def _cue_told(cue: str) -> str:
    told = f"no row has a draft, so nothing here teaches what objective.reflect.cue={cue!r} asks for"
    if _WORDS.search(cue):
        return f"{told}; a model that reads words may know"
    return f"{told}; give rows a draft, take a cue in words, or set objective.reflect.enabled=False"


def _responses_told(long: Sequence[int], lengths: Sequence[int], whose: str) -> str:
    """The responses that are too long; `lengths` are those of all."""
    if not long:
        return "0"
    longest, most = max(long), quantile(lengths, _MOST_OF_THEM)
    some = f"{most} keeps {_MOST_OF_THEM:.0%}, " if min(long) <= most < longest else ""
    return f"{len(long):,}{whose}, of up to {longest:,} tokens; {some}{longest} keeps all"


def quantile(lengths: Sequence[int], share: float) -> int:
    """The smallest of the lengths that at least this share of them does not pass."""
    return sorted(lengths)[max(math.ceil(share * len(lengths)) - 1, 0)]


def _name(source: DataSource) -> str:
    return str(source.path) if isinstance(source, JsonlSource) else repr(source)


def take_account(
    source: DataSource,
    processor: Processor,
    *,
    response_len: int,
    cue: str,
    learns_traces: bool,
    most_rows: int | None = None,
) -> list[Account]:
    """Measures the rows of a source, or of each part of a mixture.

    Args:
        source: the records.
        processor: the run's, whose template, limits and buckets count.
        response_len: rollout.response_len, tokens.
        cue: objective.reflect.cue, which stands in traces with a draft.
        learns_traces: the stage is the cold start, which needs a rationale that fits; otherwise the answer alone is
            held against `response_len`.
        most_rows: rows that are looked at, of more as many, evenly spread; None: 20,000 of your own file, 1,000 of
            prepared data.

    Raises:
        InputError: the chat template has no place for images.
    """
    sources = [part for part, _ in source.parts] if isinstance(source, Mixture) else [source]

    def measure(record: Record) -> _Measured:
        flags = _Measured(None, None, record.rationale is not None, record.draft is not None)
        try:
            prompt = measure_prompt(processor, record)
            trace = None
            if not learns_traces:
                trace = whole_trace(processor, dataclasses.replace(record, rationale="", draft=None), cue="")
            elif record.rationale is not None:
                trace = whole_trace(processor, record, cue=cue)
        except BadRowError:
            return flags
        return flags._replace(prompt=prompt, trace_len=None if trace is None else len(trace.token_ids))

    accounts = []
    for part in sources:
        total = len(part)
        own = isinstance(part, JsonlSource)
        count = min(total, most_rows or (_MOST_OWN_ROWS if own else _MOST_PREPARED_ROWS))

        def read(place: int, part: DataSource = part, total: int = total, count: int = count) -> _Measured:
            try:
                return measure(part[place * total // count])
            except OSError:  # counted when the run reads it
                return _Measured()

        with ThreadPoolExecutor(_THREADS) as pool:
            rows = list(pool.map(read, range(count)))
        accounts.append(
            Account(
                name=_name(part),
                num_rows=total,
                num_broken=len(part.problems) if isinstance(part, JsonlSource) else 0,
                response_len=response_len,
                prompt_buckets=processor.prompt_buckets,
                patch_buckets=processor.patch_buckets,
                learns_traces=learns_traces,
                rows=rows,
            )
        )
    return accounts
