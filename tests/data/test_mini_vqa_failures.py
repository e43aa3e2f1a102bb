"""The skills of mini_vqa where failures rule: gold against pixels and tables, and no answer that gives itself away."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
import pytest
from sklearn.datasets import load_digits

from care_jax import config, options
from care_jax.configs import failures, study
from care_jax.data.mini_vqa import chart_tables, questions
from care_jax.data.mini_vqa.difficulty import Difficulty
from care_jax.data.mini_vqa.questions import generate
from care_jax.inputs.processor import make_processor
from care_jax.inputs.prompts import measure_prompt
from care_jax.inputs.responses import whole_trace
from care_jax.rewards.verifiers import verify_answer
from care_jax.structs import Record
from tests.drawn import count_letters, pixels_of, read_angles, read_digits, read_two_series

SKILLS = ("columns", "options", "series", "triangles")
LEVELS = 21  # of the charts
SEPARATORS = re.compile("[=:;]")


def difficulty(**knobs: Any) -> Difficulty:
    """The config's defaults with other values of some knobs."""
    return Difficulty(**{**config.base().data.mini_vqa, "num_levels": LEVELS, "num_digits": 5, **knobs})


@functools.cache
def records(skill: str, split: str) -> list[Record]:
    """1,500 records of a skill, half as many held-out ones."""
    return list(generate(split, difficulty(skills=(skill,), num_train=1500, num_heldout=750)))


def both(skill: str) -> list[Record]:
    """The records of both splits."""
    return records(skill, "train") + records(skill, "heldout")


def result_of(record: Record, text: str) -> str:
    """The result of a rationale: its last number, or a sum that columns put together."""
    last = SEPARATORS.split(text)[-1]
    if record.source != "columns":
        return last
    ones, tens = re.findall(r":(\d),\d+;", text)
    return str(int(last + tens + ones))


def test_every_skill_is_drawn_and_the_first_are_as_before() -> None:
    """Catches a skill that a config may name and nothing draws, and a default task that is no longer what it was."""
    assert tuple(questions._SKILLS) == options.EVERY_SKILL
    assert config.base().data.mini_vqa.skills == options.SKILLS == ("digits", "chart", "geometry")
    made = hashlib.sha256()
    for knobs in ({}, {"num_digits": 6, "min_bars": 5, "num_levels": 21, "angle_step": 1, "seed": 3}):
        defaults = dict(config.base().data.mini_vqa)
        for split in questions.SPLITS:
            for record in generate(split, Difficulty(**{**defaults, "num_train": 300, "num_heldout": 90, **knobs})):
                made.update(repr(dataclasses.replace(record, images=())).encode())
    assert made.hexdigest()[:16] == "7c9fbcfb04891f42"


@pytest.mark.parametrize("skill", SKILLS)
def test_rows_are_right_and_drafts_are_wrong(skill: str) -> None:
    """Catches a gold that its verifier refuses, a rationale that leads elsewhere, and a right draft."""
    drafts = [record.draft for record in records(skill, "train") if record.draft]
    assert 0.2 < len(drafts) / 1500 < 0.3
    assert not any(record.draft for record in records(skill, "heldout"))
    for record in both(skill):
        assert (record.source, len(record.images)) == (skill, record.prompt.count("<image>"))
        verdict = verify_answer(record.answer_kind, record.answer, record.answer, record.choices, 0.0)
        assert verdict.correct
        result = result_of(record, record.rationale)
        if record.choices is None:
            assert result == record.answer
        else:
            assert dict(re.findall(r"([A-L])(\d+)", record.prompt))[record.answer] == result
            assert not verify_answer("choice", result, record.answer, record.choices, 0.0).correct
        if record.draft:
            assert result_of(record, record.draft) != result
            assert re.sub(r"[\d+=A-L]+", "", record.draft) == re.sub(r"[\d+=A-L]+", "", record.rationale)
            assert not re.search("[=:]-", record.draft)


