"""Memory of the compiled update and score programs; nothing is run or timed.

    python -m benchmarks.memory

The logits of all tokens have tokens * V elements. The head runs over chunks of tokens instead, so no array of a program
may have more than V * max(chunk, D) elements, the size of a chunk's logits or of the embedding table. The check reads
the shape of every array in the optimised HLO, and must find the full logits in a naive head that is compiled as well.

The update's temporaries must grow in proportion to its tokens, and as fast as with a vocabulary of 512 ids: by what the
decoder keeps of each token, and by nothing of the head. With few rows they grow more slowly: what the decoder keeps is
then smaller than a chunk's logits and uses their room while they are not needed. The last line is one JSON object.
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

from benchmarks.made_model import IMAGE_UNIT, make_prompts, write_folder
from care_jax import models
from care_jax.method import objectives
from care_jax.method.loss import policy_loss
from care_jax.method.objectives import Objective
from care_jax.models import QwenVL
from care_jax.stages.packing import StreamSizes
from care_jax.stages.score import masked_logits, score
from care_jax.stages.train_state import TrainState
from care_jax.stages.update import make_update
from care_jax.structs import Array, Packing, Rollouts, TrainBatch, Verdicts, abstract

SMALL_VOCABULARY = 512
_SHAPE = re.compile(r"\b(?:pred|[a-z]+\d+[a-z0-9]*)\[([\d,]+)\]")


class Case(NamedTuple):
    """A model, its prompts and the batch of an update, as shapes."""

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

    num_patches, num_values = prompts.patches.shape[1:]
    sizes = {"P": prompts.token_ids.shape[1], "I": num_patches, "F": num_values, "X": prompts.grid_index.shape[-1]}
    batch = abstract(TrainBatch, B=1, S=num_rows, R=args.response_len, **sizes)
    model = models.abstract_model(dataclasses.replace(config, remat="full"))
    return Case(model, jax.ShapeDtypeStruct((vocab_size,), bool), batch, args.chunk)


def compile_update(case: Case) -> jax.stages.Compiled:
    """Compiles CARE's update of one micro-batch, with AdamW and the KL term."""
    optimizer = optax.adamw(1e-6)
    update = make_update(
        optimizer,
        functools.partial(policy_loss, objective=Objective.from_config(objectives.care())),
        minibatches=1,
        temperature=1.0,
        chunk=case.chunk,
    )
    state = jax.eval_shape(lambda model: TrainState(jnp.int32(0), model, optimizer.init(model)), case.model)
    return jax.jit(update, donate_argnums=0).lower(state, case.batch, packing_of(case), case.forbidden_mask).compile()


def packing_of(case: Case) -> Packing:
    """Shapes of a packing of the whole batch in one stream."""
    prompts, (num_prompts, num_rows, row_len) = case.batch.prompts, case.batch.token_ids.shape
    bucket = prompts.token_ids.shape[1], prompts.patches.shape[1]
    sizes = StreamSizes.make(
        num_prompts=num_prompts,
        num_rows=num_rows,
        bucket=bucket,
        row_len=row_len,
        stream_len=num_prompts * (bucket[0] + num_rows * row_len),
        shards=1,
    )
    return sizes.abstract()


def compile_score(case: Case) -> jax.stages.Compiled:
    """Compiles the scoring pass over the batch's rows."""
    batch = case.batch
    num_prompts, num_rows, response_len = batch.token_ids.shape
    dims = {"B": num_prompts, "G": num_rows, "R": response_len}
    rollouts, verdicts = abstract(Rollouts, **dims), abstract(Verdicts, **dims)
    sizes: dict[str, Any] = {"temperature": 1.0, "chunk": case.chunk}
    packing = packing_of(case)
    return score.lower(case.model, batch.prompts, rollouts, verdicts, packing, case.forbidden_mask, **sizes).compile()


def compile_naive_head(case: Case) -> jax.stages.Compiled:
    """Compiles the head as it is usually written, with its gradient: log-softmax over the logits of all tokens."""

    def loss(model: QwenVL, hidden: Array, token_ids: Array, forbidden_mask: Array) -> Array:
        logits = masked_logits(model.head, hidden, forbidden_mask=forbidden_mask, temperature=1.0)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), token_ids[..., None], axis=-1).sum()

    token_ids = case.batch.token_ids
    hidden = jax.ShapeDtypeStruct((*token_ids.shape, case.model.config.text.hidden_size), jnp.float32)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return gradient.lower(case.model, hidden, token_ids, case.forbidden_mask).compile()


def largest_array(program: jax.stages.Compiled) -> tuple[int, ...]:
    """Shape of the array with the most elements anywhere in the optimised HLO, inside fusions too."""
    shapes = [tuple(map(int, dims.split(","))) for dims in set(_SHAPE.findall(str(program.as_text())))]
    return max(shapes, key=math.prod)


def temporaries(program: jax.stages.Compiled) -> int:
    """Bytes that a program needs besides its arguments and results."""
    memory: Any = program.memory_analysis()
    return memory.temp_size_in_bytes


def growth(taken: dict[int, int]) -> tuple[float, float]:
    """Fits a straight line through the fewest and the most tokens.

    Args:
        taken: bytes by number of tokens.

    Returns:
        Bytes a token, and the largest distance of a point from the line as a share of the line's value.
    """
    fewest, most = min(taken), max(taken)
    slope = (taken[most] - taken[fewest]) / (most - fewest)
    line = {tokens: taken[fewest] + slope * (tokens - fewest) for tokens in taken}
    return slope, max(abs(taken[tokens] - line[tokens]) / line[tokens] for tokens in taken)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags."""
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
    """Compiles the programs and returns the figures that it prints.

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
        print(f"{name:<12}{shape!s:<28}{math.prod(shape):>12}{temporaries(programs[name]) / 1e6:>18.1f}")
    print(
        f"update, a token more: {slope:.0f} bytes, at V {SMALL_VOCABULARY} {predicted:.0f}; off the line by {off:.2%}"
    )
    print(json.dumps(figures))
    return figures


def require_chunks(largest: dict[str, tuple[int, ...]], *, limit: int, logits: int) -> None:
    """Checks that only the naive head has the logits of all tokens.

    Args:
        largest: shape of the largest array, by program.
        limit: elements that update and score may have in an array.
        logits: elements of the logits of all tokens.

    Raises:
        ValueError: update or score has an array above `limit`, or the naive head none of `logits`.
    """
    for name, shape in largest.items():
        if name == "naive head":
            if math.prod(shape) < logits:
                raise ValueError(f"the check is blind: it finds {shape} at most in a head that has {logits} logits")
        elif math.prod(shape) > limit:
            raise ValueError(f"the {name} has an array {shape}; at most {limit} numbers are allowed")


if __name__ == "__main__":
    main(sys.argv[1:])
