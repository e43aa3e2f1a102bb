"""TPU chips, each with its memory and speed, slices of them to compile for without a TPU, and the peaks of devices.

Sources: docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x) and jax-ml.github.io/scaling-book for peaks and
bandwidths. The HBM is what the compiler of libtpu 0.0.42.1 allows a program, which is less than the chip has.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any, NamedTuple

import jax

from care_jax.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device: a whole chip, but half a chip of tpu7x."""

    name: str
    hbm_gib: float  # GiB a program may use
    peak_flops: float  # bfloat16 FLOP/s
    hbm_bytes_per_s: float
    link_bytes_per_s: float  # over all its links to neighbours, in one direction
    axes: int  # axes of a slice: 2 (v5e, v6e) or 3
    devices: int = 1  # JAX devices of a chip
    config: str = "default"  # libtpu's name for the way a chip's cores are used


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 30.75, 275e12, 1228e9, 6 * 45e9, axes=3, config="megacore"),
        Chip("v5e", 15.75, 197e12, 819e9, 4 * 45e9, axes=2),
        Chip("v5p", 95.74, 459e12, 2765e9, 6 * 90e9, axes=3),
        Chip("v6e", 31.25, 918e12, 1638e9, 4 * 90e9, axes=2),
        Chip("tpu7x", 94.75, 2307e12 / 2, 7380e9 / 2, 6 * 100e9 / 2, axes=3, devices=2),
    )
}


class Rates(NamedTuple):
    """The speed that programs reach on one JAX device."""

    flops: float  # a second
    bytes_per_s: float  # of its memory, read and written
    link_bytes_per_s: float


# Shares of a chip's peaks that whole programs are expected to reach. FLOP/s: 51 to 67 % on slices of 256 v5e
# (github.com/AI-Hypercomputer/maxtext, configs/v5e, 16 B to 128 B parameters); a scoring pass reached 52 and 56 % of an
# H200 (docs/performance.md, "GPUs"). HBM and links are assumptions: large reads come near the peak of HBM, and a gather
# runs along one or two of a slice's axes at a time.
REACHED = Rates(flops=0.6, bytes_per_s=0.8, link_bytes_per_s=0.5)


def expected_rates(chip: Chip) -> Rates:
    """The speed that programs are expected to reach on a chip."""
    peaks = (chip.peak_flops, chip.hbm_bytes_per_s, chip.link_bytes_per_s)
    return Rates(*(peak * share for peak, share in zip(peaks, REACHED, strict=True)))


class Peak(NamedTuple):
    """The speed of one JAX device, as its maker gives it."""

    flops: float  # bfloat16 FLOP/s, dense
    bytes_per_s: float  # of its memory


# By JAX's device_kind. TPU v2 and v3 are left out: there, a device is a core of a chip. Source of the GPUs:
# nvidia.com/en-us/data-center/h100 (SXM) and /h200; the FLOP/s there are with sparsity.
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
}
PEAKS = {kind: Peak(CHIPS[name].peak_flops, CHIPS[name].hbm_bytes_per_s) for kind, name in _KINDS.items()} | {
    "NVIDIA H100 80GB HBM3": Peak(989e12, 3.35e12),
    "NVIDIA H200": Peak(989e12, 4.8e12),
}

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4")
_ALLOWED = (
    f"v5e and v6e with {', '.join(_FLAT)}; v4, v5p and tpu7x with {', '.join(_SMALL)} or three multiples of 4 in "
    "ascending order, as v5p:4x4x8"
)


def parse_topology(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """Reads a slice's name such as "v5p:4x4x4" as its chip and the number of chips along each axis.

    Raises:
        InputError: there is no such slice; one line that names what is allowed.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", topology)
    chip = CHIPS.get(found[1]) if found else None
    if found is None or chip is None:
        raise InputError(f"--topology={topology!r}: no such slice; allowed are {_ALLOWED}")
    sizes = tuple(map(int, found[2].split("x")))
    in_fours = all(0 < size <= 32 and size % 4 == 0 for size in sizes) and list(sizes) == sorted(sizes)
    if not (found[2] in _FLAT if chip.axes == 2 else found[2] in _SMALL or (len(sizes) == 3 and in_fours)):
        raise InputError(f"--topology={topology!r}: {chip.name} has no such slice; allowed are {_ALLOWED}")
    return chip, sizes


def devices_of(topology: str) -> tuple[Chip, list[jax.Device]]:
    """The chip of a slice, and the slice's devices to compile for.

    Raises:
        InputError: one line: there is no such slice, or libtpu is not installed.
    """
    chip, sizes = parse_topology(topology)
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server of a TPU to ask
        "TPU_MIN_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is opened, so other processes may compile too
        "TPU_ACCELERATOR_TYPE": f"{chip.name}-8",  # libtpu complains without this and the next, and uses neither
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": chip.config} if chip.config != "default" else {}
    if max(sizes) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        description = topologies.get_topology_desc(topology, "tpu", **options)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--topology={topology}: {reason} (libtpu is needed: pip install -e '.[tpu]')") from error
    return chip, list(description.devices)
