"""The pool of verifier processes: order, deadlines, hangs, deaths, starts."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from care_jax.config import base
from care_jax.errors import InputError
from care_jax.rewards.judge import Item, Verdict, Verifier
from care_jax.run.watchdog import EXIT_CODE

RIGHT = Verdict(True, True, "correct")

# Speaks the worker's protocol without the package: answers "correct", hangs at "hang", dies at "die".
STUB = """
import json, os, sys, time
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["given"] == "hang":
        time.sleep(60)
    if request["given"] == "die":
        os._exit(3)
    print(json.dumps([request["id"] + (request["given"] == "lie"), True, True, "correct"]), flush=True)
"""


def stub_verifier(code: str = STUB, *, workers: int = 1, deadline: float = 30.0, **more: Any) -> Verifier:
    """A pool whose workers run `code`."""
    return Verifier(workers=workers, deadline=deadline, tolerance=0.0, command=[sys.executable, "-c", code], **more)


def integer(answer: object, gold: object = "5") -> Item:
    """An item of kind "integer"."""
    return Item("integer", str(answer), str(gold), None)


@pytest.fixture(scope="module")
def verifier():
    """A pool of the package's own workers."""
    with Verifier(workers=2, deadline=30.0, tolerance=0.01) as pool:
        yield pool


def test_verdicts_come_in_the_order_of_the_items(verifier):
    """Catches answers of several workers put together in the order of arrival."""
    items = [integer(i % 13, i % 7) for i in range(3000)]
    assert [verdict.correct for verdict in verifier.check(items)] == [i % 13 == i % 7 for i in range(3000)]


def test_every_kind_goes_through_the_workers(verifier):
    """Catches a field lost on the way: the options, the tolerance, a character that is not ASCII."""
    items = [
        integer("5"),
        Item("latex", "(x+1)^2", "x^2+2x+1", None),
        Item("list", "1, 2.51", "[1, 2.5]", None),
        Item("chart_relaxed", "52", "50", None),
        Item("tests.own_verifier:anagram", "silent", "listen", None),
        Item("number", "0.505", "0.5", None),
        Item("choice", "red", "B", ("blue", "red")),
        Item("text", "CAFÉ\0\n", "café\0", None),
        Item("text", "\udc80", "\ufffd", None),
    ]
    verdicts = verifier.check(items)
    assert [verdict.correct for verdict in verdicts] == [True] * (len(items) - 1) + [False]
    assert verdicts[-1].reason == "wrong"
    assert verifier.check([]) == []


def test_long_answers_are_cut_before_they_travel(verifier):
    """Catches pipes filled with megabytes that no verifier would read, and a cut that hides that an answer is long."""
    measure = STUB.replace('"correct"', 'str(len(request["given"]))')
    with stub_verifier(measure) as pool:
        assert [verdict.reason for verdict in pool.check([integer("5" * 1_000_000), integer("5")])] == ["257", "1"]
    verdicts = verifier.check([integer("5" * 1_000_000), integer("5")])
    assert [verdict.reason for verdict in verdicts] == ["too long", "correct"]


def test_requests_beyond_the_pipe_do_not_deadlock(verifier):
    """Catches a parent that blocks writing while its worker blocks writing: both pipes hold 64 KiB."""
    options = tuple("x" * 5_000 + str(i) for i in range(12))
    items = [Item("choice", "A", "A", options)] * 300  # 60 KB each
    assert all(verdict.correct for verdict in verifier.check(items))


def test_bad_gold_is_an_error_and_the_pool_goes_on(verifier):
    """Catches a broken data set that trains in silence on "wrong", and answers left over for the next call."""
    with pytest.raises(ValueError, match="'seven' is not a whole number"):
        verifier.check([integer("5"), integer("7", "seven"), *[integer("5")] * 500])
    assert verifier.check([integer("5"), integer("6")]) == [RIGHT, Verdict(False, True, "wrong")]


