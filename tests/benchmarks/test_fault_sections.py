"""The sections of benchmarks.faults for pictures and rows: no bad outcome, and a reader that errs is seen."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from benchmarks.faults import pictures as pictures_module
from benchmarks.faults.outcomes import Outcome, Result, run_cases
from benchmarks.faults.pictures import pictures
from benchmarks.faults.rows import rows
from care_jax.data import own_data
from care_jax.inputs import images

FEW = {pictures: 400, rows: 700}  # every damage of every format and mode, and of every row


def _outcomes(section, folder: Path) -> tuple[dict[str, int], list[Result]]:
    found = list(run_cases(section(folder, FEW[section], 7)))
    bad = [result for result in found if result.outcome in (Outcome.TRACEBACK, Outcome.WRONG)]
    assert len(found) == FEW[section]
    return dict(collections.Counter(result.outcome.value for result in found)), bad[:1]


@pytest.mark.parametrize("section", FEW)
@pytest.mark.filterwarnings("ignore")
def test_damage_is_read_rightly_or_refused(section, tmp_path: Path) -> None:
    """Catches a damage that ends in a traceback or in other pixels or fields; both outcomes must come."""
    counts, bad = _outcomes(section, tmp_path)
    assert not bad
    assert min(counts["right"], counts["refused"]) > 20


@pytest.mark.filterwarnings("ignore")
def test_wrong_pixels_and_wrong_rows_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a section that calls everything right."""
    decode, record_of = images.decode_image, own_data.parse

    def inverted(encoded: bytes) -> Image.Image:
        return ImageOps.invert(decode(encoded))

    def longer(where, raw, folder):
        row = record_of(where, raw, folder)
        return dataclasses.replace(row, record=dataclasses.replace(row.record, prompt=row.record.prompt + "!"))

    monkeypatch.setattr(pictures_module, "decode_image", inverted)
    assert "right" not in _outcomes(pictures, tmp_path)[0]
    monkeypatch.setattr(own_data, "parse", longer)
    found = list(run_cases(rows(tmp_path, FEW[rows], 7)))
    assert not [result for result in found if result.outcome is Outcome.RIGHT and "emptied" not in result.case]
