"""Rewards beyond right and wrong: built-in ones by hand, a user's own in the pool, and the split that they make."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from care_jax.config import base, validate
from care_jax.errors import InputError
from care_jax.rewards import functions
from care_jax.rewards.judge import RewardConfig, Verifier, judge, judge_texts
from care_jax.rewards.pool import Call, _Batch
from care_jax.rewards.response_format import ANSWER_TAGS
from care_jax.structs import Record
from tests.made_rollouts import rollouts_of
from tests.marks import slow_but

TAGGED = RewardConfig(ANSWER_TAGS, correct_weight=0.9, format_weight=0.1)
OWN = "tests.own_rewards:"


def boxes(gold: str, given: str | None) -> float:
    """The IoU of an answer."""
    return functions.iou({"answer": gold, "extracted": given}, "")


@pytest.mark.parametrize(
    ("gold", "given", "value"),
    [
        ("[0, 0, 10, 10]", "[0, 0, 10, 10]", 1.0),
        ("[0, 0, 10, 10]", "0 0 10 5", 0.5),
        ("[0, 0, 10, 10]", "(5, 0, 15, 10)", 1 / 3),
        ("[0, 0, 10, 10]", '{"bbox_2d": [5, 5, 15, 15], "label": "a 1"}', 25 / 175),
        ("[0, 0, 10, 10]", "[10, 0, 20, 10]", 0.0),
        ("[0, 0, 10, 10]\n[20, 20, 30, 30]", "[20, 20, 30, 30]", 1.0),
        ("[0, 0, 10, 10]", "[3, 4]", 1.0),
        ("[0, 0, 10, 10]", "30, 4", 0.0),
        ("[0, 0, 10, 10]", "[10, 10, 0, 0]", 0.0),
        ("[0, 0, 10, 10]", "[0, 0, 10, 10] or [20, 20, 30, 30]", 0.0),
        ("[0, 0, 10, 10]", "[[0, 0, 10, 10], [1, 1, 2, 2]]", 0.0),
        ("[0, 0, 10, 10]", "[0, 0, 10]", 0.0),
        ("[0, 0, 10, 10]", "[0, 0, nan, 10]", 0.0),
        ("[0, 0, 10, 10]", "[-1e308, -1e308, 1e308, 1e308]", 0.0),
        ("[0, 0, 10, 10]", "[0, 0, 10, 10]" + " " * 300, 0.0),
        ("[0, 0, 10, 10]", "a box", 0.0),
        ("[0, 0, 10, 10]", "", 0.0),
        ("[0, 0, 10, 10]", None, 0.0),
    ],
)
def test_iou_by_hand(gold: str, given: str | None, value: float) -> None:
    """Catches areas counted twice, boxes turned round, and a reward for an answer that gives several."""
    assert boxes(gold, given) == pytest.approx(value)


@pytest.mark.parametrize("gold", ["", "a box", "[1, 2]", "[3, 3, 1, 1]", "[0, 0, 1, 1]\n7"])
def test_iou_needs_a_box(gold: str) -> None:
    """Catches data without boxes that train in silence on zeros."""
    with pytest.raises(ValueError, match="is no box; iou needs"):
        boxes(gold, "[0, 0, 1, 1]")


def test_penalties_by_hand() -> None:
    """Catches a penalty on a text that repeats nothing, and one that grows without end."""
    assert (
        functions.repetition({}, "a b c d e")
        == functions.repetition({}, "")
        == functions.repetition({}, "a a a")
        == 0.0
    )
    assert functions.repetition({}, "a b c d a b c d") == pytest.approx(4 / 5 - 1)  # abcd comes twice among five runs
    assert functions.repetition({}, "a " * 1003) == pytest.approx(1 / 1000 - 1)
    assert functions.length({}, "a " * 250) == -0.25
    assert functions.length({}, "a " * 9_000) == -1.0


BAD = [
    ({"rewards": ("iou",)}, "'iou' is not NAME=WEIGHT"),
    ({"rewards": ("iou=much",)}, "is not NAME=WEIGHT"),
    ({"rewards": ("iou=nan",)}, "is not NAME=WEIGHT"),
    ({"rewards": ("iou=1", "iou=2")}, "each name once"),
    ({"rewards": ("iuo=1",)}, "one of iou, repetition, length, or module:function"),
    ({"rewards": ("os:=1",)}, "is not NAME=WEIGHT"),
    ({"correct_when": "iou>=0.5"}, "with a name of verify.rewards (which is empty)"),
    ({"rewards": ("iou=1",), "correct_when": "iou>0.5"}, "give NAME>=NUMBER"),
    ({"rewards": ("iou=1",), "correct_when": "iou>=half"}, "give NAME>=NUMBER"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_config_is_refused_before_anything_runs(changes: dict, message: str) -> None:
    """Catches a misspelt reward that is left out in silence."""
    config = base()
    config.model.folder = config.data.train = "x"
    config.verify.update(changes)
    with pytest.raises(InputError, match="bad config") as error:
        validate(config)
    assert message in str(error.value)


def pool(*rewards: str, correct_when: str = "", deadline: float = 30.0, workers: int = 2) -> Verifier:
    """The pool of a config with these rewards."""
    config = base()
    config.verify.update(rewards=rewards, correct_when=correct_when, deadline=deadline, workers=workers)
    return Verifier.from_config(config)


TOKENS = [
    b"",
    b"<answer>",
    b"</answer>",
    b"[0,0,10,10]",
    b"[0,0,10,5]",
    b"[0,0,10,2]",
    b"<think></think>",
    b"hang",
    b"raise",
]
END, BEGIN, FINISH, WHOLE, HALF, FIFTH, THINK, HANG, RAISE = range(len(TOKENS))
GROUNDED = Record("a", "s", "where?", (b"123", b"45678"), "[0, 0, 10, 10]", "list")


def test_a_box_is_rewarded_and_split_by_its_overlap() -> None:
    """Catches a reward of another rollout, the exact list as the only right answer, and a split by another rule."""
    rows = [[THINK, BEGIN, box, FINISH, END] for box in (WHOLE, HALF, FIFTH)]
    rollouts = rollouts_of(np.array([rows], np.int32), np.full((1, 3), 5, np.int32))
    with pool("iou=0.5", f"{OWN}sees.pixels=0.01", correct_when="iou>=0.5") as verifier:
        judged = judge(verifier, [GROUNDED], rollouts, TOKENS, TAGGED)
    np.testing.assert_allclose(judged.parts["iou"], [[1.0, 0.5, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(judged.parts[f"{OWN}sees.pixels"], [[8.0] * 3])
    assert judged.verdicts.correct.tolist() == [[True, True, False]]
    assert judged.reasons == [["iou 1", "iou 0.5", "iou 0.2"]]
    right, formed, pixels = np.array([1, 1, 0]), 0.1, 0.08
    expected = [0.9 * right + formed + 0.5 * np.array([1.0, 0.5, 0.2]) + pixels]
    np.testing.assert_allclose(judged.verdicts.rewards, expected, rtol=1e-6)
    assert judged.verdicts.rewards.dtype == np.float32


def test_an_evaluation_splits_as_training_does() -> None:
    """Catches held-out accuracy by another rule than the one that is trained."""
    texts = [(GROUNDED, f"<answer>{box}</answer>") for box in ("[0, 0, 10, 9]", "[0, 0, 10, 1]", "none")]
    with pool("iou=0.5", correct_when="iou>=0.5") as verifier:
        judged = judge_texts(verifier, texts, ANSWER_TAGS)
    assert [one.verdict.correct for one in judged] == [True, False, False]
    assert [one.verdict.reason for one in judged] == ["iou 0.9", "iou 0.1", "iou 0"]


@pytest.mark.parametrize("fault", ["raise", "nan", "huge", "text", "hang"])
def test_a_function_that_fails_costs_its_response_alone(fault: str) -> None:
    """Catches a run that ends, or trains on infinity, because a user's function failed on one response."""
    words = [b"", fault.encode(), b"fine"]
    rollouts = rollouts_of(np.array([[[1, 0], [2, 0]]], np.int32), np.full((1, 2), 2, np.int32))
    with pool(f"{OWN}fragile=1", deadline=1.0) as verifier:
        judged = judge(verifier, [GROUNDED], rollouts, words, TAGGED)
    np.testing.assert_array_equal(judged.parts[f"{OWN}fragile"], np.float32([[np.nan, 0.5]]))
    np.testing.assert_allclose(judged.verdicts.rewards, [[0.0, 0.5]])


