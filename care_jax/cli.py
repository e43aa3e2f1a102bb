"""Command lines: flags are read, and bad input becomes one line on stderr and exit code 2.

A command ends in one of three calls: `run` (a config and a run folder), `run_config` (a config) or `run_flags` (only
flags of its own). It defines its own flags under `if __name__ == "__main__"`, since commands that import each other
have flags of the same names. One that imports JAX or more calls `read_first` above those imports: a typo is then
refused in a second and not in twenty, and `--help` comes at once. `care-jax NAME` runs the command NAME of an installed
package.
"""

from __future__ import annotations

import contextlib
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ml_collections
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from care_jax import config, files
from care_jax.errors import InputError, one_line, printable, shown

_LONGEST = 1000  # characters of an error's line
_HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort", "-?"}
_FROM_COMMANDS = ("model.folder", "data.train", "data.eval")  # keys that some commands let be empty
_CONFIG_FLAG = re.compile(r"--?(config\.[\w.]+)(=.*)?", re.DOTALL)
_FOREIGN = ("absl.", "array_record.", "grain.", "orbax.", "tensorflow_datasets.")  # modules whose flags --help omits
_SHIPPED_CONFIG = re.compile(r"(?P<flag>--?config=|)(?P<file>configs/\w+\.py)(?P<run>:.*|)")
_RECORDED = Path(__file__).parent / "run" / "recorded_config.py"  # the config that a run folder has
_is_read = False  # the flags of this process

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
    "generate": ("care_jax.generate", "questions to a model: on the terminal, from a file, on a page, over HTTP"),
    "report": ("care_jax.report", "one HTML page about runs"),
    "jax_to_hf": ("care_jax.convert.jax_to_hf", "export a run as a Hugging Face folder"),
}


def training_flags() -> None:
    """Defines the flags of the commands that train."""
    flags.DEFINE_boolean(
        "allow_change",
        False,
        "Resume even if a setting has changed that makes the rest of the run differ from its beginning.",
    )
    flags.DEFINE_string(
        "profile_steps",
        None,
        "FIRST:LAST, steps to trace with jax.profiler; the trace goes to profile/ in the run folder.",
    )


def read_first(*, with_run: bool = False) -> None:
    """Reads the flags of a command, which has defined its own, before its imports.

    Bad ones end the process, and so does --help. `with_run`: it has `--config` and `--workdir`, and ends in `run`.
    """
    with _in_one_line():
        _read(with_config=with_run, with_workdir=with_run)


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
    """Parses `--config=configs/F.py --workdir=DIR [--config.a.b=v]`, joins the other processes, calls `main`.

    Without --config it is the config that the run in DIR has recorded.
    """

    def with_workdir() -> None:
        from care_jax.parallel import processes  # imports JAX, which a command without a config may do without

        workdir = files.anywhere(flags.FLAGS.workdir)
        processes.connect()
        with processes.ending_on_failure():
            main(flags.FLAGS.config, workdir)

    _run(with_workdir, with_config=True, with_workdir=True)


def run_config(main: Callable[[ml_collections.ConfigDict], None]) -> None:
    """Parses `--config=configs/F.py [--config.a.b=v]` and calls `main` with the config."""
    _run(lambda: main(flags.FLAGS.config), with_config=True)


def run_flags(main: Callable[[], None], *, on_host: bool = False) -> None:
    """Parses the flags and calls `main`. An InputError becomes one line on stderr and exit code 2.

    `on_host` keeps JAX off the accelerators, which may be at work, or wait for the other hosts of a pod.
    """
    if on_host:
        import jax

        jax.config.update("jax_platforms", "cpu")
    _run(main)


def _run(main: Callable[[], None], *, with_config: bool = False, with_workdir: bool = False) -> None:
    with _in_one_line():
        _read(with_config=with_config, with_workdir=with_workdir)
        app.run(lambda _: main(), argv=sys.argv[:1], flags_parser=lambda argv: argv)


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)


def _read(*, with_config: bool, with_workdir: bool) -> None:
    """Parses the flags, once in a process, and checks what can be checked of them alone."""
    global _is_read
    if _is_read:
        return
    _is_read = True
    if with_workdir:
        flags.DEFINE_string("workdir", None, "The run folder, local or gs://; an existing one is resumed.")
    if with_config:
        define_config("A file of configs/; --config.a.b=v overrides.")
    if not _HELP.isdisjoint(sys.argv[1:]):
        print(_help(with_config=with_config))
        sys.exit(0)
    sys.argv[:] = last_of_each(sys.argv)  # where config_flags looks for overrides
    _, *words = _parse_flags(sys.argv)
    if words:
        raise InputError(f"unexpected argument {words[0]!r}; an option is written --name=value")
    if with_workdir and flags.FLAGS.workdir is None:
        raise InputError("--workdir=DIR is needed, the run folder")
    if with_config and given_config() is None:
        raise InputError("--config=FILE is needed, a file of configs/")