@pytest.mark.parametrize(("fault", "reason", "deadline"), [("hang", "deadline", 0.5), ("die", "worker died", 30.0)])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_lost_worker_costs_one_item(fault, reason, deadline, workers):
    """Catches a whole chunk, or the rest of the batch, lost with the worker that held it."""
    items = [integer(5) for _ in range(300)]
    for position in (0, 150, 299):
        items[position] = integer(fault)
    with stub_verifier(workers=workers, deadline=deadline) as pool:
        verdicts = pool.check(items)
        assert [i for i, verdict in enumerate(verdicts) if verdict != RIGHT] == [0, 150, 299]
        assert {verdicts[i] for i in (0, 150, 299)} == {Verdict(False, False, reason)}
        assert pool.check([integer(5)]) == [RIGHT]


def test_a_worker_killed_in_mid_batch_costs_one_item():
    """Catches a batch lost with a worker that the system kills (out of memory), and one that is lost in silence."""
    items = [Item("tests.own_verifier:fragile", str(i), str(i), None) for i in range(400)]
    items[200] = Item("tests.own_verifier:fragile", "kill", "5", None)
    items[300] = Item("tests.own_verifier:fragile", "hang", "5", None)
    with Verifier(workers=2, deadline=2.0, tolerance=0.0) as pool:
        verdicts = pool.check(items)
    lost = {i: verdict for i, verdict in enumerate(verdicts) if not verdict.correct}
    assert lost == {200: Verdict(False, False, "worker died"), 300: Verdict(False, False, "deadline")}


def test_a_worker_killed_from_outside_costs_one_item():
    """Catches a batch lost with a worker that was killed between two items."""

    class Items(list):
        def __getitem__(self, position):
            if position == 5_000 and processes:  # is being handed over for the first time
                processes.pop().kill()
            return super().__getitem__(position)

    with Verifier(workers=1, deadline=30.0, tolerance=0.0) as pool:
        processes = [pool._workers[0]._process]
        verdicts = pool.check(Items([integer(5)] * 10_000))
    assert [verdict for verdict in verdicts if verdict != RIGHT] == [Verdict(False, False, "worker died")]


def test_the_deadline_is_for_an_item_and_not_for_the_batch():
    """Catches a clock that starts when an item is handed over: behind 20 slow ones it would be killed unread."""
    slow = STUB.replace('if request["given"] == "hang":\n        time.sleep(60)', "time.sleep(0.1)")
    with stub_verifier(slow, deadline=1.0) as pool:
        assert pool.check([integer(5)] * 20) == [RIGHT] * 20


