"""The page about run folders: figures, charts, the mechanism's points, and that nothing in it can act or call out."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest

from care_jax import report
from care_jax.errors import InputError
from care_jax.page import run_data
from care_jax.page.charts import COLD_START_CHARTS, FORM_CHART, SKILL_CHART, TRAIN_CHARTS, sections
from care_jax.page.figures import accuracy_rows, findings

PIXEL = "data:image/png;base64,iVBORw0KGgo="
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;{{policy}}"


def write_lines(path: Path, rows: list[dict], torn: str = "") -> None:
    """Writes JSON lines, and a torn one."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)


def event(outcome: str = "MIXED", **changes) -> dict:
    """A line of events.jsonl."""
    group = {"step": 1, "id": "q", "source": "count", "outcome": outcome, "anchor": 0, "negatives": [1, 2]}
    group |= {"num_negatives": 2, "advantages_raw": [1.4, -0.7, -0.7], "reflected": None, "reflection_correct": None}
    return group | changes


def sample(step: int = 1, **changes) -> dict:
    """A line of samples.jsonl."""
    rollout = {"text": "<think>2</think><answer>3</answer>", "extracted": "3", "correct": True, "format_ok": True}
    rollout |= {"parsed": True, "role": "anchor", "advantage": 1.4, "response_len": 9}
    group = {"step": step, "id": "q", "source": "count", "images": [PIXEL], "prompt": "<image> How many?"}
    return group | {"answer": "3", "outcome": "MIXED", "rollouts": [rollout], "reflection": None} | changes


def answer(step: int, index: int, *, correct: bool, **changes) -> dict:
    """A line of held_out.jsonl."""
    line = {"step": step, "index": index, "id": f"q{index}", "source": "count", "images": [PIXEL] if step else []}
    line |= {"prompt": "<image> How many?", "answer": "3", "response": f"<answer>{correct:d}</answer>"}
    return line | {"extracted": f"{correct:d}", "correct": correct} | changes


def evaluation(step: int, count: float, bars: float) -> dict:
    """A line of metrics.jsonl with an evaluation."""
    return {
        "step": step,
        "eval/accuracy/count": count,
        "eval/accuracy/bars": bars,
        "eval/accuracy/mean": (count + bars) / 2,
    }


def cold_start_run(folder: Path) -> Path:
    """The folder of a finished cold start."""
    folder.mkdir()
    losses = [{"step": step, "loss": 3.0 - step, "lr": 1e-3} for step in (1, 2)]
    write_lines(folder / "metrics.jsonl", [evaluation(0, 0.0, 0.1), *losses, evaluation(2, 0.3, 0.5)])
    (folder / "config.json").write_text(json.dumps({"seed": 1, "train": {"steps": 2}}))
    (folder / "manifest.json").write_text(json.dumps({"stage": "cold_start", "jax": "0.10.2"}))
    return folder


def train_run(folder: Path, final: float = 0.9) -> Path:
    """The folder of a finished training."""
    folder.mkdir()
    rows: list[dict] = [evaluation(0, 0.3, 0.5)]
    for step in (1, 2, 3):
        shares = {"groups/all_wrong": 0.25, "groups/mixed": 0.5, "groups/all_correct": 0.25}
        negatives = {f"subgroup/num_negatives_{count}": 1 / 11 for count in range(11)}
        rows.append({"step": step, "reward/mean": 0.5, "loss": 0.1 * step} | shares | negatives)
    counted = {"eval/newly_right": 1.0, "eval/newly_wrong": 0.0}
    write_lines(folder / "metrics.jsonl", [*rows, evaluation(3, final, 0.7) | counted])
    reflected = [event(reflected=1, reflection_correct=correct) for correct in (True, False, False, True, True)]
    write_lines(folder / "events.jsonl", [event("ALL_WRONG"), event("ALL_CORRECT"), event(), *reflected])
    write_lines(folder / "samples.jsonl", [sample(1), sample(2)])
    write_lines(folder / "held_out.jsonl", [answer(0, 1, correct=False), answer(3, 1, correct=True)])
    (folder / "config.json").write_text(json.dumps({"seed": 1, "train": {"steps": 3}, "objective": {"kl_coef": final}}))
    (folder / "manifest.json").write_text(json.dumps({"stage": "train", "jax": "0.10.2"}))
    return folder


