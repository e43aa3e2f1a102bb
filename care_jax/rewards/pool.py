"""The pool of verifier processes. A worker that hangs or dies is replaced; requests are sent ahead of the answers."""

from __future__ import annotations

import base64
import collections
import json
import selectors
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import logging

from care_jax.errors import InputError, shown
from care_jax.options import REWARDS
from care_jax.rewards.terms import Term, Threshold, read_terms, read_threshold
from care_jax.rewards.verifiers.own import require_allowed
from care_jax.rewards.verifiers.verdict import MAX_ANSWER_LEN, Verdict
from care_jax.rewards.worker_process import WorkerProcess

WORKER_COMMAND = (sys.executable, "-m", "care_jax.rewards.worker")
DEADLINE = Verdict(False, False, "deadline")
WORKER_DIED = Verdict(False, False, "worker died")

_CHUNK = 128  # answers or responses handed to a worker at a time; a queue keeps it busy while the parent serves others
_START_LIMIT = 120.0  # seconds that a worker may take to start or to load a kind
_MOST_LOST = 0.01  # share of answers that may be lost before it is said
_MOST_LOST_STARTS = 3  # for each worker of the pool, in one call of `check`


class Item(NamedTuple):
    """One answer to check."""

    kind: str  # a Record's answer_kind
    given: str  # the answer as the model wrote it
    gold: str
    choices: tuple[str, ...] | None


class Call(NamedTuple):
    """One call of a reward function (functions.py)."""

    kind: str  # its name
    records: tuple[Mapping[str, Any], ...]  # as functions.py says, but their meta as JSON or None
    responses: tuple[str, ...]  # whole texts, one a record


