"""A small server on this machine: a page to ask a model on, and OpenAI's chat endpoint (chat_api.py).

    GET  /                       the page, one file that loads nothing from anywhere
    GET  /v1/models              the one model there is
    POST /v1/chat/completions    a question; with "stream" the answer comes as server-sent events

Whoever reaches the port may ask, so it is that of this machine alone unless another address is given. There, pages of
other origins are kept out: a request must name this host, and a question must be JSON, which a browser does not send
across origins without asking first.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any

from care_jax.errors import InputError, one_line, shown
from care_jax.evals.engine import BusyError, Engine
from care_jax.page.chat_api import Completion, read_request
from care_jax.page.local_server import LocalHandler, LocalServer, content_policy, serve_until_stopped

MOST_BYTES = 64 << 20  # of a request
_CHAT = "/v1/chat/completions"
_PAGE = Path(__file__).parent / "assets" / "chat.html"
_SCRIPT = re.compile(r"<script>(.*)</script>", re.DOTALL)
# What OpenAI calls the error of each status.
_TYPES = {429: "rate_limit_error", 500: "server_error"}


class ChatServer(LocalServer):
    """The server; it answers questions once `serve` has given it an engine."""

    def __init__(self, host: str, port: int, model: str) -> None:
        """Binds the port.

        Args:
            host: the address.
            port: 0 for a free one.
            model: what the model is called.

        Raises:
            InputError: there is no such address, or the port is taken.
        """
        self.model, self.started = model, int(time.time())
        super().__init__(host, port, _Handler)
        self.engine: Engine | None = None
        self.page = _PAGE.read_bytes()
        script = _SCRIPT.search(self.page.decode())
        assert script is not None
        # No other page may hold this one in a frame and have its buttons pressed.
        self.policy = f"{content_policy([script[1]], asks_server=True)}; frame-ancestors 'none'"


def serve(server: ChatServer, engine: Engine) -> None:
    """Answers requests until SIGINT or SIGTERM."""
    server.engine = engine
    address = f"http://{server.host}:{server.server_port}"
    print(f"{server.model}: a page at {address}, an OpenAI endpoint at {address}/v1 (end with Ctrl-C)", flush=True)
    serve_until_stopped(server, "ask")


class _RefusedError(Exception):
    """A request that is answered with an error of HTTP other than 400."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(LocalHandler):
    server: ChatServer
    _is_streaming = False  # the status of the response under way has been sent

    def do_GET(self) -> None:  # noqa: N802 (the library's name)
        """Sends the page, or the model."""
        self._answer(self._get)

    def do_POST(self) -> None:  # noqa: N802 (the library's name)
        """Answers a question."""
        self._answer(self._post)

    def _get(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        about = {"id": self.server.model, "object": "model", "created": self.server.started, "owned_by": "care_jax"}
        if path == "/":
            policy = {"Content-Security-Policy": self.server.policy}
            self.send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8", policy)
        elif path == "/v1/models":
            self._send_json(HTTPStatus.OK, {"object": "list", "data": [about]})
        elif path == f"/v1/models/{self.server.model}":
            self._send_json(HTTPStatus.OK, about)
        else:
            raise _no_such(path, is_known=path == _CHAT)

    def _post(self) -> None:
        path = self.path.partition("?")[0]
        if path != _CHAT:
            raise _no_such(path, is_known=path in ("/", "/v1/models"))
        engine = self.server.engine
        assert engine is not None
        request = read_request(self._body(), engine.processor)
        completion = Completion(request, self.server.model)
        with engine.ask(request.question) as pieces:
            if request.is_streamed:
                self._send_events(completion.chunks(pieces))
            else:
                self._send_json(HTTPStatus.OK, completion.whole(pieces))

    def _answer(self, method: Callable[[], None]) -> None:
        """Calls a method; whatever goes wrong in it becomes a response in OpenAI's form."""
        try:
            if not self.server.knows(self.headers.get("Host", "")):
                raise _RefusedError(HTTPStatus.FORBIDDEN, "the Host of the request is not this server")
            method()
        except (ConnectionError, TimeoutError):  # nobody is there to read an answer
            self.close_connection = True
        except InputError as error:
            self._send_error(HTTPStatus.BAD_REQUEST, str(error))
        except _RefusedError as error:
            self._send_error(error.status, str(error))
        except BusyError as error:
            self._send_error(HTTPStatus.TOO_MANY_REQUESTS, str(error))
        except Exception as error:
            traceback.print_exc()
            self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {one_line(error)}")

    def _body(self) -> bytes:
        if self.headers.get_content_type() != "application/json":
            raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON, with Content-Type: application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "send the Content-Length of the request")
        if len(length) > 12 or int(length) > MOST_BYTES:
            message = f"the request has {length[:20]} bytes, {MOST_BYTES} are allowed; send smaller images"
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionAbortedError
        return body

    def _send_json(self, status: HTTPStatus, value: Any, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send(status, json.dumps(value).encode(), "application/json", headers)

    def _send_events(self, events: Iterable[dict[str, Any]]) -> None:
        """Sends server-sent events; the end of the connection is the end of the response."""
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", "text/event-stream"),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self._is_streaming = True
        for event in events:
            self._send_event(json.dumps(event))
        self._send_event("[DONE]")

    def _send_event(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        """Sends an error in OpenAI's form, as the last event if a stream has begun, and closes the connection."""
        self.close_connection = True  # what is left of the request would be taken for another
        kind = _TYPES.get(status, "invalid_request_error")
        error = {"error": {"message": message, "type": kind, "param": None, "code": None}}
        with contextlib.suppress(ConnectionError, TimeoutError):
            if self._is_streaming:
                self._send_event(json.dumps(error))
            else:
                self._send_json(status, error, {"Connection": "close"})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what the library finds wrong, in the same form."""
        self._send_error(HTTPStatus(code), message or HTTPStatus(code).phrase)


def _no_such(path: str, *, is_known: bool) -> _RefusedError:
    if is_known:
        return _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, f"{shown(path)} takes another method")
    return _RefusedError(HTTPStatus.NOT_FOUND, f"no {shown(path)}; there are /, /v1/models and {_CHAT}")
