"""The files of a run folder, and what a line of those holds that the report reads.

    config.json     the resolved config
    history.json    what the run was started with and each change since (history.py)
    manifest.json   versions, commit, devices, seed
    metrics.jsonl   {"step": 12, "loss": 0.31, "time/rollout": 4.2}     scalars; the trackers get the same
    events.jsonl    {"step": 12, "id": "q17", "outcome": "MIXED", ...}  an `EventLine` a line: one group of a step
    samples.jsonl   {"step": 10, "id": "q17", "rollouts": [...], ...}   a `SampleLine` a line: one group in full
    held_out.jsonl  {"step": 0, "id": "t3", "correct": true, ...}       a `HeldOutLine` a line: one held-out answer
    tracker.json    {"id": "1f0c..", "name": "demo-1/care", ...}        what trackers call the run (trackers.py)

step_summary.py and samples.py make the lines, metrics_writer.py writes them; the report and the study read them.
"""

from __future__ import annotations

from typing import Any, TypedDict

from etils import epath

from care_jax import files

CONFIG_FILE = "config.json"
HISTORY_FILE = "history.json"
MANIFEST_FILE = "manifest.json"
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
SAMPLES_FILE = "samples.jsonl"
HELD_OUT_FILE = "held_out.jsonl"
TRACKER_FILE = "tracker.json"


def read_object(path: epath.Path) -> dict[str, Any]:
    """The JSON object in a file of a run folder.

    Raises:
        InputError: the file holds something else; names it, and the line if there is one to name.
    """
    return files.read_object(path, remedy="put back a copy, or name another --workdir")


class Event(TypedDict):
    """The outcome of one group. Rollouts are numbered from 0."""

    id: str  # the record's
    source: str
    outcome: str  # name of an Outcome
    anchor: int | None  # rollout; None without a subgroup
    negatives: list[int]  # rollouts
    num_negatives: int  # K'
    positives: list[int]  # further correct rollouts
    advantages_raw: list[float]  # of the subgroup's rows: the anchor's, the negatives', the positives'
    advantages: list[float]  # the same after scaling
    reflected: int | None  # rollout that a reflection tried to repair
    reflection_correct: bool | None  # None if no reflection was tried


class EventLine(Event):
    """An event as events.jsonl has it."""

    step: int


class RolloutSample(TypedDict):
    """One rollout of a sample."""

    text: str
    extracted: str | None  # the answer
    correct: bool
    format_ok: bool
    parsed: bool
    role: str  # anchor | negative | positive | reflected | updated | unselected
    advantage: float | None  # None if it is not finite
    response_len: int  # tokens


class ReflectionSample(TypedDict):
    """The repair of one rollout."""

    rollout: int
    before: str  # as much of the failed rationale as was kept
    cue: str
    after: str  # what was decoded
    correct: bool


class Sample(TypedDict):
    """One group in full, for the report's browser."""

    id: str
    source: str
    images: list[str]  # data URLs
    prompt: str
    answer: str
    outcome: str
    rollouts: list[RolloutSample]
    reflection: ReflectionSample | None


class SampleLine(Sample):
    """A sample as samples.jsonl has it."""

    step: int


class HeldOutAnswer(TypedDict):
    """An answer of an evaluation: all of the first one, and of later ones some whose verdict has changed since."""

    index: int  # of the record in the held-out data
    id: str  # the record's
    source: str
    images: list[str]  # data URLs; none at the first evaluation
    prompt: str
    answer: str  # the gold
    response: str
    extracted: str | None  # the answer in the response
    correct: bool


class HeldOutLine(HeldOutAnswer):
    """An answer as held_out.jsonl has it."""

    step: int