@pytest.mark.parametrize("skill", ["columns", "options"])
def test_scans_are_those_of_the_answer(skill: str) -> None:
    """Catches a wrong label, cells in another order than they are read, another sum, and a scan of both splits."""
    scans, labels = load_digits(return_X_y=True)
    seen: tuple[set[int], set[int]] = (set(), set())
    for split, found in zip(questions.SPLITS, seen, strict=True):
        for record in records(skill, split):
            indices = [int(scan) for scan in re.findall(r"s(\d+)", record.id)]
            found.update(indices)
            digits = [int(labels[i]) for i in indices]
            if skill == "columns":
                rows = [int("".join(map(str, digits[i : i + 3]))) for i in (0, 3, 6)]
                assert int(record.answer) == sum(rows)
                assert [int(row) for row in record.rationale.split(";")[0].split()] == rows
                assert all(sum(int(n) for n in part) == int(last) for part, last in additions(record.rationale))
            else:
                assert f"{record.answer}{sum(digits)}" in record.prompt.split()
                assert record.rationale.split("+")[0] == str(digits[0])
            if split == "heldout":
                assert min(read_digits(pixels_of(record.images[0]), scans[indices])) > 0.97
    assert not seen[0] & seen[1]
    assert len(seen[0]) > 1290
    assert len(seen[1]) > 450


def additions(rationale: str) -> list[tuple[list[str], str]]:
    """The steps of running sums: of 1+3=4+9=13 ([1, 3], 4) and ([4, 9], 13)."""
    steps = []
    for line in rationale.split(";")[1:]:
        parts = line.partition(":")[0].split("=")
        sums = [parts[0], *parts[1:-1]]
        totals = [part.partition("+")[0] for part in parts[1:]]
        steps += [(numbers.split("+"), total) for numbers, total in zip(sums, totals, strict=True)]
    return steps


def test_a_long_rationale_does_not_end_with_the_answer() -> None:
    """Catches an answer that stands at the end of the rationale, or anywhere in it, and short rationales."""
    rows = both("columns")
    last = [re.findall(r"\d+", record.rationale)[-1] for record in rows]
    answers = [record.answer for record in rows]
    by_chance = max(collections.Counter(answers).values())
    assert sum(map(str.__eq__, answers, last)) <= by_chance
    copied = [record.answer for record in rows if record.answer in re.findall(r"\d+", record.rationale)]
    assert len(copied) <= by_chance
    assert len(set(answers)) > len(answers) / 3
    processor = make_processor(failures.get_config("columns/cold_start"))
    lengths = [len(processor.encode_text(record.rationale)) for record in rows]
    assert min(lengths) >= 60
    assert max(lengths) <= 70
    slips = collections.Counter()  # the first part in which a draft differs
    for record in rows:
        if record.draft:
            pairs = zip(record.draft.split(";"), record.rationale.split(";"), strict=True)
            slips[next(i for i, (wrong, right) in enumerate(pairs) if wrong != right)] += 1
    assert min(slips[part] for part in range(4)) > 20


def test_letters_are_no_hint() -> None:
    """Catches an answer that is more often one letter, or one place in the order of the numbers, and numbers twice."""
    letters, places = collections.Counter(), collections.Counter()
    rows = both("options")
    for record in rows:
        listed = re.findall(r"([A-L])(\d+)", record.prompt)
        assert "".join(letter for letter, _ in listed) == "ABCDEFGHIJKL"
        numbers = [int(number) for _, number in listed]
        assert sorted(numbers) == list(range(min(numbers), min(numbers) + 12))
        letters[record.answer] += 1
        gold = int(dict(listed)[record.answer])
        if gold > 11:  # there are no options below 0
            places[gold - min(numbers)] += 1
    for counts in (letters, places):
        expected = counts.total() / 12
        assert len(counts) == 12
        assert all(abs(count - expected) < 4.5 * math.sqrt(expected) for count in counts.values()), counts


def test_both_series_are_those_of_the_table() -> None:
    """Catches bars of another column, row or order than the table's, a wrong peak, and a row of both splits."""
    values = {series.key: series.values for series in chart_tables.load_series()}
    rows_of: tuple[dict, dict] = collections.defaultdict(set), collections.defaultdict(set)
    asked = collections.Counter()
    for split, seen in zip(questions.SPLITS, rows_of, strict=True):
        for record in records("series", split):
            _, *keys, question = record.id.split("/")
            pixels = pixels_of(record.images[0])
            count = count_letters(pixels)
            drawn = read_two_series(pixels, count, LEVELS)
            for key, levels in zip(keys, drawn, strict=True):
                name, _, window = key.rpartition(":")
                first, last = map(int, window.split("-"))
                seen[name] |= set(range(first, last + 1))
                table = [values[name][row] for row in np.linspace(first, last, count).astype(int)]
                for (a, x), (b, y) in itertools.combinations(zip(table, levels, strict=True), 2):
                    assert (a - b) * (x - y) >= 0
            dark, light = drawn
            assert dark.count(max(dark)) == 1
            top = dark.index(max(dark))
            asked[question] += 1
            assert record.prompt == f"<image>{question}?"
            expected = dark[top] + light[top] if question == "peak+" else abs(dark[top] - light[top])
            assert int(record.answer) == expected
            read = " ".join(f"{letter}{value:g}" for letter, value in zip("ABCDE", dark, strict=False))
            assert record.rationale.startswith(f"{read}:{'ABCDE'[top]}{light[top]:g}:")
    assert not [name for name in rows_of[0] if rows_of[0][name] & rows_of[1][name]]
    assert len(rows_of[0]) > 25
    assert min(asked["peak+"], asked["peak-"]) > 1000


