"""Looks at a file of your own data before training: what is in it, how long it is, what a run would leave out.

    python -m care_jax.data.prepare --check=my_data/train.jsonl --config=configs/own_data.py --out=check.html

Tokens are counted with the template, the limits and the response format of the config, as training counts them.
"""

from __future__ import annotations

import base64
import collections
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections

from care_jax import config as config_lib
from care_jax import files
from care_jax.data.accounting import Account, quantile, take_account
from care_jax.data.own_data import JsonlSource, listing, read_jsonl
from care_jax.errors import printable
from care_jax.inputs.images import decode_image
from care_jax.inputs.processor import Processor, make_processor
from care_jax.structs import Record

_SAMPLES = 10
_SIDE = 320  # pixels of a picture on the page
_LONGEST_TEXT = 2000  # characters on the page
_SPARE = 1.25  # of the longest response that the data have: what a policy writes is longer at times
_FAR_OUT = 2.0  # times the 99 % quantile: such a length is not worth a bucket


class Check(NamedTuple):
    """The findings about a file."""

    lines: list[str]
    page: str  # HTML, with ten samples


def check_file(path: Path, config: ml_collections.ConfigDict) -> Check:
    """Reads every row of a file as training does.

    Args:
        path: the file, as data.train names it.
        config: the config of the run to come.

    Raises:
        InputError: the file cannot be read or has no usable row, or the model folder cannot be used.
    """
    source = read_jsonl(path, strict=False, allow=config.verify.allow)
    processor = make_processor(config)
    (account,) = take_account(
        source,
        processor,
        response_len=config.rollout.response_len,
        cue=config.objective.reflect.cue,
        learns_traces=True,
        most_rows=len(source),
    )
    kinds: collections.Counter[str] = collections.Counter()
    images: collections.Counter[str] = collections.Counter()
    answers: collections.Counter[str] = collections.Counter()
    sources: collections.Counter[str] = collections.Counter()
    for record in source.records():
        kinds[record.answer_kind] += 1
        images[_pictures_told(record)] += 1
        answers[record.answer] += 1
        sources[record.source] += 1
    (answer, count), *_ = answers.most_common(1)
    prompts = [row.prompt for row in account.rows if row.prompt is not None]
    traces = [row.trace_len for row in account.rows if row.trace_len is not None]
    lines = [
        f"{path}: {len(source) + len(source.problems):,} rows, of which {len(source.problems):,} are broken",
        f"  answers    {_counted(kinds)}",
        f"  sources    {_counted(sources)}",
        f"  pictures   {_counted(images)}",
        f"  commonest  {printable(answer[:40])!r}, the answer of {count / len(source):.0%} of the rows",
        f"  prompt     {_spread([size.num_tokens for size in prompts])} tokens",
        f"  vision     {_spread([size.num_patches for size in prompts])} patches of a prompt",
        f"  response   {_spread(traces)} tokens: {len(traces):,} rationales; {account.num_drafts:,} drafts",
        "with this config the cold start has:",
        *[f"  {line}" for line in account.lines()],
        *_proposal(account, processor, config),
    ]
    if source.problems:
        lines.append(listing(source.problems))
    return Check(lines, _page(path, lines, source, account))


def _pictures_told(record: Record) -> str:
    """The images and videos of a question, by the marks in its prompt."""
    counts = {"image": record.prompt.count("<image>"), "video": record.prompt.count("<video>")}
    told = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
    return " and ".join(told) or "none"


def _counted(counts: collections.Counter[str]) -> str:
    told = [f"{printable(name)} {count:,}" for name, count in counts.most_common(8)]
    return ", ".join(told) + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")


def _spread(lengths: Sequence[int]) -> str:
    if not lengths:
        return "no"
    return f"median {quantile(lengths, 0.5):,}, 95 % up to {quantile(lengths, 0.95):,}, longest {max(lengths):,}"


