r"""One verifier process: JSON lines in, JSON lines out, in order. `pool.Verifier` starts it.

It says "ready" once, then answers each request line with one line:

    {"id": 7, "kind": "integer", "given": "x = 5", "gold": "5", "choices": null, "tolerance": 0.01}
    [7, true, true, "correct"]

or [7, null, null, message] for a gold that is not of its kind. A request with records is a call of a reward function.
The reason is then what `functions.compute` returns, as JSON: numbers for each response, or why there are none.

    {"id": 8, "kind": "iou", "responses": ["..."], "records": [{"answer": "[1, 2, 3, 4]", "extracted": "[1, 2, 3, 5]"}]}
    [8, true, true, "[{\"\": 0.667}]"]

Before the first request of a kind it says "loading", and "ready" again when the verifier and its imports are loaded
(for LaTeX a second or more), so that this time does not count against an item's deadline. The process ends when its
input ends, and with its parent.

The lines travel on descriptors of their own. A user's verifier may print, write to descriptor 1 from C, or read its
input: it has the parent's stderr for the one and an empty input for the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from typing import Any, BinaryIO

from care_jax.errors import InputError
from care_jax.rewards import functions
from care_jax.rewards.verifiers import load_kind, verify_answer
from care_jax.rewards.verifiers.verdict import Verdict


def main() -> None:
    """Serve requests until the input ends."""
    # An interrupt at the keyboard reaches the whole process group; the parent decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, output = _take_over_streams()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    loaded: set[str] = set()
    worker = os.getpid()
    try:
        os.write(output, b'"ready"\n')
        for line in requests:
            request = json.loads(line)
            if request["kind"] not in loaded:
                os.write(output, b'"loading"\n')
                with contextlib.suppress(InputError):  # an unknown kind; `respond` says so
                    functions.load(request["kind"]) if "records" in request else load_kind(request["kind"])
                loaded.add(request["kind"])
                os.write(output, b'"ready"\n')
            # One write an answer: a kill would lose answers in a buffer, and the wrong item would be blamed.
            answer = respond(request)
            if os.getpid() != worker:  # a user's function forked and came back twice
                os._exit(0)
            os.write(output, answer)
    except BrokenPipeError:
        os._exit(1)  # the parent is gone; closing the streams would only fail again


def _take_over_streams() -> tuple[BinaryIO, int]:
    """Move the requests and the answers to new descriptors, which programs that are started here do not inherit."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _end_with(parent: int) -> None:
    """End the process soon after its parent; what a hanging verifier does would keep it for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def respond(request: dict[str, Any]) -> bytes:
    """Return the answer line to one request."""
    try:
        verdict = _reward(request) if "records" in request else _verify(request)
    except InputError as error:
        return json.dumps([request["id"], None, None, str(error)]).encode() + b"\n"
    return json.dumps([request["id"], *verdict]).encode() + b"\n"


def _verify(request: dict[str, Any]) -> Verdict:
    choices = request["choices"]
    return verify_answer(
        request["kind"],
        request["given"],
        request["gold"],
        None if choices is None else tuple(choices),
        request["tolerance"],
    )


def _reward(request: dict[str, Any]) -> Verdict:
    return Verdict(True, True, json.dumps(functions.compute(request["kind"], request["records"], request["responses"])))


if __name__ == "__main__":
    main()
