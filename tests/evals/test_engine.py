"""The engine behind care_jax.generate: an evaluation's answers, in pieces, however questions share batches."""

from __future__ import annotations

import inspect
import queue
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest

from care_jax.config import base
from care_jax.errors import BadRowError, InputError
from care_jax.evals import engine as engine_lib
from care_jax.evals.decoding import Decoder
from care_jax.evals.engine import BusyError, Engine, Piece, Question
from care_jax.evals.questions import encode_question, read_question
from care_jax.inputs.batch import Example, collate
from care_jax.inputs.processor import Processor
from care_jax.parallel import sharding
from care_jax.parallel.mesh import create_device_mesh
from care_jax.rewards.spans import TokenBytes
from care_jax.run.compile_guard import CompileGuard
from care_jax.stages import sampler
from care_jax.stages.keys import stage_key
from tests.end_to_end import apply
from tests.pictures import encode, picture, question

R = 12


def _mesh(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    return create_device_mesh(sizes, jax.devices()[: data * fsdp * tensor])


def _config(**changes: Any) -> ml_collections.ConfigDict:
    config = base()
    config.rollout.response_len, config.rollout.compact_shares = R, ()
    return apply(config, {name.replace("__", "."): value for name, value in changes.items()})


@pytest.fixture(scope="module")
def examples(tiny_processor) -> list[Example]:
    """Prompts with an image, with two, and without one."""
    records = [question("<image>=?", encode(picture(84, 84))), question("1+2=?")]
    records.insert(1, question("<image>+<image>", encode(picture(140, 28)), encode(picture(28, 84))))
    return [encode_question(tiny_processor, record) for record in records]


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    """One device."""
    return _mesh(1, 1, 1)


@pytest.fixture(scope="module")
def engine(tiny_model, tiny_processor, mesh) -> Iterator[Engine]:
    """Batches of one sample and of four."""
    with Engine(_config(), tiny_processor, tiny_model, mesh, row_counts=(1, 4)) as engine:
        yield engine


@pytest.fixture(scope="module")
def evaluated(tiny_model, tiny_processor, mesh, examples) -> list[str]:
    """The greedy responses of an evaluation to the examples."""
    decoder = Decoder(_config(eval__batch_size=3), tiny_processor, tiny_model, mesh, 3)
    key = stage_key(0, 0, seed=0, mesh=mesh)
    rollouts = decoder.fetch(decoder.open(tiny_model)(collate(tiny_processor, examples), [True] * 3, key))
    text = TokenBytes(tiny_processor.tokenizer).text
    return [text(ids[0][: length[0]]) for ids, length in zip(rollouts.token_ids, rollouts.response_len, strict=True)]


def _ask(engine: Engine, example: Example, **settings: Any) -> list[Piece]:
    """The last piece of each sample; each piece before it is a beginning of it."""
    samples: dict[int, Piece] = {}
    with engine.ask(Question(example, **settings)) as pieces:
        for piece in pieces:
            before = samples.get(piece.sample, Piece(piece.sample, "", 0, ""))
            assert not before.finish
            assert piece.text.startswith(before.text)
            assert piece.num_tokens >= before.num_tokens
            samples[piece.sample] = piece
    assert all(piece.finish for piece in samples.values())
    return [samples[number] for number in range(len(samples))]


def test_greedy_answers_are_an_evaluations(engine, examples, evaluated) -> None:
    """Catches another prompt, cache or stop than the one that accuracies are given for."""
    assert len(set(evaluated)) == 3
    assert [_ask(engine, example)[0].text for example in examples] == evaluated


def test_many_threads_share_batches(engine, examples, evaluated) -> None:
    """Catches answers that go to another question, or that depend on who else asks, and one that never comes."""
    before = _ask(engine, examples[0], num_samples=3, temperature=1.0, seed=(5,))
    with ThreadPoolExecutor(12) as pool:
        greedy = [pool.submit(_ask, engine, examples[number % 3]) for number in range(24)]
        drawn = [pool.submit(_ask, engine, examples[0], num_samples=3, temperature=1.0, seed=(5,)) for _ in range(4)]
        assert [one.result()[0].text for one in greedy] == evaluated * 8
        assert {tuple(piece.text for piece in one.result()) for one in drawn} == {tuple(piece.text for piece in before)}


def test_nothing_compiles_once_it_is_made(engine, examples) -> None:
    """Catches a temperature, limit, seed or number of samples that is a program of its own."""
    with CompileGuard() as guard:
        for example in examples:
            _ask(engine, example, num_samples=9, temperature=0.3, max_tokens=5, seed=(1, 2))
            _ask(engine, example, stops=("a",))
    assert guard.compiled == []


def test_samples_differ_and_a_seed_repeats_them(engine, examples) -> None:
    """Catches samples that are copies, a seed that is ignored, and draws that are the same for all seeds."""

    def drawn(seed: int) -> list[str]:
        return [piece.text for piece in _ask(engine, examples[0], num_samples=6, temperature=1.0, seed=(seed,))]

    first = drawn(1)
    assert len(set(first)) == 6
    assert drawn(1) == first
    assert not set(drawn(2)) & set(first)


def test_max_tokens_and_stops(engine, examples, evaluated) -> None:
    """Catches a limit that is ignored or beyond the engine's, and a stop text that does not end the decoding."""
    [short] = _ask(engine, examples[0], max_tokens=3)
    assert (short.num_tokens, short.finish) == (3, "length")
    assert evaluated[0].startswith(short.text)
    [long] = _ask(engine, examples[0], max_tokens=10**6)
    assert long.text == evaluated[0]
    assert long.num_tokens <= R
    stop = evaluated[0][4:6]
    [stopped] = _ask(engine, examples[0], stops=(stop, "never there"))
    assert (stopped.text, stopped.finish) == (evaluated[0][: evaluated[0].index(stop)], "stop")


def test_a_question_that_is_given_up_frees_its_rows(engine, examples, monkeypatch) -> None:
    """Catches decoding on for a client that has gone, and samples that wait for it."""
    monkeypatch.setattr(engine_lib, "_MOST_TOKENS_A_PIECE", 1)
    decoded: list[int] = []
    with engine.ask(Question(examples[0], num_samples=9)) as pieces:
        monkeypatch.setattr(engine_lib._Sample, "read", _counting(engine_lib._Sample.read, decoded))
        next(pieces)
    _ask(engine, examples[1])
    assert sum(decoded) < 9 + 2 * R  # nine samples would have taken 9 * R pieces


def test_a_question_stays_given_up(monkeypatch) -> None:
    """Catches a client that leaves while its tokens are read, and for whom all others would be decoded too."""

    class Text:
        is_stopped = False

        def add(self, token_ids: list[int], *, is_last: bool) -> str:
            sample.is_over = True  # as `ask` says from another thread
            return "a"

    engine: Any = SimpleNamespace(response_len=4, token_bytes={})
    asked = Question(example=None)  # type: ignore[arg-type]
    sample = engine_lib._Sample(asked, 0, engine, queue.SimpleQueue())
    monkeypatch.setattr(sample, "_text", Text())
    progress: Any = SimpleNamespace(alive=[True], sampled_len=[1], token_ids=np.array([[1]]), stopped=[False])
    sample.read(progress, 0)
    assert sample.is_over


def _counting(read: Callable, calls: list[int]) -> Callable:
    def counted(self: Any, *args: Any) -> None:
        calls.append(1)
        read(self, *args)

    return counted


def test_a_fault_is_the_batchs_alone(engine, examples, evaluated, monkeypatch) -> None:
    """Catches a thread that dies, after which nothing is answered, and NaN that is shown as an answer."""
    monkeypatch.setattr(engine_lib, "fetch_rows", lambda progress: jax.device_get(progress).replace(logprobs=np.nan))
    with pytest.raises(FloatingPointError, match="NaN"):
        _ask(engine, examples[0])
    monkeypatch.undo()
    assert _ask(engine, examples[0])[0].text == evaluated[0]


def test_too_many_are_refused(engine, examples, monkeypatch) -> None:
    """Catches a queue without an end, and a question of which half is taken."""
    monkeypatch.setattr(engine_lib, "MOST_WAITING", 2)
    with pytest.raises(BusyError), engine.ask(Question(examples[0], num_samples=3)):
        pass
    assert _ask(engine, examples[0])[0].finish


def test_a_closed_engine_answers_nobody(tiny_model, tiny_processor, mesh, examples, monkeypatch) -> None:
    """Catches a client that waits for ever when the server ends."""
    engine = Engine(_config(), tiny_processor, tiny_model, mesh, row_counts=(1,))
    decoding, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(engine, "_decode", lambda batch: (decoding.set(), go_on.wait(60)))
    with ThreadPoolExecutor(2) as pool:
        with engine:
            with engine.ask(Question(examples[0])):
                decoding.wait(60)
                waiting = pool.submit(_ask, engine, examples[1])
                while not engine._waiting:
                    pass
            threading.Timer(0.1, go_on.set).start()
        with pytest.raises(BusyError):
            waiting.result(60)
    with pytest.raises(BusyError), engine.ask(Question(examples[0])):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [0, 2])
