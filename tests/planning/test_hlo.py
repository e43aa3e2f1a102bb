"""Bytes that a compiled program moves and receives, read from its HLO."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from care_jax.planning.hlo import HloModule, group_size

ROWS, WHOLE = PartitionSpec("x"), PartitionSpec()


def received(function, *shapes, specs, out_specs) -> dict[str, int]:
    """Bytes that each of 4 CPU devices receives when `function` runs on shards, by kind of collective."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    on_shards = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
    args = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    return HloModule(jax.jit(on_shards).lower(*args).compile().as_text()).collective_bytes()


def test_collectives_in_loops_count_as_often_as_they_run():
    """Catches a loop that counts once, and nested loops whose trips are added, not multiplied."""

    def layer(total, kernel):
        whole = jax.lax.all_gather(kernel, "x", axis=0, tiled=True)
        return total + whole.sum(0), None

    def step(kernels):
        def piece(total, _):
            return jax.lax.scan(layer, total, kernels)[0] * 1.5, None

        return jax.lax.psum(jax.lax.scan(piece, jnp.zeros(128), None, length=3)[0], "x")

    found = received(step, (5, 64, 128), specs=(PartitionSpec(None, "x"),), out_specs=WHOLE)
    assert found["all-gather"] == 3 * 5 * 64 * 128 * 4 * 3 // 4
    assert found["all-reduce"] == 128 * 4 * 2 * 3 // 4
    assert sum(found.values()) == found["all-gather"] + found["all-reduce"]


@pytest.mark.parametrize(
    ("kind", "function", "size"),
    [
        ("all-gather", functools.partial(jax.lax.all_gather, axis_name="x", tiled=True), 3 / 4),
        ("all-reduce", functools.partial(jax.lax.psum, axis_name="x"), 1 / 4 * 2 * 3 / 4),
        ("reduce-scatter", functools.partial(jax.lax.psum_scatter, axis_name="x", tiled=True), 1 / 4 * 3 / 4),
        (
            "all-to-all",
            functools.partial(jax.lax.all_to_all, axis_name="x", split_axis=1, concat_axis=0, tiled=True),
            1 / 4 * 3 / 4,
        ),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "x", [(i, (i + 1) % 4) for i in range(4)]), 1 / 4),
    ],
)
def test_each_kind_of_collective(kind, function, size):
    """Catches a kind that is not recognised, and one that counts the bytes sent, not the bytes received."""
    found = received(function, (64, 256), specs=(ROWS,), out_specs=ROWS)
    assert {name: count for name, count in found.items() if count} == {kind: round(size * 64 * 256 * 4)}


SPLIT = """
%start (a: f32[8]) -> (f32[8], f32[32]) {
  %a = f32[8]{0} parameter(0)
  %gather.1 = f32[32]{0} all-gather(%a), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %begun = (f32[8]{0}, f32[32]{0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%work (b: f32[8]) -> f32[32] {
  %b = f32[8]{0} parameter(0)
  %gather.2 = f32[32]{0} all-gather(%b), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %other = f32[32]{0} all-gather(%b), channel_id=8, replica_groups={{0,1,2,3}}, dimensions={0}
}

%end (c: f32[8]) -> f32[32] {
  %c = f32[8]{0} parameter(0)
  %gather.3 = f32[32]{0} all-gather(%c), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %ended = f32[32]{0} custom-call(%gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: f32[8]) -> f32[32] {
  %x = f32[8]{0} parameter(0)
  %one = (f32[8]{0}, f32[32]{0}) fusion(%x), kind=kCustom, calls=%start
  %two = f32[32]{0} fusion(%x), kind=kOutput, calls=%work
  ROOT %three = f32[32]{0} fusion(%x), kind=kCustom, calls=%end
}
"""


def test_a_split_collective_counts_once():
    """Catches a transfer that counts once for each piece of work that hides it: three times the bytes."""
    assert HloModule(SPLIT).collective_bytes()["all-gather"] == 2 * 32 * 4 * 3 // 4  # channels 7 and 8


def test_split_collectives_of_one_channel_count_each():
    """Catches a channel that stands for its last collective: the gathers of all layers but one are then forgotten."""
    start = SPLIT[SPLIT.index("%start") : SPLIT.index("%work")]
    another = start.replace("%start", "%start.2").replace("gather.1", "gather.4")
    call = "  %four = (f32[8]{0}, f32[32]{0}) fusion(%x), kind=kCustom, calls=%start.2\n"
    text = SPLIT.replace("%work (", another + "%work (").replace("  ROOT %three", call + "  ROOT %three")
    assert HloModule(text).collective_bytes()["all-gather"] == 3 * 32 * 4 * 3 // 4


def test_only_a_collective_without_other_work_beside_it_is_waited_for():
    """Catches a transfer that is hidden behind work and adds its time, and one that is not and adds none."""
    assert HloModule(SPLIT).collective_bytes(waited=True)["all-gather"] == 32 * 4 * 3 // 4  # channel 8
    begun = SPLIT.replace("all-gather(%b), channel_id=8", "all-gather-start(%b), channel_id=8")
    assert sum(HloModule(begun).collective_bytes(waited=True).values()) == 0
    assert sum(HloModule(begun).collective_bytes().values()) == 2 * 32 * 4 * 3 // 4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=mesh['data'=2,'fsdp'=8] {'fsdp'}", 8),
        ("replica_groups=mesh['data'=2,'fsdp'=8] {'data','fsdp'}", 16),
        ("replica_groups=mesh['a'=16] {'a':(1)4}", 4),
        ("replica_groups=mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'b'}, to_apply=%region", 8),
    ],
)
def test_group_sizes(text, size):
    """Catches a spelling of HLO that is misread, which puts a factor into every count."""
    assert group_size(text) == size