@pytest.mark.parametrize(("fault", "reason"), [("raise", "KeyError"), ("named", "returned {}")])
def test_a_function_that_always_fails_is_told(caplog: pytest.LogCaptureFixture, fault: str, reason: str) -> None:
    """Catches a reward that is missing for every response and whose curve shows a 0 like any other."""
    rollouts = rollouts_of(np.array([[[1, 0], [1, 0]]], np.int32), np.full((1, 2), 2, np.int32))
    with pool(f"{OWN}fragile=1") as verifier:
        for _ in range(2):
            judge(verifier, [GROUNDED], rollouts, [b"", fault.encode()], TAGGED)
    (told,) = [record.getMessage() for record in caplog.records if "is missing for" in record.getMessage()]
    assert f"{OWN}fragile is missing for 2 of 2 responses" in told
    assert reason in told


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raise", "raised KeyError: \"'raise'\""),
        ("mute", "raised MuteError: its text raised RuntimeError"),
        ("unprintable", "returned a Silent whose repr raised RuntimeError; a reward is a number"),
    ],
)
def test_a_failed_function_says_what_it_raised(fault: str, told: str) -> None:
    """Catches an exception or a value whose own text fails, which would end the worker and blame the machine."""
    (reason,) = functions.compute(f"{OWN}fragile_batch", [{"images": [], "meta": None}], [fault])
    assert isinstance(reason, str)
    assert told in reason


