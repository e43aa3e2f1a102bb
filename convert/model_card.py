"""The model card of an export, its README.md: how the model was trained, in the hub's format.

It is made from what the run folder says, and from nothing else: what is not recorded there is left out. The licence is
the user's to choose.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from care_jax import config as config_lib
from care_jax import files
from care_jax.checkpoints.load import find_params, run_of
from care_jax.config_rules import RULES, type_problem
from care_jax.errors import InputError, one_line, printable, shown
from care_jax.method import objectives
from care_jax.page.run_files import read_lines, read_object
from care_jax.rewards.response_format import FORMATS
from care_jax.run.folder import CONFIG_FILE, MANIFEST_FILE, METRICS_FILE

CARD_FILE = "README.md"
_HUB_CACHE = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)")
_MOST_STAGES = 10  # runs that start from one another
_ACCURACY = "eval/accuracy/"


class _Stage(NamedTuple):
    """One run on the way to the model, as far as its folder says."""

    settings: Mapping[str, Any]  # by dotted key
    manifest: Mapping[str, Any]
    accuracy: Mapping[int, Mapping[str, float]]  # evaluations by step, each with all the scalars of its line
    step: int  # the last one that the model has seen

    @property
    def is_rl(self) -> bool:
        return self.manifest.get("stage") != "cold_start"


def write_card(new: Path, params: epath.Path, folder: Path) -> None:
    """Writes the card of an export, in place of its source's, which was copied and says nothing about this model.

    A model that is converted and not trained keeps its source's. Parameters that lie in no run folder get none.

    Args:
        new: the export.
        params: the parameters that were exported, as `find_params` names them.
        folder: the Hugging Face folder that the other files are from.
    """
    try:
        if stages := _stages(params):
            files.write_text(new / CARD_FILE, "\n".join(_lines(stages, params, folder)) + "\n")
        elif params.parent.name.isdecimal():
            raise InputError(f"{params} lies in no run folder, so nothing says how it was trained")
    except InputError as error:
        (new / CARD_FILE).unlink(missing_ok=True)
        print(f"note: the export has no model card: {error}", file=sys.stderr)


def _stages(params: epath.Path) -> list[_Stage]:
    """The runs that made the parameters, the first one first; none if they lie in no run folder."""
    found: list[_Stage] = []
    place: epath.Path | None = params
    while place is not None and len(found) < _MOST_STAGES and (stage := _read_stage(place)) is not None:
        found.insert(0, stage)
        place = _started_from(str(stage.settings["model.weights"]))
    return found


def _started_from(weights: str) -> epath.Path | None:
    """The newest parameters of what a run started from, if it is still there."""
    try:
        return None if weights == "random" else find_params(weights)
    except InputError:
        return None


def _read_stage(params: epath.Path) -> _Stage | None:
    """The run whose checkpoint the parameters are, or None.

    Raises:
        InputError: its config.json has a value that the setting does not allow.
    """
    found, notices = run_of(params), list[str]()
    if found is None or not (given := read_object(found[0] / CONFIG_FILE, notices)):
        return None
    workdir, last_step = found
    known = config_lib.flat(config_lib.base())
    try:
        settings = known | config_lib.flat(ConfigDict(given))
    except (TypeError, ValueError) as error:  # of a key that is none
        raise InputError(f"{workdir / CONFIG_FILE} is no config ({one_line(error)})") from error
    for key, default in known.items():
        value = tuple(settings[key]) if isinstance(settings[key], list) else settings[key]
        if key in ("data.train", "data.eval"):
            continue
        if problem := type_problem(value, default) or RULES.get(key, lambda _: "")(value):
            raise InputError(f"{workdir / CONFIG_FILE}: {key}={shown(value)}: {problem}")
    accuracy = {}
    for row in read_lines(workdir / METRICS_FILE, dict[str, float | None], notices, is_sound=lambda row: "step" in row):
        values = {key: value for key, value in row.items() if value is not None}
        if values.get("step", math.inf) <= last_step and f"{_ACCURACY}mean" in values:
            accuracy[int(values["step"])] = values
    return _Stage(settings, read_object(workdir / MANIFEST_FILE, notices), accuracy, last_step)


def _lines(stages: list[_Stage], params: epath.Path, folder: Path) -> Iterator[str]:
    last, base = stages[-1], Path(_hub_name(folder) or folder.absolute()).name
    yield from _front_matter(last, folder)
    yield from ("", f"# {_text(base)}, trained with care_jax", "")
    yield f"{_text(base)} after {' and then '.join(map(_way, stages))}."
    yield from ("", "## How it was trained", "")
    yield "| | " + " | ".join("RL" if stage.is_rl else "cold start" for stage in stages) + " |"
    yield "|---" * (len(stages) + 1) + "|"
    described = [_described(stage) for stage in stages]
    for name in dict.fromkeys(key for each in described for key in each):
        yield f"| {name} | " + " | ".join(_text(each.get(name, "")) for each in described) + " |"
    yield from ("", "## Held-out accuracy", "")
    yield from _accuracy_table(last)
    yield from _benchmarks(params)
    yield from ("", "## How it answers", "")
    yield from _format(last.settings)
    yield from ("", "## Versions", "")
    names = ("care_jax", "commit", "jax", "flax", "optax", "transformers", "device")
    yield ", ".join(f"{name} {_text(last.manifest[name])}" for name in names if name in last.manifest)
    yield from ("", "## Licence", "", "Not chosen yet: see those of the base model and of the data.")


def _front_matter(last: _Stage, folder: Path) -> Iterator[str]:
    yield "---"
    hub = _hub_name(folder)
    yield f"base_model: {hub}" if hub else "# base_model: OWNER/NAME"
    yield "# license: yours to choose, as those of the base model and of the data allow"
    yield "library_name: transformers"
    yield "pipeline_tag: image-text-to-text"
    yield from ("tags:", "- care_jax", *(["- reinforcement-learning"] if last.is_rl else []), "---")


def _hub_name(folder: Path) -> str:
    """OWNER/NAME if `folder` lies in the hub's cache; a name is not guessed from a folder elsewhere."""
    found = (_HUB_CACHE.fullmatch(part) for part in folder.absolute().parts)
    return next((f"{match['owner']}/{match['name']}" for match in found if match), "")