class Page(HTMLParser):
    """A parsed page: its elements, its visible text, the data it embeds."""

    def __init__(self, workdirs: list[Path], out: Path) -> None:
        """Writes the page of some runs and reads it."""
        super().__init__()
        report.write_report(workdirs, out)
        self.html = out.read_text()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open = ""
        self.feed(self.html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        """Keeps the element."""
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag):
        """Closes it."""
        self._open = ""

    def handle_data(self, data):
        """Keeps visible words and the embedded data."""
        if self._open == "script" and self.elements[-1][1].get("id") == "data":
            self.data = json.loads(data)
        elif self._open not in ("script", "style"):
            self.words.append(data)


def chart_titles(data: dict, section: str) -> list[str]:
    """The titles of a section's charts."""
    (charts,) = [one["charts"] for one in data["sections"] if one["id"] == section]
    return [chart["title"] for chart in charts]


def measured(step: int, value: float, *, of_all: float | None = None, n: int = 100) -> dict:
    """A line of metrics.jsonl with an evaluation of one skill as today's runs write it."""
    row = {"step": step, "time/evaluate": 30.0}
    for group, accuracy, number in (("eval", value, n), ("eval_all", of_all, 4 * n)):
        for name in ("count", "mean") if accuracy is not None else ():
            row |= {f"{group}/accuracy/{name}": accuracy, f"{group}/n/{name}": number, f"{group}/interval/{name}": 0.08}
    return row


def run_of(folder: Path, rows: list[dict], **config) -> run_data.Run:
    """A training with these metrics."""
    folder.mkdir()
    write_lines(folder / "metrics.jsonl", rows)
    (folder / "manifest.json").write_text(json.dumps({"stage": "train", "seed": 3, "device": "cpu x 1"}))
    (folder / "config.json").write_text(json.dumps(config))
    return run_data.load_run(folder, "rl")


def test_accuracy_at_start_after_cold_start_and_after_training(tmp_path):
    """Catches stages in the wrong row, the first evaluation shown as the last, and a start shown twice."""
    page = Page([cold_start_run(tmp_path / "cold"), train_run(tmp_path / "rl")], tmp_path / "out/report.html")
    rows = "at the start cold 5.0% 10.0% 0.0% after cold start, step 2 cold 40.0% 50.0% 30.0%"
    assert f"model mean over skills bars count {rows} after training, step 3 rl 80.0% 70.0% 90.0%" in page.text
    widths = re.findall(r'class="bar"><i style="width:([\d.]+)%"', page.html)
    assert widths == ["5.0", "10.0", "0.0", "40.0", "50.0", "30.0", "80.0", "70.0", "90.0"]


def test_a_training_run_alone_shows_its_own_start(tmp_path):
    """Catches a run without a cold start whose gain cannot be seen."""
    rows = accuracy_rows([run_data.load_run(train_run(tmp_path / "rl"), "rl")])
    assert [(row.when, row.accuracy["mean"].value) for row in rows] == [
        ("at the start", 0.4),
        ("after training, step 3", 0.8),
    ]


def test_n_interval_all_held_out_data_and_baselines(tmp_path):
    """Catches two held-out sets that pass for one, an accuracy without its n, and a mean beside a single skill."""
    baselines = {"baseline/majority/count": 0.31, "baseline/majority/mean": 0.31}
    grey = {"baseline/without_image/count": 0.22, "baseline/without_image/mean": 0.22}
    folder = tmp_path / "rl"
    run_of(folder, [measured(0, 0.5) | baselines, measured(4, 0.75, of_all=0.71) | grey])
    page = Page([folder], tmp_path / "report.html")
    rows = "at the start rl 50.0% ± 8.0 n 100 after training, step 4 rl 75.0% ± 8.0 n 100"
    rows += " after training, step 4, all held-out data rl 71.0% ± 8.0 n 400"
    assert f"model count {rows} majority answer rl 31.0% without the image rl 22.0%" in page.text
    assert "mean over skills" not in page.text
    (first,) = [one["charts"] for one in page.data["sections"] if one["id"] == "first"]
    (line,) = first[0]["lines"]
    assert (line["label"], line["y"], line["interval"]) == ("count", [0.5, 0.75], [0.08, 0.08])


