"""Peak memory and speed of converting a full-size checkpoint to JAX and back.

    python -m benchmarks.convert --folder /tmp [--model tiny]

Writes a random bfloat16 checkpoint of the model's true shapes to a temporary folder in --folder, runs both
commands as child processes, compares the result with the source byte for byte, and removes everything. It needs
three times the checkpoint's size on disk (23 GB for qwen2.5-vl-3b). A speed is the checkpoint's size over the
wall time of the command, its start included. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from benchmarks import child
from care_jax.convert import hf_folder, jax_to_hf, mapping, safetensors_io
from care_jax.convert.safetensors_io import Shard, Spec
from care_jax.models import load_model_config

_REPO = Path(__file__).parents[1]
_POOL = 2**24  # random values; tensors are cut from them at different places
_COPIES = 3  # on disk at the same time: the source, the JAX parameters, the result
# The sizes in the hub's config.json.
_QWEN2_5_VL_3B = {
    "model_type": "qwen2_5_vl",
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": True,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "tokens_per_second": 2,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "out_hidden_size": 2048,
    },
}


def config_of(model: str) -> dict[str, object]:
    """The fields of config.json for a value of --model."""
    if model == "qwen2.5-vl-3b":
        return _QWEN2_5_VL_3B
    return json.loads((_REPO / "care_jax" / "models" / "tiny_qwen2_5_vl" / "config.json").read_text())


def write_random(folder: Path, config: dict[str, object], max_shard_bytes: int) -> int:
    """Writes a Hugging Face folder of random bfloat16 weights and returns their size in bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    sources = mapping.by_hf_name(mapping.weights_of(load_model_config(folder)))
    specs = {name: Spec("BF16", source.weight.shape) for name, source in sources.items()}
    shards = jax_to_hf.split(specs, max_shard_bytes)
    rng = np.random.default_rng(0)
    pool = (0.02 * rng.standard_normal(_POOL, np.float32)).astype(ml_dtypes.bfloat16)

    def values(shard: Shard) -> Iterator[np.ndarray]:
        for spec in shard.tensors.values():
            left = spec.nbytes // pool.itemsize
            while left > 0:
                piece = pool[rng.integers(_POOL // 2) :][:left]
                left -= piece.size
                yield piece

    for file, shard in shards.items():
        safetensors_io.write(folder / file, shard, values(shard))
    num_bytes = sum(spec.nbytes for spec in specs.values())
    jax_to_hf.write_index(folder / hf_folder.INDEX_FILE, shards, num_bytes)
    return num_bytes


def run_command(module: str, **flags: Path) -> child.Usage:
    """Runs a command of convert/ and measures it.

    Raises:
        ValueError: it failed.
    """
    return child.run([sys.executable, "-m", module, *(f"--{name}={value}" for name, value in flags.items())], cwd=_REPO)


def require_equal(ours: Path, theirs: Path) -> None:
    """Checks that two folders have the same files with the same bytes.

    Raises:
        ValueError: they differ; names the files.
    """
    names = sorted({path.name for folder in (ours, theirs) for path in folder.iterdir()})
    _, mismatch, errors = filecmp.cmpfiles(ours, theirs, names, shallow=False)
    if mismatch or errors:
        raise ValueError(f"{ours} and {theirs} differ in {', '.join(mismatch + errors)}")


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Converts both ways and returns the figures that it prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="a folder with enough space")
    parser.add_argument("--model", choices=["qwen2.5-vl-3b", "tiny"], default="qwen2.5-vl-3b")
    args = parser.parse_args(argv)

    with tempfile.TemporaryDirectory(dir=args.folder, prefix="convert-") as name:
        work = Path(name)
        source, params, result = work / "source", work / "params", work / "result"
        num_bytes = write_random(source, config_of(args.model), max_shard_bytes=4 * 10**9)
        free = shutil.disk_usage(work).free
        if free < (_COPIES - 1) * num_bytes:
            parser.error(f"--folder {args.folder} has {free / 1e9:.0f} GB left; {2 * num_bytes / 1e9:.0f} are needed")
        there = run_command("convert.hf_to_jax", hf=source, out=params)
        back = run_command("convert.jax_to_hf", checkpoint=params, hf=source, out=result)
        require_equal(result, source)

    figures: dict[str, object] = {
        "benchmark": "convert",
        "model": args.model,
        "gb": round(num_bytes / 1e9, 3),
        "peak_rss_gib": round(max(there.peak_gib, back.peak_gib), 3),
        "peak_rss_gib_in": round(there.peak_gib, 3),
        "peak_rss_gib_out": round(back.peak_gib, 3),
        "mb_per_s_in": round(num_bytes / 1e6 / there.seconds, 3),
        "mb_per_s_out": round(num_bytes / 1e6 / back.seconds, 3),
    }
    print(f"{args.model}, {num_bytes / 1e9:.3f} GB of bfloat16; the result equals the source")
    for name, usage in (("hf_to_jax", there), ("jax_to_hf", back)):
        speed = num_bytes / 1e6 / usage.seconds
        print(f"{name:<12}{usage.seconds:>8.1f} s{speed:>10.1f} MB/s{usage.peak_gib:>8.2f} GiB")
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed too
    main(sys.argv[1:])