def test_a_function_that_forks_and_comes_back_twice_answers_once() -> None:
    """Catches a child of the worker that answers too: its reply was an unexpected one, which ended the run."""
    rollouts = rollouts_of(np.array([[[1, 0], [2, 0], [1, 0]]], np.int32), np.full((1, 3), 2, np.int32))
    with pool(f"{OWN}fragile=1") as verifier:
        for _ in range(2):
            judged = judge(verifier, [GROUNDED], rollouts, [b"", b"fork", b"fine"], TAGGED)
            np.testing.assert_array_equal(judged.parts[f"{OWN}fragile"], np.float32([[0.5, 0.5, 0.5]]))


def test_neighbours_in_a_batch_are_not_told_as_missing(caplog: pytest.LogCaptureFixture) -> None:
    """Catches an alarm about a whole batch that broke, though all but one had their reward a moment later."""
    with pool(f"{OWN}fragile_batch=1") as verifier:
        values_of(verifier, ["a", "raise", "aa", "aaa", "aa"])
    (told,) = [record.getMessage() for record in caplog.records if "is missing for" in record.getMessage()]
    assert f"{OWN}fragile_batch is missing for 1 of 5 responses" in told


@pytest.mark.parametrize(("name", "num_images"), [*((name, 0) for name in functions.BUILT_IN), (f"{OWN}sees", 1)])
def test_images_travel_to_those_that_look_at_them(name: str, num_images: int) -> None:
    """Catches gigabytes a step that are encoded and sent to functions that read texts alone."""
    record = {"id": "a", "images": (b"picture",), "answer": "5", "extracted": "5"}
    batch = _Batch([Call(name, (record,), ("five",))], 0.0, lambda: None)
    assert len(json.loads(batch.take(1)[1])["records"][0]["images"]) == num_images


