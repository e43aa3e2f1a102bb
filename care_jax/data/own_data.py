"""Your own data (data.format "jsonl"): JSON lines, a JSON array or a parquet file, with images beside it or in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from care_jax.data.conversations import read_turns, split_response
from care_jax.data.file_formats import Numbered, file_rows, split_files
from care_jax.data.image_column import image_bytes, images_of
from care_jax.data.parsing import VIDEO_PLACEHOLDER, Row, is_blank, is_number, meta_field, place_marks
from care_jax.data.validation import check_gold_of, check_texts, decode_picture, one_row
from care_jax.data.video_column import videos_of
from care_jax.errors import BadRowError, InputError, shown
from care_jax.files import require_readable
from care_jax.structs import Record, Video

REQUIRED = ("id", "prompt", "answer", "answer_kind")
OPTIONAL = ("images", "videos", "choices", "rationale", "draft", "source", "meta")
MAX_LISTED = 20  # problems spelled out in an error
# Other columns of a row that is a conversation: those that are read, and those that change what is asked.
_TURNS, _BESIDE_TURNS = ("messages", "conversations"), ("completion", "system")
_NOT_READ = ("audios", "tools", "history")
_ALONE = {"image": "images", "video": "videos"}  # columns of one, and the lists that they stand for
_THREADS = 8  # that decode images
_MOST_EMBEDDED = 2 << 30  # bytes of images inside a file, which stay in memory


class _Size(NamedTuple):
    """The size of an image."""

    num_bytes: int
    shape: tuple[int, int]  # pixels, width and height


class JsonlSource:
    """Random access to the usable rows of a file, in file order; images are read on access. Picklable.

    `problems` lists the rows that were dropped: (line number from 1, reason).
    """

    def __init__(
        self, path: Path, rows: list[Row], problems: list[tuple[int, str]], sizes: Mapping[bytes | Path, _Size]
    ) -> None:
        """Takes the rows that `read_jsonl` has checked, and the size of each of their images and frames."""
        self.path = path
        self.problems = problems
        self._rows, self._sizes = rows, sizes

    def __len__(self) -> int:
        """Returns the number of usable rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        """Reads the images of a row and returns its record."""
        return self._rows[index].load()

    def records(self) -> Iterator[Record]:
        """All records, without reading an image: they lack the bytes of images and frames."""
        return (row.record for row in self._rows)

    def fingerprint(self) -> str:
        """A digest of all texts of the rows, with the name and size of each image: other golds are other data."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self._rows:
            images = [(_name(image, self.path.parent), self._sizes[image].num_bytes) for image in row.pictures]
            digest.update(repr((row.record, images)).encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        """Names the file, for error messages."""
        return f"JsonlSource({self.path}, {len(self)} records, {len(self.problems)} broken rows dropped)"


def read_jsonl(path: Path, *, strict: bool, allow: Collection[str] = ()) -> JsonlSource:
    """Checks every row of a file and decodes every image that it names, so that none can stop a run later.

    A row is {"id", "prompt", "answer", "answer_kind"}, all strings. Optional keys, which may be null or empty:

    * "images", a list, each as `image_column.image_of` reads it, paths relative to the file's folder; "videos", a list,
      each as `video_column` reads it. One alone may be "image" or "video". The prompt has one "<image>" for each image
      and one "<video>" for each video; if it has none of a sort, they are put first.
    * "choices", strings; required for the kind "choice", whose answer is a letter or one of their texts.
    * "rationale", and "draft", a wrong rationale that the cold start shows before the cue.
    * "source", by default the file's name without its ending, and "meta" (`parsing.meta_field`).

    Instead of a prompt, a row may have a list of turns (`_from_turns`). The file is UTF-8; empty lines are skipped.

    Args:
        path: the file: a JSON array if it ends in .json and starts with a bracket, parquet if it ends so, else JSON
            lines.
        strict: refuse a file with broken rows instead of dropping them.
        allow: the functions "module:function" that a row may name as its answer_kind, the config's verify.allow.

    Returns:
        The usable rows.

    Raises:
        InputError: the file does not exist, no row is usable, with `strict` any row is broken, or the images in the
            file take more than 2 GiB; the message lists up to 20 broken rows.
    """
    require_readable(path, f"no data file {path}; give a file with one JSON object a line")
    usable: list[Row] = []
    problems: list[tuple[int, str]] = []
    first_lines: dict[str, int] = {}  # id -> line
    read = _read_rows(path, allow)
    found = _decode_all({image for _, row in read if isinstance(row, Row) for image in row.pictures})
    sizes = {image: size for image, size in found.items() if isinstance(size, _Size)}
    unusable = {image: error for image, error in found.items() if isinstance(error, BadRowError)}
    for number, row in read:
        try:
            if isinstance(row, BadRowError):
                raise row
            for image in unusable.keys() & row.pictures:
                raise unusable[image]
            for video in row.videos:
                if len(shapes := {sizes[frame].shape for frame in video.frames}) > 1:
                    raise BadRowError(f"the frames of a video have sizes {sorted(shapes)}; give frames of one size")
            if row.record.id in first_lines:
                raise BadRowError(f"id {shown(row.record.id)} was used in row {first_lines[row.record.id]}")
        except BadRowError as error:
            problems.append((number, str(error)))
            continue
        first_lines[row.record.id] = number
        usable.append(row)
    if problems and strict:
        raise InputError(f"{path}: {listing(problems)}\nmend them, or set data.strict to False to drop them")
    if not usable:
        raise InputError(f"{path}: no usable row. {listing(problems)}")
    return JsonlSource(path, usable, problems, sizes)


def listing(problems: list[tuple[int, str]]) -> str:
    """Formats broken rows: how many, and line number and reason of the first MAX_LISTED."""
    lines = [f"\n  row {number}: {reason}" for number, reason in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"\n  and {len(problems) - MAX_LISTED} more")
    return f"{len(problems)} broken row{'' if len(problems) == 1 else 's'}{''.join(lines)}"


def files(root: Path, split: str) -> list[Path]:
    """Lists the split's files, or `root` itself if it is a file."""
    return [root] if root.is_file() else split_files(root, split, "jsonl", "json", "parquet")