def test_facts_of_a_run(tmp_path):
    """Catches a page that does not say which data, model and seed it is about, and how long it took."""
    folder = tmp_path / "rl"
    steps = [{"step": step, "time/step": 1800.0} for step in (1, 2, 3, 4)]
    config = {"data": {"train": "/sets/charts/train"}, "model": {"folder": "/models/qwen"}, "train": {"steps": 9}}
    run_of(folder, [measured(0, 0.5), *steps, measured(4, 0.6)], **config)
    page = Page([folder], tmp_path / "report.html")
    heads = "run stage data model seed steps time device"
    assert f"{heads} rl training charts/train models/qwen 3 4 of 9 2 h 1 min cpu x 1" in page.text


def test_held_out_answers_that_changed(tmp_path):
    """Catches an older evaluation in place of the last, first and last exchanged, and one kind that fills the page."""
    folder = tmp_path / "rl"
    counted = [{"step": step, "eval/newly_right": float(step), "eval/newly_wrong": 1.0} for step in (2, 4)]
    run_of(folder, [measured(0, 0.5), *counted])
    first = [answer(0, index, correct=index >= 4) for index in range(6)]
    older = [answer(2, 5, correct=False, images=[])]
    last = [answer(4, index, correct=index < 4) for index in (0, 1, 3, 4)]
    write_lines(folder / "held_out.jsonl", [*first, *older, *last, answer(4, 9, correct=True)])
    page = Page([folder], tmp_path / "report.html")
    told = [[one["id"], one["change"], *(a["correct"] for a in one["answers"])] for one in page.data["answers"]]
    assert told == [
        ["q0", "newly right", False, True],
        ["q4", "newly wrong", True, False],
        ["q1", "newly right", False, True],
        ["q3", "newly right", False, True],
    ]
    shown = page.data["answers"][0]
    assert (shown["images"], shown["run"], shown["source"]) == ([PIXEL], "rl", "count")
    assert [(one["step"], one["response"], one["extracted"]) for one in shown["answers"]] == [
        (0, "<answer>0</answer>", "0"),
        (4, "<answer>1</answer>", "1"),
    ]
    assert "rl: 4 became right and 1 became wrong by step 4." in page.text


def test_an_evaluation_without_a_change_shows_none(tmp_path):
    """Catches the changes of an older evaluation under the last one's numbers."""
    folder = tmp_path / "rl"
    run_of(folder, [{"step": step, "eval/newly_right": 2.0 - step, "eval/newly_wrong": 0.0} for step in (1, 2)])
    write_lines(folder / "held_out.jsonl", [answer(0, 3, correct=False), answer(1, 3, correct=True)])
    page = Page([folder], tmp_path / "report.html")
    assert page.data["answers"] == []
    assert "rl: 0 became right and 0 became wrong by step 2." in page.text


def test_what_to_look_at_first(tmp_path):
    """Catches a collapse that only a curve hints at, a gain that may be chance, and a model that does not look."""
    long = [{"step": step, "response_len/mean": 24.0} for step in range(1, 21)]
    short = [{"step": step, "response_len/mean": 13.0, "truncated_rate": 0.25} for step in range(21, 31)]
    rows = [measured(0, 0.5), *long, *short, measured(30, 0.55), {"step": 30, "data/num_dropped": 1234}]
    rows += [{"step": 30, "baseline/majority/count": 0.53, "baseline/without_image/count": 0.1}]
    found = findings([run_of(tmp_path / "rl", rows, rollout={"response_len": 32})])
    assert [(one.level, one.text) for one in found] == [
        (
            "bad",
            "responses have 13.0 tokens and had 24.0 at the start: the rationale is being given up; lower "
            "optimizer.lr or raise objective.kl_coef",
        ),
        ("bad", "the commonest answer to each question gets 53.0%, this model 55.0% ± 8.0"),
        (
            "doubt",
            "held-out accuracy on 100 questions went from 50.0% ± 8.0 at step 0 to 55.0% ± 8.0 at step 30: within "
            "± 11.3 points, which may be chance",
        ),
        ("doubt", "25% of the responses are cut off: raise rollout.response_len=32"),
        ("doubt", "1,234 training rows were left out; the start of the run said why"),
        ("good", "55.0% ± 8.0 is above its baselines: without the image 10.0%"),
    ]


