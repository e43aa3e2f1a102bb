"""The names of TPU slices."""

from __future__ import annotations

import pytest

from care_jax.planning.chips import parse_topology


@pytest.mark.parametrize(
    ("topology", "chip", "sizes"),
    [
        ("v5p:2x2x2", "v5p", (2, 2, 2)),
        ("v5p:4x4x8", "v5p", (4, 4, 8)),
        ("v6e:8x8", "v6e", (8, 8)),
        ("v5e:16x16", "v5e", (16, 16)),
        ("v4:2x2x1", "v4", (2, 2, 1)),
        ("tpu7x:2x2x1", "tpu7x", (2, 2, 1)),
    ],
)
def test_known_slices(topology, chip, sizes):
    """Catches a common slice that is rejected."""
    found, shape = parse_topology(topology)
    assert (found.name, shape) == (chip, sizes)


@pytest.mark.parametrize("topology", ["v5p-8", "v5p:8", "v9:2x2x2", "v6e:3x3", "v6e:4x4x4", "v5p:4x4x3", "v5p:8x4x4"])
def test_unknown_slices_are_rejected_in_one_line(topology):
    """Catches a slice that reaches the compiler, which fails with an unclear message or none."""
    with pytest.raises(ValueError, match=f"--topology='{topology}': .* allowed are v5e and v6e with 1x1, "):
        parse_topology(topology)
