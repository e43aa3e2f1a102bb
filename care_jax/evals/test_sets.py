"""The benchmarks: which there are, their items and figures, and the table with the paper's average.

Each is prepared in a folder of its name under config.eval.benchmarks:

    python -m care_jax.data.prepare --source=mathvista --root=MathVista --out=data/benchmarks/mathvista

A model's answers go to WORKDIR/benchmarks/NAME/responses.jsonl as they come (responses.py). Beside it, items.jsonl
has a `JudgedItem` a line, with its score under lmms-eval's rules; responses from a file leave one too.
WORKDIR/benchmarks/results.json and results.md hold the figures of every benchmark scored so far.

The paper's macro average is over the six that PAPER names (docs/method.md section 7: the six figures it gives for CARE
on Qwen2.5-VL-7B have that mean). The paper does not say which parser it scored with, nor what is assumed here:
MathVerse is the mean of its five versions with a picture, MMMU its validation split, MMMU-Pro standard the form with
ten options.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from care_jax import files
from care_jax.data.array_records import StoredRecords, open_folder
from care_jax.data.statistics import REPORT_FILE
from care_jax.errors import InputError, printable, shown
from care_jax.evals import lmms_eval
from care_jax.evals.judged_items import JudgedItem, judge_items, mean, mean_by_source
from care_jax.evals.responses import SETTINGS_FILE, Responses
from care_jax.parallel.processes import is_first
from care_jax.rewards.judge import Verifier
from care_jax.rewards.response_format import ResponseFormat


class Benchmark(NamedTuple):
    """One benchmark, which has the name of its reader."""

    title: str
    split: str  # as the reader names it
    num_items: int  # published


BENCHMARKS = {
    "mathvista": Benchmark("MathVista testmini", "testmini", 1000),
    "mathverse": Benchmark("MathVerse testmini, mean of five versions", "testmini", 3940),
    "mathvision": Benchmark("MATH-Vision test", "test", 3040),
    "mmmu": Benchmark("MMMU val", "validation", 900),
    "mmmu_pro_standard": Benchmark("MMMU-Pro standard, 10 options", "test", 1730),
    "mmmu_pro_vision": Benchmark("MMMU-Pro vision", "test", 1730),
    "chartqa": Benchmark("ChartQA test, mean of both halves", "test", 2500),
    "geometry3k": Benchmark("Geometry3K test", "test", 601),
}
PAPER = ("mathvista", "mathverse", "mathvision", "mmmu", "mmmu_pro_standard", "mmmu_pro_vision")

ITEMS_FILE = "items.jsonl"
RESULTS_FILE = "results.json"
TABLE_FILE = "results.md"
_JUDGED_AT_ONCE = 512  # items, whose pictures are then in memory
_RATES = ("accuracy", "pass_at_k", "unparsed_rate", "lmms_eval_accuracy")
_NOTES = """
accuracy: by this project's verifiers, one for each kind of answer; a question without a response counts as wrong. With
several samples a question, their mean; pass@k: any of them is right. unparsed: no response, or one in which no answer
of the question's kind could be read. lmms-eval rules: the same responses under the rules of
care_jax/evals/lmms_eval.py.
"""


def open_benchmarks(root: Path, names: Sequence[str]) -> dict[str, StoredRecords]:
    """The prepared records of benchmarks.

    Raises:
        InputError: unknown names, or folders that are missing or hold another set or split; all are listed.
    """
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise InputError(f"no benchmark {', '.join(unknown)}; choose one of {', '.join(BENCHMARKS)}, or all")
    problems = {name: problem for name in names if (problem := _problem(root / name, name))}
    if problems:
        name = next(iter(problems))
        split = f" --split={BENCHMARKS[name].split}"
        raise InputError(
            f"{'; '.join(problems.values())}; prepare each: python -m care_jax.data.prepare --source={name}{split} "
            f"--root=DOWNLOADED --out={root / name}, or name another folder with --config.eval.benchmarks"
        )
    return {name: open_folder(root / name) for name in names}


def prepared_crc32(root: Path, name: str) -> str:
    """The checksum of the files that a benchmark was prepared from."""
    return _settings(root / name)["crc32"]


def score(
    folder: Path,
    name: str,
    source: StoredRecords,
    responses: Responses,
    verifier: Verifier,
    response_format: ResponseFormat,
) -> dict[str, Any]:
    """Judges the responses to a benchmark, writes items.jsonl to `folder`, and returns the figures.

    Processes that are given the same responses divide the checks among themselves, and the first writes.

    Raises:
        InputError: no question has a response.
    """
    if not any(responses.values()):
        raise InputError(
            f"no question of {name} has a response: every prompt is longer than the largest of data.prompt_buckets or "
            "data.patch_buckets, or the file holds no texts"
        )
    items: list[JudgedItem] = []
    for start in range(0, len(source), _JUDGED_AT_ONCE):
        records = [source[index] for index in range(start, min(start + _JUDGED_AT_ONCE, len(source)))]
        answered = [(record, responses.get(record.id, [])) for record in records]
        judged = judge_items(verifier, answered, response_format)
        scores = iter(lmms_eval.score(verifier, [(record, text) for record, texts in answered for text in texts]))
        for item in judged:
            item["lmms_eval"] = [next(scores) for _ in item["responses"]]
        items += judged
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / ITEMS_FILE, "".join(json.dumps(item) + "\n" for item in items))
    return summarise(name, items)


def summarise(name: str, items: Sequence[JudgedItem]) -> dict[str, Any]:
    """The figures of a benchmark: means over the items of each source, and then over the sources."""
    by_source = mean_by_source(items, lambda item: mean(item["correct"]))
    figures: dict[str, Any] = {
        "items": len(items),
        "published_items": BENCHMARKS[name].num_items,
        "unanswered": sum(not item["responses"] for item in items),
        "samples": max(len(item["responses"]) for item in items),
        "accuracy": mean(by_source.values()),
        "unparsed_rate": 1.0 - mean(mean_by_source(items, lambda item: mean(item["parsed"])).values()),
        "format_rate": mean(mean_by_source(items, lambda item: mean(item["format_ok"])).values()),
        "lmms_eval_accuracy": mean(mean_by_source(items, lambda item: mean(item["lmms_eval"])).values()),
    }
    if figures["samples"] > 1:
        figures["pass_at_k"] = mean(mean_by_source(items, lambda item: any(item["correct"])).values())
    if len(by_source) > 1:
        figures["accuracy_by_source"] = by_source
    return figures


def require_one_model(folder: Path, name: str, path: Path, model: str | None) -> None:
    """Compares a file of responses with those that results.json in `folder` has figures of.

    Args:
        folder: has the figures so far, or nothing.
        name: the benchmark that the file answers.
        path: the file.
        model: the model that the file names, if it does.

    Raises:
        InputError: figures of this benchmark are from another file, or any are of another model.
    """
    remedy = f"give each model a --workdir of its own, or move {folder} away"
    for other, figures in _read_figures(folder / RESULTS_FILE).items():
        file, named = figures.get("responses"), figures.get("model")
        if other == name and isinstance(file, str) and Path(file).absolute() != path.absolute():
            raise InputError(f"{folder} has {name} from {shown(file, 300)}, not from {shown(str(path), 300)}; {remedy}")
        if model and named and named != model:
            raise InputError(f"{folder} has responses of the model {shown(named)}, {path} of {shown(model)}; {remedy}")


def write_results(folder: Path, figures: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Adds the figures of benchmarks to results.json and results.md in `folder`; returns what the first then holds.

    `folder` has the settings that all its answers were given with (`responses.check_settings`).
    """
    path = folder / RESULTS_FILE
    known = {**_read_figures(path), **figures}
    ordered = {name: known[name] for name in BENCHMARKS if name in known}
    settings = files.read_object(folder / SETTINGS_FILE, remedy=f"move {folder} away to ask anew")
    results = {"settings": settings, "benchmarks": ordered, "macro_average": _macro_average(ordered)}
    files.write_text(folder / RESULTS_FILE, json.dumps(results, indent=1) + "\n")
    files.write_text(folder / TABLE_FILE, table(results))
    return results


