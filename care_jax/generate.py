"""Asks a model questions about images: one, those of a file, or whatever comes to a page and an OpenAI endpoint.

    python -m care_jax.generate --workdir=DIR --image=FILE --question="How many?" [--n=4 --temperature=0.8]
    python -m care_jax.generate --workdir=DIR --file=questions.jsonl > answers.jsonl
    python -m care_jax.generate --workdir=DIR --serve

DIR is a run folder, a checkpoint or a converted model; a converted model needs --config=configs/F.py too. The answer
streams, its rationale and the answer apart. A line of a file is {"prompt", "images"} or any row of own data
(data/own_data.py); each gives a line {"id", "samples": [{"rationale", "answer", "text", "finish", "num_tokens"}]}. For
the page and the endpoint see page/chat_server.py.
"""

from __future__ import annotations

from absl import flags

from care_jax import cli

if __name__ == "__main__":
    flags.DEFINE_string("question", None, "What to ask; <image> marks the place of each image, else they come first.")
    flags.DEFINE_multi_string("image", [], "An image file; give it again for more.")
    flags.DEFINE_string("file", None, "Questions, one JSON object a line; answers are printed, one a line.")
    flags.DEFINE_integer("n", 1, "Samples of an answer.")
    flags.DEFINE_float("temperature", None, "0 decodes greedily, the default of one sample; 1 is that of several.")
    flags.DEFINE_boolean("serve", False, "Serve a page to ask on, and an OpenAI-compatible endpoint.")
    flags.DEFINE_string("host", "127.0.0.1", "The address to serve on; another one lets other machines ask.")
    flags.DEFINE_integer("port", 8000, "The port to serve on; 0 takes a free one.")
    cli.read_first(with_run=True)  # the imports below take seconds

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import ml_collections
from etils import epath

from care_jax import config as config_lib
from care_jax import files
from care_jax.checkpoints.initial_state import initial_model, with_weights_of
from care_jax.checkpoints.load import find_params
from care_jax.data import own_data
from care_jax.data.parsing import Row
from care_jax.errors import BadRowError, InputError, listed, printable
from care_jax.evals.answer_text import Parts, split_response
from care_jax.evals.decoding import batch_size
from care_jax.evals.engine import HOTTEST, MOST_ROWS, MOST_SAMPLES, MOST_WAITING, Engine, Piece, Question
from care_jax.evals.questions import encode_question, read_question
from care_jax.inputs.batch import collate
from care_jax.inputs.processor import Processor, make_processor
from care_jax.page.chat_server import ChatServer, serve
from care_jax.run.compilation_cache import opened
from care_jax.run.compile_guard import CompileGuard
from care_jax.stages.compiled import bucket_of
from care_jax.stages.model import make_mesh
from care_jax.stages.table import Bucket


@dataclasses.dataclass(frozen=True)
class Drawing:
    """The settings that the samples of every question are drawn with."""

    num_samples: int
    temperature: float  # 0 decodes greedily
    seed: int


@contextlib.contextmanager
def open_engine(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    processor: Processor,
    *,
    row_counts: Sequence[int],
    buckets: Sequence[Bucket] | None = None,
) -> Iterator[Engine]:
    """Loads the newest weights of `workdir`, compiles, and says what that took; see `Engine` for the sizes.

    Raises:
        InputError: no checkpoint, a damaged one or one of another model, or a mesh that does not fit.
    """
    mesh = make_mesh(config, training=False)
    most = batch_size(config, mesh, MOST_ROWS)
    row_counts = [min(count, most) for count in row_counts]
    with CompileGuard() as guard, opened(workdir, guard) as warm_up:
        warm_up.write_cache()
        model = initial_model(config, mesh)
        with warm_up.compiling():
            engine = Engine(config, processor, model, mesh, row_counts=row_counts, buckets=buckets)
        warm_up.tell()
        with engine:
            yield engine


class _Terminal:
    """One sample on the terminal, printed as it is decoded: rationale and answer, each under its name."""

    def __init__(self, title: str) -> None:
        """Prints the title, if it has one."""
        self._heading, self._parts = "", Parts("", "")
        if title:
            print(title, flush=True)

    def add(self, piece: Piece) -> None:
        """Prints what a piece adds, and a line behind the last one if something is missing."""
        parts = split_response(piece.text, is_whole=bool(piece.finish))
        for heading, old, new in zip(("Rationale", "Answer"), self._parts, parts, strict=True):
            if len(new) == len(old):
                continue
            if heading != self._heading:
                print(f"\n\n{heading}" if self._heading else heading)
                self._heading = heading
            print(printable(new[len(old) :]), end="", flush=True)
        self._parts = parts
        if piece.finish:
            print(end="\n" if self._heading else "", flush=True)
            if piece.finish == "length":
                cut = f"cut off at {piece.num_tokens} tokens"
                print(f"({cut}; --config.rollout.response_len=N gives more room)", flush=True)
            elif not parts.answer:
                print("(no answer)", flush=True)


def show(pieces: Iterable[Piece], num_samples: int) -> None:
    """Prints samples as they are decoded: the first at once, each other behind the one before it."""
    latest: dict[int, Piece] = {}
    titles = [f"Sample {number + 1} of {num_samples}" if num_samples > 1 else "" for number in range(num_samples)]
    sample, terminal = 0, _Terminal(titles[0])
    for piece in pieces:
        latest[piece.sample] = piece
        while sample in latest:
            terminal.add(latest[sample])
            if not latest[sample].finish:
                break
            sample += 1
            if sample < num_samples:
                print()
                terminal = _Terminal(titles[sample])


