"""Evaluates a run's newest checkpoint on the held-out data or on benchmarks, or scores given responses.

    python -m care_jax.evaluate --config=configs/F.py --workdir=DIR                     # the held-out data
    python -m care_jax.evaluate --config=configs/F.py --workdir=DIR --benchmark=NAME    # or all
    python -m care_jax.evaluate --config=configs/F.py --workdir=DIR --benchmark=NAME --responses=FILE

The first form writes DIR/eval_samples.jsonl (one line a record) and DIR/eval_results.json, and prints the results as
its last line. The second one writes DIR/benchmarks/ (evals/test_sets.py). The third one scores a file of responses, and
needs neither a model nor a device.
"""

from __future__ import annotations

from absl import flags

from care_jax import cli

if __name__ == "__main__":
    flags.DEFINE_string("benchmark", None, "A prepared benchmark by the name of its --source, or all.")
    flags.DEFINE_string("responses", None, "A file of JSON objects to score in place of a model.")
    flags.DEFINE_string("response_field", "response", "Where its objects have the response, or a list of several.")
    flags.DEFINE_string("id_field", "id", "Where its objects have the question's id, if they have one.")
    cli.read_first(with_run=True)  # the imports below take seconds

import functools
import hashlib
import json
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath
from jax.sharding import Mesh

from care_jax import config as config_lib
from care_jax import files
from care_jax.checkpoints.initial_state import initial_model, with_weights_of
from care_jax.checkpoints.load import find_params
from care_jax.data import loader
from care_jax.data.array_records import StoredRecords
from care_jax.data.loader import RecordSource
from care_jax.errors import InputError
from care_jax.evals import lmms_eval, test_sets
from care_jax.evals.evaluator import Evaluator
from care_jax.evals.judged_items import JudgedItem
from care_jax.evals.matching import Questions
from care_jax.evals.responses import Responses, answer_all, check_settings, model_named, read_responses
from care_jax.inputs.processor import Processor, make_processor
from care_jax.models import QwenVL
from care_jax.parallel.processes import by_first, is_first, require_same, together
from care_jax.rewards.judge import Verifier
from care_jax.rewards.response_format import ANY
from care_jax.run.compilation_cache import WarmUp, opened
from care_jax.run.compile_guard import CompileGuard
from care_jax.stages.compiled import compile_all
from care_jax.stages.model import make_mesh

_BATCHES_OF_A_BENCHMARK = 1 << 16  # more than any has
# The keys of config.data that a prompt depends on.
_PROMPT_KEYS = (
    "response_format",
    "ask_for_format",
    "thinking",
    "overlong",
    "prompt_buckets",
    "patch_buckets",
    "max_image_tokens",
    "min_image_tokens",
)


def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> dict[str, float]:
    """Evaluates the newest checkpoint of `workdir` on all held-out records; writes samples and results there.

    Returns:
        The figures of `Evaluator.run` and `Evaluator.majority`; without the latter if the training data cannot be
        opened here.

    Raises:
        InputError: a bad config, unusable data, or no checkpoint.
    """
    together(lambda: config_lib.validate(config))
    workdir = files.anywhere(workdir)
    require_same({"--workdir": str(workdir)} | config_lib.flat(config))

    def open_inputs() -> tuple[ml_collections.ConfigDict, Processor, RecordSource, Mesh]:
        resolved = with_weights_of(workdir, config)
        mesh = make_mesh(resolved, training=False)
        return resolved, make_processor(resolved), loader.open_source(resolved, "eval"), mesh

    config, processor, source, mesh = together(open_inputs)
    train = _training_data(config)
    items: list[JudgedItem] = []
    with CompileGuard() as guard, opened(workdir, guard) as warm_up, Verifier.from_config(config) as verifier:
        model, evaluator = _load(config, source, processor, verifier, mesh, warm_up)
        summary = evaluator.run(model, limit=0, whole=True, write=lambda _, item: items.append(item))
        summary |= evaluator.majority(train, limit=0) if train is not None else {}
    if is_first():
        files.write_text(workdir / "eval_samples.jsonl", "".join(json.dumps(item) + "\n" for item in items))
        files.write_text(workdir / "eval_results.json", json.dumps(summary, indent=1) + "\n")
    return summary