def _described(stage: _Stage) -> dict[str, str]:
    """The rows of a stage, by name."""
    values = stage.settings
    objective = "cross-entropy of rationale and answer"
    if stage.is_rl:
        preset, differing = _objective(values)
        objective = f"{preset}, with {', '.join(differing)}" if differing else preset
    rows = {
        "started from": _short(values["model.weights"]),
        "data": _shortened(values["data.train"]),
        "objective": objective,
        "steps": f"{stage.step:,} of {values['train.steps']:,}",
        "prompts a step": f"{values['train.prompts']:,}",
    }
    if stage.is_rl:
        rows["responses a prompt"] = f"{values['rollout.num_rollouts']}"
        rows["updates a step"] = f"{values['train.minibatches']}"
    if rank := values.get("model.lora.rank"):
        rows["trained"] = f"adapters of rank {rank} (LoRA)"
    elif groups := values.get("model.freeze"):
        rows["trained"] = f"all but {', '.join(groups)}"
    rows["learning rate"] = f"{values['optimizer.lr']:g}, {values['optimizer.schedule']}"
    rows["tokens of a response, at most"] = f"{values['rollout.response_len']:,}"
    rows["seed"] = f"{values['seed']}"
    return rows


def _way(stage: _Stage) -> str:
    """The kind of training of a stage, in a few words."""
    if not stage.is_rl:
        return "supervised training on rationales"
    preset, differing = _objective(stage.settings)
    return f"RL with {'a variant of ' if differing else ''}{preset}"