@pytest.mark.parametrize(
    ("last", "level", "end"),
    [(0.75, "good", "+25.0 points, more than the 11.3 that chance explains"), (0.3, "bad", "-20.0 points, more than")],
)
def test_a_gain_and_a_loss(tmp_path, last, level, end):
    """Catches a fall that is called fine."""
    found = findings([run_of(tmp_path / "rl", [measured(0, 0.5), measured(2, last)])])
    (told,) = [one for one in found if "went from" in one.text]
    assert told.level == level
    assert end in told.text


def test_a_fall_from_the_best(tmp_path):
    """Catches a run that was better once, which first and last alone do not show."""
    found = findings([run_of(tmp_path / "rl", [measured(0, 0.5), measured(2, 0.9), measured(4, 0.7)])])
    assert "its best was 90.0% ± 8.0 at step 2: that checkpoint is kept" in [one.text for one in found]


def test_six_charts_first_and_each_says_what_is_healthy(tmp_path):
    """Catches thirty charts of one size, and a curve that nobody can read."""
    names = ("reward/mean", "groups/no_gradient", "response_len/mean", "entropy", "reflect/success_rate", "loss", "lr")
    steps = [{"step": step, **dict.fromkeys(names, 0.5)} for step in (1, 2)]
    grids = {one["id"]: one["charts"] for one in sections([run_of(tmp_path / "rl", [measured(0, 0.5), *steps])])}
    assert [chart["title"] for chart in grids["first"]] == [
        "Held-out accuracy", "Reward", "Groups without a gradient", "Response length", "Entropy",
        "Reflections that repaired",
    ]  # fmt: skip
    assert [chart["title"] for chart in grids["train"]] == ["Policy loss", "Learning rate"]
    for chart in (*TRAIN_CHARTS, *COLD_START_CHARTS, SKILL_CHART, FORM_CHART):
        assert chart.healthy
        assert "\n" not in chart.healthy
        assert len(chart.healthy) <= 80


def group(outcome: str, *roles: str, advantage: float = 0.0, repaired: bool | None = None) -> dict:
    """A sample group with rollouts of these roles."""
    rollouts = [sample()["rollouts"][0] | {"role": role, "advantage": advantage} for role in roles]
    reflection = {"rollout": 1, "before": "a", "cue": "!", "after": "b", "correct": repaired}
    return sample(outcome=outcome, rollouts=rollouts, reflection=None if repaired is None else reflection)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (group("ALL_CORRECT", "unselected", "unselected"), "All 2 responses are right. None is better"),
        (group("ALL_WRONG", "unselected", "unselected"), "All 2 responses are wrong. None is better"),
        (group("ALL_WRONG", "anchor", "negative", advantage=0.1), "The likeliest one stands in for an anchor"),
        (group("ALL_WRONG", "reflected", "negative", advantage=1.0, repaired=True), "the repair is the anchor"),
        (group("ALL_WRONG", "anchor", "negative", advantage=0.1, repaired=False), "stands in for an anchor"),
        (group("ALL_WRONG", "unselected", "unselected", repaired=False), "The repair that was tried is wrong too."),
        (group("ALL_WRONG", "updated", "updated", advantage=-0.3), "Compared with objective.virtual_reward"),
        (group("MIXED", "anchor", "reflected", repaired=True), "only failure was repaired"),
        (group("MIXED", "anchor", "reflected", "negative", repaired=True), "All rewards in the subgroup are the same"),
    ],
)
def test_why_advantages_are_0(shown, words):
    """Catches a group of zeros that nothing explains."""
    assert words in run_data.explanation(shown)


def test_an_ordinary_group_is_not_explained():
    """Catches a line beside every group."""
    assert run_data.explanation(group("MIXED", "anchor", "negative", advantage=1.0)) == ""


def test_summary_counts_groups_and_repairs(tmp_path):
    """Catches rates over all groups where those tried are meant."""
    page = Page([train_run(tmp_path / "rl")], tmp_path / "report.html")
    assert "rl: 8 groups, 12% all wrong, 75% mixed, 12% all correct." in page.text
    assert "Reflection repaired 3 of the 5 failures it tried (60%)." in page.text


