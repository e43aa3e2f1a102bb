"""Prepares a downloaded data set for training: rows are checked, counted, filtered and written as ArrayRecord files.

    python -m care_jax.data.prepare --source=virl39k --root=ViRL39K --out=data/virl39k

The same command resumes after the last whole shard, or reports that everything is done; the bytes are the same either
way. OUT appears when it is complete; until then the shards are in OUT.partial. OUT/report.json has every count.

`--check=FILE --config=configs/F.py` only looks at a file of your own data, see check.py.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import ml_collections
from absl import flags
from tqdm import tqdm

from care_jax import cli, files
from care_jax import config as config_lib
from care_jax.data import statistics
from care_jax.data.array_records import ShardWriter, open_folder, write_metadata
from care_jax.data.decontamination import Benchmarks, Thumbnail, thumbnail
from care_jax.data.parsing import Row
from care_jax.data.sources import READERS, ColumnRange, read, split_files
from care_jax.data.validation import Dropped, decode_picture, one_row
from care_jax.errors import BadRowError, InputError
from care_jax.files import locked, write_text
from care_jax.inputs import images
from care_jax.inputs.prompts import encode_prompt
from care_jax.structs import Record

if TYPE_CHECKING:
    from care_jax.inputs.processor import Processor

SHARD_RECORDS = 1024
_THREADS = min(os.cpu_count() or 1, 8)  # threads that read and decode images
_ROWS_AHEAD = 4  # rows that each thread may be ahead; only these are in memory

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a preparation: the flags of the same names."""

    source: str
    root: Path
    out: Path
    split: str = "train"
    images: Path | None = None
    keep: tuple[ColumnRange, ...] = ()
    against: tuple[Path, ...] = ()
    model: Path | None = None
    config: ml_collections.ConfigDict | None = None  # whose template, limits and format count tokens
    strict: bool = False
    allow: tuple[str, ...] = ()


class _Sound(NamedTuple):
    """A record that training can use."""

    record: Record
    num_tokens: int | None  # of the prompt; None without --model


def prepare(settings: Settings, *, shard_records: int = SHARD_RECORDS) -> dict[str, Any]:
    """Prepares one split of one source, or resumes; does nothing if it is complete.

    Every image is decoded once, so that none can stop a run later, and stored as it was.

    Args:
        settings: what to prepare.
        shard_records: records of a shard.

    Returns:
        The report: settings, counts, reasons with examples, and rows that repeat a benchmark.

    Raises:
        InputError: the source or split does not exist, a file cannot be read, no row is usable, with `strict` a row is
            broken, `out` holds something else, or another process is writing it. Only whole shards are left behind.
    """
    root, out = settings.root.absolute(), settings.out.absolute()
    files = split_files(settings.source, root, settings.split)
    wanted = _comparable(settings, files, root, shard_records)
    partial = out.with_name(out.name + ".partial")
    if not _is_taken(out):
        partial.mkdir(parents=True, exist_ok=True)
        message = f"another process is writing {partial}; wait for it, or name another --out"
        with locked(partial, message):
            if not _is_taken(out):  # by a process that was first
                _build(settings, files, root, partial, wanted, shard_records)
                partial.replace(out)
    report = _read_report(out)
    if report is None or report["settings"] != wanted:
        raise InputError(f"{out} holds other data, or the same with other settings; remove it or name another folder")
    return report


def map_ahead(function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """Maps a function over items, in order, with threads that work a few items ahead."""
    with ThreadPoolExecutor(_THREADS) as pool:
        under_way: collections.deque[Future[_Out]] = collections.deque()
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) > _THREADS * _ROWS_AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _build(
    settings: Settings, files: list[Path], root: Path, folder: Path, wanted: dict[str, Any], shard_records: int
) -> None:
    """Writes the missing shards and the metadata of `folder`; on bad input, removes the folder if no shard is whole."""
    report = _read_report(folder)
    if report is None or report["settings"] != wanted:
        for path in folder.iterdir():
            path.unlink()
        report = statistics.new(wanted)
    image_root = settings.images or (root if root.is_dir() else root.parent)
    rows = read(
        settings.source,
        files,
        root=root,
        images=image_root.absolute(),
        ranges=settings.keep,
        allow=settings.allow,
    )
    try:
        records = _records(settings, itertools.islice(rows, report["rows"], None), report)
        writer = ShardWriter(folder, settings.split)
        count = shard_records
        while count == shard_records:
            count = writer.write(len(report["shards"]), itertools.islice(records, shard_records))
            report["shards"] += [count] if count else []
            _write_report(folder, report)
        if not report["shards"]:
            raise InputError(f"{root} has no usable row:\n{statistics.table(report)}")
        write_metadata(folder, {settings.split: report["shards"]})
    except InputError:
        if not report["shards"]:
            shutil.rmtree(folder)
        raise