def describe(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """The samples of a question, whole, as a line of JSON has them."""
    samples = {piece.sample: piece for piece in pieces if piece.finish}
    return [
        {
            **split_response(piece.text)._asdict(),
            "text": piece.text,
            "finish": piece.finish,
            "num_tokens": piece.num_tokens,
        }
        for _, piece in sorted(samples.items())
    ]


def read_file(path: Path) -> list[Row]:
    """The questions in a file.

    Raises:
        InputError: it cannot be read, has none, or some of its rows are no questions; these are listed.
    """
    files.require_readable(path, f"no file {path}; give a file with one JSON object a line")
    rows: list[Row] = []
    problems: list[str] = []
    for number, raw in own_data.rows(path):
        try:
            if isinstance(raw, BadRowError):
                raise raw
            rows.append(read_question(raw, path.parent, where=str(number)))
        except BadRowError as error:
            problems.append(f"row {number}: {error}")
    if problems:
        raise InputError(f"{path}: {len(problems)} rows cannot be asked: {listed(problems)}")
    if not rows:
        raise InputError(f"{path} is empty; give a file with one JSON object a line")
    return rows


def answer_file(engine: Engine, rows: Sequence[Row], drawing: Drawing) -> Iterator[dict[str, Any]]:
    """Yields a line for each question, in order; one that cannot be asked has an "error" in place of "samples"."""

    def answer(number: int, row: Row) -> dict[str, Any]:
        try:
            question = _question(engine.processor, row, drawing, number)
        except InputError as error:
            return {"id": row.record.id, "error": str(error)}
        with engine.ask(question) as pieces:
            return {"id": row.record.id, "samples": describe(pieces)}

    # A batch is encoded while another is decoded, and no more wait than the engine takes.
    with ThreadPoolExecutor(min(2 * MOST_ROWS, MOST_WAITING // drawing.num_samples)) as pool:
        yield from pool.map(answer, range(len(rows)), rows)


def _question(processor: Processor, row: Row, drawing: Drawing, number: int = 0) -> Question:
    example = encode_question(processor, row.load())
    return Question(
        example,
        num_samples=drawing.num_samples,
        temperature=drawing.temperature,
        seed=(drawing.seed, number),
    )


def _read_drawing(config: ml_collections.ConfigDict) -> Drawing:
    n, temperature = flags.FLAGS.n, flags.FLAGS.temperature
    if not 1 <= n <= MOST_SAMPLES:
        raise InputError(f"--n={n}: ask for 1 to {MOST_SAMPLES} samples")
    if temperature is None:
        temperature = 0.0 if n == 1 else 1.0
    if not 0 <= temperature <= HOTTEST:
        raise InputError(f"--temperature={temperature}: must lie in 0 .. {HOTTEST:g}; 0 decodes greedily")
    if n > 1 and temperature == 0:
        raise InputError(f"--n={n} --temperature=0: greedy samples are all alike; give a temperature above 0")
    return Drawing(n, temperature, config.seed)


def main(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Asks what the flags say, and prints the answers."""
    args = flags.FLAGS
    given = [name for name in ("question", "file", "serve") if args[name].value]
    if len(given) != 1:
        raise InputError("give one of --question=TEXT, --file=QUESTIONS and --serve")
    if args.image and given != ["question"]:
        raise InputError(f"--image needs --question; with --{given[0]} each question brings its own")
    if args.serve and (args["n"].present or args["temperature"].present):
        raise InputError("--n and --temperature do not go with --serve: each request has its own")
    config_lib.validate(config, unused=("data.train",))
    drawing = _read_drawing(config)
    if jax.process_count() > 1:
        raise InputError(f"{jax.process_count()} processes: questions are answered by one; start it on one host")
    config = with_weights_of(workdir, config)
    processor = make_processor(config)
    if args.serve:
        _serve(config, workdir, processor)
    elif args.file:
        rows = read_file(Path(args.file))
        count = len(rows) * drawing.num_samples
        with open_engine(config, workdir, processor, row_counts=[count]) as engine:
            num_lost = sum(map(_print_line, answer_file(engine, rows, drawing)))
        if num_lost:
            raise InputError(f"{num_lost} of {len(rows)} questions could not be asked; their lines say why")
    else:
        row = read_question({"prompt": args.question, "images": [str(Path(name)) for name in args.image]}, Path())
        question = _question(processor, row, drawing)
        bucket = bucket_of(collate(processor, [question.example]))
        sizes: dict[str, Any] = {"row_counts": [drawing.num_samples], "buckets": [bucket]}
        with open_engine(config, workdir, processor, **sizes) as engine, engine.ask(question) as pieces:
            show(pieces, drawing.num_samples)


def _print_line(line: dict[str, Any]) -> bool:
    """Prints a line of answers; True if it has none."""
    print(json.dumps(line, ensure_ascii=False), flush=True)
    return "error" in line


def _serve(config: ml_collections.ConfigDict, workdir: epath.Path, processor: Processor) -> None:
    """Serves the page and the endpoint until it is interrupted."""
    args = flags.FLAGS
    named = [part for part in find_params(workdir).parts if part not in ("checkpoints", "params")]
    with (
        ChatServer(args.host, args.port, model="/".join(named[-2:])) as server,
        open_engine(config, workdir, processor, row_counts=[1, MOST_ROWS]) as engine,
    ):
        serve(server, engine)


if __name__ == "__main__":
    cli.run(main)
