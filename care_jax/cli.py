"""Command lines: flags are read, and bad input becomes one line on stderr and exit code 2.

A command ends in one of three calls: `run` (a config and a run folder), `run_config` (a config) or `run_flags` (only
flags of its own). It defines its own flags under `if __name__ == "__main__"`, since commands that import each other
have flags of the same names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import ml_collections
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from care_jax import files
from care_jax.errors import InputError


def run(main: Callable[[ml_collections.ConfigDict, epath.Path], None]) -> None:
    """Parses `--config=configs/F.py --workdir=DIR [--config.a.b=v]`, joins the other processes, calls `main`."""
    from care_jax.parallel import processes  # imports JAX, which a command without a config may do without

    workdir_flag = flags.DEFINE_string("workdir", None, "The run folder, local or gs://; an existing one is resumed.")

    def with_workdir(config: ml_collections.ConfigDict) -> None:
        if workdir_flag.value is None:
            raise InputError("--workdir=DIR is needed, the run folder")
        workdir = files.anywhere(workdir_flag.value)
        processes.connect()
        with processes.ending_on_failure():
            main(config, workdir)

    run_config(with_workdir)


def run_config(main: Callable[[ml_collections.ConfigDict], None]) -> None:
    """Parses `--config=configs/F.py [--config.a.b=v]` and calls `main` with the config."""
    config_flag = config_flags.DEFINE_config_file("config", None, "A file of configs/; --config.a.b=v overrides.")

    def with_config() -> None:
        if config_flag.value is None:
            raise InputError("--config=FILE is needed, a file of configs/")
        if not isinstance(config_flag.value, ml_collections.ConfigDict):  # a stand-in that raises when it is read
            name = config_flags.get_config_filename(flags.FLAGS["config"])
            raise InputError(f"--config={name} cannot be loaded; give a file of configs/ or one like them")
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
    logging.set_verbosity(logging.WARNING)
    try:
        app.run(without_arguments, flags_parser=_parse_flags)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses with absl; an unknown flag, config key or config file becomes an InputError of one line."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        raise InputError(" ".join(_message(error).split())) from error


def _message(error: BaseException) -> str:
    """The message of an error that parsing the flags raised, without what the libraries wrapped around it."""
    flag, is_from_config, _ = str(error).partition(": Error whilst parsing config file")
    if is_from_config:  # ml_collections puts the traceback of get_config() into the message
        wrapped = error.__context__
        while wrapped is not None and str(wrapped).startswith("Error whilst parsing config file"):
            wrapped = wrapped.__context__
        return f"{flag.removeprefix('flag ')}: {wrapped}"
    message: object = error
    while isinstance(message, BaseException) and message.args:  # ml_collections wraps a KeyError
        message = message.args[0]
    return str(message)
