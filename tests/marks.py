"""Which cases of a test every `make test` runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(quick: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases, in their order, all but `quick` marked slow."""
    kept, all_cases = list(quick), list(cases)
    assert all(case in all_cases for case in kept), kept
    return [case if case in kept else pytest.param(case, marks=pytest.mark.slow) for case in all_cases]