def test_model_text_stays_inert(tmp_path):
    """Catches a response that closes the data's script element, acts as markup, or is taken for a template's mark."""
    folder = train_run(tmp_path / "rl")
    rollout = sample()["rollouts"][0] | {"text": HOSTILE, "extracted": HOSTILE}
    reflection = {"rollout": 0, "before": HOSTILE, "cue": HOSTILE, "after": HOSTILE, "correct": False}
    texts = {"id": HOSTILE, "source": HOSTILE, "prompt": HOSTILE, "answer": HOSTILE}
    write_lines(folder / "samples.jsonl", [sample(rollouts=[rollout], reflection=reflection, **texts)])
    said = texts | {"response": HOSTILE, "extracted": HOSTILE, "images": [HOSTILE]}
    write_lines(folder / "held_out.jsonl", [answer(step, 1, correct=step == 1, **said) for step in (0, 1)])
    write_lines(
        folder / "metrics.jsonl",
        [{"step": 1, f"eval/accuracy/{HOSTILE}": 0.5, "eval/accuracy/mean": 0.5, "eval/newly_right": 1}],
    )
    (folder / "manifest.json").write_text(json.dumps({"stage": "train", "device": HOSTILE, HOSTILE: 1}))
    (folder / "config.json").write_text(json.dumps({"train": {"steps": 9}, HOSTILE: HOSTILE}))
    page = Page([folder], tmp_path / "report.html")
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}, {}, {}]
    assert not [tag for tag, _ in page.elements if tag == "img"]
    (shown,) = page.data["samples"]
    assert shown["rollouts"][0]["text"] == HOSTILE
    assert shown["reflection"] == reflection
    (changed,) = page.data["answers"]
    assert (changed["images"], changed["answers"][1]["response"]) == ([], HOSTILE)
    # All that is left of it as text: the skill in the table, twice each in manifest and config.
    assert page.text.count(HOSTILE) == 5


def test_page_calls_no_other_host_and_runs_only_its_own_scripts(tmp_path):
    """Catches a page that needs the network, and an image of a sample that would be fetched on opening."""
    folder = train_run(tmp_path / "rl")
    write_lines(
        folder / "samples.jsonl", [sample(images=["https://example.org/a.png", PIXEL, "data:text/html;base64,"])]
    )
    page = Page([folder], tmp_path / "report.html")
    assert page.data["samples"][0]["images"] == [PIXEL]
    assert not [attributes for _, attributes in page.elements if {"src", "href"} & attributes.keys()]
    assert re.findall(r"https?://[^\"'\s]+", page.html) == ["http://www.w3.org/2000/svg"]
    assert "@import" not in page.html
    assert "url(" not in page.html
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", policy)) == 3


def test_mechanism_points_follow_the_theory():
    """Catches anchor and negatives exchanged, repaired groups counted in, and means over groups of other sizes."""
    events = [
        event(num_negatives=4, advantages_raw=[2.0, -0.5, -0.5, -0.5, -0.5]),
        event(num_negatives=4, advantages_raw=[1.8, -0.2, -0.6, -0.6, -0.4], reflected=1, reflection_correct=False),
        event(num_negatives=1, advantages_raw=[1.0, -1.0]),
        event(num_negatives=1, advantages_raw=[9.0, -9.0], reflected=1, reflection_correct=True),
        event("ALL_WRONG", num_negatives=1, advantages_raw=[9.0, -9.0]),
        event("ALL_CORRECT", anchor=None, num_negatives=0, advantages_raw=[]),
        event(anchor=None, num_negatives=2, advantages_raw=[9.0, 9.0, 9.0]),
        event(num_negatives=1, advantages_raw=[None, -9.0]),
    ]
    points = {(point["role"], point["num_negatives"]): point for point in run_data.mechanism(events)}
    assert sorted(points) == [("anchor", 1), ("anchor", 4), ("negative", 1), ("negative", 4)]
    assert points["anchor", 4]["mean"] == pytest.approx(1.9)
    assert points["negative", 4]["mean"] == pytest.approx((4 * -0.5 - 1.8) / 8)
    assert points["negative", 4]["values"] == [(-0.6, 2), (-0.5, 4), (-0.4, 1), (-0.2, 1)]
    assert [points[key]["theory"] for key in sorted(points)] == [1.0, 2.0, -1.0, -0.5]
    assert [points[key]["count"] for key in sorted(points)] == [1, 2, 1, 2]


