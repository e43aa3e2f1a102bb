"""Evaluation: greedy decoding, or the mean over k samples and pass@k, through the trainer's rollout and verifiers.

    python -m care_jax.evaluate --config=configs/F.py --workdir=DIR                     # the held-out data
    python -m care_jax.evaluate --config=configs/F.py --workdir=DIR --benchmark=NAME    # or all
    python -m care_jax.evaluate --config=configs/F.py --workdir=DIR --benchmark=NAME --responses=FILE

The first two read the newest checkpoint of the run in DIR. The held-out data leave DIR/eval_samples.jsonl (one line a
record) and DIR/eval_results.json; the results are the last line printed. For benchmarks see benchmark.py; the third
scores responses of elsewhere, and needs neither a model nor a device.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import ml_collections
from absl import flags, logging
from etils import epath
from jax.sharding import Mesh

from care_jax import cli, files
from care_jax import config as config_lib
from care_jax.checkpoints.checkpointer import find_params
from care_jax.data import loader
from care_jax.data.loader import RecordSource
from care_jax.evals import test_sets
from care_jax.evals.items import Item, judge_items, mean, mean_by_source
from care_jax.evals.responses import answer_all, check_settings, read_responses
from care_jax.inputs.batch import Example, collate
from care_jax.inputs.processor import Processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.models import QwenVL
from care_jax.parallel import sharding
from care_jax.parallel.processes import is_alone, is_first, require_same, together
from care_jax.rewards.judge import Verifier
from care_jax.rewards.response_format import ANY
from care_jax.rewards.spans import TokenBytes
from care_jax.run.build import make_mesh, make_model, make_processor, make_verifier, stage_key
from care_jax.stages import rollout
from care_jax.stages.programs import EVERY_BUCKET, EvalPrograms, bucket_of
from care_jax.structs import Record

Arrays = TypeVar("Arrays")

_EVAL_STAGE = 1000  # past the stages of a training step, so that no key is drawn twice
_BATCHES_OF_A_BENCHMARK = 1 << 16  # more than any has
_PROMPT_KEYS = (
    "response_format",
    "ask_for_format",
    "overlong",
    "prompt_buckets",
    "patch_buckets",
    "max_image_tokens",
    "min_image_tokens",
)  # of config.data, that a prompt depends on


class Evaluator:
    """Asks a model held-out questions and scores the answers; compiled once, used at every evaluation of a run."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        source: RecordSource,
        processor: Processor,
        verifier: Verifier,
        model: QwenVL,
        mesh: Mesh,
    ):
        self._config, self._source, self._processor, self._verifier = config, source, processor, verifier
        self._token_bytes, self._has_warned = TokenBytes(processor.tokenizer), False
        self._programs, self._mesh = EvalPrograms.build(config, processor, model, mesh), mesh
        forced = jax.device_get(rollout.nothing_forced(self._programs.batch_size, config.eval.num_samples))
        self._forced = sharding.put(mesh, forced)
        self._forbidden_mask = sharding.put(mesh, processor.forbidden_mask, sharding.WHOLE)

    def run(
        self,
        model: QwenVL,
        *,
        limit: int,
        write: Callable[[Item], None] | None = None,
        wait: Callable[[Arrays], Arrays] = jax.block_until_ready,
    ) -> dict[str, float]:
        """Accuracy per source and their mean, unparsed and format rates; `limit` 0 takes all records.

        A record whose prompt is too long has no response and counts as wrong; `eval/num_dropped` says how many.
        With eval.num_samples k > 1 accuracy is the mean over the samples, and pass@k is added. `write` is given each
        item as `scoring.judge_items` makes it. `wait` is given each batch's rollouts, to wait for them, or to raise
        and so leave the evaluation.
        """
        items: list[Item] = []
        dropped: list[Record] = []
        for records, texts in self.responses(model, self._source, limit=limit, dropped=dropped, wait=wait):
            answered = list(zip(records, texts, strict=True))
            items += judge_items(self._verifier, answered, self._processor.response_format)
        if not items:
            raise ValueError(f"every prompt of {self._source!r} is too long; raise the length limits")
        if dropped and not self._has_warned:
            self._has_warned = True
            logging.warning(
                "%d of %d held-out prompts are longer than the largest bucket and count as wrong; raise "
                "data.prompt_buckets or data.patch_buckets, or set data.overlong to shrink",
                len(dropped),
                len(items) + len(dropped),
            )
        unasked = [(record, ()) for record in dropped]
        items += judge_items(self._verifier, unasked, self._processor.response_format)
        if write is not None:
            for item in items:
                write(item)
        return _summarise(items) | {"eval/num_dropped": float(len(dropped))}

    def responses(
        self,
        model: QwenVL,
        source: RecordSource,
        *,
        limit: int = 0,
        first_batch: int = 0,
        dropped: list[Record] | None = None,
        wait: Callable[[Arrays], Arrays] = jax.block_until_ready,
    ) -> Iterator[tuple[list[Record], list[list[str]]]]:
        """Batches of records with the k responses to each; records whose prompts are too long are left out, and
        added to `dropped`.

        Batches are numbered from `first_batch`; each number has random keys of its own.
        """
        config, programs = self._config, self._programs
        sampler = programs.sampler(EVERY_BUCKET, model)

        def encode(record: Record) -> Example | None:
            example = encode_prompt(self._processor, record)
            if example is None and dropped is not None:
                dropped.append(record)
            return example

        batches = loader.make_eval_batches(source, encode, batch_size=programs.batch_size, limit=limit)
        for number, (examples, num_real) in enumerate(batches, start=first_batch):
            prompts = sharding.put(self._mesh, collate(self._processor, examples))
            bucket = bucket_of(prompts)
            key = stage_key(number, _EVAL_STAGE, seed=config.seed, mesh=self._mesh)
            prefix = programs.prefill(bucket, model, prompts)
            rollouts = programs.generate.fetch(
                wait(programs.generate(bucket, sampler, prefix, self._forced, self._forbidden_mask, key))
            )
            yield (
                [example.record for example in examples[:num_real]],
                [
                    [self._token_bytes.text(ids[:length]) for ids, length in zip(*row, strict=True)]
                    for row in zip(rollouts.token_ids[:num_real], rollouts.response_len[:num_real], strict=True)
                ],
            )


