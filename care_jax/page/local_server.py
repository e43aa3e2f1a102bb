"""A server of pages for this machine alone, unless it is given another address.

Pages of other origins are kept out of it: a request must name this host.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import re
import signal
import socketserver
import sys
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from care_jax.errors import InputError, one_line

_HERE = ("127.0.0.1", "localhost", "::1")
_SECONDS = 60  # that a client may be silent


class LocalServer(http.server.ThreadingHTTPServer):
    """A server with a thread for each connection."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self, host: str, port: int, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        """Binds the port.

        Raises:
            InputError: there is no such address, or the port is taken.
        """
        self.host = host
        try:
            super().__init__((host, port), handler)
        except (OSError, OverflowError) as error:
            reason = one_line(error.strerror if isinstance(error, OSError) and error.strerror else error)
            raise InputError(
                f"--host={host} --port={port}: {reason}; name another port, or 0 for a free one"
            ) from error

    def server_bind(self) -> None:
        """Binds the port, without the library's question to the network for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def knows(self, host: str) -> bool:
        """True if a request's Host names this server, which has other names only behind an address of its own."""
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        return self.host not in _HERE or name.strip("[]").lower() in _HERE

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that went away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class LocalHandler(http.server.BaseHTTPRequestHandler):
    """Answers a request of HTTP 1.1 and prints none."""

    protocol_version, server_version, sys_version = "HTTP/1.1", "care_jax", ""
    timeout = _SECONDS

    def send(
        self, status: HTTPStatus, body: bytes, content_type: str, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Sends a whole response."""
        self.send_response(status)
        about = {"Content-Type": content_type, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        for name, value in {**about, "X-Content-Type-Options": "nosniff", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keeps requests off stderr."""


def content_policy(scripts: Sequence[str], *, asks_server: bool) -> str:
    """The content policy of a page that runs these scripts and loads nothing; it may ask the server it came from."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    asked = " connect-src 'self';" if asks_server else ""
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline';{asked} script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )


def serve_until_stopped(server: LocalServer, verb: str) -> None:
    """Answers requests until SIGINT or SIGTERM; `verb` is what others may do if they reach the server."""
    if server.host not in _HERE:
        print(f"warning: whoever reaches {server.host} may {verb}", file=sys.stderr, flush=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
