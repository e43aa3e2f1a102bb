"""The benchmark of streams, at a size of milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import packing

SMALL = ["--prompts=32", "--shards=8", "--minibatches=2", "--prompt_len=40", "--response_len=20", "--mean_len=8"]


def test_shares_of_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches shares above 1, groups that move and leave more padding, and one shard whose groups move."""
    figures = packing.main([*SMALL, "--steps=8", f"--json={tmp_path}/figures.json"])
    shares = figures["useful_token_share"]
    assert all(0 < share < 1 for both in shares.values() for share in both.values())
    assert all(of["one_length"] <= of["moved"] <= of["exact"] for of in shares.values())
    assert any(of["one_length"] < of["moved"] < of["exact"] for of in shares.values())
    assert sum(both["moved"] for both in shares.values()) > 1.1 * sum(both["unmoved"] for both in shares.values())
    written = json.loads((tmp_path / "figures.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == written
    alone = packing.main([*SMALL, "--shards=1"])["useful_token_share"]
    assert all(both["moved"] == both["unmoved"] for both in alone.values())


@pytest.mark.parametrize("bad", ["--prompts=31", "--steps=0"])
def test_bad_sizes_are_refused(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a traceback for sizes that cannot be packed."""
    with pytest.raises(SystemExit):
        packing.main([*SMALL, bad])
    assert "must" in capsys.readouterr().err
