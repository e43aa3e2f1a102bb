"""Serves the report of runs while they train.

    GET /        the page (render.py)
    GET /news    its pieces of HTML and its data as JSON, or 304 if the run folders are as they were

The page asks for news every few seconds. The files are read again only after they have changed, and no more often than
a tenth of the time goes into it.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType

from etils import epath

from care_jax.page import render
from care_jax.page.local_server import LocalHandler, LocalServer, serve_until_stopped
from care_jax.page.run_data import Run, load_run
from care_jax.page.run_files import RUN_NAMES

_REST = 9.0  # times the seconds that reading took


class ReportServer(LocalServer):
    """The server of the page about some run folders, by name."""

    def __init__(self, host: str, port: int, folders: Mapping[str, epath.Path]) -> None:
        """Binds the port.

        Args:
            host: the address.
            port: 0 for a free one.
            folders: the run folders by the names that the page has for them.

        Raises:
            InputError: there is no such address, or the port is taken.
        """
        super().__init__(host, port, _Handler)
        self._folders, self._lock = folders, threading.Lock()
        self._runs: list[Run] = []
        self._stamp, self._due = "", 0.0

    def news(self) -> tuple[str, Sequence[Run]]:
        """A stamp of the files, and the runs as they were then."""
        with self._lock:
            stamp = _stamp(self._folders)
            if stamp != self._stamp and time.monotonic() >= self._due:
                start = time.monotonic()
                self._runs, self._stamp = self._read(), stamp
                end = time.monotonic()
                self._due = end + _REST * (end - start)
            return self._stamp, self._runs

    def _read(self) -> list[Run]:
        return [load_run(folder, name) for name, folder in self._folders.items()]


def serve(host: str, port: int, folders: Mapping[str, epath.Path]) -> None:
    """Serves the page until SIGINT or SIGTERM.

    Raises:
        InputError: there is no such address, or the port is taken.
    """
    with ReportServer(host, port, folders) as server:
        print(f"the report is at http://{server.host}:{server.server_port} (end with Ctrl-C)", flush=True)
        serve_until_stopped(server, "read")


def _stamp(folders: Mapping[str, epath.Path]) -> str:
    """Changes whenever a file that the report reads does."""
    seen = []
    for folder in folders.values():
        for name in sorted(RUN_NAMES):
            try:
                about = (folder / name).stat()
            except OSError:
                continue
            if not about.is_directory:
                seen.append(f"{folder} {name} {about.length} {about.mtime}")
    return hashlib.blake2b("\n".join(seen).encode(), digest_size=16).hexdigest()


class _Handler(LocalHandler):
    server: ReportServer

    def do_GET(self) -> None:  # noqa: N802 (the library's name)
        """Sends the page, or news."""
        path = self.path.partition("?")[0]
        if not self.server.knows(self.headers.get("Host", "")):
            self._send_text(HTTPStatus.FORBIDDEN, "the Host of the request is not this server")
        elif path == "/":
            _, runs = self.server.news()
            self._send_text(HTTPStatus.OK, render.page(runs, is_live=True), "text/html")
        elif path == "/news":
            stamp, runs = self.server.news()
            tag = {"ETag": f'"{stamp}"'}
            if self.headers.get("If-None-Match") == tag["ETag"]:
                self._send_text(HTTPStatus.NOT_MODIFIED, "", headers=tag)
            else:
                news = {"parts": render.parts(runs), "data": render.data(runs)}
                self._send_text(HTTPStatus.OK, json.dumps(news, allow_nan=False), "application/json", tag)
        elif path == "/favicon.ico":
            self._send_text(HTTPStatus.NO_CONTENT, "")
        else:
            self._send_text(HTTPStatus.NOT_FOUND, "there are / and /news")

    def _send_text(
        self,
        status: HTTPStatus,
        text: str,
        content_type: str = "text/plain",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.send(status, text.encode(), f"{content_type}; charset=utf-8", headers)
