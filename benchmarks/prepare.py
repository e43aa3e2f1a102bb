"""Speed and peak memory of preparing a data set in ViRL39K's layout.

    python -m benchmarks.prepare --rows 40000

Makes the set (small random JPEGs, so that decoding costs next to nothing; one row in ten has two images, one in ten
none), prepares it in a process of its own, checks the number of rows and deletes everything. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import child

SIDE = 64  # pixels of an image
WORDS = 80  # of a question


def make_set(root: Path, rows: int) -> None:
    """Writes 39Krelease.parquet and images/ under `root`."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    columns: dict[str, list] = {name: [] for name in ("question", "answer", "PassRate_32BTrained", "qid", "image")}
    for row in range(rows):
        num_images = {0: 0, 1: 2}.get(row % 10, 1)
        names = [f"images/{row}-{number}.jpg" for number in range(num_images)]
        for name in names:
            (root / name).write_bytes(_jpeg(rng))
        columns["question"].append("<image>" * num_images + " find".join(map(str, rng.integers(0, 1000, WORDS))))
        columns["answer"].append(rf"\boxed{{\frac{{{row}}}{{7}}}}")
        columns["PassRate_32BTrained"].append(float(rng.random()))
        columns["qid"].append(str(row))
        columns["image"].append(names)
    pq.write_table(pa.table(columns), root / "39Krelease.parquet")


def _jpeg(rng: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Makes and prepares the set, and returns the figures that it prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000, help="rows of the set")
    args = parser.parse_args(argv)
    if args.rows < 1:
        parser.error("--rows must be at least 1")
    folder = Path(tempfile.mkdtemp())
    try:
        make_set(folder / "root", args.rows)
        command = [sys.executable, "-m", "care_jax.data.prepare", "--source=virl39k", "--strict"]
        used = child.run([*command, f"--root={folder / 'root'}", f"--out={folder / 'out'}"])
        report = json.loads((folder / "out/report.json").read_text())
        if sum(report["shards"]) != args.rows:
            raise ValueError(f"{sum(report['shards'])} of {args.rows} rows were kept; all must be")
        num_bytes = sum(path.stat().st_size for path in (folder / "out").iterdir())
    finally:
        shutil.rmtree(folder)
    figures: dict[str, object] = {
        "benchmark": "prepare",
        "rows": args.rows,
        "seconds": round(used.seconds, 2),  # with the start of Python
        "rows_per_s": round(args.rows / used.seconds, 1),
        "cpu_s": round(used.cpu_seconds, 2),  # over all threads
        "peak_rss_gib": round(used.peak_gib, 3),
        "written_mib": round(num_bytes / 2**20, 1),
    }
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