def _objective(settings: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The preset that the objective is nearest to, and each setting that differs from it."""
    prefix = "objective."
    ours = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    differing = {}
    for name, make in objectives.PRESETS.items():
        preset = json.loads(json.dumps(config_lib.flat(make())))
        differing[name] = [f"{key}={value}" for key, value in ours.items() if preset.get(key) != value]
    nearest = min(differing, key=lambda name: len(differing[name]))
    return nearest, differing[nearest]


def _accuracy_table(stage: _Stage) -> Iterator[str]:
    """Accuracy per source at the first and the newest evaluation, with the number of questions if it is recorded."""
    if not stage.accuracy:
        yield "Not evaluated."
        return
    steps = sorted({min(stage.accuracy), max(stage.accuracy)})
    columns = [(f"step {step}", _ACCURACY, stage.accuracy[step]) for step in steps]
    newest = stage.accuracy[steps[-1]]
    if f"eval_all/{_ACCURACY.partition('/')[2]}mean" in newest:
        columns.append((f"step {steps[-1]}, all questions", "eval_all/accuracy/", newest))
    yield "| | " + " | ".join(title for title, _, _ in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    sources = [key.removeprefix(_ACCURACY) for key in newest if key.startswith(_ACCURACY)]
    for source in sorted(sources, key=lambda source: (source == "mean", source)):
        cells = [_figure(values, prefix, source) for _, prefix, values in columns]
        yield f"| {_text(source)} | " + " | ".join(cells) + " |"
    if stage.settings["data.eval"]:
        yield from ("", f"Questions: {_text(_shortened(stage.settings['data.eval']))}.")


def _figure(values: Mapping[str, float], prefix: str, source: str) -> str:
    """An accuracy with half its 95 % interval and its number of questions, as far as they are recorded."""
    if f"{prefix}{source}" not in values:
        return ""
    group = prefix.partition("/")[0]
    interval, count = values.get(f"{group}/interval/{source}"), values.get(f"{group}/n/{source}")
    text = f"{values[f'{prefix}{source}']:.3f}"
    text += f" ± {interval:.3f}" if interval is not None else ""
    return text + (f" (n={count:.0f})" if count is not None else "")


def _benchmarks(params: epath.Path) -> Iterator[str]:
    """The table of `evaluate --benchmark`, if it asked this checkpoint."""
    folder = params.parent.parent.parent / "benchmarks"
    settings = read_object(folder / "results.json", []).get("settings")
    is_of_this = isinstance(settings, dict) and settings.get("answers") == f"of checkpoint {params.parent.name}"
    if is_of_this and (folder / "results.md").is_file():
        yield from ("", "## Benchmarks", "", (folder / "results.md").read_text().strip())


def _format(settings: Mapping[str, Any]) -> Iterator[str]:
    request = FORMATS[settings["data.response_format"]].request
    if settings["data.ask_for_format"]:
        yield from ("In training, this stood behind every question:", "")
        yield from (f"> {line}".rstrip() for line in request.split("\n"))
    else:
        yield f"In the form `{settings['data.response_format']}`, which nothing in the prompt asks for."
    sizes = f"{settings['data.min_image_tokens']} to {settings['data.max_image_tokens']:,} tokens an image"
    yield from ("", f"Prompts of at most {max(settings['data.prompt_buckets']):,} tokens, {sizes}.")


def _shortened(value: Any) -> str:
    """The path in data.train or data.eval, or the paths of a mixture with their weights."""
    if isinstance(value, str):
        return _short(value)
    return ", ".join(f"{_short(str(folder))} ({weight})" for folder, weight in value)  # config.py has checked it


def _short(path: str) -> str:
    """The last two parts of a path: the others say more about a machine than about the data."""
    return "/".join(Path(path).parts[-2:]) if path else ""


def _text(value: object) -> str:
    """Foreign text in a cell of a table, in which nothing acts as markup."""
    line = " ".join(printable(str(value)).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)