def _records(settings: Settings, rows: Iterable[Row | Dropped], report: dict[str, Any]) -> Iterator[Record]:
    """Yields the records to keep; `report` counts every row up to the record yielded last."""
    benchmarks = _read_benchmarks(settings.against)
    processor = _load_processor(settings) if settings.model or settings.config else None
    inspected = map_ahead(lambda row: _inspect(row, benchmarks, processor), rows)
    name = f"{settings.source} {settings.split}"
    for row in tqdm(inspected, desc=name, unit=" rows", initial=report["rows"], mininterval=1.0):
        if isinstance(row, _Sound):
            statistics.count_kept(report, row.record, row.num_tokens)
            yield row.record
            continue
        if settings.strict and row.broken:
            raise InputError(
                f"{settings.root}: row {row.where}: {row.detail}; mend it, or leave --strict out to drop such rows"
            )
        statistics.count_dropped(report, row)


def _inspect(row: Row | Dropped, benchmarks: Benchmarks, processor: Processor | None) -> _Sound | Dropped:
    """Reads and decodes the images of a row, compares it with the benchmarks, counts its tokens."""
    if isinstance(row, Dropped):
        return row
    try:
        with one_row():
            record = row.load()
            if record.videos:
                told = "videos are not stored in prepared data; train on the file itself, with data.format='jsonl'"
                raise BadRowError(told, "video")
            pictures = [decode_picture(encoded) for encoded in record.images]
            num_tokens = _count_tokens(record, processor) if processor else None
    except BadRowError as error:
        return Dropped(row.where, error.reason, str(error))
    if len(benchmarks) and (match := benchmarks.match(record.prompt, [thumbnail(picture) for picture in pictures])):
        detail = f"{record.id} repeats {match.benchmark_id}"
        return Dropped(row.where, match.reason, detail, broken=False, repeats=match.benchmark_id)
    return _Sound(record, num_tokens)


def _count_tokens(record: Record, processor: Processor) -> int:
    try:
        example = encode_prompt(processor, record)
    except InputError as error:
        raise BadRowError(str(error), "the model's processor refuses it") from None
    assert example is not None  # the buckets are larger than any prompt
    return len(example.token_ids)


def _load_processor(settings: Settings) -> Processor:
    """Loads the processor that training has with the settings' config, or by default, but with room for any prompt."""
    from care_jax.inputs.processor import make_processor  # imports JAX, and only counting tokens needs it

    config = _token_config(settings.config, settings.model)
    config.data.overlong, config.data.videos = "error", True
    config.data.prompt_buckets = config.data.patch_buckets = (1 << 24,)
    return make_processor(config)


def _token_config(config: ml_collections.ConfigDict | None, model: Path | None) -> ml_collections.ConfigDict:
    """A copy of `config`, or the defaults, with the model folder `model` if one is given."""
    config = config_lib.base() if config is None else ml_collections.ConfigDict(config)
    if model is not None:
        config.model.folder = str(model)
    return config


def _read_benchmarks(folders: Iterable[Path]) -> Benchmarks:
    """Reads the questions and pictures of prepared benchmarks."""
    benchmarks = Benchmarks()
    for folder in folders:
        stored = open_folder(folder)
        for record, thumbnails in map_ahead(_with_thumbnails, tqdm(stored, desc=f"against {folder}", mininterval=1.0)):
            benchmarks.add(record.id, record.prompt, thumbnails)
    return benchmarks


def _with_thumbnails(record: Record) -> tuple[Record, list[Thumbnail]]:
    return record, [thumbnail(images.decode_image(encoded)) for encoded in record.images]