def rows(path: Path) -> Numbered:
    """Yields the rows without their missing cells, with the file's name as the source of those that name none."""
    for number, raw in file_rows(path, optional=(*REQUIRED, *OPTIONAL, *_ALONE, *_TURNS, *_BESIDE_TURNS, *_NOT_READ)):
        if isinstance(raw, dict):
            raw = {"source": path.stem} | {key: cell for key, cell in raw.items() if not _is_missing(key, cell)}
            for alone, several in _ALONE.items():
                if alone in raw and several not in raw:
                    raw[several] = [raw.pop(alone)]
        yield number, raw


def _is_missing(key: str, cell: Any) -> bool:
    return cell is None or (key in OPTIONAL and isinstance(cell, str) and is_blank(cell))


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one row.

    Raises:
        BadRowError: the row cannot be used; the message says why.
    """
    if any(key in raw for key in _TURNS) or isinstance(raw.get("prompt"), list):
        raw = _from_turns(where, raw)
    if missing := [key for key in REQUIRED if key not in raw]:
        raise BadRowError(f"missing {', '.join(missing)}")
    # Numbers may be there: the index of a table, or a pass rate that rows were chosen by.
    unknown = sorted(key for key in set(raw) - {*REQUIRED, *OPTIONAL} if not is_number(raw[key]))
    if unknown:
        allowed = ", ".join((*REQUIRED, *OPTIONAL))
        raise BadRowError(f"unknown key {shown(', '.join(unknown))[1:-1]}; allowed: {allowed}", "unknown key")
    for key in (*REQUIRED, "rationale", "draft", "source"):
        if key in raw and (not isinstance(raw[key], str) or is_blank(raw[key])):
            wanted = f"{key} must be a string that is not empty"
            raise BadRowError(f"{wanted}, not {shown(raw[key])}", wanted)
    if "draft" in raw and "rationale" not in raw:
        raise BadRowError("draft needs a rationale, which corrects it")
    lists = (
        ("images", str | dict | bytes, "images"),
        ("videos", dict | str, "videos"),
        ("choices", str, "strings"),
    )
    for key, types, named in lists:
        if key in raw and not (isinstance(raw[key], list) and all(isinstance(x, types) and x for x in raw[key])):
            wanted = f"{key} must be a list of {named} that are not empty"
            raise BadRowError(f"{wanted}, not {shown(raw[key])}", wanted)
    if raw["answer_kind"] == "choice" and "choices" not in raw:
        raise BadRowError("answer_kind 'choice' needs choices, a list of texts")
    images, videos = images_of(raw.get("images"), folder), videos_of(raw.get("videos"), folder)
    prompt = place_marks(raw["prompt"], len(images), mend_up_to=len(images))
    if videos:
        prompt = place_marks(prompt, len(videos), mend_up_to=len(videos), mark=VIDEO_PLACEHOLDER)
    record = Record(
        id=raw["id"],
        source=raw["source"],
        prompt=prompt,
        images=(),
        answer=raw["answer"].strip(),
        answer_kind=raw["answer_kind"],
        choices=tuple(raw["choices"]) if "choices" in raw else None,
        rationale=raw.get("rationale"),
        draft=raw.get("draft"),
        videos=tuple(Video((), video.fps) for video in videos),
        meta=meta_field(raw.get("meta")),
    )
    return Row(where, record, images, videos)


def _from_turns(where: str, raw: dict[str, Any]) -> dict[str, Any]:
    """Makes a row with a prompt from one with turns: "messages", "conversations", or "prompt" and "completion".

    The response gives the answer, or what it has in <think> the rationale and the rest the answer. If the row has an
    answer of its own, a response without <think> is the rationale. Images stand in the turns or in a column. Columns
    that say nothing about the question are left out.
    """
    if given := [key for key in _NOT_READ if raw.get(key)]:
        raise BadRowError(f"{', '.join(given)} cannot be read; texts, images and videos are", "unreadable column")
    turns = next((raw[key] for key in _TURNS if key in raw), None)
    if turns is None:
        completion = raw.get("completion", [])
        turns = [*raw["prompt"], *(completion if isinstance(completion, list) else [_assistant(completion)])]
    exchange = read_turns(turns, raw.get("system"))
    columns: dict[str, list[Any]] = {}
    for key, inside in (("images", exchange.images), ("videos", exchange.videos)):
        column = raw.get(key, [])
        column = column if isinstance(column, list) else [column]
        if column and inside:
            raise BadRowError(f"{key} stand both in the turns and in a column of their own; give them once")
        columns |= {key: column or inside} if column or inside or key == "images" else {}
    row = {key: raw[key] for key in (*REQUIRED, *OPTIONAL) if key in raw}
    row |= {"id": str(raw.get("id", where)), "prompt": exchange.question} | columns
    if exchange.response is None:
        return row
    rationale, rest = split_response(exchange.response)
    if "answer" not in row:
        row["answer"] = " ".join(rest.splitlines())  # several lines would be several accepted answers
    elif rationale is None and rest != row["answer"]:
        rationale = rest
    return ({} if rationale is None else {"rationale": rationale}) | row


def _assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _name(image: bytes | Path, folder: Path) -> str:
    """An image's path from `folder`, or the digest of one that lies in its row."""
    if isinstance(image, bytes):
        return hashlib.blake2b(image, digest_size=16).hexdigest()
    return os.path.relpath(image, folder)