SLOW_VERIFIERS = """
import sys
from care_jax.rewards.judge import Item, Verifier
from care_jax.run.watchdog import Watchdog

with Watchdog(2.0, sys.argv[1]) as watchdog:
    beat = {{"on_progress": watchdog.beat}} if {beats} else {{}}
    with Verifier(workers=1, deadline=0.8, tolerance=0.0, **beat) as pool:
        pool.check([Item("tests.own_verifier:fragile", "hang", "5", None)] * 4)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("beats", "code"), [(True, 0), (False, EXIT_CODE)])
def test_a_verifier_that_is_late_every_time_is_progress(tmp_path, beats, code):
    """Catches a watchdog that ends a run whose verifiers are slow, again and again after each restart."""
    program = [sys.executable, "-c", SLOW_VERIFIERS.format(beats=beats), str(tmp_path)]
    assert subprocess.run(program, capture_output=True, timeout=60).returncode == code


def test_every_verdict_is_progress_and_many_lost_ones_are_said_once(caplog):
    """Catches answers that count as wrong in silence, a line for each of them, and one about a rare accident."""
    told = []
    with stub_verifier(deadline=0.3, on_progress=lambda: told.append(None)) as pool:
        pool.check([integer(5)] * 199 + [integer("hang")])
        assert (len(told), caplog.messages) == (201, [])
        for _ in range(2):
            pool.check([integer(5)] * 7 + [integer("hang"), integer("die"), integer("die")])
    (message,) = caplog.messages
    assert message.startswith("of 10 answers 1 ran past verify.deadline=0.3 s and 2 killed their worker")


@pytest.mark.slow
def test_a_slow_start_is_not_a_missed_deadline():
    """Catches a new worker that is killed while Python starts, for ever."""
    with stub_verifier("import time; time.sleep(1)\n" + STUB, deadline=0.3) as pool:
        assert pool.check([integer("hang"), integer(5)]) == [Verdict(False, False, "deadline"), RIGHT]


@pytest.mark.slow
def test_loading_is_not_a_missed_deadline():
    """Catches a worker that is killed while it imports what the first item of a kind needs, for ever."""
    loads = 'print(json.dumps("loading"), flush=True); time.sleep(1); print(json.dumps("ready"), flush=True)'
    slow = STUB.replace("    request = json.loads(line)", f"    request = json.loads(line)\n    {loads}")
    with stub_verifier(slow, deadline=0.5) as pool:
        assert pool.check([integer(5)] * 2) == [RIGHT] * 2


def test_a_worker_that_dies_while_it_loads_is_an_error():
    """Catches a missing package that makes every answer of a kind wrong in silence."""
    broken = STUB.replace("request = json", 'print(json.dumps("loading"), flush=True); request = 1 / 0; json')
    with stub_verifier(broken) as pool, pytest.raises(RuntimeError, match="did not start or load"):
        pool.check([integer(5)])


NOISY = """
import ctypes, os, sys
from care_jax.rewards.verifiers import answer_verifier

def noise():
    print("[1, true, true, 1]")
    os.write(1, b'"ready"')
    sys.stdout.buffer.write(b"no newline")
    sys.stdout.flush()
    libc = ctypes.CDLL(None)
    libc.puts(b"from C")
    libc.fflush(None)
    os.system("echo from a program; cat")
    assert sys.stdin.read() == os.read(0, 9).decode() == ""

noise()

@answer_verifier
def noisy(given, gold):
    noise()
    return given == gold, True, "compared"
