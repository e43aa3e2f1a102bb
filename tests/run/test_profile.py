"""A trace of some steps: the range is checked, and the trace is written whatever ends the steps."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from care_jax.errors import InputError
from care_jax.run.profile import StepProfile


def steps_of(profile: StepProfile, *, first: int, last: int) -> None:
    """Runs steps."""
    for step in range(first, last + 1):
        with profile.around(step):
            jnp.ones(3).block_until_ready()


def traces(folder: Path) -> list[Path]:
    """The traces of a run folder."""
    return list((folder / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    "given",
    ["", "10", "10:", ":12", "12:10", "0:3", "-1:3", "1.5:2", "a:b", "10:101", "10:12:1", "10-12", "10:12\n", "9" * 30],
)
def test_a_range_that_is_none_is_refused_in_one_line(given: str, tmp_path: Path) -> None:
    """Catches a trace that never comes, for which somebody waits until the run has ended."""
    with pytest.raises(InputError) as refused:
        StepProfile(given, epath.Path(tmp_path), 100)
    told = str(refused.value)
    assert "give FIRST:LAST, two steps from 1 to train.steps=100, as 10:12" in told
    assert "\n" not in told


def test_a_bucket_is_refused() -> None:
    """Catches a trace that jax.profiler would lose in a local folder named gs:."""
    with pytest.raises(InputError, match="--profile_steps with --workdir=gs://bucket/run: "):
        StepProfile("1:2", epath.Path("gs://bucket/run"), 100)


def test_the_steps_are_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a trace of other steps, or one that goes on to the end of the run."""
    profile = StepProfile("3:4", epath.Path(tmp_path), 6)
    steps_of(profile, first=1, last=2)
    assert not (tmp_path / "profile").exists()
    steps_of(profile, first=3, last=4)
    assert capsys.readouterr().err == f"profile of steps 3 to 4: {tmp_path / 'profile'}\n"
    assert len(traces(tmp_path)) == 1
    steps_of(profile, first=5, last=6)
    profile.close()
    assert len(traces(tmp_path)) == 1


def test_a_run_that_ends_within_the_steps_writes_its_trace(tmp_path: Path) -> None:
    """Catches a trace that an error, a signal or the end of the run loses, and a profiler that is left running."""
    profile = StepProfile("1:5", epath.Path(tmp_path / "a"), 5)
    with pytest.raises(FloatingPointError), profile.around(1):
        raise FloatingPointError
    assert len(traces(tmp_path / "a")) == 1
    profile = StepProfile("1:5", epath.Path(tmp_path / "b"), 5)
    steps_of(profile, first=2, last=3)  # resumed at step 1
    profile.close()
    assert len(traces(tmp_path / "b")) == 1
    with jax.profiler.trace(str(tmp_path / "c")):
        pass


def test_a_run_that_is_past_the_steps_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a run that goes on behind the steps and traces nothing in silence."""
    profile = StepProfile("1:3", epath.Path(tmp_path), 9)
    profile.warn_if_past(2)
    assert capsys.readouterr().err == ""
    profile.warn_if_past(3)
    assert capsys.readouterr().err == (
        "warning: --profile_steps=1:3: the run goes on with step 4, so nothing is traced\n"
    )


def test_nothing_is_traced_without_the_flag(tmp_path: Path) -> None:
    """Catches a trace that nobody asked for."""
    profile = StepProfile(None, epath.Path(tmp_path), 9)
    profile.warn_if_past(9)
    steps_of(profile, first=1, last=2)
    profile.close()
    assert list(tmp_path.iterdir()) == []
