"""What update and score hold in memory, read from the compiled programs: nothing is run, no clock is read.

    python -m benchmarks.memory

Logits of all tokens are tokens * V numbers. The head runs over chunks of tokens instead, so no array of a program may
have more than V * max(chunk, D) numbers: a chunk's logits, the embedding table. The check reads the shape of every
array in the optimised HLO, whatever its rank, and must find the logits in a naive head that is compiled beside it.

The update's temporaries must grow in proportion to its tokens, and by as much as at a vocabulary of 512 ids: by what
the decoder keeps of a token and nothing of the head. With few rows it grows by less: what the decoder keeps is then
smaller than a chunk's logits, and takes their room while they are not there. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from care_jax.stages.programs import abstract_verdicts

from benchmarks.made_model import IMAGE_UNIT, make_prompts, write_folder
from care_jax import models
from care_jax.method import objectives
from care_jax.method.loss import policy_loss
from care_jax.method.objectives import Objective
from care_jax.models import QwenVL
from care_jax.stages.score import masked_logits, score
from care_jax.stages.train_state import TrainState
from care_jax.stages.update import make_update
from care_jax.structs import Array, Prompts, Rollouts, TrainBatch

SMALL_VOCABULARY = 512
_SHAPE = re.compile(r"\b(?:pred|[a-z]+\d+[a-z0-9]*)\[([\d,]+)\]")


class Case(NamedTuple):
    """Shapes in place of arrays: a model, its prompts and the batch of an update."""

    model: QwenVL
    forbidden_mask: jax.ShapeDtypeStruct  # [V] bool
    batch: TrainBatch
    chunk: int


def make_case(args: argparse.Namespace, *, vocab_size: int, num_rows: int) -> Case:
    """One prompt with a small image and `num_rows` rows."""
    with tempfile.TemporaryDirectory() as folder:
        made = write_folder(Path(folder), num_layers=args.layers, width=args.width, vocab_size=vocab_size)
        config = models.load_model_config(made)
        _, prompts = make_prompts(made, num_prompts=1, prompt_len=args.prompt_len, image_side=2 * IMAGE_UNIT)

    def batch(prompts: Prompts) -> TrainBatch:
        row, tokens = jnp.zeros((1, num_rows)), jnp.zeros((1, num_rows, args.response_len))
        return TrainBatch(
            prompts=prompts,
            token_ids=tokens.astype(jnp.int32),
            response_len=row.astype(jnp.int32),
            sampled_mask=tokens.astype(bool),
            logprobs_old=tokens,
            logprobs_ref=tokens,
            advantages=row,
            token_weights=tokens,
            row_mask=row.astype(bool),
        )

    model = models.abstract_model(dataclasses.replace(config, remat=True))
    return Case(model, jax.ShapeDtypeStruct((vocab_size,), bool), jax.eval_shape(batch, prompts), args.chunk)


def compile_update(case: Case) -> jax.stages.Compiled:
    """CARE's update of one micro-batch, AdamW and the KL included."""
    optimizer = optax.adamw(1e-6)
    update = make_update(
        optimizer,
        functools.partial(policy_loss, objective=Objective.from_config(objectives.care())),
        minibatches=1,
        microbatches=1,
        temperature=1.0,
        chunk=case.chunk,
    )
    state = jax.eval_shape(lambda model: TrainState(jnp.int32(0), model, optimizer.init(model)), case.model)
    return jax.jit(update, donate_argnums=0).lower(state, case.batch, case.forbidden_mask).compile()


def compile_score(case: Case) -> jax.stages.Compiled:
    """The scoring pass over the batch's rows."""
    batch = case.batch
    rollouts = Rollouts(batch.token_ids, batch.response_len, batch.logprobs_old, batch.sampled_mask, batch.row_mask)
    verdicts = abstract_verdicts(*batch.token_ids.shape)
    sizes: dict[str, Any] = {"temperature": 1.0, "chunk": case.chunk}
    return score.lower(case.model, batch.prompts, rollouts, verdicts, case.forbidden_mask, **sizes).compile()


def compile_naive_head(case: Case) -> jax.stages.Compiled:
    """The head alone as it is usually written, with its gradient: a log-softmax over the logits of all tokens."""

    def loss(model: QwenVL, hidden: Array, token_ids: Array, forbidden_mask: Array) -> Array:
        logits = masked_logits(model, hidden, forbidden_mask=forbidden_mask, temperature=1.0)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), token_ids[..., None], axis=-1).sum()

    token_ids = case.batch.token_ids
    hidden = jax.ShapeDtypeStruct((*token_ids.shape, case.model.config.text.hidden_size), jnp.float32)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return gradient.lower(case.model, hidden, token_ids, case.forbidden_mask).compile()


