"""What the commands share: they work on the host, take flags only, and tell bad input in one line."""

from __future__ import annotations

from collections.abc import Callable

import jax
from absl import app, logging

from care_jax import cli


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; a ValueError becomes one line on stderr and exit code 2."""

    def with_flags(argv: list[str]) -> None:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; options are written --name=value")
        main()

    jax.config.update("jax_platforms", "cpu")  # an accelerator may be at work, or wait for the pod's other hosts
    logging.set_verbosity(logging.WARNING)
    cli.exit_on_bad_input(lambda: app.run(with_flags, flags_parser=cli.parse_flags))
