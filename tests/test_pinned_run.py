"""Ten steps of CARE, pinned: a change of layout changes no number of the method, the model or a run."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import COLD_START, SmallTask, finish, flags, metrics, saved_steps, small, start

# One instruction set and one thread, so that sums have one order on every x86 processor.
ONE_ORDER = {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_cpu_multi_thread_eigen=false"}
# Of packed streams. Sums have another order there than in the padded layout, and equal rollouts, whose distances were
# equal bit by bit, are now apart by rounding, so that another one may be chosen. The padded layout's metrics were those
# of commit 0694722, and gave 7bc60fb24ae38740. This digest is of attention in blocks, and of a learning rate of 1.5e-4;
# without eval/newly_right and eval/newly_wrong it is 53690ac5cf63d980.
DIGEST = "4f3f549c3c362e69"


def digest(rows: list[dict[str, Any]]) -> str:
    """A digest of metrics to the last bit, without those that tell times, or of the machine."""
    of_machine = ("time/", "tokens_per_s/", "start/", "speed/")
    kept = [{k: v for k, v in row.items() if not k.startswith(of_machine)} for row in rows]
    return hashlib.sha256(json.dumps([row for row in kept if len(row) > 1], sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.slow
def test_metrics_of_ten_steps(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches a rebuild that draws other numbers, reorders a step, or loses or renames a metric.

    The run is killed, and goes on with programs from its compilation cache and a trace: neither changes a bit. Also
    catches a program that only a start from a checkpoint needs, and that the first start has not kept.
    """
    cold, care = tmp_path / "cold", tmp_path / "care"

    def begin(command: str, config: str, workdir: Path, overrides: dict[str, Any], *more: str) -> subprocess.Popen[str]:
        arguments = [f"--config=configs/{config}", f"--workdir={workdir}", *flags(overrides), *more]
        own_cache = {"JAX_COMPILATION_CACHE_DIR": ""}
        return start(f"care_jax.{command}", *arguments, cache=tmp_path, extra=ONE_ORDER | own_cache)

    cold_start = small(small_task.model, small_task.data, **COLD_START)
    ended = finish(begin("cold_start", "demo.py:cold_start", cold, cold_start))
    assert ended.returncode == 0, ended.stderr
    changes = {"model__weights": str(cold), "train__steps": 10, "train__checkpoint_every": 1, "optimizer__lr": 1.5e-4}
    ten_steps = small(small_task.model, small_task.data, **changes)
    killed = begin("train", "demo.py", care, ten_steps)
    while not saved_steps(care) and killed.poll() is None:
        time.sleep(0.005)
    killed.kill()
    assert finish(killed).returncode == -signal.SIGKILL
    ended = finish(begin("train", "demo.py", care, ten_steps, "--profile_steps=9:10"))
    assert ended.returncode == 0, ended.stderr
    rows = metrics(care)
    assert sum("loss" in row for row in rows) == 10
    assert sum(row.get("reflect/tried", 0) for row in rows) > 0
    assert digest(rows) == DIGEST
    first, second = (row for row in rows if "start/seconds" in row)
    assert first["start/num_compiled"] > 10
    assert (second["start/num_compiled"], second["start/num_cached"] > 10) == (0, True)
    assert f" 0 programs compiled, {second['start/num_cached']} read from {care / 'compilation_cache'})" in ended.stderr
    assert f"profile of steps 9 to 10: {care / 'profile'}" in ended.stderr
    assert len(list((care / "profile").rglob("*.xplane.pb"))) == 1