def _read_figures(path: Path) -> dict[str, dict[str, Any]]:
    """The figures of the benchmarks that are in results.json already.

    Raises:
        InputError: the file holds something else.
    """
    if not path.is_file():
        return {}
    remedy = "remove it, and score its benchmarks again"
    found = files.read_object(path, remedy=remedy).get("benchmarks")
    if not isinstance(found, dict) or not all(map(_are_figures, found.values())):
        raise InputError(f"{path} does not hold the figures of benchmarks; {remedy}")
    return found


def _are_figures(found: Any) -> bool:
    numbers = {"items", "published_items", "unanswered", *_RATES} - {"pass_at_k"}
    return isinstance(found, dict) and all(isinstance(found.get(name), int | float) for name in numbers)


def table(results: Mapping[str, Any]) -> str:
    """The figures as a Markdown table, in per cent."""
    paths = {figures["responses"] for figures in results["benchmarks"].values() if "responses" in figures}
    names = collections.Counter(Path(str(path)).name for path in paths)
    rows = [
        f"| {_title(name, figures, names)} | {_count(figures)} | {_percentages(figures)} |"
        for name, figures in results["benchmarks"].items()
    ]
    average = results["macro_average"]
    title = "**mean of the paper's six**"
    missing = f" (missing: {', '.join(average['missing'])})" if average["missing"] else ""
    return "\n".join(
        [
            f"Answers {printable(str(results['settings'].get('answers')))}.",
            *([f"The rows name {len(paths)} files; they must be one model's."] if len(paths) > 1 else []),
            "",
            "| benchmark | items | accuracy | pass@k | unparsed | lmms-eval rules |",
            "|---|---:|---:|---:|---:|---:|",
            *rows,
            f"| {title}{missing} | | {_percentages(average)} |",
            _NOTES,
        ]
    )


