"""What the entry points share: --config with overrides, --workdir, and errors as one line with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

import ml_collections
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from care_jax import files
from care_jax.parallel import processes


def run(main: Callable[[ml_collections.ConfigDict, epath.Path], None]) -> None:
    """Parses `--config=configs/F.py --workdir=DIR [--config.a.b=v]` and calls main(config, workdir).

    A ValueError (bad input, found before anything is written) becomes one line on stderr and exit code 2.
    """
    workdir_flag = flags.DEFINE_string("workdir", None, "The run folder, local or gs://; an existing one is resumed.")

    def with_workdir(config: ml_collections.ConfigDict) -> None:
        if workdir_flag.value is None:
            raise ValueError("--workdir=DIR is needed, the run folder")
        workdir = files.anywhere(workdir_flag.value)
        processes.connect()
        processes.end_on_failure(lambda: main(config, workdir))

    run_config(with_workdir)


def run_config(main: Callable[[ml_collections.ConfigDict], None]) -> None:
    """The same without a run folder."""
    config_flag = config_flags.DEFINE_config_file("config", None, "A file of configs/; --config.a.b=v overrides.")

    def with_flags(argv: list[str]) -> None:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; an option looks like --config.a.b=v")
        if config_flag.value is None:
            raise ValueError("--config=FILE is needed, a file of configs/")
        if not isinstance(config_flag.value, ml_collections.ConfigDict):  # a stand-in that raises when it is read
            name = config_flags.get_config_filename(flags.FLAGS["config"])
            raise ValueError(f"--config={name} cannot be loaded; give a file of configs/ or one like them")
        main(config_flag.value)

    logging.set_verbosity(logging.WARNING)
    exit_on_bad_input(lambda: app.run(with_flags, flags_parser=parse_flags))


def exit_on_bad_input(call: Callable[[], None]) -> None:
    """Runs `call`; a ValueError becomes its message on stderr and exit code 2."""
    try:
        call()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with an unknown config key or a missing config file as a ValueError of one line."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        message: object = error
        while isinstance(message, BaseException) and message.args:  # ml_collections wraps a KeyError
            message = message.args[0]
        raise ValueError(" ".join(str(message).split())) from error
