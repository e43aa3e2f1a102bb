"""Command lines: flags are read, and bad input becomes one line on stderr and exit code 2.

A command ends in one of three calls: `run` (a config and a run folder), `run_config` (a config) or `run_flags` (only
flags of its own). It defines its own flags under `if __name__ == "__main__"`, since commands that import each other
have flags of the same names.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import ml_collections
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from care_jax import config, files
from care_jax.errors import InputError, one_line, printable

_LONGEST = 1000  # characters of an error's line
_RECORDED = Path(__file__).parent / "run" / "recorded_config.py"  # the config that a run folder has


def run(main: Callable[[ml_collections.ConfigDict, epath.Path], None]) -> None:
    """Parses `--config=configs/F.py --workdir=DIR [--config.a.b=v]`, joins the other processes, calls `main`.

    Without --config it is the config that the run in DIR has recorded.
    """
    from care_jax.parallel import processes  # imports JAX, which a command without a config may do without

    workdir_flag = flags.DEFINE_string("workdir", None, "The run folder, local or gs://; an existing one is resumed.")

    def with_workdir(values: ml_collections.ConfigDict) -> None:
        if workdir_flag.value is None:
            raise InputError("--workdir=DIR is needed, the run folder")
        workdir = files.anywhere(workdir_flag.value)
        processes.connect()
        with processes.ending_on_failure():
            main(values, workdir)

    run_config(with_workdir)


def run_config(main: Callable[[ml_collections.ConfigDict], None]) -> None:
    """Parses `--config=configs/F.py [--config.a.b=v]` and calls `main` with the config."""
    # Unknown keys get in, so that config.validate says of all alike, from a file or the command line, what is meant.
    config_flag = config_flags.DEFINE_config_file(
        "config",
        None,
        "A file of configs/; --config.a.b=v overrides.",
        lock_config=False,
        accept_new_attributes=True,
    )

    def with_config() -> None:
        if not flags.FLAGS["config"].present:
            raise InputError("--config=FILE is needed, a file of configs/")
        if not isinstance(config_flag.value, ml_collections.ConfigDict):
            name = config_flags.get_config_filename(flags.FLAGS["config"])
            # What ml_collections puts in place of a file that it could not open has the error.
            error = getattr(config_flag.value, "__dict__", {}).get("_error")
            why = "get_config() returns no ConfigDict" if error is None else one_line(_describe(error), _LONGEST)
            raise InputError(f"--config={name} cannot be loaded: {why}; give a file of configs/ or one like them")
        main(config_flag.value)

    run_flags(with_config)


def run_flags(main: Callable[[], None], *, on_host: bool = False) -> None:
    """Parses the flags and calls `main`. An InputError becomes one line on stderr and exit code 2.

    `on_host` keeps JAX off the accelerators, which may be at work, or wait for the other hosts of a pod.
    """

    def without_arguments(argv: list[str]) -> None:
        if len(argv) > 1:
            raise InputError(f"unexpected argument {argv[1]!r}; an option is written --name=value")
        main()

    if on_host:
        import jax

        jax.config.update("jax_platforms", "cpu")
    try:
        app.run(without_arguments, flags_parser=_parse_flags)
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses with absl; whatever is wrong with a flag, a config key or a config file becomes an InputError."""
    logging.set_verbosity(logging.ERROR)  # what ml_collections warns of becomes an error below
    workdir = _value(argv, "workdir") if "config" in flags.FLAGS and _value(argv, "config") is None else None
    recorded = [] if workdir is None else [f"--config={_RECORDED}:{workdir}"]
    try:
        return flags.FLAGS([*argv[:1], *recorded, *argv[1:]])
    except Exception as error:  # a config file is a program, and may raise anything
        given = next((word for word in argv if word.lstrip("-").startswith("config=")), "--config")
        if recorded:
            given = f"--workdir={workdir}"
        raise InputError(one_line(_message(error, given), _LONGEST)) from error
    finally:
        logging.set_verbosity(logging.WARNING)


def _value(argv: list[str], name: str) -> str | None:
    """The value of a flag on a command line that is not parsed yet; None if it is not there."""
    for word, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        flag, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and flag == name:
            return value if equals else following
    return None


def _message(error: Exception, given: str) -> str:
    """The error of parsing the flags, without what the libraries wrapped around it; `given` is --config=FILE."""
    inner: BaseException = error
    while not _line_in_config_file(inner) and inner.__context__ is not None:
        inner = inner.__context__  # ml_collections raises errors of its own while it handles that of the config file
    if _line_in_config_file(inner) or "Error whilst parsing config file" in str(error):
        return f"{given}: {_describe(inner)}"
    if isinstance(error, AttributeError) and "'get_config'" in str(error):
        return f"{given}: the file has no function get_config()"
    if isinstance(error, OSError):
        return f"{given} cannot be loaded: {str(error).partition('failure to load:')[2] or error}"
    message: object = error
    while isinstance(message, BaseException) and message.args:  # ml_collections wraps a KeyError
        message = message.args[0]
    if isinstance(error, KeyError | AttributeError) and "Did you mean" not in str(message):
        return f"no such config key: {message}; a config has {', '.join(config.base())}"
    return str(message)


def _describe(error: BaseException) -> str:
    """An error of a config file with the line that it comes from."""
    line = _line_in_config_file(error)
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{line}: {type(error).__name__}: {text}" if line and not isinstance(error, InputError) else text


def _line_in_config_file(error: BaseException) -> str:
    """`FILE, line N`, the last line of the config file that `error` came through; "" if it came through none."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}" if error.lineno else "the file"
    frames = traceback.walk_tb(error.__traceback__)
    # ml_collections makes this name of the flag's.
    lines = [(frame, line) for frame, line in frames if frame.f_globals.get("__name__") == "config_config"]
    return f"{lines[-1][0].f_code.co_filename}, line {lines[-1][1]}" if lines else ""
