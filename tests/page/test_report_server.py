"""The report in a real browser: it follows runs as they go on, asks nobody else, and fits narrow screens."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath

from care_jax.errors import InputError
from care_jax.page.report_server import ReportServer
from tests.browser import CHROMIUM
from tests.chat import in_thread
from tests.page.test_report import answer, event, measured, sample, write_lines

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A training under way, with a repaired failure among its samples."""
    folder = tmp_path / "rl"
    folder.mkdir()
    rollout = sample()["rollouts"][0]
    failed = rollout | {"correct": False, "role": "reflected", "advantage": 1.25, "text": "<think>9</think>"}
    repair = {
        "rollout": 1,
        "before": "<think>9",
        "cue": "Wait",
        "after": "2</think><answer>3</answer>",
        "correct": True,
    }
    write_lines(folder / "samples.jsonl", [sample(rollouts=[rollout, failed], reflection=repair)])
    write_lines(folder / "events.jsonl", [event()])
    write_lines(
        folder / "metrics.jsonl",
        [measured(0, 0.5), {"step": 1, "reward/mean": 0.25, "eval/newly_right": 1, "eval/newly_wrong": 1}],
    )
    answers = [answer(step, index, correct=index == step) for step in (0, 1) for index in (0, 1)]
    write_lines(folder / "held_out.jsonl", answers)
    (folder / "config.json").write_text(json.dumps({"train": {"steps": 9}}))
    (folder / "manifest.json").write_text(json.dumps({"stage": "train", "seed": 1}))
    return folder


@pytest.fixture
def server(folder) -> Iterator[ReportServer]:
    """Its server, in a thread."""
    with ReportServer("127.0.0.1", 0, {"rl": epath.Path(folder)}) as server, in_thread(server):
        yield server


def _get(server: ReportServer, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, body and ETag of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})
    response = connection.getresponse()
    found = response.status, response.read().decode(), response.getheader("ETag", "")
    connection.close()
    return found


def test_news_come_only_after_a_change(server, folder) -> None:
    """Catches a page that is sent again and again, and one that misses a line."""
    status, body, tag = _get(server, "/news")
    assert (status, "50.0% ± 8.0" in json.loads(body)["parts"]["accuracy"]) == (200, True)
    assert _get(server, "/news", If_None_Match=tag)[:2] == (304, "")
    server._due = 0.0
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(measured(4, 0.75)) + "\n")
    status, body, _ = _get(server, "/news", If_None_Match=tag)
    assert (status, "75.0% ± 8.0" in json.loads(body)["parts"]["accuracy"]) == (200, True)


def test_others_are_kept_out(server) -> None:
    """Catches a page of another origin that reads a run through a name of its own for this machine."""
    assert _get(server, "/news", Host="evil.example")[0] == 403
    assert _get(server, "/etc/passwd")[0] == 404


def test_a_port_that_is_taken(server) -> None:
    """Catches a traceback for a second server."""
    with pytest.raises(InputError, match=r"--port=\d+: .*name another port"):
        ReportServer("127.0.0.1", server.server_port, {})


@needs_browser
def test_the_page_follows_a_run(page, server, folder) -> None:
    """Catches a page that stands still, folds up what was open, or has scripts that its policy forbids."""
    page.events.clear()
    page.open(f"http://127.0.0.1:{server.server_port}/", width=1400)
    page.wait_for("document.querySelector('#live').textContent.startsWith('live')")
    page.run("document.querySelector('[data-key=\"run rl\"]').open = true")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(measured(4, 0.75)) + "\n")
    page.wait_for("document.querySelector('.accuracy').innerText.includes('75.0% ± 8.0')")
    assert page.run("document.querySelector('[data-key=\"run rl\"]').open") is True
    address = f"http://127.0.0.1:{server.server_port}/"
    assert {url for url in page.urls() if not url.startswith((address, "data:"))} == set()
    assert page.complaints() == []


@needs_browser
def test_each_list_is_narrowed_by_itself(page, server) -> None:
    """Catches a choice among the answers that empties the list of groups, and one that shows what was not asked for."""
    page.open(f"http://127.0.0.1:{server.server_port}/", width=1400)
    page.run(
        "const select = document.querySelector('#answers select'); select.value = 'newly wrong';"
        "select.dispatchEvent(new Event('change'))"
    )
    shown = page.run("[...document.querySelectorAll('#answers .group .badge')].map((n) => n.innerText)")
    assert shown == ["newly wrong", "right", "wrong"]
    assert page.run("document.querySelectorAll('#samples .group').length") == 1


@needs_browser
def test_a_wrong_repair_of_an_all_wrong_group_has_no_advantage(page, folder) -> None:
    """Catches the pseudo-anchor's advantage beside the repair that did not take its place."""
    rollout = sample()["rollouts"][0] | {"correct": False, "role": "anchor", "advantage": 0.75}
    repair = {"rollout": 0, "before": "<think>9", "cue": "Wait", "after": "2", "correct": False}
    group = sample(outcome="ALL_WRONG", rollouts=[rollout], reflection=repair)
    write_lines(folder / "samples.jsonl", [group])
    with ReportServer("127.0.0.1", 0, {"rl": epath.Path(folder)}) as server, in_thread(server):
        page.open(f"http://127.0.0.1:{server.server_port}/", width=1400)
        page.run("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
        anchor, repaired = page.run("[...document.querySelectorAll('.rollouts tr')].slice(1).map((n) => n.innerText)")
    assert ("+0.75" in anchor, "its repair has it" in anchor) == (True, False)
    assert ("+0.75" in repaired, "not updated" in repaired) == (False, True)


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_looks(page, server, width, dark) -> None:
    """Catches a column cut off, and a repair's advantage beside the word wrong."""
    page.open(f"http://127.0.0.1:{server.server_port}/", width=width, dark=dark)
    page.run("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth") is True
    assert page.run("[...document.querySelectorAll('.scroll')].every((n) => n.scrollWidth <= n.clientWidth)") is True
    cards = page.run("[...document.querySelectorAll('#answers .group')].map((n) => n.innerText)")
    assert [[part in card for part in ("newly right", "newly wrong")] for card in cards] == [
        [True, False],
        [False, True],
    ]
    assert cards[0].index("at step 0 wrong 0") < cards[0].index("at step 1 right 1")
    failure, repair = (page.run(f"document.querySelector('tr.{kind}').innerText") for kind in ("replaced", "repair"))
    assert ("wrong" in failure, "its repair has it" in failure, "+1.25" in failure) == (True, True, False)
    assert ("repaired" in repair, "+1.25" in repair, "wrong" in repair) == (True, True, False)