def run_benchmarks(config: ml_collections.ConfigDict, workdir: Path, names: Sequence[str]) -> dict[str, Any]:
    """Asks the newest checkpoint of `workdir` the questions of benchmarks and scores its answers.

    Questions that an earlier call has answered before it was killed are not asked again.

    Returns:
        The figures of all benchmarks that were scored in `workdir`, as in its benchmarks/results.json.

    Raises:
        InputError: a bad config, benchmarks that are not prepared, no checkpoint, or answers of another one.
    """
    together(lambda: config_lib.validate(config))
    require_same({"--workdir": str(workdir), "--benchmark": list(names)} | config_lib.flat(config))
    root, folder = Path(config.eval.benchmarks), workdir / "benchmarks"

    def open_inputs() -> tuple[ml_collections.ConfigDict, Processor, dict[str, StoredRecords], Mesh]:
        sources, resolved = test_sets.open_benchmarks(root, names), with_weights_of(workdir, config)
        return resolved, make_processor(resolved), sources, make_mesh(resolved, training=False)

    config, processor, sources, mesh = together(open_inputs)
    by_first(lambda: check_settings(folder, _settings(config, find_params(workdir))))
    largest, equal = max(sources.values(), key=len), lmms_eval.EQUAL
    with CompileGuard() as guard, opened(workdir, guard) as warm_up, Verifier.from_config(config, equal) as verifier:

        @functools.cache  # if every question has its answer, no model is loaded
        def load() -> tuple[QwenVL, Evaluator]:
            return _load(config, largest, processor, verifier, mesh, warm_up)

        def ask(name: str, missing: RecordSource, answered: int) -> Generator[Responses]:
            model, evaluator = load()
            # There are always more answers than batches so far, so no batch has the number of an earlier one.
            first_batch = answered + _BATCHES_OF_A_BENCHMARK * list(test_sets.BENCHMARKS).index(name)
            return evaluator.responses(model, missing, first_batch=first_batch)

        for name, source in sources.items():
            prepared = {"prepared_crc32": test_sets.prepared_crc32(root, name)}
            responses = answer_all(folder / name, source, functools.partial(ask, name), prepared)
            figures = test_sets.score(folder / name, name, source, responses, verifier, processor.response_format)
            results = by_first(functools.partial(test_sets.write_results, folder, {name: figures}))
    return results


def score_responses(
    config: ml_collections.ConfigDict,
    workdir: Path,
    name: str,
    path: Path,
    *,
    id_field: str = "id",
    response_field: str = "response",
) -> dict[str, Any]:
    """Scores the responses to a benchmark that a file holds.

    Args:
        config: only `eval.benchmarks` and `verify` are read.
        workdir: gets the figures, under benchmarks/.
        name: the benchmark.
        path: the file of responses, for `evals.responses.read_responses`.
        id_field: the key of a question's id.
        response_field: the key of the response.

    Returns:
        As `run_benchmarks`.

    Raises:
        InputError: as `run_benchmarks`; the file cannot be read, or `workdir` holds a model's own answers or figures
            of another model.
    """
    config_lib.validate(config, unused=("model.folder", "data.train"))
    folder = workdir / "benchmarks"
    fields = {"id_field": id_field, "response_field": response_field}

    def read() -> tuple[StoredRecords, str | None, Responses]:
        source = test_sets.open_benchmarks(Path(config.eval.benchmarks), [name])[name]
        questions = Questions(source[index] for index in range(len(source)))
        return source, model_named(path, **fields), read_responses(path, questions, **fields)

    source, named, responses = together(read)
    digest = hashlib.sha256(json.dumps(responses, sort_keys=True).encode()).hexdigest()
    require_same({"benchmark": name, "a digest of the responses": digest})
    model = {"model": named} if named else {}
    by_first(lambda: test_sets.require_one_model(folder, name, path, named))
    by_first(lambda: check_settings(folder, {"answers": "from files"}))
    with Verifier.from_config(config, lmms_eval.EQUAL) as verifier:
        figures = test_sets.score(folder / name, name, source, responses, verifier, ANY)
    return by_first(lambda: test_sets.write_results(folder, {name: {"responses": str(path)} | model | figures}))