class Verifier:
    """A pool of verifier processes that are killed and replaced when they hang or die. Use it as a context manager."""

    def __init__(
        self,
        *,
        workers: int,
        deadline: float,
        tolerance: float,
        allow: Collection[str] | None = None,
        on_progress: Callable[[], None] = lambda: None,
        terms: Sequence[Term] = (),
        correct_when: Threshold | None = None,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        """Start the workers.

        Args:
            workers: number of processes.
            deadline: seconds an answer, or a call of a reward function, may take before its worker is killed.
            tolerance: relative error allowed for answer kind "number", in [0, 1).
            allow: the functions "module:function" that an item may name as its kind; None: any, for items that do not
                come from data.
            on_progress: called at the start of every `check` and for each verdict, so that slow verifiers are not
                taken for a hang.
            terms: parts of the reward beside answer and format.
            correct_when: the part that says which responses are correct, in place of the verifiers.
            command: the worker's command line; it speaks the protocol of care_jax/rewards/worker.py.

        Raises:
            InputError: an argument is out of range.
        """
        if workers < 1 or not deadline > 0 or not 0 <= tolerance < 1:
            raise InputError(
                f"verify.workers={workers}, verify.deadline={deadline}, verify.tolerance={tolerance}: workers is 1 or "
                "more, deadline more than 0 seconds, tolerance in [0, 1)"
            )
        self._deadline, self._tolerance, self._command = deadline, tolerance, command
        self._allow, self._on_progress, self._has_warned = allow, on_progress, False
        self._warned_of: set[str] = set()  # reward functions
        self.terms, self.correct_when = tuple(terms), correct_when
        self._selector = selectors.DefaultSelector()
        self._workers = [WorkerProcess(command, self._selector) for _ in range(workers)]

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, *own_kinds: str, on_progress: Callable[[], None] = lambda: None
    ) -> Verifier:
        """The pool that `config.verify` describes; `own_kinds` are functions that this package names as kinds."""
        verify = config.verify
        terms = read_terms(verify.rewards)
        return cls(
            workers=verify.workers,
            deadline=verify.deadline,
            tolerance=verify.tolerance,
            allow=(*verify.allow, *own_kinds),
            on_progress=on_progress,
            terms=terms,
            correct_when=read_threshold(verify.correct_when, terms),
        )

    def __enter__(self) -> Verifier:
        """Return the pool itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the pool."""
        self.close()

    def close(self) -> None:
        """Kill the workers; closing twice does no harm."""
        for worker in self._workers:
            worker.kill()
        self._workers = []
        self._selector.close()

    @property
    def num_workers(self) -> int:
        """The number of processes."""
        return len(self._workers)

    def check(self, items: Sequence[Item]) -> list[Verdict]:
        """Return the verdict on each answer, in order. Not thread-safe.

        An answer that runs past the deadline, or whose worker dies, gets a verdict that is neither correct nor parsed.

        Raises:
            InputError: a gold is not of its kind, or a kind names a function that is not allowed.
            RuntimeError: workers do not start, tried again and again, or one answers a request that it was not sent.
        """
        if self._allow is not None:
            for kind in {item.kind for item in items}:
                require_allowed(kind, self._allow)
        verdicts = self._run(items)
        self._warn_of_lost(verdicts)
        return verdicts

    def call(self, calls: Sequence[Call]) -> list[list[dict[str, float] | str]]:
        """Return what each call gave, in order, as `functions.compute` says. Not thread-safe.

        A call that runs past the deadline, or whose worker dies, gives no numbers for any of its responses.

        Raises:
            InputError: a function cannot be loaded.
            RuntimeError: as `check` does.
        """
        return [
            json.loads(verdict.reason) if verdict.parsed else [verdict.reason] * len(call.responses)
            for call, verdict in zip(calls, self._run(calls), strict=True)
        ]

    def warn_of_failed(self, function: str, values: Sequence[dict[str, float] | str]) -> None:
        """Say once for each reward function that it often fails, and how: its curve would show a 0 like any other."""
        failed = [value for value in values if isinstance(value, str)]
        if len(failed) > _MOST_LOST * len(values) and function not in self._warned_of:
            self._warned_of.add(function)
            logging.warning(
                "the reward %s is missing for %d of %d responses, which counts as 0: %s",
                function,
                len(failed),
                len(values),
                failed[0],
            )

    def _run(self, items: Sequence[Item] | Sequence[Call]) -> list[Verdict]:
        """Have the workers answer all items; the reason of a call's verdict is what it gave, as JSON."""
        if not self._workers:
            raise ValueError("this Verifier is closed; make a new one")
        self._on_progress()
        batch = _Batch(items, self._tolerance, self._on_progress)
        try:
            for worker in list(self._workers):
                if worker.has_ended():  # while it was idle, so no item is to blame
                    self._replace(worker, WORKER_DIED, batch)
            while batch.num_open:
                self._turn(batch)
        except BaseException:
            self.close()  # answers in flight would be taken for those of the next call
            raise
        if batch.errors:
            raise InputError(batch.errors[0])
        return [verdict for verdict in batch.verdicts if verdict is not None]

    def _warn_of_lost(self, verdicts: Sequence[Verdict]) -> None:
        """Say once that many answers go unverified: they count as wrong, and each costs a deadline or a start."""
        late, died = verdicts.count(DEADLINE), verdicts.count(WORKER_DIED)
        if late + died > _MOST_LOST * len(verdicts) and not self._has_warned:
            self._has_warned = True
            logging.warning(
                "of %d answers %d ran past verify.deadline=%g s and %d killed their worker; they count as wrong: mend "
                "the verifiers of their kinds, or raise verify.deadline",
                len(verdicts),
                late,
                self._deadline,
                died,
            )

    def _turn(self, batch: _Batch) -> None:
        """Hand out work, move bytes, and replace the workers that died or hang."""
        for worker in self._workers:
            # Replies come one by one; topping up only below half keeps the writes large.
            if worker.ready and batch.waiting and len(worker.requests) <= batch.chunk // 2:
                share = -(-len(batch.waiting) // len(self._workers))
                worker.send(*batch.take(min(batch.chunk, share)))
        for key, events in self._selector.select(self._seconds_to_deadline()):
            worker = key.data
            if worker not in self._workers:
                continue  # replaced earlier in this loop
            if events & selectors.EVENT_WRITE:
                worker.flush()
                continue
            lines, alive = worker.receive()
            for line in lines:
                self._take_reply(worker, line, batch)
            if not alive:
                self._replace(worker, WORKER_DIED, batch)
        now = time.monotonic()
        for worker in list(self._workers):
            if now >= worker.last_progress + self._patience(worker):
                self._replace(worker, DEADLINE, batch)

    def _take_reply(self, worker: WorkerProcess, line: bytes, batch: _Batch) -> None:
        if not worker.has_started:
            # What Python's own start prints (a sitecustomize) comes before the worker can take its output over.
            worker.has_started = worker.ready = line.endswith(b'"ready"')
            return
        reply = json.loads(line)
        if reply == "ready" and not worker.ready:
            worker.ready = True
        elif reply == "loading" and worker.ready:
            worker.ready = False
        elif isinstance(reply, list) and worker.requests and reply[0] == worker.requests[0]:
            batch.close(worker.requests.popleft(), reply[1:])
        else:
            raise RuntimeError(f"a verifier worker ({' '.join(self._command)}) sent an unexpected reply: {reply!r}")

    def _replace(self, worker: WorkerProcess, verdict: Verdict, batch: _Batch) -> None:
        """Replace a lost worker with a new one; only the item it was working on is lost with it.

        Raises:
            RuntimeError: too many were lost while they started or loaded, when no item is to blame.
        """
        if not worker.ready:
            batch.num_lost_starts += 1
            if batch.num_lost_starts > _MOST_LOST_STARTS * len(self._workers):
                kind = f", loading {shown(batch.kind(worker.requests[0]))}" if worker.requests else ""
                raise RuntimeError(
                    f"a verifier worker did not start or load, {batch.num_lost_starts} times{kind}: "
                    f"{' '.join(self._command)}; see its message above"
                )
        self._workers[self._workers.index(worker)] = WorkerProcess(self._command, self._selector)
        worker.kill()
        if worker.ready and worker.requests:
            batch.close(worker.requests.popleft(), list(verdict))
        batch.waiting.extendleft(reversed(worker.requests))

    def _patience(self, worker: WorkerProcess) -> float:
        """Return the seconds that a worker may stay silent; infinite for an idle one."""
        if not worker.ready:
            return _START_LIMIT
        return self._deadline if worker.requests else float("inf")

    def _seconds_to_deadline(self) -> float | None:
        soonest = min(worker.last_progress + self._patience(worker) for worker in self._workers)
        return None if soonest == float("inf") else max(0.0, soonest - time.monotonic())


class _Batch:
    """The items of one call: those that wait, and the verdicts so far."""

    def __init__(
        self, items: Sequence[Item] | Sequence[Call], tolerance: float, on_progress: Callable[[], None]
    ) -> None:
        """Queue all items."""
        self._items, self._tolerance, self._on_progress = items, tolerance, on_progress
        self.waiting = collections.deque(range(len(items)))
        self.verdicts: list[Verdict | None] = [None] * len(items)
        self.num_open = len(items)
        self.num_lost_starts = 0
        self.errors: list[str] = []
        largest = max((len(item.responses) for item in items if isinstance(item, Call)), default=1)
        self.chunk = max(_CHUNK // largest, 1)  # items that a worker is handed at a time

    def kind(self, number: int) -> str:
        """Return the kind of an item."""
        return self._items[number].kind

    def take(self, count: int) -> tuple[list[int], bytes]:
        """Take items from the queue; return their numbers and their request lines."""
        numbers = [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]
        return numbers, b"".join([self._line(number) for number in numbers])

    def _line(self, number: int) -> bytes:
        item = self._items[number]
        if isinstance(item, Call):
            records = [_sendable(record, with_images=item.kind not in REWARDS) for record in item.records]
            asked: dict[str, Any] = {"responses": item.responses, "records": records}
        else:
            asked = {
                # One character over the limit is enough for the verifier to see that the answer is too long.
                "given": item.given[: MAX_ANSWER_LEN + 1],
                "gold": item.gold,
                "choices": item.choices,
                "tolerance": self._tolerance,
            }
        return json.dumps({"id": number, "kind": item.kind, **asked}).encode() + b"\n"

    def close(self, number: int, verdict: list) -> None:
        """Record the verdict on an item, or the error message that the worker gave instead."""
        correct, parsed, reason = verdict
        if correct is None:
            self.errors.append(reason)
        self.verdicts[number] = Verdict(bool(correct), bool(parsed), reason)
        self.num_open -= 1
        self._on_progress()


def _sendable(record: Mapping[str, Any], *, with_images: bool) -> dict[str, Any]:
    """A record of a call as JSON; the built-in functions look at no images."""
    images = record["images"] if with_images else ()
    return {**record, "images": [base64.b64encode(image).decode() for image in images]}
