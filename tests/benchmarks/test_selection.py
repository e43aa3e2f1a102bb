"""The selection benchmark at a tiny size."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import selection
from care_jax.method import objectives
from tests.presets import record


def test_both_sides_agree_and_the_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a benchmark that times two different results, or prints something after its figures."""
    figures = selection.main(["--prompts", "40", "--rollouts", "8", "--width", "32", "--repeats", "2"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["differing_groups"] == 0
    assert figures["speedup"] > 0
    assert sum(figures["groups"].values()) == 40
    assert min(figures["groups"].values()) > 0


def test_a_wrong_side_is_noticed() -> None:
    """Catches a comparison that lets other rows or other advantages pass."""
    inputs = selection.make_inputs(30, 8, 16)
    theirs = selection.loop_over_groups(inputs, objective=record(objectives.care_no_rgr))
    ours = {name: jnp.asarray(value) for name, value in theirs.items()}
    assert selection.require_equal(ours, theirs) == 0
    with pytest.raises(ValueError, match="advantages of the two sides differ"):
        selection.require_equal(ours | {"advantages": ours["advantages"] + 0.01}, theirs)
    with pytest.raises(ValueError, match="chose other rows in 30 of 30 groups"):
        selection.require_equal(ours | {"index": jnp.asarray(np.roll(theirs["index"], 1, axis=1) + 1)}, theirs)
