"""The command that writes docs/planning.md."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from benchmarks import plans
from benchmarks.config_file import load_config
from care_jax.planning.estimate import make_plan, planned_model
from care_jax.planning.sizes import Sizes

DOCUMENT = Path(__file__).parents[2] / "docs" / "planning.md"
CONFIG = """
from tests.planning.test_plan import tiny
def get_config(prompts):
    return tiny(train__prompts=int(prompts))
"""


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    """Standard promotion in all threads: optax's Adam computes b1**count with an integer count."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.slow
def test_only_the_block_of_the_config_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches figures of another config or slice, a block that is lost, and text that is written over."""
    config, document = tmp_path / "small.py", tmp_path / "planning.md"
    config.write_text(CONFIG)
    commands = [
        f"<!-- python -m care_jax.plan --config={config}:{prompts} --topology={topology} -->"
        for prompts, topology in ((8, "v5e:2x2"), (16, "v5p:2x2x1"))
    ]
    before = "# Plans\n\n{}\nold\n<!-- end -->\n\nbetween\n\n{}\n\nolder\n\n<!-- end -->\nafter\n".format(*commands)
    document.write_text(before)
    monkeypatch.setattr(plans, "make_plan", functools.partial(make_plan, only=("score",)))  # one of ten programs
    plans.main([f"--document={document}", f"--only={config}:16"])
    start, written = document.read_text().split("between")
    assert start == before.split("between")[0]
    assert written.startswith(f"\n\n{commands[1]}\n\n0.00 billion parameters;")
    assert "GiB of a chip's 95.74, mesh data 1 x fsdp 2 x tensor 2:" in written
    assert "fits: the peak is " in written
    assert "old" not in written
    assert written.endswith("\n```\n\n<!-- end -->\nafter\n")
    rows = [line.split()[0] for line in written.splitlines() if line[:1].isalpha()]
    assert rows == ["GiB", "score", "a", "one", "fits:", "after"]


def test_the_document_has_blocks_that_the_command_finds() -> None:
    """Catches a comment edited so that its figures are not written again, another layout, and another model's size."""
    blocks = list(plans._BLOCK.finditer(DOCUMENT.read_text()))
    assert len(blocks) == DOCUMENT.read_text().count("<!-- python") == 11
    for block in blocks:
        header, *rows = (line for line in block[0].splitlines() if line.startswith((" ", "rollout", "score", "update")))
        assert header == " " * 9 + "".join(f" {part}" for part in plans.PARTS) + "  peak"
        assert {len(row) for row in rows} == {len(header)}
        config = load_config(block["config"])
        sizes = Sizes.of(config, planned_model(config), (2048, 4096), {"data": 1, "fsdp": 1, "tensor": 1})
        assert f"\n\n{plans.size_of(sizes)}\n\n" in block[0]


def test_a_config_that_the_document_lacks_is_refused(tmp_path: Path) -> None:
    """Catches a typing error after which nothing is written and nothing is said."""
    document = tmp_path / "planning.md"
    document.write_text(DOCUMENT.read_text())
    with pytest.raises(ValueError, match=re.escape("no block of --config=configs/demo.py")):
        plans.main([f"--document={document}", "--only=configs/demo.py"])