def _load(
    config: ml_collections.ConfigDict,
    source: RecordSource,
    processor: Processor,
    verifier: Verifier,
    mesh: Mesh,
    warm_up: WarmUp,
) -> tuple[QwenVL, Evaluator]:
    """The model and what asks it, compiled; says what that took."""
    if is_first():
        warm_up.write_cache()
    model = initial_model(config, mesh)
    evaluator = Evaluator(config, source=source, processor=processor, verifier=verifier, model=model, mesh=mesh)
    with warm_up.compiling():
        compile_all(evaluator.stages)
    if is_first():
        warm_up.tell()
    return model, evaluator


def _training_data(config: ml_collections.ConfigDict) -> RecordSource | None:
    """The data that majorities are counted in; None, on all processes, where they cannot be opened."""
    try:
        return together(lambda: loader.open_source(config, "train"))
    except InputError as error:
        if is_first():
            print(f"note: no majority answers, since data.train cannot be opened: {error}", file=sys.stderr)
        return None


def _settings(config: ml_collections.ConfigDict, params: epath.Path) -> dict[str, Any]:
    """The settings that a model's answers depend on, beside the questions."""
    sampling = ("num_samples", *(("temperature",) if config.eval.num_samples > 1 else ()))
    return {
        "answers": f"of checkpoint {params.parent.name}",  # its step, or the folder of converted weights
        "seed": config.seed if config.eval.num_samples > 1 else None,
        "response_len": config.rollout.response_len,
        **{f"eval.{key}": config.eval[key] for key in sampling},
        **{f"data.{key}": config.data[key] for key in _PROMPT_KEYS},
    }


def held_out_table(summary: Mapping[str, float]) -> str:
    """The accuracy of each source with its 95 % interval, and what its baselines reach."""
    names = {"majority answer": "baseline/majority", "without image": "baseline/without_image"}
    shown = {title: name for title, name in names.items() if f"{name}/mean" in summary}
    prefix = "eval/accuracy/"
    sources = [name.removeprefix(prefix) for name in summary if name.startswith(prefix)]
    width = max(map(len, (*sources, "held-out")))
    lines = [f"{'held-out':{width}}{'accuracy':>18}{'questions':>11}" + "".join(f"{title:>17}" for title in shown)]
    for source in sources:
        accuracy = f"{summary[prefix + source]:.3f} ± {summary[f'eval/interval/{source}']:.3f}"
        baselines = [summary.get(f"{name}/{source}") for name in shown.values()]
        told = "".join(f"{'' if value is None else format(value, '.3f'):>17}" for value in baselines)
        lines.append(f"{source:{width}}{accuracy:>18}{summary[f'eval/n/{source}']:>11.0f}{told}")
    return "\n".join(lines)


def main(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Prints the results: a table, then one JSON object."""
    name, path = flags.FLAGS.benchmark, flags.FLAGS.responses
    if path is not None and name in (None, "all"):
        raise InputError("--responses needs --benchmark=NAME, the one benchmark that the file answers")
    if name is None:
        summary = run(config, workdir)
        if is_first():
            print(held_out_table(summary))
            print(json.dumps(summary))
        return
    folder = files.on_disk(workdir, "--workdir")  # answers are appended to files
    if path is not None:
        fields = {"id_field": flags.FLAGS.id_field, "response_field": flags.FLAGS.response_field}
        results = score_responses(config, folder, name, Path(path), **fields)
    else:
        results = run_benchmarks(config, folder, list(test_sets.BENCHMARKS) if name == "all" else [name])
    if is_first():
        print(test_sets.table(results))
        print(json.dumps(results))


if __name__ == "__main__":
    cli.run(main)
