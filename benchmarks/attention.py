"""What attention takes of a TPU's memory, XLA's products against the splash kernel, read from compiled programs.

    python -m benchmarks.attention                                  (needs libtpu and no TPU; minutes)
    python -m benchmarks.attention --topologies v5e:2x2 --implementations splash --patches 4096

Compiled for one chip of each slice: the gradients of one recomputed decoder layer of Qwen2.5-VL-7B over a prompt and
its branches, and of two blocks of its vision tower, one with windows and one without. Prints the most bytes that exist
at once, and those of arguments and results among them. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

# libtpu asks a metadata server for its TPU, of which there is none, and lets in one process at a time.
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

from care_jax.models import decoder  # noqa: E402
from care_jax.models.attention import IMPLEMENTATIONS  # noqa: E402
from care_jax.models.model_config import ModelConfig, TextConfig, VisionConfig  # noqa: E402
from care_jax.models.vision_qwen2_5 import VisionTower  # noqa: E402
from care_jax.structs import Prompts  # noqa: E402

MODEL = ModelConfig(
    model_type="qwen2_5_vl",
    vision=VisionConfig(
        depth=2,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        in_channels=3,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
        out_hidden_size=3584,
        hidden_act="silu",
        rope_theta=1e4,
        window_size=112,
        fullatt_block_indexes=(1,),
    ),
    text=TextConfig(
        vocab_size=256,  # no part of a layer
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=1,
        num_attention_heads=28,
        num_key_value_heads=4,
        head_dim=128,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        mrope_section=(16, 24, 24),
        mrope_interleaved=False,
        qkv_bias=True,
        o_bias=False,
        qk_norm=False,
        tie_word_embeddings=False,
    ),
    compute_dtype="bfloat16",
    remat=True,
)


def decoder_layer(args: argparse.Namespace, implementation: str) -> tuple[Any, tuple]:
    """The gradients of a layer over prompt and branches, and the shapes of its arguments."""
    text, total = MODEL.text, args.prompt_len + args.branches * args.response_len
    layers = jax.eval_shape(lambda: decoder.stack_layers(text, rngs=nnx.Rngs(0)))

    def loss(layers: decoder.DecoderLayer, x: jax.Array, position_ids: jax.Array, prompt_len: jax.Array) -> jax.Array:
        hidden = decoder.forward_branches(
            layers,
            x,
            decoder.mrope(position_ids, text, x.dtype),
            jnp.zeros((0, 1, args.prompt_len, text.hidden_size), x.dtype),
            prompt_len=prompt_len,
            num_branches=args.branches,
            num_prompt=args.prompt_len,
            remat=True,
            attention=implementation,
        )
        return jnp.sum(hidden.astype(jnp.float32) ** 2)

    x = jax.ShapeDtypeStruct((1, total, text.hidden_size), jnp.bfloat16)
    position_ids = jax.ShapeDtypeStruct((1, 3, total), jnp.int32)
    return jax.grad(loss, argnums=(0, 1)), (layers, x, position_ids, jax.ShapeDtypeStruct((1,), jnp.int32))


def tower_blocks(args: argparse.Namespace, implementation: str) -> tuple[Any, tuple]:
    """The gradients of a block with windows and one without, and the shapes of their arguments."""
    tower = jax.eval_shape(lambda: VisionTower(MODEL.vision, remat=True, attention=implementation, rngs=nnx.Rngs(0)))

    def loss(tower: VisionTower, prompts: Prompts) -> jax.Array:
        return jnp.sum(tower(prompts, jnp.dtype("bfloat16")).merged.astype(jnp.float32) ** 2)

    def prompts() -> Prompts:
        ids, tokens = jnp.zeros((1, args.patches), jnp.int32), jnp.zeros((1, 1), jnp.int32)
        return Prompts(
            token_ids=tokens,
            prompt_len=tokens[0],
            position_ids=jnp.tile(tokens[None], (1, 3, 1)),
            next_position=tokens[0],
            vision_index=tokens,
            patches=jnp.zeros((1, args.patches, MODEL.vision.patch_values)),
            patch_position_ids=jnp.stack([ids, ids], axis=-1),
            window_ids=ids,
            image_ids=ids,
            grid_index=ids[..., None][..., :0],
            grid_weights=jnp.zeros((1, args.patches, 0)),
        )

    return jax.grad(loss), (tower, jax.eval_shape(prompts))


PROGRAMS = {"decoder layer": decoder_layer, "tower blocks": tower_blocks}


def measure(program: Any, shapes: tuple, device: jax.Device) -> dict[str, Any]:
    """Bytes a program takes on `device` at its peak (None: more than there are), and seconds to compile."""
    sharding = SingleDeviceSharding(device)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
    start = time.perf_counter()
    lowered = jax.jit(program).lower(*placed)
    try:
        memory: Any = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"peak_bytes": None, "given_bytes": None, "compile_s": round(time.perf_counter() - start, 1)}
    return {
        "peak_bytes": memory.peak_memory_in_bytes,
        "given_bytes": memory.argument_size_in_bytes + memory.output_size_in_bytes,
        "compile_s": round(time.perf_counter() - start, 1),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {
        "prompt_len": (2048, "P, tokens"),
        "branches": (5, "J"),
        "response_len": (2048, "R, tokens"),
        "patches": (16384, "I, of the tower"),
    }
    for name, (default, text) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    slices = ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"]
    parser.add_argument("--topologies", nargs="+", default=slices, help=f"slices ({' '.join(slices)})")
    parser.add_argument("--implementations", nargs="+", default=["xla", "splash"], choices=IMPLEMENTATIONS[:2])
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Compiles, and returns the figures that it prints."""
    args = parse(argv)
    rows = []
    for topology in args.topologies:
        device = topologies.get_topology_desc(topology, "tpu").devices[0]
        for name, program in PROGRAMS.items():
            for implementation in args.implementations:
                figures = measure(*program(args, implementation), device)
                rows.append({"topology": topology, "program": name, "attention": implementation, **figures})

    def mib(taken: int | None) -> str:
        return "too many" if taken is None else f"{taken / 2**20:.0f}"

    print(f"{'':<12}{'':<16}{'attention':<11}{'peak, MiB':>10}{'given, MiB':>11}{'compiled in, s':>16}")
    for row in rows:
        taken = f"{mib(row['peak_bytes']):>10}{mib(row['given_bytes']):>11}"
        print(f"{row['topology']:<12}{row['program']:<16}{row['attention']:<11}{taken}{row['compile_s']:>16}")
    figures = {"benchmark": "attention", **vars(args), "programs": rows}
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