def test_both_triangles_are_compared() -> None:
    """Catches an image that is left out or read in another order, a wrong difference, and a pair of both splits."""
    pairs: tuple[set, set] = (set(), set())
    for split, seen in zip(questions.SPLITS, pairs, strict=True):
        for number, record in enumerate(records("triangles", split)):
            _, *keys, question, _ = record.id.split("/")
            seen.update(frozenset(key.split("-")) for key in keys)
            if number >= 100:
                continue
            read = [read_angles(pixels_of(image)) for image in record.images]
            assert [sorted(angles) for angles in read] == [[int(a) for a in key.split("-")] for key in keys]
            results = [180 - sum(angles) if question == "third" else sum(angles) for angles in read]
            assert int(record.answer) == abs(results[0] - results[1])
            assert [record.rationale.split(" ")[i].partition("+")[0] for i in (0, 1)] == [str(a[0]) for a in read]
            assert record.rationale.endswith(f":{max(results)}-{min(results)}={record.answer}")
    assert not pairs[0] & pairs[1]
    assert len(pairs[1]) > 15


@pytest.mark.parametrize("task", failures.TASKS)
def test_every_row_fits_its_task(task: str) -> None:
    """Catches buckets and lengths that leave rows out, and ones that are larger than any row needs."""
    cold_start, training = (failures.get_config(f"{task}/{run}") for run in ("cold_start", "care@0.0001"))
    config.validate(cold_start, unused=("data.train",))
    config.validate(training, unused=("data.train",))
    processor, cue = make_processor(cold_start), cold_start.objective.reflect.cue
    longest = collections.Counter()
    for record in rows_of(cold_start):
        longest |= collections.Counter(trace=len(whole_trace(processor, record, cue=cue).token_ids))  # the larger
    for record in rows_of(training):
        size = measure_prompt(processor, record)
        alone = dataclasses.replace(record, draft=None)
        lengths = {"rationale": len(processor.encode_text(record.rationale))}
        lengths |= {"draft": len(processor.encode_text(record.draft or ""))}
        lengths |= {"answer": len(whole_trace(processor, alone, cue=cue).token_ids)}
        lengths |= {"prompt": size.num_tokens, "patches": size.num_patches}
        longest |= collections.Counter(lengths)
    (prompts,), (patches,) = cold_start.data.prompt_buckets, cold_start.data.patch_buckets
    assert prompts - 6 < longest["prompt"] <= prompts
    assert patches == longest["patches"]
    assert cold_start.rollout.response_len - 4 < longest["trace"] <= cold_start.rollout.response_len
    assert training.rollout.response_len - 10 < longest["answer"] <= training.rollout.response_len
    assert max(longest["rationale"], longest["draft"]) <= training.objective.reflect.max_rationale_len


def rows_of(c: ml_collections.ConfigDict) -> Iterator[Record]:
    """Some training rows of a config's data."""
    return itertools.islice(generate("train", Difficulty(**{**c.data.mini_vqa, "num_train": 40_000})), 1500)


def test_tasks_run_as_a_study() -> None:
    """Catches a task that the study's command does not plan, or that has another's data."""
    runs = {task: failures.get_config(f"{task}/{study.GRPO}@0.0001") for task in failures.TASKS}
    skills = [("digits" if task == "nine" else task,) for task in failures.TASKS]
    assert [c.data.mini_vqa.skills for c in runs.values()] == skills
    assert all(arm.tasks == tuple(failures.TASKS) for arm in failures.ARMS.values())
    with pytest.raises(ValueError, match="'columns/sft' is not a run of the study: give TASK/ARM, TASK one of nine"):
        failures.get_config("columns/sft")