def largest_array(program: jax.stages.Compiled) -> tuple[int, ...]:
    """Shape of the array with the most numbers anywhere in the optimised HLO, inside of fusions too."""
    shapes = [tuple(map(int, dims.split(","))) for dims in set(_SHAPE.findall(str(program.as_text())))]
    return max(shapes, key=math.prod)


def temporaries(program: jax.stages.Compiled) -> int:
    """Bytes a program takes beside its arguments and results."""
    memory: Any = program.memory_analysis()
    return memory.temp_size_in_bytes


def growth(taken: dict[int, int]) -> tuple[float, float]:
    """Bytes a token from the fewest tokens to the most, and the largest distance of `taken` [tokens: bytes] from that
    line, as a share of its value."""
    fewest, most = min(taken), max(taken)
    slope = (taken[most] - taken[fewest]) / (most - fewest)
    line = {tokens: taken[fewest] + slope * (tokens - fewest) for tokens in taken}
    return slope, max(abs(taken[tokens] - line[tokens]) / line[tokens] for tokens in taken)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {
        "vocabulary": (151936, "V"),
        "layers": (2, "of decoder and tower each"),
        "width": (128, "D, a multiple of 128"),
        "chunk": (128, "tokens of one chunk of the head"),
        "prompt_len": (128, "P, tokens with the image's"),
        "response_len": (128, "R, tokens"),
    }
    for name, (default, text) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 96, 128], help="rows of the prompt (64 96 128)")
    args = parser.parse_args(argv)
    if len(set(args.rows)) < 2 or min(args.rows) < 1:
        parser.error("--rows needs two different numbers of at least 1")
    if max(args.rows) * args.response_len < 2 * max(args.chunk, args.width):
        parser.error(
            "the most rows have too few tokens to tell their logits from a chunk's or from the embedding table"
        )
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Compiles, and returns the figures that it prints.

    Raises:
        ValueError: an array as large as the logits of all tokens in update or score, or none in the naive head.
    """
    args = parse(argv)
    tokens = {rows: rows * args.response_len for rows in sorted(set(args.rows))}
    cases = {rows: make_case(args, vocab_size=args.vocabulary, num_rows=rows) for rows in tokens}
    small = {rows: make_case(args, vocab_size=SMALL_VOCABULARY, num_rows=rows) for rows in tokens}
    updates = {rows: compile_update(case) for rows, case in cases.items()}
    most = max(tokens)
    programs = {
        "update": updates[most],
        "score": compile_score(cases[most]),
        "naive head": compile_naive_head(cases[most]),
    }

    limit, logits = args.vocabulary * max(args.chunk, args.width), args.vocabulary * tokens[most]
    largest = {name: largest_array(program) for name, program in programs.items()}
    require_chunks(largest, limit=limit, logits=logits)
    slope, off = growth({tokens[rows]: temporaries(update) for rows, update in updates.items()})
    predicted, _ = growth({tokens[rows]: temporaries(compile_update(case)) for rows, case in small.items()})

    figures: dict[str, Any] = {
        "benchmark": "memory",
        "device": jax.devices()[0].device_kind,
        **vars(args),
        "tokens": tokens[most],
        "allowed_numbers": limit,
        "logits_numbers": logits,
        "largest_array": largest,
        "temporaries_bytes": {name: temporaries(program) for name, program in programs.items()},
        "bytes_per_token": round(slope, 1),
        "predicted_bytes_per_token": round(predicted, 1),
        "logits_bytes_per_token": 4 * args.vocabulary,
        "off_the_line": round(off, 4),
    }
    print(f"V {args.vocabulary}, {tokens[most]} tokens: their logits have {logits} numbers, allowed are {limit}")
    print(f"{'':<12}{'largest array':<28}{'numbers':>12}{'temporaries, MB':>18}")
    for name, shape in largest.items():
        print(f"{name:<12}{str(shape):<28}{math.prod(shape):>12}{temporaries(programs[name]) / 1e6:>18.1f}")
    print(
        f"update, a token more: {slope:.0f} bytes, at V {SMALL_VOCABULARY} {predicted:.0f}; off the line by {off:.2%}"
    )
    print(json.dumps(figures))
    return figures


def require_chunks(largest: dict[str, tuple[int, ...]], *, limit: int, logits: int) -> None:
    """Raises ValueError where update or score has an array above `limit`, or the naive head none of `logits`."""
    for name, shape in largest.items():
        if name == "naive head":
            if math.prod(shape) < logits:
                raise ValueError(f"the check is blind: it finds {shape} at most in a head that has {logits} logits")
        elif math.prod(shape) > limit:
            raise ValueError(f"the {name} has an array {shape}; at most {limit} numbers are allowed")


if __name__ == "__main__":
    main(sys.argv[1:])