HLO = """HloModule m, is_scheduled=true

%body (p: (s32[], f32[64,256], f32[8,64,256])) -> (s32[], f32[64,256], f32[8,64,256]) {
  %p = CARRIED parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)S(6)} constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  %x = f32[64,256]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %stack = f32[8,64,256]{2,1,0:T(8,128)} get-tuple-element(%p), index=2
  %zero = s32[]{:T(128)S(6)} constant(0)
  %slice = f32[1,64,256]{2,1,0:T(8,128)S(1)} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,64,256}
  %flat = f32[64,256]{1,0:T(8,128)S(1)} bitcast(%slice)
  %sum = f32[64,256]{1,0:T(8,128)} add(%x, %flat)
  ROOT %out = CARRIED tuple(%next, %sum, %stack)
}

%condition (q: (s32[], f32[64,256], f32[8,64,256])) -> pred[] {
  %q = CARRIED parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %bound = s32[]{:T(128)} constant(8)
  ROOT %less = pred[]{:T(512)} compare(%j, %bound), direction=LT
}

ENTRY %main (a: f32[64,256], b: f32[8,64,256], c: bf16[3,100]) -> f32[64,256] {
  %a = f32[64,256]{1,0:T(8,128)} parameter(0)
  %b = f32[8,64,256]{2,1,0:T(8,128)} parameter(1)
  %c = bf16[3,100]{1,0:T(4,128)(2,1)} parameter(2)
  %d = bf16[3,100]{1,0:T(4,128)(2,1)} negate(%c)
  %start = s32[]{:T(128)} constant(0)
  %init = CARRIED tuple(%start, %a, %b)
  %loop = CARRIED while(%init), condition=%condition, body=%body
  ROOT %r = f32[64,256]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
""".replace("CARRIED", "(s32[]{:T(128)}, f32[64,256]{1,0:T(8,128)}, f32[8,64,256]{2,1,0:T(8,128)})")


def test_bytes_of_a_loop_over_layers():
    """Catches a slice counted as the whole stack, a loop counted once, small memories counted, padding left out."""
    moved = HloModule(HLO).hbm_bytes()
    array = 64 * 256 * 4
    assert moved["slice"] == 8 * (array + 4)  # read from HBM with its index, written to the chip's own memory
    assert moved["sum"] == 8 * 2 * array
    assert moved["d"] == 2 * 4 * 128 * 2  # tiles of 4 by 128


FUSED = """HloModule m, is_scheduled=true

%tiles (whole: s8[8,64,256]) -> s8[8,64,256] {
  %whole = s8[8,64,256]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %same = s8[8,64,256]{2,1,0:T(8,128)(4,1)} copy(%whole)
}

%product (stack: s8[8,64,256], at: s32[]) -> bf16[64,256] {
  %stack = s8[8,64,256]{2,1,0:T(32,128)(4,1)} parameter(0)
  %at = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)S(6)} constant(0)
  %view = s8[8,64,256]{2,1,0:T(8,128)(4,1)} fusion(%stack), kind=kLoop, ALIASED, calls=%tiles
  %slice = s8[1,64,256]{2,1,0:T(8,128)(4,1)} dynamic-slice(%view, %at, %zero, %zero), dynamic_slice_sizes={1,64,256}
  %flat = s8[64,256]{1,0:T(8,128)(4,1)} bitcast(%slice)
  ROOT %out = bf16[64,256]{1,0:T(8,128)(2,1)} convert(%flat)
}

ENTRY %main (a: s8[8,64,256], b: s32[]) -> bf16[64,256] {
  %a = s8[8,64,256]{2,1,0:T(32,128)(4,1)} parameter(0)
  %b = s32[]{:T(128)S(6)} parameter(1)
  ROOT %r = bf16[64,256]{1,0:T(8,128)(2,1)} fusion(%a, %b), kind=kLoop, calls=%product
}
""".replace("ALIASED", "output_to_operand_aliasing={{}: (0, {})}")


def test_bytes_of_an_int8_layer():
    """Catches a stack of int8 layers that counts whole, since its tiles are named anew before a layer is taken."""
    assert HloModule(FUSED).hbm_bytes()["r"] == 64 * 256 * (1 + 2)


def test_a_loop_that_may_end_early_counts_in_full_on_a_cpu_too():
    """Catches the CPU's spelling of a condition, a fusion, whose bound is not found."""

    def goes_on(carry):
        return (carry[0] < 37) & (carry[1].sum() < 1e6)

    def add(carry):
        return carry[0] + 1, carry[1] + jnp.sin(carry[1])

    compiled = jax.jit(lambda x: jax.lax.while_loop(goes_on, add, (jnp.int32(0), x))).lower(jnp.ones(64)).compile()
    module = HloModule(compiled.as_text())
    ((where, loop),) = [(name, loop) for name in module.computations for loop in module.loops(name)]
    condition = module.computations[loop.calls["condition"]]
    assert {i.opcode for i in condition.instructions.values()} & {"compare", "fusion"} == {"fusion"}
    assert module.trips(where, loop) == 37


def test_bytes_of_each_stream():
    """Catches bytes of a loop over streams that are counted as the program's own, and the other way round."""

    def run(x, num_used):
        once = jnp.exp(x)
        return jax.lax.fori_loop(0, num_used, lambda _, total: total + jnp.sin(total), once)

    text = jax.jit(run).lower(jnp.ones(2**16), jnp.int32(1)).compile().as_text()
    module = HloModule(text, num_streams=1)
    of = [module.with_streams(count).hbm_bytes().total() for count in (0, 1, 5)]
    assert 0 < of[0] < of[1]
    assert of[2] - of[0] == 5 * (of[1] - of[0])
    assert module.hbm_bytes().total() == of[1]  # the module itself is as it was