@pytest.mark.parametrize("name", ["no_such_module:f", f"{OWN}unmarked", f"{OWN}absent", "os:system"])
def test_a_function_that_is_none_is_an_error(name: str) -> None:
    """Catches a misspelt function whose reward is zero for ever."""
    with pool(f"{name}=1") as verifier, pytest.raises(InputError, match=r"cannot be imported|is not marked"):
        judge(
            verifier, [GROUNDED], rollouts_of(np.zeros((1, 2, 1), np.int32), np.ones((1, 2), np.int32)), [b""], TAGGED
        )


@pytest.mark.parametrize("name", [f"{OWN}sees.pixles", f"{OWN}sees", f"{OWN}fragile.one"])
def test_a_part_that_no_function_gives_is_an_error(name: str) -> None:
    """Catches a misspelt part, whose reward is missing for ever and by which no response is ever correct."""
    rollouts = rollouts_of(np.ones((1, 2, 1), np.int32), np.ones((1, 2), np.int32))
    with pool(f"{name}=1", correct_when=f"{name}>=1") as verifier, pytest.raises(InputError, match="none of what"):
        judge(verifier, [GROUNDED], rollouts, TOKENS, TAGGED)


class Judge(BaseHTTPRequestHandler):
    """A judge that hangs, fails, answers late, and answers at the second try, asked about one word or a batch."""

    asked: dict[str, int] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        """Answers."""
        *is_batch, asked = self.path[1:].split("/")
        words = asked.split("_")
        for word in words:
            self.asked[word] = self.asked.get(word, 0) + 1
        if "hangs" in words:
            time.sleep(20)
        if "late" in words:
            time.sleep(0.3)
        fails = "fails" in words or ("recovers" in words and self.asked["recovers"] == 1)
        self.send_response(500 if fails else 200)
        self.end_headers()
        values = [None if word == "unclear" else 0.75 for word in words]
        self.wfile.write(json.dumps(values if is_batch else values[0]).encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    """The judge's."""
    Judge.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def test_a_judge_over_http_that_hangs_fails_and_is_late(address: str) -> None:
    """Catches a run that waits for a judge, loses its neighbours' rewards, or asks only once."""
    words = [b"", b"hangs", b"fails", b"late", b"recovers", b"fine"]
    record = Record("a", "s", address, (), "5", "integer")
    ids = np.array([[[word, 0] for word in range(1, 6)]], np.int32)
    with pool(f"{OWN}asks=1", deadline=2.0) as verifier:
        judged = judge(verifier, [record], rollouts_of(ids, np.full((1, 5), 2, np.int32)), words, TAGGED)
    np.testing.assert_array_equal(judged.parts[f"{OWN}asks"], np.float32([[np.nan, np.nan, 0.75, 0.75, 0.75]]))
    assert (Judge.asked["recovers"], Judge.asked["fails"], Judge.asked["fine"]) == (2, 2, 1)


def values_of(verifier: Verifier, words: list[str], **fields: object) -> list[float | None]:
    """The value of the pool's only reward for each word as a response; None without one."""
    record = dataclasses.replace(GROUNDED, **fields)
    ids = np.arange(1, len(words) + 1, dtype=np.int32)[None, :, None]
    tokens = [b"", *(word.encode() for word in words)]
    judged = judge(verifier, [record], rollouts_of(ids, np.ones((1, len(words)), np.int32)), tokens, TAGGED)
    (part,) = judged.parts.values()
    np.testing.assert_allclose(judged.verdicts.rewards, np.nan_to_num(part))
    return [None if np.isnan(value) else value for value in part[0].tolist()]


WHOLE_CALL = ["raise", "exit", "hang", "kill", "short", "long", "nothing", "digits", "bytes", "named", "set", "mute"]
ONE_VALUE = ["none", "nan", "huge", "text", "list", "object", "part", "octets", "unprintable"]


@pytest.mark.parametrize("fault", [*WHOLE_CALL, "one number", *ONE_VALUE])
@pytest.mark.parametrize("place", slow_but([3], [0, 3, 5]))
def test_a_response_that_breaks_a_batch_costs_itself_alone(fault: str, place: int) -> None:
    """Catches neighbours that are lost with it or get each other's values, and a wrong list taken for a right one."""
    words = ["a", "aa", "aaa", "aaaa", "aaaaa", "aaaaaa", "aaaaaaa"]
    words[place] = fault
    with pool(f"{OWN}fragile_batch=1", deadline=1.0) as verifier:
        assert values_of(verifier, words) == [None if word == fault else len(word) for word in words]
        assert values_of(verifier, ["aa", "a"]) == [2, 1]  # the pool goes on


@pytest.mark.parametrize("kind", ["array", "tuple", "generator", "bools"])
def test_a_batch_is_any_list_of_numbers(kind: str) -> None:
    """Catches an array or a generator that is refused, and values that lose their order."""
    with pool(f"{OWN}in_kinds=1") as verifier:
        values = values_of(verifier, [kind] * 8)  # four for each of two workers
    assert values == ([1, 0, 1, 0] * 2 if kind == "bools" else [0, 1, 2, 3] * 2)


def test_named_numbers_of_a_batch() -> None:
    """Catches parts that are those of a neighbour."""
    with pool(f"{OWN}in_kinds.length=1") as verifier:
        assert values_of(verifier, ["named", "named", "named", "named", "named"]) == [5] * 5


@pytest.mark.parametrize(
    ("count", "workers", "expected"),
    [
        (1, 2, [1]),
        (2, 2, [1] * 2),
        (5, 2, [3, 3, 3, 2, 2]),
        (9, 2, [4] * 8 + [1]),
        (9, 1, [4] * 8 + [1]),
        (3, 1, [3] * 3),
    ],
)
def test_batches_are_full_and_keep_the_workers_busy(count: int, workers: int, expected: list[int]) -> None:
    """Catches a batch above the size that the function takes, and one worker that is asked everything."""
    with pool(f"{OWN}sizes=1", workers=workers) as verifier:
        assert values_of(verifier, ["a"] * count) == expected


def test_many_batches_beside_other_functions() -> None:
    """Catches values that go to another function, and a queue that forgets calls when it is full."""
    rewards = (f"{OWN}sizes=1", "length=1", f"{OWN}fragile_batch=1", "repetition=1")
    words = ["a" * (n % 7 + 1) for n in range(900)]
    texts = [(GROUNDED, word) for word in words]
    with pool(*rewards) as verifier:
        described = judge_texts(verifier, texts, ANSWER_TAGS, with_parts=True)
    names = [name.partition("=")[0] for name in rewards]
    expected = [[4.0, -0.001, len(word), 0.0] for word in words]
    np.testing.assert_allclose([[one.parts[name] for name in names] for one in described], expected, rtol=1e-6)


@pytest.mark.parametrize("size", [0, -1, 2.5, None])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    """Catches a function that is asked nothing at once, for ever."""
    with pytest.raises(ValueError, match=f"size={size}"):
        functions.batch_reward_function(size=size)


@pytest.mark.slow
def test_a_batch_of_a_judge_that_hangs_fails_and_is_late(address: str) -> None:
    """Catches responses that are lost because a judge failed on another one of their batch."""
    words = ["fine1", "hangs", "fine2", "late", "fails", "fine3", "recovers", "fine4", "unclear", "fine5"]
    lost = {"hangs", "fails", "unclear"}
    with pool(f"{OWN}asks_batch=1", deadline=2.0) as verifier:
        values = values_of(verifier, words, prompt=f"{address}batch/")
        assert values == [None if word in lost else 0.75 for word in words]
        assert {word: Judge.asked[word] for word in words} == dict.fromkeys(words, 2) | {"fine5": 1}
        assert values_of(verifier, ["fine6", "fine7"], prompt=f"{address}batch/") == [0.75, 0.75]


@pytest.mark.parametrize(("meta", "value"), [(None, -1), ("{}", -1), ('{"points": 2.5, "of": ["é"]}', 2.5)])
def test_a_function_sees_the_rows_own_object(meta: str | None, value: float) -> None:
    """Catches a meta that stays behind, or comes as a text."""
    with pool(f"{OWN}reads_meta=1") as verifier:
        assert values_of(verifier, ["a"], meta=meta) == [value]