def _read_rows(path: Path, allow: Collection[str]) -> list[tuple[int, Row | BadRowError]]:
    read: list[tuple[int, Row | BadRowError]] = []
    embedded = 0
    for number, raw in rows(path):
        row = _read_row(f"{path.name}:{number}", raw, path.parent, allow)
        read.append((number, row))
        if isinstance(row, Row):
            embedded += sum(len(image) for image in row.pictures if isinstance(image, bytes))
        if embedded > _MOST_EMBEDDED:
            raise InputError(
                f"the images inside {path} take more than {_MOST_EMBEDDED >> 30} GiB of memory; prepare the file with "
                f"python -m care_jax.data.prepare --source=jsonl --root={path} --out=FOLDER, and set data.format to "
                "prepared"
            )
    return read


def _read_row(where: str, raw: dict[str, Any] | BadRowError, folder: Path, allow: Collection[str]) -> Row | BadRowError:
    if isinstance(raw, BadRowError):
        return raw
    try:
        with one_row():
            row = parse(where, raw, folder)
            check_gold_of(row.record, allow)
            check_texts(row.record)
    except BadRowError as error:
        return error
    return row


def _decode_all(images: Collection[bytes | Path]) -> dict[bytes | Path, _Size | BadRowError]:
    """Decodes images in threads, and returns the size of each, or the error of one that cannot be used.

    Each file is read once: in a mounted bucket, asking for its size as well would take as long again.
    """

    def decode(image: bytes | Path) -> _Size | BadRowError:
        name = "an image in the row" if isinstance(image, bytes) else shown(str(image))[1:-1]
        try:
            with one_row():
                encoded = image_bytes(image)
                shape = decode_picture(encoded, name).size
        except BadRowError as error:
            return error
        return _Size(len(encoded), shape)

    with ThreadPoolExecutor(_THREADS) as pool:
        found = tqdm(pool.map(decode, images), desc="checking images", total=len(images), delay=5, mininterval=1.0)
        return dict(zip(images, found, strict=True))
