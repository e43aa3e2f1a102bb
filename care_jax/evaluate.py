"""Evaluation: greedy decoding, or the mean over k samples and pass@k, through the trainer's rollout and verifiers.

    python -m care_jax.evaluate --config=configs/F.py --workdir=DIR

Reads the newest checkpoint of the run in DIR; writes DIR/eval_samples.jsonl (one line a record) and
DIR/eval_results.json, and prints the results as its last line.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from etils import epath

from care_jax import cli, paths, rollout
from care_jax import config as config_lib
from care_jax.checkpoint import find_params
from care_jax.components import make_model, make_processor, make_verifier, stage_key
from care_jax.data import loader
from care_jax.data.loader import RecordSource
from care_jax.data.records import Record
from care_jax.models import QwenVL
from care_jax.processor import Processor
from care_jax.programs import EvalPrograms, bucket_of
from care_jax.regions import TokenBytes
from care_jax.structs import Rollouts
from care_jax.verify import Judged, Verifier, judge

_EVAL_STAGE = 1000  # past the stages of a training step, so that no key is drawn twice


class Evaluator:
    """Scores a model on the held-out records; compiled once, used at every evaluation of a run."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        source: RecordSource,
        processor: Processor,
        verifier: Verifier,
        model: QwenVL,
    ):
        self._config, self._source, self._processor, self._verifier = config, source, processor, verifier
        self._token_bytes = TokenBytes(processor.tokenizer)
        self._programs = EvalPrograms.build(config, processor, model)
        self._forced = jax.device_get(rollout.nothing_forced(config.eval.batch_size, config.eval.num_samples))

    def run(
        self,
        model: QwenVL,
        *,
        limit: int,
        write: Callable[[dict], None] | None = None,
        wait: Callable[[Rollouts], Rollouts] = jax.block_until_ready,
    ) -> dict[str, float]:
        """Accuracy per source and their mean, unparsed and format rates; `limit` 0 takes all records.

        With eval.num_samples k > 1 accuracy is the mean over the samples, and pass@k is added. `write` is given one
        dict a record: id, source, prompt, answer and, per sample, response, extracted answer, verdict and reason.
        `wait` is given each batch's rollouts, to wait for them, or to raise and so leave the evaluation.
        """
        config, results = self._config, []
        batches = loader.make_eval_batches(
            self._source, self._processor.encode_prompt, batch_size=config.eval.batch_size, limit=limit
        )
        for number, (examples, num_real) in enumerate(batches):
            prompts = jax.device_put(self._processor.collate(examples))
            bucket = bucket_of(prompts)
            key = stage_key(jax.random.key(config.seed), number, _EVAL_STAGE)
            prefix = self._programs.prefill(bucket, model, prompts)
            rollouts = jax.device_get(
                wait(self._programs.generate(bucket, model, prefix, self._forced, self._processor.forbidden_mask, key))
            )
            records = [example.record for example in examples[:num_real]]
            judged = judge(
                self._verifier,
                records,
                rollouts.token_ids[:num_real],
                rollouts.response_len[:num_real],
                self._token_bytes,
                response_format=self._processor.response_format,
                correct_weight=config.verify.correct_weight,
                format_weight=config.verify.format_weight,
            )
            results += [_result(record, judged, row) for row, record in enumerate(records)]
        if write is not None:
            for result in results:
                write(result)
        return _summarise(results)


def _result(record: Record, judged: Judged, row: int) -> dict:
    """What is known about one record's responses, for people and for the summary."""
    return {
        "id": record.id,
        "source": record.source,
        "prompt": record.prompt,
        "answer": record.answer,
        "responses": judged.texts[row],
        "extracted": judged.extracted[row],
        "reasons": judged.reasons[row],
        "correct": judged.verdicts.correct[row].tolist(),
        "parsed": judged.verdicts.parsed[row].tolist(),
        "format_ok": judged.verdicts.format_ok[row].tolist(),
    }


def _summarise(results: list[dict]) -> dict[str, float]:
    """Means over records; the overall accuracy is the mean over sources, as benchmarks are averaged."""
    by_source: dict[str, list[dict]] = collections.defaultdict(list)
    for result in results:
        by_source[result["source"]].append(result)

    def mean(rows: list[dict], field: str) -> float:
        return float(np.mean([row[field] for row in rows]))

    accuracy = {source: mean(rows, "correct") for source, rows in sorted(by_source.items())}
    summary = {f"eval/accuracy/{source}": value for source, value in accuracy.items()}
    summary["eval/accuracy/mean"] = float(np.mean(list(accuracy.values())))
    summary["eval/unparsed_rate"] = 1.0 - mean(results, "parsed")
    summary["eval/format_rate"] = mean(results, "format_ok")
    if len(results[0]["correct"]) > 1:
        passed = {source: np.mean([any(r["correct"]) for r in rows]) for source, rows in sorted(by_source.items())}
        summary |= {f"eval/pass_at_k/{source}": float(value) for source, value in passed.items()}
        summary["eval/pass_at_k/mean"] = float(np.mean(list(passed.values())))
    return summary


def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> dict[str, float]:
    """Evaluates the newest checkpoint of `workdir` on all held-out records; writes samples and results there.

    Raises:
        ValueError: a bad config, unusable data, or no checkpoint.
    """
    config_lib.validate(config)
    workdir = paths.anywhere(workdir)
    find_params(workdir)
    config = ml_collections.ConfigDict(config)
    config.model.weights = str(workdir)
    processor, source = make_processor(config), loader.open_source(config, "eval")
    model = make_model(config)
    results: list[dict] = []
    with make_verifier(config) as verifier:
        evaluator = Evaluator(config, source=source, processor=processor, verifier=verifier, model=model)
        summary = evaluator.run(model, limit=0, write=results.append)
    lines = "".join(json.dumps(result) + "\n" for result in results)
    (workdir / "eval_samples.jsonl").write_text(lines, encoding="utf-8")
    (workdir / "eval_results.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def main(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Prints the results as one JSON object."""
    print(json.dumps(run(config, workdir)))


if __name__ == "__main__":
    cli.run(main)
