"""Resident memory of a small training run over many steps."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from care_jax.run.folder import METRICS_FILE

_REPOSITORY = Path(__file__).parents[1]
_SMALL = {
    "model.weights": "random",
    "data.mini_vqa.num_train": 2000,
    "data.mini_vqa.num_heldout": 30,
    "rollout.response_len": 32,
    "rollout.num_rollouts": 4,
    "objective.reflect.max_rationale_len": 12,
    "objective.overlong_buffer_len": 0,
    "train.prompts": 8,
    "train.eval_every": 0,
    "train.checkpoint_every": 50,
    "eval.batch_size": 8,
}


def soak(num_steps: int) -> dict[str, Any]:
    """Trains for `num_steps`, and gives its median memory in the second third of the steps and in the last.

    Raises:
        RuntimeError: the run failed.
    """
    seen: dict[int, float] = {}  # step -> GiB
    with tempfile.TemporaryDirectory() as made:
        workdir = Path(made) / "run"
        overrides = _SMALL | {"data.train": f"{made}/task", "train.steps": num_steps, "verify.workers": 1}
        command = [sys.executable, "-m", "care_jax.train", "--config=configs/demo.py", f"--workdir={workdir}"]
        command += [f"--config.{name}={value}" for name, value in overrides.items()]
        with subprocess.Popen(command, cwd=_REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
            os.set_blocking(run.stderr.fileno(), False)  # type: ignore[union-attr]
            told = b""
            while run.poll() is None:
                time.sleep(0.1)
                told += run.stderr.read() or b""  # type: ignore[union-attr]
                step = _newest_step(workdir / METRICS_FILE)
                if step:
                    seen.setdefault(step, _resident_gib(run.pid))
        if run.returncode:
            raise RuntimeError(f"the run ended with exit code {run.returncode}: {told.decode()[-1000:]}")
    thirds = [[gib for step, gib in seen.items() if low < 3 * step / num_steps <= low + 1] for low in (1, 2)]
    middle, end = (statistics.median(third) for third in thirds)
    for step in sorted(seen)[:: max(len(seen) // 10, 1)]:
        print(f"step {step:>5}: {seen[step]:.3f} GiB resident")
    return {
        "steps": num_steps,
        "resident_gib": [round(middle, 3), round(end, 3)],
        "growth_mib_per_100_steps": round((end - middle) * 1024 / (num_steps / 3) * 100, 2),
    }


def _newest_step(path: Path) -> int:
    lines = path.read_bytes().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines[-2:-1]), default=0)


def _resident_gib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):  # it has just ended
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