def define_config(told: str) -> None:
    """Defines `--config` for `given_config`; `told` is its help."""
    # Unknown keys get in, so that config.validate says of all alike, from a file or a flag, what is meant.
    config_flags.DEFINE_config_file("config", None, told, lock_config=False, accept_new_attributes=True)


def given_config() -> ml_collections.ConfigDict | None:
    """The config that `--config` names, validated but for keys that some commands let be empty; None without it.

    Raises:
        InputError: it cannot be loaded, or a value is not allowed.
    """
    if not flags.FLAGS["config"].present:
        return None
    loaded = _loaded_config()
    config.validate(loaded, unused=_FROM_COMMANDS)
    return loaded


def last_of_each(argv: Sequence[str]) -> list[str]:
    """The words of a command line without the overrides of a config that a later one of the same key replaces.

    ml_collections would add up the values of a tuple that is given twice.
    """
    kept: dict[object, list[str]] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        found = _CONFIG_FLAG.fullmatch(word)
        if found is None:
            kept[len(argv) - len(words)] = [word]
            continue
        # Without "=" the value is the next word, if there is one: --config.a on its own is True.
        takes_next = found[2] is None and bool(words) and not words[0].startswith("-")
        kept.pop(found[1], None)
        kept[found[1]] = [word, words.pop(0)] if takes_next else [word]
    return [word for group in kept.values() for word in group]


def _loaded_config() -> ml_collections.ConfigDict:
    loaded = flags.FLAGS.config
    if isinstance(loaded, ml_collections.ConfigDict):
        return loaded
    # What ml_collections puts in place of a file that it could not open has the error.
    error = getattr(loaded, "__dict__", {}).get("_error")
    given = f"--config={config_flags.get_config_filename(flags.FLAGS['config'])}"
    if error is None:
        raise InputError(f"{given} cannot be loaded: get_config() returns no ConfigDict; return what base() gives")
    raise InputError(_cannot_load(given, one_line(_describe(error), _LONGEST)))


def _cannot_load(given: str, why: str) -> str:
    """The message about a config file, `given` as --config=FILE or --config=FILE:RUN."""
    path = Path(given.partition("=")[2].partition(":")[0])
    if not path.exists():
        beside = sorted(str(file) for file in Path("configs").glob("*.py") if file.name != "__init__.py")
        others = f"; here are {', '.join(beside)}" if beside else ", and this folder has no configs/"
        return f"{given}: there is no file {path}{others}"
    return f"{given} cannot be loaded: {why}; give a file of configs/ or one like them"


def _help(*, with_config: bool) -> str:
    """The command's docstring, its options, and every key of a config with its default and comment."""
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "options:"]
    modules = flags.FLAGS.flags_by_module_dict().items()
    of_others = {flag.name for name, found in modules if name.startswith(_FOREIGN) for flag in found}
    for name in sorted({*flags.FLAGS} - of_others - {"flagfile", "undefok", "v"}):
        flag = flags.FLAGS[name]
        default = "" if flag.default in (None, False, []) else f" (default: {flag.default})"
        lines.append(f"  --{name}  {flag.help}{default}")
    if with_config:
        lines += [
            "",
            "the config's keys and defaults, which a file of configs/ changes and --config.KEY=VALUE overrides:",
        ]
        lines += [f"  {line}" for line in config.described()]
    return "\n".join(lines)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses with absl; whatever is wrong with a flag, a config key or a config file becomes an InputError."""
    logging.set_verbosity(logging.ERROR)  # what ml_collections warns of becomes an error below
    workdir = _value(argv, "workdir") if "config" in flags.FLAGS and _value(argv, "config") is None else None
    recorded = [] if workdir is None else [f"--config={_RECORDED}:{workdir}"]
    try:
        return list(flags.FLAGS(_with_shipped_config([*argv[:1], *recorded, *argv[1:]])))
    except Exception as error:  # a config file is a program, and may raise anything
        given = next((word for word in argv if word.lstrip("-").startswith("config=")), "--config")
        if recorded:
            given = f"--workdir={workdir}"
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
        return _cannot_load(given, str(error).partition("failure to load:")[2] or str(error))
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