def _proposal(account: Account, processor: Processor, config: ml_collections.ConfigDict) -> list[str]:
    """The flags that keep the rows, but for a few that are far longer than the others."""
    prompts = [row.prompt for row in account.rows if row.prompt is not None]
    if not prompts:
        return []
    unit = processor.image_spec.layout.merge**2
    buckets = _buckets([size.num_tokens for size in prompts], 1)
    patches = _buckets([size.num_patches for size in prompts], unit)
    flags: dict[str, object] = {"data.prompt_buckets": buckets, "data.patch_buckets": patches}
    response_len = config.rollout.response_len
    if traces := [row.trace_len for row in account.rows if row.trace_len is not None]:
        response_len = _rounded(int(_SPARE * _largest(traces)), 1)
        flags["rollout.response_len"] = response_len
    if (needed := buckets[-1] + response_len) > config.train.stream_len:
        flags["train.stream_len"] = needed + needed % 2
    given = config_lib.flat(config)
    return ["proposed, as far as it differs:"] + [
        f"  --config.{name}={str(value).replace(' ', '')}" for name, value in flags.items() if value != given[name]
    ]


def _largest(lengths: Sequence[int]) -> int:
    """The longest, or the 99 % quantile if the longest is more than twice that."""
    most = quantile(lengths, 0.99)
    return max(lengths) if max(lengths) <= _FAR_OUT * most else most


def _buckets(lengths: Sequence[int], unit: int) -> tuple[int, ...]:
    """One size or two: a second one for the shorter half pays if it is much smaller."""
    largest, half = _rounded(max(_largest(lengths), 1), unit), _rounded(max(quantile(lengths, 0.5), 1), unit)
    return (half, largest) if 2 * half <= largest else (largest,)


def _rounded(length: int, unit: int) -> int:
    """`length`, rounded up to a multiple of `unit` that is at most an eighth larger, or 4 units."""
    step = max(4 * unit, 1 << max(length.bit_length() - 4, 0))
    step += -step % unit
    return -(-length // step) * step


def _page(path: Path, lines: Iterable[str], source: JsonlSource, account: Account) -> str:
    """A self-contained page: the lines, and ten rows evenly spread over the file."""
    count = min(_SAMPLES, len(source))
    rows = []
    for index in (place * len(source) // count for place in range(count)):
        record, sizes = source[index], account.rows[index]
        frames = [video.frames[0] for video in record.videos]
        pictures = "".join(f'<img alt="" src="{_data_url(image)}">' for image in (*record.images, *frames))
        fields = {
            "id": record.id,
            "source": record.source,
            "prompt": record.prompt,
            "choices": "\n".join(record.choices or ()),
            "draft": record.draft or "",
            "rationale": record.rationale or "",
            "answer": f"{record.answer}   ({record.answer_kind})",
            "tokens": f"prompt {sizes.prompt.num_tokens if sizes.prompt else '?'}, response {sizes.trace_len or '?'}",
        }
        told = "".join(f"<dt>{name}</dt><dd>{_text(text)}</dd>" for name, text in fields.items() if text)
        rows.append(f"<section>{pictures}<dl>{told}</dl></section>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(path.name)}</title><style>{_STYLE}</style><h1>{_text(path.name)}</h1>"
        f"<pre>{_text(chr(10).join(lines), limit=20_000)}</pre>{''.join(rows)}</html>\n"
    )


_STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere}section{border-top:1px solid #8886;padding:1rem 0}
img{max-width:100%;max-height:20rem;margin:0 .5rem .5rem 0}
dl{display:grid;grid-template-columns:6rem 1fr;gap:.2rem 1rem}
dt{opacity:.7}dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
"""


def _text(text: str, *, limit: int = _LONGEST_TEXT) -> str:
    return html.escape(printable(text[:limit])) + (" ..." if len(text) > limit else "")


def _data_url(encoded: bytes) -> str:
    picture, stream = decode_image(encoded), io.BytesIO()
    picture.thumbnail((_SIDE, _SIDE))
    picture.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def write(path: Path, config: ml_collections.ConfigDict, out: Path) -> str:
    """Checks a file, writes the page to `out`, and returns the lines to print. Raises as `check_file`."""
    found = check_file(path, config)
    files.write_text(out, found.page)
    return "\n".join([*found.lines, f"ten samples: {out}"])
