"""A run folder in a bucket, and what may not lie in one."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import fsspec
import pytest

from care_jax import config, files, judge, train
from care_jax.configs import demo
from care_jax.data.own_data import read_jsonl
from care_jax.data.sources import split_files
from care_jax.errors import InputError
from care_jax.evals.matching import Questions
from care_jax.evals.responses import read_responses
from care_jax.report import write_report
from care_jax.rewards.response_format import READABLE
from tests.bucket import buckets
from tests.end_to_end import SmallTask, apply, assert_same_params, metrics, saved_steps, small


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_and_ends_with_the_same_bits(cached: SmallTask, tmp_path: Path) -> None:
    """Catches a checkpoint, a metric or a report that goes to a local folder named gs:, or is read from nowhere."""

    def run(workdir: Path | str, steps: int) -> None:
        c = demo.get_config()
        sizes = small(cached.model, cached.data, train__steps=steps, model__weights=str(cached.cold_start))
        apply(c, sizes | {"optimizer.schedule": "constant", "optimizer.lr": 1e-3, "train.checkpoint_every": 1})
        assert int(train.run(c, workdir).step) == steps

    run(tmp_path / "run", 3)
    with buckets(tmp_path / "buckets"):
        run("gs://ours/run", 2)
        run("gs://ours/run", 3)
        write_report(["gs://ours/run"], "gs://ours/report.html")
    ours = tmp_path / "buckets" / "ours"
    assert_same_params(ours / "run", tmp_path / "run")
    assert saved_steps(ours / "run") == saved_steps(tmp_path / "run")
    rows = [[row["step"] for row in metrics(folder) if "loss" in row] for folder in (ours / "run", tmp_path / "run")]
    assert rows[0] == rows[1] == [1, 2, 3]
    assert "<html" in (ours / "report.html").read_text()
    assert not Path("gs:").exists()


def test_what_cannot_be_read_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback where gcsfs is missing, and a model folder in a bucket, which would be looked for on disk."""

    def missing(protocol: str) -> None:
        raise ImportError("no gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ValueError, match=r"gs://ours/run: .* gcsfs"):
        files.anywhere("gs://ours/run")
    with pytest.raises(ValueError, match=r"s3://ours/run: give a local path or gs://"):
        files.anywhere("s3://ours/run")
    with pytest.raises(ValueError, match="--root=gs://ours: must be on a local disk"):
        files.on_disk("gs://ours", "--root")
    c = config.base()
    c.model.folder = "gs://ours/model"
    with pytest.raises(ValueError, match=r"model.folder='gs://ours/model': must be on a local disk"):
        config.validate(c)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """Catches a reader that meets half a file, an old file lost to a writer that fails, and rubbish left beside it."""
    path = tmp_path / "results.json"
    files.write_text(path, "old")

    def fail() -> None:
        with files.written_whole(path) as unfinished:
            unfinished.write_text("ne")
            assert path.read_text() == "old"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"results.json": "old"}
    files.write_text(path, "new é")
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"results.json": "new é".encode()}


def test_a_lock_keeps_others_out_until_its_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches two writers in one folder, a lock that outlives an error, and a file system without locks refused."""
    path = tmp_path / ".lock"

    def fail() -> None:
        with files.locked(path, "busy"):
            with pytest.raises(ValueError, match="busy"), files.locked(path, "busy"):
                pytest.fail("both hold it")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with files.locked(path, "busy"):
        pass

    def no_locks(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with files.locked(path, "busy"):
        pass


READERS = {
    "data": lambda path: read_jsonl(path, strict=False),
    "pairs": lambda path: list(judge.run(path, READABLE["any"], ())),
    "responses": lambda path: read_responses(path, Questions([]), id_field="id", response_field="response"),
    "a folder": lambda path: split_files("jsonl", path, "train"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000, "nothing", "loop"])
def test_a_file_that_cannot_be_opened_is_told_in_one_line(tmp_path: Path, reader: str, name: str) -> None:
    """Catches a traceback for a name that is too long, or a file that only others may read."""
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError) as error:
        READERS[reader](tmp_path / name)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("path", "found"), [("/dev/null", "a device or a pipe"), ("/", "a folder")])
def test_what_is_no_file_is_named(path: str, found: str) -> None:
    """Catches "no such file" for a path that plainly exists."""
    with pytest.raises(InputError, match=f"'{path}' is {found}; give a file"):
        files.require_readable(Path(path), "no such file")


def test_a_file_of_others_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches exit code 1, after which a supervisor starts the run again, for a file without the right to read it."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        files.require_readable(tmp_path / "file", "")


def test_an_empty_path_is_not_the_current_folder() -> None:
    """Catches a run that --workdir=$UNSET writes into the folder that the user happens to be in."""
    with pytest.raises(InputError, match="a path is empty"):
        files.anywhere("")
    assert files.anywhere(".") == Path.cwd()