def _title(name: str, figures: Mapping[str, Any], names: Mapping[str, int]) -> str:
    """The benchmark, and the file that its responses came from, by its path if several files have its name."""
    if "responses" not in figures:
        return BENCHMARKS[name].title
    path = Path(str(figures["responses"]))
    file = path.name if names[path.name] == 1 else str(path)
    return f"{BENCHMARKS[name].title} ({printable(file.replace('|', '/'))})"


def _macro_average(figures: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over the paper's six benchmarks, of the rates that all six have."""
    missing = [name for name in PAPER if name not in figures]
    average = {
        rate: mean(figures[name][rate] for name in PAPER)
        for rate in _RATES
        if not missing and all(rate in figures[name] for name in PAPER)
    }
    return {"over": list(PAPER), "missing": missing, **average}


def _count(figures: Mapping[str, Any]) -> str:
    """The items, how many were published, and how many have no response."""
    count = f"{figures['items']} of {figures['published_items']}"
    return count + (f", {figures['unanswered']} unanswered" if figures["unanswered"] else "")


def _percentages(figures: Mapping[str, Any]) -> str:
    return " | ".join(f"{100 * figures[rate]:.2f}" if rate in figures else "" for rate in _RATES)


def _problem(folder: Path, name: str) -> str | None:
    """The reason why a folder does not hold a benchmark, or None if it does."""
    wanted = {"source": name, "split": BENCHMARKS[name].split}
    if not (folder / REPORT_FILE).is_file():
        return f"{folder} is missing"
    settings = _settings(folder)
    if any(settings[key] != value for key, value in wanted.items()):
        return f"{folder} holds {settings['source']} {settings['split']}, not {name} {wanted['split']}"
    return None


def _settings(folder: Path) -> dict[str, Any]:
    """The settings that a folder was prepared with. Raises InputError if its report does not say."""
    path, remedy = folder / REPORT_FILE, "prepare the folder again"
    found = files.read_object(path, remedy=remedy).get("settings")
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("source", "split", "crc32")):
        raise InputError(f"{path} does not say what the folder was prepared from; {remedy}")
    return found
