"""Ten steps of CARE, pinned: a change of layout changes no number of the method, the model or a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.end_to_end import COLD_START, SmallTask, finish, flags, metrics, small, start

# One instruction set and one thread, so that sums have one order on every x86 processor.
ONE_ORDER = {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_cpu_multi_thread_eigen=false"}
# Metrics of commit 0694722, before the rooms, with those that came since: verify/deadline, verify/died, and
# num_unreadable of data and eval. Without these four the digest is 7bc60fb24ae38740.
DIGEST = "276746ddbe63aa53"


def digest(rows: list[dict[str, Any]]) -> str:
    """A digest of metrics to the last bit, without those that tell times, or of the machine."""
    of_machine = ("time/", "tokens_per_s/", "start/", "speed/")
    kept = [{k: v for k, v in row.items() if not k.startswith(of_machine)} for row in rows]
    return hashlib.sha256(json.dumps([row for row in kept if len(row) > 1], sort_keys=True).encode()).hexdigest()[:16]


def test_metrics_of_ten_steps(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches a rebuild that draws other numbers, reorders a step, or loses or renames a metric.

    Also programs from the compilation cache that compute something else than those that were compiled, and a trace
    that changes what is traced.
    """
    cold, care, again = tmp_path / "cold", tmp_path / "care", tmp_path / "again"
    cold_start = small(small_task.model, small_task.data, **COLD_START)
    ten_steps = small(small_task.model, small_task.data, model__weights=str(cold), train__steps=10)
    for workdir, command, config, overrides in (
        (cold, "cold_start", "demo.py:cold_start", cold_start),
        (care, "train", "demo.py", ten_steps),
        (again, "train", "demo.py", ten_steps),
    ):
        arguments = [f"--config=configs/{config}", f"--workdir={workdir}", *flags(overrides)]
        arguments += ["--profile_steps=2:3"] if workdir == again else []
        ended = finish(start(f"care_jax.{command}", *arguments, cache=tmp_path / "cache", extra=ONE_ORDER))
        assert ended.returncode == 0, ended.stderr
    rows = metrics(care)
    assert sum("loss" in row for row in rows) == 10
    assert sum(row.get("reflect/tried", 0) for row in rows) > 0
    starts = [row for run in (care, again) for row in metrics(run) if "start/seconds" in row]
    assert [row["start/num_compiled"] > 0 for row in starts] == [True, False]
    assert digest(rows) == DIGEST
    assert digest(metrics(again)) == DIGEST
    assert f"profile of steps 2 to 3: {again / 'profile'}" in ended.stderr
    assert len(list((again / "profile").rglob("*.xplane.pb"))) == 1