def test_charts_draw_what_was_logged(tmp_path):
    """Catches a line with another metric's values, K' = 10 before 2, and pictures without data."""
    run = run_data.load_run(train_run(tmp_path / "rl"), "rl")
    grids = {one["id"]: {chart["title"]: chart for chart in one["charts"]} for one in sections([run])}
    assert grids["cold_start"] == {}
    grids["train"] |= grids["first"]
    (loss,) = grids["train"]["Policy loss"]["lines"]
    assert loss["x"] == [1, 2, 3]
    assert loss["y"] == pytest.approx([0.1, 0.2, 0.3])
    negatives = grids["train"]["Hard negatives in a subgroup, K′"]  # noqa: RUF001 (the page's own text)
    assert negatives["kind"] == "stack"
    assert [line["label"] for line in negatives["lines"]] == [f"K′ = {count}" for count in range(11)]  # noqa: RUF001
    skills = grids["first"]["Held-out accuracy"]["lines"]
    assert [(line["label"], line["x"], line["y"]) for line in skills] == [
        ("bars", [0, 3], [0.5, 0.7]),
        ("count", [0, 3], [0.3, 0.9]),
        ("mean", [0, 3], [0.4, 0.8]),
    ]
    assert "Entropy" not in grids["train"]


def test_runs_of_one_stage_share_a_picture(tmp_path):
    """Catches two runs that cannot be told apart, and a comparison that hides which setting differs."""
    page = Page([train_run(tmp_path / "care"), train_run(tmp_path / "grpo", final=0.6)], tmp_path / "report.html")
    assert chart_titles(page.data, "first") == [
        "Held-out: mean over skills", "Reward", "What the groups came to · care", "What the groups came to · grpo"
    ]  # fmt: skip
    assert chart_titles(page.data, "skills") == [
        "Held-out: count", "Held-out: bars", "Held-out accuracy · care", "Held-out accuracy · grpo"
    ]  # fmt: skip
    (charts,) = [one["charts"] for one in page.data["sections"] if one["id"] == "skills"]
    assert [(line["label"], line["y"][-1]) for line in charts[0]["lines"]] == [("care", 0.9), ("grpo", 0.6)]
    assert charts[2]["axes"] == charts[3]["axes"] != charts[0]["axes"]
    assert chart_titles(page.data, "train").count("Policy loss") == 1
    assert "Settings that differ 1 care grpo objective.kl_coef 0.9 0.6" in page.text


def test_folders_of_one_name_are_told_apart(tmp_path):
    """Catches two lines under the same name: seeds are often folders a/rl and b/rl."""
    folders = []
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        folders.append(train_run(tmp_path / parent / "rl"))
    page = Page(folders, tmp_path / "report.html")
    assert "a/rl · b/rl" in page.text
    assert "rl (1) · rl (2)" in Page([folders[0], folders[0]], tmp_path / "report.html").text


def test_a_run_in_progress_is_shown_as_far_as_it_goes(tmp_path):
    """Catches a page that cannot be made while the run writes: no files, empty files, a torn last line."""
    folder = tmp_path / "rl"
    folder.mkdir()
    page = Page([folder], tmp_path / "report.html")
    for name in ("config.json", "manifest.json", "metrics.jsonl", "events.jsonl", "samples.jsonl", "held_out.jsonl"):
        assert f"rl no {name}" in page.text
    assert "No held-out evaluation yet" in page.text

    (folder / "config.json").write_text(json.dumps({"train": {"steps": 10}}))
    (folder / "events.jsonl").write_text("")
    write_lines(folder / "samples.jsonl", [], torn='{"step": 1, "ima')
    write_lines(folder / "metrics.jsonl", [{"step": 4, "reward/mean": 0.5, "kl": None}], torn='{"step": 5, "rew')
    page = Page([folder], tmp_path / "report.html")
    assert "rl in progress or stopped early: step 4 of 10" in page.text
    assert "rl metrics.jsonl: 1 line(s) not whole, left out" in page.text
    assert "rl events.jsonl is empty so far" in page.text
    assert "rl samples.jsonl: 1 line(s) not whole, left out" in page.text
    assert chart_titles(page.data, "first") == ["Reward"]
    assert page.data["samples"] == []


def test_a_step_written_twice_counts_once(tmp_path):
    """Catches a curve with two points at step 0, where a run was started again before its first checkpoint."""
    folder = tmp_path / "cold"
    folder.mkdir()
    write_lines(
        folder / "metrics.jsonl", [{"step": 0, "loss": 9.0}, {"step": 1, "loss": 5.0}, {"step": 0, "loss": 8.0}]
    )
    run = run_data.load_run(folder, "cold")
    assert run.stage == "cold_start"
    assert dict(run.metrics) == {0: {"loss": 8.0}, 1: {"loss": 5.0}}


