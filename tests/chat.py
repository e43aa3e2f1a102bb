"""A chat server whose answers are given, for tests of what it says and of its page."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from care_jax.evals.engine import Piece, Question
from care_jax.inputs.processor import Processor
from care_jax.page.chat_server import ChatServer
from care_jax.page.local_server import LocalServer

ANSWER = "<think>1 < 2 & 3</think><answer>3</answer>"


class ScriptedEngine:
    """In place of an engine: sample n says texts[n], letter by letter, one token each.

    `asked` has the questions; a cleared `may_go_on` holds the answers behind their first letters.
    """

    def __init__(self, processor: Processor, texts: Sequence[str] = (ANSWER,)) -> None:
        """Answers at once."""
        self.processor, self.texts, self.asked, self.given_up = processor, list(texts), [], 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    @contextlib.contextmanager
    def ask(self, question: Question) -> Iterator[Iterator[Piece]]:
        """Asks a question, as `Engine` does."""
        self.asked.append(question)
        try:
            yield self._pieces(question)
        except ConnectionError:
            self.given_up += 1
            raise

    def _pieces(self, question: Question) -> Iterator[Piece]:
        texts = [self.texts[number % len(self.texts)] for number in range(question.num_samples)]
        limit = question.max_tokens or 1000
        for length in range(1, min(limit, max(map(len, texts))) + 1):
            for number, text in enumerate(texts):
                if length <= len(text):
                    end = "stop" if length == len(text) else "length" if length == limit else ""
                    yield Piece(number, text[:length], length, end)
            if length == 9:
                self.may_go_on.wait(60)


@contextlib.contextmanager
def serving(engine: Any, host: str = "127.0.0.1") -> Iterator[ChatServer]:
    """A chat server in a thread, on a free port."""
    with ChatServer(host, 0, model="run/30") as server, in_thread(server):
        server.engine = engine
        yield server


@contextlib.contextmanager
def in_thread(server: LocalServer) -> Iterator[None]:
    """Serves in a thread until the end of the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def request(server: ChatServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and body of a response, parsed if it is JSON; a list of events if it is a stream of them."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    given = {"Content-Type": "application/json"} if body is not None else {}
    sent = json.dumps(body) if isinstance(body, dict) else body
    try:
        connection.request(method, path, sent, {**given, **{name.replace("_", "-"): headers[name] for name in headers}})
        response = connection.getresponse()
        text, kind = response.read().decode(), response.getheader("Content-Type", "")
    finally:
        connection.close()
    if kind == "text/event-stream":
        assert text.endswith("\n\n")
        return response.status, [event.removeprefix("data: ") for event in text[:-2].split("\n\n")]
    return response.status, json.loads(text) if kind == "application/json" else text