def _is_taken(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def _comparable(settings: Settings, files: list[Path], root: Path, shard_records: int) -> dict[str, Any]:
    """Returns everything that the output depends on, as the report keeps it.

    A folder is resumed, or taken as done, only if this is equal.
    """
    digest = 0
    for path in tqdm(files, desc="checksum", unit=" files", mininterval=1.0, leave=False):
        digest = zlib.crc32(f"{path.relative_to(root) if path != root else path.name}".encode(), digest)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest = zlib.crc32(block, digest)
    return {
        "source": settings.source,
        "split": settings.split,
        "keep": [list(wanted) for wanted in settings.keep],
        "against": [str(folder) for folder in settings.against],
        "model": str(settings.model) if settings.model else None,
        "images": str(settings.images) if settings.images else None,
        "files": len(files),
        "crc32": f"{digest:08x}",
        "shard_records": shard_records,
        **({"allow": list(settings.allow)} if settings.allow else {}),
        **({"counted_with": _counted_with(settings.config)} if settings.config else {}),
    }


def _counted_with(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The settings of a config that the number of a prompt's tokens depends on."""
    keys = ("response_format", "ask_for_format", "thinking", "max_image_tokens", "min_image_tokens")
    return {"folder": config.model.folder} | {key: config.data[key] for key in keys}


def _read_report(folder: Path) -> dict[str, Any] | None:
    """Reads the report of a folder; None if there is none, or it is damaged."""
    try:
        report = json.loads((folder / statistics.REPORT_FILE).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) and report.keys() == statistics.new({}).keys() else None


def _write_report(folder: Path, report: dict[str, Any]) -> None:
    write_text(folder / statistics.REPORT_FILE, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _column_range(text: str) -> ColumnRange:
    """Reads COLUMN:LOW:HIGH."""
    try:
        column, low, high = text.rsplit(":", 2)
        wanted = ColumnRange(column, float(low), float(high))
    except ValueError:
        raise InputError(f"--keep={text}: give COLUMN:LOW:HIGH, as PassRate_32BTrained:0.1:0.9") from None
    if not wanted.low <= wanted.high:
        raise InputError(f"--keep={text}: {low} is above {high}; give the lower number first")
    return wanted


def _define_flags() -> None:
    flags.DEFINE_enum("source", None, list(READERS), "The data set.")
    flags.DEFINE_string("root", None, "The folder it was downloaded to; a file will do if it is the whole split.")
    flags.DEFINE_string("out", None, "The folder to write.")
    flags.DEFINE_string("split", None, "The split, as the set names it; train if not given, or a benchmark's own.")
    flags.DEFINE_string("images", None, "The folder that image paths count from; ROOT if not given.")
    flags.DEFINE_multi_string(
        "keep", [], "COLUMN:LOW:HIGH, rows to keep by a number, as PassRate_32BTrained:0.1:0.9; may be repeated."
    )
    flags.DEFINE_multi_string(
        "against", [], "A prepared folder of a benchmark; rows that repeat it are dropped. May be repeated."
    )
    flags.DEFINE_string("model", None, "A Hugging Face model folder to count tokens of prompts with.")
    cli.define_config("The config of the run to come: tokens are counted with its template, limits and format.")
    flags.DEFINE_string("check", None, "A file of your own data to look at; --out is then the page of samples.")
    flags.DEFINE_multi_string("allow", [], "module:function that rows may name as answer_kind; may be repeated.")
    flags.DEFINE_bool("strict", False, "Refuse broken rows instead of dropping them.")


def main() -> None:
    """Prepares what the flags name, and prints the counts."""
    args, config = flags.FLAGS, cli.given_config()
    model = files.on_disk(args.model, "--model") if args.model else None
    if args.check is not None:
        from care_jax.data import check  # imports JAX

        config = _token_config(config, model)
        if not config.model.folder:
            raise InputError("--check needs --config=configs/F.py, that of the run to come, or --model=FOLDER")
        out = files.on_disk(args.out or "check.html", "--out")
        print(check.write(files.on_disk(args.check, "--check"), config, out))
        return
    if args.source is None or args.root is None or args.out is None:
        raise InputError(f"--source, --root and --out are needed; a source is one of {', '.join(READERS)}")
    settings = Settings(
        source=args.source,
        root=files.on_disk(args.root, "--root"),
        out=files.on_disk(args.out, "--out"),
        split=args.split or READERS[args.source].split,
        images=files.on_disk(args.images, "--images") if args.images else None,
        keep=tuple(map(_column_range, args.keep)),
        against=tuple(files.on_disk(folder, "--against") for folder in args.against),
        model=model,
        config=config,
        strict=args.strict,
        allow=tuple(args.allow),
    )
    print(statistics.table(prepare(settings)))


if __name__ == "__main__":
    _define_flags()
    cli.run_flags(main)
