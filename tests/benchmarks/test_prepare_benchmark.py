"""The benchmark of care_jax.data.prepare at a tiny size."""

from __future__ import annotations

import json

import pytest

from benchmarks import prepare


def test_all_rows_are_prepared_and_the_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a benchmark that times a failure, or prints something after its figures."""
    figures = prepare.main(["--rows", "40"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["rows"] == 40
    assert figures["rows_per_s"] > 0
    assert 0 < figures["peak_rss_gib"] < 3
