"""The benchmark of what a compiled decode step moves."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import decode_bytes


def test_a_step_reads_what_it_must(tmp_path: Path, capsys):
    """Catches another loop that is taken for a decode step, arrays that the count misses or counts padded, and logits
    that are laid out with most of them padding where they are gathered over tensor.
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
    # Of the weights of a 3B little more than one per cent stays in the chip's own memory from token to token.
    assert 0.95 < figures["decode_share"] < 1.02