"""


def test_a_verifier_may_print_and_read(tmp_path, monkeypatch):
    """Catches answers that share a descriptor with what a user's verifier prints, and requests that it can read."""
    (tmp_path / "noisy_verifier.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    items = [Item("noisy_verifier:noisy", str(i), "5", None) for i in range(20)]
    with Verifier(workers=1, deadline=30.0, tolerance=0.0) as pool:
        assert [verdict.correct for verdict in pool.check(items)] == [i == 5 for i in range(20)]


@pytest.mark.parametrize("printed", ["print('hello')", "print('hello', end='')", "print('[1, true, true, 1]')"])
def test_python_itself_may_print_at_its_start(tmp_path, monkeypatch, printed):
    """Catches a sitecustomize that prints being taken for the first words of the worker."""
    (tmp_path / "sitecustomize.py").write_text(printed)
    monkeypatch.syspath_prepend(tmp_path)
    with Verifier(workers=1, deadline=30.0, tolerance=0.0) as pool:
        assert pool.check([integer(5)]) == [RIGHT]


@pytest.mark.parametrize("when", ["starts", "loads"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_lost_while_it_starts_is_tried_again(tmp_path, when, workers):
    """Catches a run that ends because the system killed a worker at its start, and an item lost or blamed for it."""
    flag = tmp_path / "killed_once"
    kill = f"import os, pathlib; flag = pathlib.Path({str(flag)!r})\nif not flag.exists(): flag.touch(); os._exit(9)\n"
    loads = 'print(json.dumps("loading"), flush=True)\n    ' + kill.replace("\n", "\n    ")
    loads += 'print(json.dumps("ready"), flush=True)'
    code = kill + STUB if when == "starts" else STUB.replace("= json.loads(line)", f"= json.loads(line)\n    {loads}")
    with stub_verifier(code, workers=workers) as pool:
        assert pool.check([integer(5)] * 300) == [RIGHT] * 300
    assert flag.exists()


def test_a_kind_that_kills_every_worker_ends_in_a_line_that_names_it(tmp_path, monkeypatch):
    """Catches replacements without end, and a message that does not say which module is at fault."""
    (tmp_path / "deadly.py").write_text("import os; os._exit(1)")
    monkeypatch.syspath_prepend(tmp_path)
    items = [integer(5)] * 50 + [Item("deadly:check", "5", "5", None)] + [integer(5)] * 50
    with (
        Verifier(workers=2, deadline=30.0, tolerance=0.0) as pool,
        pytest.raises(RuntimeError, match=r"did not start or load, 7 times, loading 'deadly:check'"),
    ):
        pool.check(items)


def test_a_worker_that_died_while_idle_costs_nothing():
    """Catches the first item of a step being blamed for a worker that the system killed between two steps."""
    with stub_verifier() as pool:
        assert pool.check([integer(5)]) == [RIGHT]
        pool._workers[0]._process.kill()
        pool._workers[0]._process.wait()
        assert pool.check([integer(5)]) == [RIGHT]


def test_workers_that_do_not_start_are_an_error():
    """Catches an endless loop of replacements."""
    with stub_verifier("raise SystemExit(1)") as pool, pytest.raises(RuntimeError, match="did not start or load"):
        pool.check([integer(5)])


def test_answers_to_other_questions_are_an_error_and_close_the_pool():
    """Catches verdicts that are shifted by one item."""
    with stub_verifier() as pool:
        with pytest.raises(RuntimeError, match="sent an unexpected reply"):
            pool.check([integer("lie")])
        with pytest.raises(ValueError, match="closed"):
            pool.check([integer(5)])


def test_close_ends_the_processes():
    """Catches workers that outlive the run, even one that hangs."""
    with stub_verifier(deadline=0.3, workers=2) as pool:
        pool.check([integer("hang")])
        processes = [worker._process for worker in pool._workers]
    assert all(process.returncode is not None for process in processes)


def test_the_worker_ends_with_its_input():
    """Catches workers that stay behind when the parent is killed."""
    command = [sys.executable, "-m", "care_jax.rewards.worker"]
    request = b'{"id": 4, "kind": "integer", "given": "x=5", "gold": "5", "choices": null, "tolerance": 0}\n'
    done = subprocess.run(command, input=request, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b'"ready"\n"loading"\n"ready"\n[4, true, true, "correct"]\n'


def test_the_pool_of_a_config_runs_only_what_it_lists():
    """Catches records that nobody checked, such as those of a doctored folder, whose kinds are imported by a worker."""
    config = base()
    config.verify.allow = ("tests.own_verifier:anagram",)
    with Verifier.from_config(config, "tests.own_verifier:never") as pool:
        assert pool.check([Item("tests.own_verifier:anagram", "ab", "ba", None)])[0].correct
        assert not pool.check([Item("tests.own_verifier:never", "ab", "ab", None)])[0].correct
        with pytest.raises(InputError, match=r"'os:system' is not in verify.allow \(tests.own_verifier:anagram,"):
            pool.check([integer(5), Item("os:system", "true", "true", None)])


@pytest.mark.parametrize(
    "arguments", [{"workers": 0}, {"deadline": 0.0}, {"tolerance": 1.0}, {"tolerance": float("nan")}]
)
def test_bad_arguments_are_refused(arguments):
    """Catches a pool that waits for ever, and a tolerance that accepts everything."""
    with pytest.raises(ValueError, match="workers is 1 or more"):
        Verifier(**{"workers": 1, "deadline": 1.0, "tolerance": 0.0} | arguments)
