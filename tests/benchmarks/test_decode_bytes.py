"""The benchmark of the bytes that a compiled decode step moves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import decode_bytes


@pytest.mark.slow
def test_a_step_reads_what_it_must(tmp_path: Path, capsys):
    """Catches a count of the wrong loop or of too few bytes, and logits that are mostly padding after a gather.

    The wrong loop is one over layers. Bytes are missed if an array is left out or counted without its padding.
    """
    config = tmp_path / "small.py"
    lines = (
        "from tests.planning.test_plan import tiny",
        "def get_config():",
        "    return tiny(model__folder='Qwen2.5-VL-3B')",
    )
    config.write_text("\n".join(lines))
    figures = decode_bytes.main([f"--config={config}", "--topology=v5e:2x2", "--skip-update"])
    assert figures == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["prompts"] == 8
    assert figures["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
    # Little more than one per cent of a 3B's weights stays in the chip's own memory from token to token.
    assert 0.95 < figures["decode_share"] < 1.02
    int8 = decode_bytes.main([f"--config={config}", "--topology=v5e:2x2", "--skip-update", "--weights=int8"])
    assert (figures["weights"], int8["weights"]) == ("auto", "int8")
    assert 0.5 < int8["needed_bytes"]["weights"] / figures["needed_bytes"]["weights"] < 0.7  # not the embeddings
    assert int8["moved_bytes"] < 0.7 * figures["moved_bytes"]