def _summarise(items: list[Item]) -> dict[str, float]:
    """Means over items; the overall accuracy is the mean over sources, as benchmarks are averaged."""
    summary = _by_source("accuracy", mean_by_source(items, lambda item: mean(item["correct"])))
    summary["eval/unparsed_rate"] = 1.0 - mean(mean(item["parsed"]) for item in items)
    summary["eval/format_rate"] = mean(mean(item["format_ok"]) for item in items)
    if len(items[0]["correct"]) > 1:
        summary |= _by_source("pass_at_k", mean_by_source(items, lambda item: any(item["correct"])))
    return summary


def _by_source(name: str, values: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name}/{source}": value for source, value in values.items()} | {
        f"eval/{name}/mean": mean(values.values())
    }


def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> dict[str, float]:
    """Evaluates the newest checkpoint of `workdir` on all held-out records; writes samples and results there.

    Raises:
        ValueError: a bad config, unusable data, or no checkpoint.
    """
    workdir = files.anywhere(workdir)
    require_same({"--workdir": str(workdir)} | config_lib.flat(config))

    def open_inputs() -> tuple[ml_collections.ConfigDict, Processor, RecordSource, Mesh]:
        config_lib.validate(config)
        resolved = _with_weights_of(workdir, config)
        mesh = make_mesh(resolved, training=False)
        return resolved, make_processor(resolved), loader.open_source(resolved, "eval"), mesh

    config, processor, source, mesh = together(open_inputs)
    model = make_model(config, mesh)
    items: list[Item] = []
    with make_verifier(config) as verifier:
        evaluator = Evaluator(config, source=source, processor=processor, verifier=verifier, model=model, mesh=mesh)
        summary = evaluator.run(model, limit=0, write=items.append)
    if is_first():
        lines = "".join(json.dumps(item) + "\n" for item in items)
        (workdir / "eval_samples.jsonl").write_text(lines, encoding="utf-8")
        (workdir / "eval_results.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def run_benchmarks(config: ml_collections.ConfigDict, workdir: Path, names: Sequence[str]) -> dict[str, Any]:
    """Asks the newest checkpoint of `workdir` the questions of benchmarks and scores its answers.

    Answers that are there already, of an earlier run that was killed, are not asked for again.

    Returns:
        The figures of all benchmarks that were scored in `workdir`, as in its benchmarks/results.json.

    Raises:
        ValueError: a bad config, benchmarks that are not prepared, no checkpoint, or answers of another one.
    """
    config_lib.validate(config)
    root, folder = Path(config.eval.benchmarks), workdir / "benchmarks"
    sources = test_sets.open_benchmarks(root, names)
    config = _with_weights_of(workdir, config)
    processor, mesh = make_processor(config), make_mesh(config, training=False)
    check_settings(folder, _settings(config, find_params(workdir)))
    with make_verifier(config) as verifier:

        @functools.cache  # nothing is loaded where every question has its answer
        def load() -> tuple[QwenVL, Evaluator]:
            model, any_source = make_model(config, mesh), sources[names[0]]
            return model, Evaluator(
                config, source=any_source, processor=processor, verifier=verifier, model=model, mesh=mesh
            )

        def ask(name: str, missing: RecordSource, answered: int) -> Iterator[tuple[list[Record], list[list[str]]]]:
            model, evaluator = load()
            # There are always more answers than batches so far, so no batch has the number of an earlier one.
            first_batch = answered + _BATCHES_OF_A_BENCHMARK * list(test_sets.BENCHMARKS).index(name)
            return evaluator.responses(model, missing, first_batch=first_batch)

        for name, source in sources.items():
            prepared = {"prepared_crc32": test_sets.prepared_crc32(root, name)}
            responses = answer_all(folder / name, source, functools.partial(ask, name), prepared)
            figures = test_sets.score(folder / name, name, source, responses, verifier, processor.response_format)
            results = test_sets.write_results(folder, {name: figures})
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
    """Scores the responses that a file of elsewhere has to a benchmark; see benchmark_responses.read_responses.

    Of the config only `eval.benchmarks` and `verify` are read. Returns and raises as `run_benchmarks`, and where the
    file cannot be read or `workdir` holds a model's own answers.
    """
    folder = workdir / "benchmarks"
    source = test_sets.open_benchmarks(Path(config.eval.benchmarks), [name])[name]
    ids = [source[index].id for index in range(len(source))]
    responses = read_responses(path, ids, id_field=id_field, response_field=response_field)
    check_settings(folder, {"answers": "from files"})
    with make_verifier(config) as verifier:
        figures = test_sets.score(folder / name, name, source, responses, verifier, ANY)
    return test_sets.write_results(folder, {name: {"responses": str(path)} | figures})


def _with_weights_of(workdir: epath.PathLike, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with the newest checkpoint of `workdir`. Raises ValueError where there is none."""
    find_params(workdir)
    config = ml_collections.ConfigDict(config)
    config.model.weights = str(workdir)
    return config


def _settings(config: ml_collections.ConfigDict, params: epath.Path) -> dict[str, Any]:
    """What a model's answers depend on, beside the questions."""
    sampling = ("num_samples", *(("temperature",) if config.eval.num_samples > 1 else ()))
    return {
        "answers": f"of checkpoint {params.parent.name}",  # its step, or the folder of converted weights
        "seed": config.seed if config.eval.num_samples > 1 else None,
        "response_len": config.rollout.response_len,
        **{f"eval.{key}": config.eval[key] for key in sampling},
        **{f"data.{key}": config.data[key] for key in _PROMPT_KEYS},
    }


def main(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Prints the results: of the held-out data as one JSON object, of benchmarks as the table and the same."""
    name, path = flags.FLAGS.benchmark, flags.FLAGS.responses
    if path is not None and name in (None, "all"):
        raise ValueError("--responses needs --benchmark=NAME, the one benchmark that the file answers")
    if name is None:
        summary = run(config, workdir)
        if is_first():
            print(json.dumps(summary))
        return
    folder = files.on_disk(workdir, "--workdir")  # answers are appended to files
    if path is not None:
        fields = {"id_field": flags.FLAGS.id_field, "response_field": flags.FLAGS.response_field}
        results = score_responses(config, folder, name, Path(path), **fields)
    else:
        if not is_alone():
            raise ValueError(f"--benchmark={name} runs in one process; evaluate on one host")
        results = run_benchmarks(config, folder, list(test_sets.BENCHMARKS) if name == "all" else [name])
    print(test_sets.table(results))
    print(json.dumps(results))


if __name__ == "__main__":
    # Not where every import of this module, by training for one, would define them.
    flags.DEFINE_string("benchmark", None, f"{', '.join(test_sets.BENCHMARKS)}, or all.")
    flags.DEFINE_string("responses", None, "A file with one JSON object a line to score in place of a model.")
    flags.DEFINE_string("response_field", "response", "Where its objects have the response, or a list of several.")
    flags.DEFINE_string("id_field", "id", "Where its objects have the question's id.")
    cli.run(main)