def test_a_long_run_is_thinned_and_says_so(tmp_path, monkeypatch):
    """Catches a page of a gigabyte, and thinning that loses a curve's last point."""
    folder = train_run(tmp_path / "rl")
    monkeypatch.setattr(run_data, "MAX_SAMPLES", 3)
    write_lines(folder / "samples.jsonl", [sample(step) for step in range(10)])
    write_lines(folder / "metrics.jsonl", [{"step": step, "reward/mean": step / 4001} for step in range(4001)])
    run = run_data.load_run(folder, "rl")
    assert [group["step"] for group in run.samples] == [0, 4, 8]
    assert "1 in 4 of 10 sample groups is shown; all are in samples.jsonl" in run.notices
    (grid,) = [one["charts"] for one in sections([run]) if one["id"] == "first"]
    (line,) = grid[0]["lines"]
    assert len(line["x"]) <= 1501
    assert (line["x"][0], line["x"][-1]) == (0, 4000)
    assert math.isclose(line["y"][-1], 4000 / 4001, rel_tol=1e-4)


def test_thinning_keeps_whole_steps(tmp_path, monkeypatch):
    """Catches all-wrong groups that are all left out, since each step has one behind another group."""
    folder = train_run(tmp_path / "rl")
    monkeypatch.setattr(run_data, "MAX_SAMPLES", 4)
    groups = [sample(step, outcome=outcome) for step in range(4) for outcome in ("MIXED", "ALL_WRONG")]
    write_lines(folder / "samples.jsonl", groups)
    shown = [(group["step"], group["outcome"]) for group in run_data.load_run(folder, "rl").samples]
    assert shown == [(0, "MIXED"), (0, "ALL_WRONG"), (2, "MIXED"), (2, "ALL_WRONG")]


SHAPES = [
    (
        "metrics.jsonl",
        [None, [], 7, "x", {}, {"loss": 1.0}, {"step": None}, {"step": "1"}, {"step": 1.5}, {"step": -1}],
    ),
    (
        "metrics.jsonl",
        [{"step": True}, {"step": 1, "loss": "0.5"}, {"step": 1, "loss": True}, {"step": 1, "loss": [1]}],
    ),
    ("metrics.jsonl", [{"step": 1, "loss": math.inf}, {"step": 1, "loss": 10**400}, {"step": 2**60, "loss": 1.0}]),
    ("events.jsonl", [None, [event()], {}, event(outcome="MIX"), event(outcome=None), event(num_negatives="2")]),
    ("events.jsonl", [event(advantages_raw=None), event(advantages_raw=["1"]), event(anchor=[0]), event(step=-1)]),
    (
        "events.jsonl",
        [event(num_negatives=-1), event(reflected="1"), event(reflection_correct=1), event(anchor=math.nan)],
    ),
    ("samples.jsonl", [None, "x", {}, sample(images=[1]), sample(images=PIXEL), sample(rollouts={}), sample(prompt=7)]),
    (
        "held_out.jsonl",
        [None, [], {}, answer(-1, 1, correct=True), answer(0, 1, correct=1), answer(0, "1", correct=True)],
    ),
    ("samples.jsonl", [sample(rollouts=[None]), sample(reflection=[]), sample(reflection={}), sample(step="1")]),
]


@pytest.mark.parametrize(("name", "lines"), SHAPES)
def test_lines_of_another_shape_are_left_out_and_counted_in_one_line(tmp_path, name, lines):
    """Catches a traceback for a line that is JSON and yet no line of a run, or one that is drawn as something else."""
    folder = train_run(tmp_path / "rl")
    sound = Page([folder], tmp_path / "report.html").data
    with (folder / name).open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines) + "{\n" + "[" * 100_000 + "\n\xff\n")
    page = Page([folder], tmp_path / "report.html")
    assert page.data == sound
    wanted = f"{name}: 3 line(s) not whole and {len(lines)} line(s) of another shape than a run's, left out"
    assert page.text.count("left out") == page.text.count(wanted) == 1