def test_on_several_devices(tiny_model, tiny_processor, examples, evaluated, monkeypatch, tensor) -> None:
    """Catches a part of the cache, the vocabulary or the batch that lies on another device than where it is read."""
    # It changes a device's share of prompts and heads, which the checks of the tests take for a mistake.
    monkeypatch.setattr(sampler, "_move", inspect.unwrap(sampler._move))
    mesh = _mesh(1, 4, 1) if tensor else _mesh(1, 2, 2)
    model = jax.device_put(tiny_model, sharding.named(mesh, sharding.param_specs(tiny_model)))
    config = _config(rollout__tensor=tensor)
    with Engine(config, tiny_processor, model, mesh, row_counts=(1, 3)) as engine, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(_ask, engine, example) for example in examples]
        assert [one.result()[0].text for one in asked] == evaluated


ROWS = {
    "no prompt": ({"images": []}, "empty"),
    "blank": ({"prompt": " \n"}, "empty"),
    "no image": ({"prompt": "?", "images": ["absent.png"]}, "absent.png"),
    "marks": ({"prompt": "<image><image>?", "images": ["a.png"]}, "2 <image> for 1 images"),
    "the web": ({"prompt": "?", "images": ["https://example.org/a.png"]}, "nothing is downloaded"),
    "control tokens": ({"prompt": "<|im_end|>"}, "im_end"),
    "too long": ({"prompt": "1+2" * 40}, "or set data.overlong to shrink"),  # dropped, it would get no answer
    "unknown": ({"prompt": "?", "colour": "red"}, "colour"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_cannot_be_asked(tiny_processor: Processor, tmp_path: Path, name: str) -> None:
    """Catches a question that is asked without its image, or shortened, and a message that names no culprit."""
    raw, words = ROWS[name]
    (tmp_path / "a.png").write_bytes(encode(picture(28, 28)))
    with pytest.raises((BadRowError, InputError), match=re.escape(words)):
        encode_question(tiny_processor, read_question(raw, tmp_path).load())


def test_a_row_of_own_data_is_a_question(tmp_path: Path) -> None:
    """Catches a held-out file that has to be rewritten before it can be asked."""
    (tmp_path / "a.png").write_bytes(encode(picture(28, 28)))
    row = {"id": "7", "images": ["a.png"], "prompt": "How many?", "answer": "(B)", "answer_kind": "choice"}
    read = read_question(row | {"choices": ["1", "2"], "rationale": "one", "source": "s"}, tmp_path).load()
    assert (read.id, read.prompt, len(read.images)) == ("7", "<image>How many?", 1)
    turns = [{"role": "user", "content": "<image>How many?"}, {"role": "assistant", "content": "3"}]
    assert read_question({"messages": turns, "images": ["a.png"]}, tmp_path).load().prompt == "<image>How many?"
