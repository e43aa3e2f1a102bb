"""The page to ask on, in a real browser: drop, ask, read rationale and answer; wide and narrow, light and dark."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from care_jax.page.chat_server import ChatServer
from tests.browser import CHROMIUM, Page
from tests.chat import ScriptedEngine, serving
from tests.pictures import encode, picture

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
HOSTILE = "<think><img src=x onerror=alert(1)> & 2</think><answer><b>3</b></answer>"


@pytest.fixture
def engine(tiny_processor) -> ScriptedEngine:
    """An engine that says ANSWER, with room for the questions of a person."""
    return ScriptedEngine(dataclasses.replace(tiny_processor, prompt_buckets=(200,)))


@pytest.fixture
def server(engine, page) -> Iterator[ChatServer]:
    """Its server; whatever the page does, it asks nobody else and nothing in it fails."""
    page.events.clear()
    with serving(engine) as server:
        yield server
        page.run("1")  # so that events have arrived
        address = f"http://127.0.0.1:{server.server_port}/"
        assert {url for url in page.urls() if not url.startswith((address, "data:"))} == set()
        assert page.complaints() == []


def _open(page: Page, server: ChatServer, width: int = 1400, *, dark: bool = False) -> None:
    page.open(f"http://127.0.0.1:{server.server_port}/", width=width, dark=dark)
    page.wait_for("document.querySelector('#model').textContent === 'run/30'")


def _texts(page: Page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({selector!r})].filter(n => n.offsetParent).map(n => n.innerText)")


def _picture(tmp_path: Path) -> Path:
    path = tmp_path / "squares.png"
    path.write_bytes(encode(picture(56, 84)))
    return path


def test_drop_ask_and_read(page, server, engine, tmp_path) -> None:
    """Catches an image that does not travel, an answer that does not come, and markup of a model that acts."""
    engine.texts = [HOSTILE]
    _open(page, server)
    page.drop(_picture(tmp_path))
    page.wait_for("document.querySelectorAll('#images img').length === 1")
    page.type("#question", "How many?")
    page.press_enter()
    page.wait_for("document.querySelector('.state') && !document.querySelector('#ask').disabled")
    assert _texts(page, ".rationale .text") == ["<img src=x onerror=alert(1)> & 2"]
    assert _texts(page, ".answer .text") == ["<b>3</b>"]
    assert _texts(page, ".question") == ["How many?"]
    assert _texts(page, ".state") == []
    assert page.run("document.querySelectorAll('article img').length") == 1
    [question] = engine.asked
    assert question.example.record.prompt == "<image>How many?"
    assert len(question.example.patches) == 6 * 4
    assert (question.num_samples, question.temperature) == (1, 0.0)


def test_an_answer_streams_and_can_be_stopped(page, server, engine) -> None:
    """Catches an answer that is shown only when it is whole, and a Stop that leaves the page waiting."""
    engine.may_go_on.clear()
    _open(page, server)
    page.type("#question", "1+2=?")
    page.run("document.querySelector('#ask').click()")
    page.wait_for("document.querySelector('.rationale .text')?.textContent === '1'")
    assert _texts(page, ".answer .text") == []
    assert _texts(page, ".state") == ["answering …"]
    page.run("document.querySelector('#stop').click()")
    page.wait_for("!document.querySelector('#ask').disabled")
    assert _texts(page, ".state") == ["stopped"]
    assert _texts(page, "#error") == []
    engine.may_go_on.set()
    page.run("document.querySelector('#ask').click()")
    page.wait_for("document.querySelector('.answer .text')?.textContent === '3'")  # the newest is first


def test_several_samples(page, server, engine) -> None:
    """Catches samples that share a place, greedy copies of one sample, and an answer that is missing without a word."""
    engine.texts = ["<think>a</think>1", "<think>b", "2"]
    _open(page, server)
    page.type("#samples", "3")
    page.type("#question", "1+2=?")
    page.press_enter()
    page.wait_for("document.querySelectorAll('.sample').length === 3 && !document.querySelector('#ask').disabled")
    assert _texts(page, ".answer .text") == ["1", "2"]
    assert _texts(page, ".rationale .text") == ["a", "b"]
    assert _texts(page, ".state") == ["no answer"]
    assert (engine.asked[-1].num_samples, engine.asked[-1].temperature) == (3, 1.0)


def test_what_goes_wrong_is_said(page, server, engine, tmp_path) -> None:
    """Catches a page that does nothing, without a reason."""
    _open(page, server)
    page.run("document.querySelector('#ask').click()")
    assert _texts(page, "#error") == ["Type a question first."]
    page.type("#question", "1+2=?" * 80)
    page.press_enter()
    page.wait_for("document.querySelector('#error').textContent.includes('data.prompt_buckets')")
    assert _texts(page, "article") == []
    (tmp_path / "notes.txt").write_text("no image")
    page.drop(tmp_path / "notes.txt")
    page.wait_for("document.querySelector('#error').textContent === 'notes.txt: not an image'")
    assert engine.asked == []
    page.events.clear()  # of the status 400, which the browser logs


def test_images_can_be_taken_away(page, server, engine, tmp_path) -> None:
    """Catches an image that is sent though it was removed, and one that is chosen and not taken."""
    _open(page, server)
    node = page("DOM.querySelector", nodeId=page("DOM.getDocument")["root"]["nodeId"], selector="#file")["nodeId"]
    page("DOM.setFileInputFiles", nodeId=node, files=[str(_picture(tmp_path))])
    page.wait_for("document.querySelectorAll('#images img').length === 1")
    page.run("document.querySelector('#images button').click()")
    page.type("#question", "1+2=?")
    page.press_enter()
    page.wait_for("document.querySelector('.answer .text') && !document.querySelector('#ask').disabled")
    assert engine.asked[-1].example.record.images == ()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_looks(page, server, engine, tmp_path, width, dark) -> None:
    """Catches a page that is wider than its window, or as bright in the dark; its pictures are in the test's folder."""
    engine.texts = [
        "<think>" + "The bars are 3, 4 and 12 high, and 12 is the largest of them. " * 3 + "</think>12",
        "3" * 90,
    ]
    _open(page, server, width, dark=dark)
    page.drop(_picture(tmp_path))
    page.wait_for("document.querySelectorAll('#images img').length === 1")
    page.type("#samples", "2")
    page.type("#question", "Which bar is the highest, and how high is it?")
    page.press_enter()
    page.wait_for("document.querySelectorAll('.answer .text').length === 2 && !document.querySelector('#ask').disabled")
    assert page.run("document.documentElement.scrollWidth") <= width
    red, *_ = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red < 60) == dark
    page.screenshot(tmp_path / f"chat_{width}_{'dark' if dark else 'light'}.png")
