"""A headless Chromium, driven through its DevTools protocol over a pipe: it needs no driver and no package.

The protocol: https://chromedevtools.github.io/devtools-protocol/, one JSON object at a time, each ended by a NUL.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
_FLAGS += ("--hide-scrollbars",)  # which would take room that the picture of a page lacks
_FLAGS += ("--disable-background-networking", "--remote-debugging-pipe")
_SECONDS = 60  # that anything may take


class Page:
    """A tab of the browser."""

    def __init__(self, process: subprocess.Popen, commands: int, answers: int) -> None:
        """Makes the tab."""
        self._process, self._commands, self._answers = process, commands, answers
        self._number, self._buffer, self._session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and waits for its result; what happens meanwhile goes to `events`."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (message := self._read()).get("id") != self._number:
            self.events.append(message)
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser says nothing"
            new = os.read(self._answers, 1 << 20)
            assert new, f"the browser has ended with {self._process.poll()}"
            self._buffer += new
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, *, width: int, dark: bool = False) -> None:
        """Loads a page in a window of `width` pixels."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        result = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + _SECONDS
        while not self.run(condition):
            assert time.monotonic() < deadline, (condition, self.run("document.body.innerText"))
            time.sleep(0.02)

    def type(self, selector: str, text: str) -> None:
        """Types into a field."""
        self.run(f"document.querySelector({selector!r}).focus(), document.querySelector({selector!r}).select()")
        self("Input.insertText", text=text)

    def press_enter(self) -> None:
        """Presses the key in the field that has the focus."""
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        self("Input.dispatchKeyEvent", type="keyDown", **key)
        self("Input.dispatchKeyEvent", type="keyUp", **key)

    def drop(self, path: Path) -> None:
        """Drops a file in the middle of the window."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self("Input.dispatchDragEvent", type=kind, x=200, y=200, data=data)

    def screenshot(self, path: Path) -> None:
        """Writes a PNG of the whole page."""
        picture = self("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def urls(self) -> list[str]:
        """The addresses that the page has asked for."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self) -> list[Any]:
        """Errors in the page's scripts, and what the browser has refused or logged as an error."""
        found = [event["params"] for event in self.events if event.get("method") == "Runtime.exceptionThrown"]
        entries = [event["params"]["entry"] for event in self.events if event.get("method") == "Log.entryAdded"]
        return found + [entry for entry in entries if entry["level"] == "error"]


@contextlib.contextmanager
def open_page(folder: Path) -> Iterator[Page]:
    """A browser with a fresh profile in `folder`, and one tab."""
    assert CHROMIUM is not None
    their_input, commands = os.pipe()
    answers, their_output = os.pipe()
    # Chromium reads from descriptor 3 and writes to 4; high ones first, so that none is overwritten.
    given, taken = (fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (their_input, their_output))
    program = [CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{given} 4>&{taken}', "bash", *program],
        pass_fds=(given, taken),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (their_input, their_output, given, taken):
        os.close(end)
    try:
        yield Page(process, commands, answers)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(commands)
        os.close(answers)
