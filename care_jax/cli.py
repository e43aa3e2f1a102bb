"""Command lines: flags are read, and bad input becomes one line on stderr and exit code 2.

A command ends in one of three calls: `run` (a config and a run folder), `run_config` (a config) or `run_flags` (only
flags of its own). It defines its own flags under `if __name__ == "__main__"`, since commands that import each other
have flags of the same names. `care-jax NAME` runs the command NAME of an installed package.
"""

from __future__ import annotations

import re
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import ml_collections
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from care_jax import config, files
from care_jax.errors import InputError, one_line, printable, shown

_LONGEST = 1000  # characters of an error's line
_SHIPPED_CONFIG = re.compile(r"(?P<flag>--?config=|)(?P<file>configs/\w+\.py)(?P<run>:.*|)")

# Module and purpose of each command of `care-jax`.
COMMANDS = {
    "demo": ("care_jax.demo", "data, cold start, CARE, evaluation, export and report of a small model, on a CPU"),
    "prepare": ("care_jax.data.prepare", "check a downloaded data set and write it for training"),
    "hf_to_jax": ("care_jax.convert.hf_to_jax", "convert the weights of a Hugging Face folder"),
    "check_parity": ("care_jax.convert.check_parity", "compare converted weights with their Hugging Face folder"),
    "judge": ("care_jax.judge", "try a reward on pairs of gold answer and response"),
    "plan": ("care_jax.plan", "memory and step time of a run on a TPU slice, computed without one"),
    "cold_start": ("care_jax.cold_start", "supervised training before RL"),
    "train": ("care_jax.train", "RL"),
    "evaluate": ("care_jax.evaluate", "accuracy of a run on its held-out data or on benchmarks"),
    "report": ("care_jax.report", "one HTML page about runs"),
    "jax_to_hf": ("care_jax.convert.jax_to_hf", "export a run as a Hugging Face folder"),
}


def main() -> None:
    """Runs a command by its name: `care-jax train --config=...` is `python -m care_jax.train --config=...`."""
    name = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else "help"
    if name in ("help", "__help", "_h"):
        print("care-jax COMMAND [--flag=value ...]; care-jax COMMAND --help lists the flags. Commands:\n")
        print("\n".join(f"  {command:<14}{purpose}" for command, (_, purpose) in COMMANDS.items()))
    elif name in COMMANDS:
        del sys.argv[1]
        runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
    else:
        print(f"error: no command {shown(sys.argv[1])}: choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)


def run(main: Callable[[ml_collections.ConfigDict, epath.Path], None]) -> None:
    """Parses `--config=configs/F.py --workdir=DIR [--config.a.b=v]`, joins the other processes, calls `main`."""
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
    try:
        return flags.FLAGS(_with_shipped_config(argv))
    except Exception as error:  # a config file is a program, and may raise anything
        given = next((word for word in argv if word.lstrip("-").startswith("config=")), "--config")
        raise InputError(one_line(_message(error, given), _LONGEST)) from error
    finally:
        logging.set_verbosity(logging.WARNING)


def _with_shipped_config(argv: list[str]) -> list[str]:
    """`argv` with --config=configs/F.py naming the package's own F.py, if the current folder has no such file."""

    def resolved(word: str, before: str) -> str:
        match = _SHIPPED_CONFIG.fullmatch(word)
        if match is None or not (match["flag"] or before in ("--config", "-config")) or Path(match["file"]).exists():
            return word
        shipped = Path(__file__).parent / match["file"]
        return f"{match['flag']}{shipped}{match['run']}" if shipped.is_file() else word

    return [resolved(word, before) for word, before in zip(argv, ["", *argv], strict=False)]


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