OTHER_FILES = [
    b"",
    b"null",
    b"[]",
    b"7",
    b'"x"',
    b"true",
    b"NaN",
    b"{",
    b"\0" * 9,
    b"\xff\xfe",
    b"[" * 100_000,
    b"9" * 5000,
]
OTHER_FILES += [b'{"train": null}', b'{"train": {"steps": "9"}, "stage": []}', b'{"a":' * 500 + b"1" + b"}" * 500]


@pytest.mark.parametrize("data", OTHER_FILES)
@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_files_of_another_shape_are_left_out_with_a_word(tmp_path, name, data):
    """Catches a traceback for a config or a manifest that is not an object, or whose values have other types."""
    folder = train_run(tmp_path / "rl")
    (folder / name).write_bytes(data)
    page = Page([folder], tmp_path / "report.html")
    assert chart_titles(page.data, "train").count("Policy loss") == 1
    (run,) = [run_data.load_run(folder, "rl")]
    assert run.stage == "train"
    assert [notice for notice in run.notices if name in notice] or data.startswith(b'{"train"')


@pytest.mark.parametrize(
    "name", ["config.json", "manifest.json", "metrics.jsonl", "events.jsonl", "samples.jsonl", "held_out.jsonl"]
)
def test_what_is_no_file_is_not_opened(tmp_path, name):
    """Catches a page that waits for a pipe to be written, and a traceback for a folder in a file's place."""
    folder = train_run(tmp_path / "rl")
    for make in (os.mkfifo, os.mkdir):
        (folder / name).unlink() if (folder / name).is_file() else None
        make(folder / name)
        assert f"rl {name} is not a file" in Page([folder], tmp_path / "report.html").text
        os.rename(folder / name, tmp_path / make.__name__)


def test_what_is_invisible_is_shown(tmp_path):
    """Catches control characters, marks that turn text round and lone surrogates on the page, or in place of one."""
    hidden = "\x1b[2J\u202e\0\ud800\u200b"
    folder = train_run(tmp_path / f"rl{hidden[:-3]}")
    write_lines(folder / "samples.jsonl", [sample(prompt=f"a\tb\n{hidden}", source=hidden)])
    write_lines(folder / "metrics.jsonl", [{"step": 1, f"eval/accuracy/{hidden}": 0.5, "eval/accuracy/mean": 0.5}])
    (folder / "manifest.json").write_text(json.dumps({"stage": "train", "device": hidden, hidden: 1}))
    (folder / "config.json").write_text(json.dumps({"train": {"steps": 9}, hidden: hidden}))
    page = Page([folder], tmp_path / "report.html")
    assert not [c for c in page.html if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]
    assert page.data["samples"][0]["prompt"] == "a\tb\n\\x1b[2J\\u202e\\x00\\ud800\\u200b"
    assert page.text.count("\\x1b[2J\\u202e") >= 5


@pytest.mark.parametrize("workdirs", [[], ["missing"], ["a_file"], ["no_run"]])
def test_bad_folders_leave_no_page(tmp_path, workdirs):
    """Catches a traceback or an empty page for a mistyped folder."""
    (tmp_path / "a_file").write_text("")
    (tmp_path / "no_run").mkdir()
    (tmp_path / "no_run" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"--workdir=.*metrics\.jsonl"):
        report.write_report([tmp_path / name for name in workdirs], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_refused(tmp_path):
    """Catches a traceback for an --out that is a folder, or lies below a file."""
    folder = train_run(tmp_path / "rl")
    for out in (tmp_path, folder / "config.json" / "report.html"):
        with pytest.raises(InputError, match="--out="):
            report.write_report([folder], out)


def test_command_line_writes_the_page_and_names_a_bad_folder(tmp_path):
    """Catches flags that collide or are lost, a wrong exit code, and a jax import that makes the page slow."""
    command = [sys.executable, "-X", "importtime", "-m", "care_jax.report", f"--out={tmp_path / 'page.html'}"]
    folders = [cold_start_run(tmp_path / "cold"), train_run(tmp_path / "rl")]
    done = subprocess.run([*command, *(f"--workdir={folder}" for folder in folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<title>CARE run: cold · rl</title>" in (tmp_path / "page.html").read_text()
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "care_jax.page.run_data" in imported
    assert not imported & {"jax", "torch", "tensorboardX"}
    failed = subprocess.run([*command, f"--workdir={tmp_path / 'none'}"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert "is not a folder; give a run folder, which holds metrics.jsonl" in failed.stderr.splitlines()[-1]
