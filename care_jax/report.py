"""Writes one self-contained HTML page about one or several runs, or serves it while they train.

    python -m care_jax.report --workdir=DIR [--workdir=DIR2 ...] --out=report.html
    python -m care_jax.report --workdir=DIR [--workdir=DIR2 ...] --serve

It reads the config, manifest, metrics, events, samples and held-out answers of a run (run/folder.py), reduces them to
what is drawn, and embeds that as JSON beside the page's own style and scripts (page/render.py). With --serve the page
follows the files as they grow (page/report_server.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from etils import epath

from care_jax import cli, files
from care_jax.errors import InputError, printable
from care_jax.page import render, report_server
from care_jax.page.run_data import load_run
from care_jax.page.run_files import is_run


def write_report(workdirs: Sequence[epath.PathLike], out: epath.PathLike) -> None:
    """Writes the page about some runs, side by side in the order given.

    Args:
        workdirs: run folders; one that is in progress or lacks files is shown as far as it goes.
        out: the HTML file to write.

    Raises:
        InputError: no workdir, one that is not a run folder, or `out` cannot be written; nothing is written.
    """
    page = render.page([load_run(folder, name) for name, folder in _run_folders(workdirs).items()])
    out = files.anywhere(out)
    if out.is_dir():
        raise InputError(f"--out={printable(str(out))} is a folder; name the HTML file to write")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"--out={printable(str(out))}: a file lies where its folder should be") from error
    files.write_text(out, page)


def _run_folders(workdirs: Sequence[epath.PathLike]) -> dict[str, epath.Path]:
    """The folders by the names that the page has for them.

    Raises:
        InputError: there is none, or one is not a run folder.
    """
    if not workdirs:
        raise InputError("no run folder given; name at least one: --workdir=DIR (it holds metrics.jsonl)")
    folders = [files.anywhere(workdir) for workdir in workdirs]
    for workdir, folder in zip(workdirs, folders, strict=True):
        _require_run(printable(str(workdir)), folder)
    return dict(zip(_run_names(folders), folders, strict=True))


def _require_run(given: str, folder: epath.Path) -> None:
    if not folder.is_dir():
        raise InputError(f"--workdir={given} is not a folder; give a run folder, which holds metrics.jsonl")
    try:
        if is_run(folder):
            return
    except OSError as error:
        raise InputError(f"--workdir={given} cannot be read: {error.strerror}") from error
    raise InputError(f"--workdir={given} is not a run folder, which holds metrics.jsonl: it has no file of a run")


def _run_names(workdirs: Sequence[epath.Path]) -> list[str]:
    """Folder names, with as many parents as tell them apart; numbered if one folder comes twice."""
    folders = [tuple(map(printable, workdir.parts)) for workdir in workdirs]
    for depth in range(1, max(map(len, folders))):
        names = ["/".join(parts[-depth:]) for parts in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{parts[-1]} ({number})" for number, parts in enumerate(folders, 1)]


def main() -> None:
    """Writes or serves the page that the flags ask for."""
    args = flags.FLAGS
    if args.serve and args["out"].present:
        raise InputError("--out does not go with --serve, which writes nothing")
    if args.serve:
        report_server.serve(args.host, args.port, _run_folders(args.workdir))
        return
    out = args.out
    write_report(flags.FLAGS.workdir, out)
    print(f"{printable(out)} ({epath.Path(out).stat().length / 1e6:.1f} MB)")


if __name__ == "__main__":
    flags.DEFINE_multi_string("workdir", None, "Run folder; may be given more than once.", required=True)
    flags.DEFINE_string("out", "report.html", "HTML file to write.")
    flags.DEFINE_boolean("serve", False, "Serve the page instead, which follows the runs while they train.")
    flags.DEFINE_string("host", "127.0.0.1", "The address to serve on; another one lets other machines read.")
    flags.DEFINE_integer("port", 8001, "The port to serve on; 0 takes a free one.")
    cli.run_flags(main)
