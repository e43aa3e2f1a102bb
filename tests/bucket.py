"""A Google Cloud Storage bucket on the local disk.

epath and Orbax's metadata reach it through fsspec, TensorStore's gs:// driver through its HTTP interface.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry
from orbax.checkpoint._src.path import gcs_utils


@contextlib.contextmanager
def buckets(folder: Path) -> Iterator[None]:
    """A context in which gs://NAME/... means folder/NAME/..., in this process."""

    class FileSystem(DirFileSystem):
        protocol = ("gs", "gcs")
        cachable = False

        def __init__(self, **options: object) -> None:
            super().__init__(path=str(folder), fs=LocalFileSystem(auto_mkdir=True))

    server = http.server.ThreadingHTTPServer(("localhost", 0), _handler(folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for protocol in FileSystem.protocol:
            patch.setitem(_registry, protocol, FileSystem)
        patch.setattr(backend.fsspec_backend, "_get_filesystem", fsspec.filesystem)  # without its cache of instances
        patch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)  # asks Google's own client
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{server.server_port}")
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        yield
    server.shutdown()
    server.server_close()


def _handler(folder: Path) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        """The part of the JSON API, version 1, that TensorStore uses: list, get, put and delete an object."""

        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Keeps requests off stderr."""

        def _parts(self) -> tuple[str, str, dict[str, str]]:
            url = urllib.parse.urlsplit(self.path)
            _, _, place = url.path.partition("/b/")
            bucket, _, name = place.partition("/o")
            return bucket, urllib.parse.unquote(name.removeprefix("/")), dict(urllib.parse.parse_qsl(url.query))

        def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _describe(self, bucket: str, name: str) -> dict[str, str]:
            about = (folder / bucket / name).stat()
            return {"name": name, "bucket": bucket, "generation": str(about.st_mtime_ns), "size": str(about.st_size)}

        def do_GET(self) -> None:
            bucket, name, query = self._parts()
            if not name:
                root, prefix = folder / bucket, query.get("prefix", "")
                names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
                items = [self._describe(bucket, each) for each in names if each.startswith(prefix)]
                self._answer(200, json.dumps({"items": items}).encode())
                return
            path = folder / bucket / name
            if not path.is_file():
                self._answer(404)
                return
            data, generation = path.read_bytes(), str(path.stat().st_mtime_ns)
            headers = {"x_goog_generation": generation}
            if query.get("alt") != "media":
                self._answer(200, json.dumps(self._describe(bucket, name)).encode())
            elif "Range" in self.headers:
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                start = int(first) if first else len(data) - int(last)
                end = min(int(last) + 1, len(data)) if first and last else len(data)
                if start >= len(data):
                    self._answer(416)
                    return
                headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(data)}"
                self._answer(206, data[start:end], **headers)
            else:
                self._answer(200, data, **headers)

        def do_POST(self) -> None:
            bucket, _, query = self._parts()
            path = folder / bucket / query["name"]
            data = self.rfile.read(int(self.headers["Content-Length"]))
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{threading.get_ident()}")
            partial.write_bytes(data)
            partial.replace(path)
            self._answer(200, json.dumps(self._describe(bucket, query["name"])).encode())

        def do_DELETE(self) -> None:
            bucket, name, _ = self._parts()
            (folder / bucket / name).unlink(missing_ok=True)
            self._answer(204)

    return Handler
