"""The program that test_sharding.py runs on eight fake devices: one update and greedy rollouts on many meshes.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.on_shards DIR [--quick]

Writes checkpoints in DIR; the last line is one JSON object of results.

Prompts 0 to 3 are text, 4 to 7 have an image, so that on most meshes some shards have images and others none.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.made_model import FACTOR
from care_jax import config as config_lib
from care_jax import models
from care_jax.checkpoints.checkpointer import Checkpointer
from care_jax.checkpoints.load import load_params
from care_jax.checkpoints.stream import StreamedParam, save_params
from care_jax.data import loader
from care_jax.evals import decoding
from care_jax.inputs.batch import collate
from care_jax.inputs.prompts import encode_prompt
from care_jax.method import objectives
from care_jax.method.loss import policy_loss
from care_jax.method.objectives import Objective
from care_jax.models.model_config import LoraConfig
from care_jax.models.trained import partition
from care_jax.parallel import sharding
from care_jax.parallel.mesh import create_device_mesh
from care_jax.parallel.sharding import ROWS, WHOLE
from care_jax.stages import prefill, rollout, score
from care_jax.stages.compiled import CompiledStages, compile_all
from care_jax.stages.table import Setup
from care_jax.stages.train_state import TrainState, state_specs
from care_jax.stages.update import make_update, update_shardings
from care_jax.structs import Rollouts, TrainBatch, Verdicts
from tests import families, weights
from tests.numbers import Numbers
from tests.packings import make_packing
from tests.pictures import encode, picture, question

B, S, R, G, CHUNK = 8, 2, 5, 3, 4
BUCKET = (40, 64)
APART = {"2x4x1": 4, "1x8x1": 2}  # rollout.tensor of a sampler with its own layout, on these meshes
MESHES = ("8x1x1", "2x4x1", "2x2x2", "1x8x1", "1x1x8")
QUICK = "2x2x2"
# A step moves these adapters by 0.1 at most, and the parameters of a full training, to which the bar belongs, by 0.3.
LORA = LoraConfig(rank=4, alpha=0.3, rank_stabilised=True, targets=("layers.*", "visual.blocks.*", "visual.merger.*"))
MODELS = {
    "qwen2_5_vl": MESHES,
    "qwen3_vl": (QUICK,),
    "qwen3_5": (QUICK, "1x8x1"),
    "qwen2_5_vl_lora": ("2x4x1", QUICK, "1x1x8"),
}
OPTIMIZER = optax.sgd(0.05, momentum=0.9)
TINY = Path(__file__).parents[1] / "care_jax" / "models" / "tiny_qwen2_5_vl"


class Model:
    """A tiny model with heads for eight devices, its prompts and a batch of rows to update."""

    def __init__(self, family: str, folder: Path, lora: LoraConfig | None = None):
        """Writes the model's Hugging Face folder in `folder`, and draws parameters, adapters too, and batch."""
        path = families.make_folder(family, TINY, folder)
        config = models.load_model_config(path)
        heads: dict[str, Any] = {"head_dim": 16, "mrope_section": (2, 3, 3)}
        if "linear_attention" in config.text.period:
            heads = {"linear_num_key_heads": 8, "linear_num_value_heads": 16}
        self.config = dataclasses.replace(
            config,
            text=dataclasses.replace(config.text, num_attention_heads=8, num_key_value_heads=8, **heads),
            vision=dataclasses.replace(config.vision, num_heads=8),
            remat="full",
            lora=lora,
        )
        self.processor = families.tiny_processor(path, BUCKET)
        rng = np.random.default_rng(0)
        self.params = {}
        initial = jax.device_get(models.params_to_dict(weights.initial_model(self.config)))
        for name, leaf in initial.items():
            is_matrix = name.endswith(("kernel", "lora_a", "lora_b"))
            spread = leaf.shape[-2] ** -0.5 if is_matrix else 0.1
            drawn = rng.normal(0.0 if is_matrix else leaf.mean(), spread, leaf.shape).astype(np.float32)
            self.params[name] = weights.settled(name, drawn, self.config.text)
        side = FACTOR[family]
        records = [question(f"{i}+{i}=?") for i in range(B // 2)]
        for i in range(B // 2, B):  # some with more than half of the bucket's patches, some with fewer
            records.append(question(f"<image>{i}", encode(picture(side * (2 + i % 3), 3 * side))))
        response_len = rng.integers(2, R + 1, (B, S))
        sampled_mask = np.arange(R) < response_len[..., None]
        sampled_mask[:3, 1, 0] = False  # forced
        row_mask = np.ones((B, S), bool)
        row_mask[2, 1] = row_mask[5, 1] = False  # so that shards have different counts
        old = -5.5 + rng.normal(0, 0.7, (B, S, R))
        arrays: dict[str, Any] = {
            "token_ids": rng.integers(40, 120, (B, S, R)).astype(np.int32),
            "response_len": response_len.astype(np.int32),
            "sampled_mask": sampled_mask,
            "logprobs_old": old.astype(np.float32),
            "logprobs_ref": (old + rng.normal(0, 0.3, old.shape)).astype(np.float32),
            "advantages": rng.normal(size=(B, S)).astype(np.float32),
            "token_weights": (rng.choice([0.0, 0.5, 1.0], (B, S, R)) * sampled_mask).astype(np.float32),
            "row_mask": row_mask,
        }
        prompts = collate(self.processor, [encode_prompt(self.processor, record) for record in records])
        self.batch = TrainBatch(prompts=prompts, **arrays)


class Shards:
    """The model's programs on one mesh."""

    def __init__(self, model: Model, shape: str):
        """Places the model on a mesh, "2x4x1" along data, fsdp and tensor, and compiles the update."""
        self.model, sizes = model, [int(size) for size in shape.split("x")]
        devices = jax.devices()[: int(np.prod(sizes))]
        self.mesh = mesh = create_device_mesh(dict(zip(sharding.AXES, sizes, strict=True)), devices)
        where = models.params_to_dict(sharding.named(mesh, sharding.param_specs(models.abstract_model(model.config))))
        params = models.params_from_dict(
            model.config, {name: jax.device_put(value, where[name]) for name, value in model.params.items()}
        )
        trained = partition(params)[0]
        opt_specs = sharding.param_specs(jax.eval_shape(OPTIMIZER.init, trained))
        self.state = TrainState(
            step=sharding.put(mesh, np.int32(3), WHOLE),
            params=params,
            opt_state=jax.jit(OPTIMIZER.init, out_shardings=sharding.named(mesh, opt_specs))(trained),
        )
        self.batch = sharding.put(mesh, model.batch)
        self.forbidden = sharding.put(mesh, model.processor.forbidden_mask, WHOLE)
        loss = functools.partial(policy_loss, objective=Objective.from_config(objectives.care()))
        update = make_update(OPTIMIZER, loss, minibatches=1, temperature=1.0, chunk=CHUNK, mesh=mesh)
        packing = make_packing(
            model.batch.prompts,
            np.where(model.batch.row_mask, model.batch.response_len, 0),
            padded_len=R,
            stream_len=sum(BUCKET) + R,
            shards=sharding.num_shards(mesh),
        )
        self.packing = sharding.put(mesh, packing)
        jitted = jax.jit(update, out_shardings=update_shardings(mesh, self.state))
        self.update = jitted.lower(self.state, self.batch, self.packing, self.forbidden).compile()

    def scores(self) -> Any:
        """Scores of the rows as if they were rollouts, of those that the update computes."""
        batch = self.model.batch
        spans, answered = np.arange(R)[None, None] < 2, np.ones((B, S), bool)
        masks = [np.broadcast_to(mask, (B, S, R)) for mask in (spans, ~spans)]
        rollouts = Rollouts(batch.token_ids, batch.response_len, batch.logprobs_old, batch.sampled_mask, answered)
        verdicts = Verdicts(answered, answered, answered, answered.astype(np.float32), *masks)

        def specs(params: Any, *_: Any) -> tuple[tuple, Any]:
            return (sharding.param_specs(params), ROWS, ROWS, ROWS, ROWS, WHOLE), ROWS

        run = sharding.on_shards(self.mesh, functools.partial(score.score, temperature=1.0, chunk=CHUNK), specs)
        given = (sharding.put(self.mesh, value) for value in (rollouts, verdicts))
        return jax.jit(run)(self.state.params, self.batch.prompts, *given, self.packing, self.forbidden)

    def step(self, state: TrainState) -> TrainState:
        """The state after one update."""
        return self.update(state, self.batch, self.packing, self.forbidden).state

    def rollouts(self, tensor: int = 0, temperature: float = 0.0) -> Any:
        """Rollouts, the last branches decoded as smaller batches; rollout.tensor is `tensor`."""
        config = config_lib.base()
        config.rollout.update(response_len=8, compact_shares=(0.5, 0.1), tensor=tensor)
        setup = Setup(
            config=config,
            objective=Objective.from_config(config.objective),
            mesh=self.mesh,
            num_prompts=B,
            num_rollouts=G,
            temperature=temperature,
            stop_ids=self.model.processor.stop_ids,
            forbidden_mask=self.model.processor.forbidden_mask,
            image_spec=self.model.processor.image_spec,
            params=sharding.abstract_arrays(self.state.params),
        )
        stages = CompiledStages(decoding.EVALUATION, setup, [BUCKET])
        compile_all(stages)
        values = {
            "params": self.state.params,
            "prompts": self.batch.prompts,
            "unforced": sharding.put(self.mesh, jax.device_get(rollout.nothing_forced(B, G))),
            "forbidden_mask": self.forbidden,
            "key": jax.device_put(jax.random.key(0), sharding.named(self.mesh, WHOLE)),
        }
        for stage in stages.table.stages:
            values |= stages.run(stage, BUCKET, values)
        return values["rollouts"]


def collectives(compiled: jax.stages.Compiled) -> list[tuple[str, list[list[int]]]]:
    """Kind and shapes of the results of each collective in a compiled program."""
    found = []
    for line in compiled.as_text().splitlines():
        match = re.match(r"\s*(?:ROOT )?%\S+ = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all)\(", line)
        if match:
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            found.append((match[2], [[int(size) for size in shape.split(",") if size] for shape in shapes]))
    return found


def whole_stacks(shards: Shards) -> list[list[int]]:
    """Shapes that the stacked parameters of the layers have on a device once they are gathered.

    The mergers of deepstack, two or three small ones that are used together, are left out.
    """
    model = models.abstract_model(shards.model.config)
    specs = models.params_to_dict(sharding.param_specs(model))
    stacked = models.params_to_dict(sharding.map_params(lambda axes, _: "layers" in axes, model))
    return [
        list(sharding.named(shards.mesh, sharding.gathered(spec)).shard_shape(shards.model.params[name].shape))
        for name, spec in specs.items()
        if stacked[name] and "deepstack" not in name
    ]


def largest_with(compiled: jax.stages.Compiled, last: int) -> int:
    """Rows of the largest array whose last axis has `last` elements, over all of a compiled program."""
    shapes = re.findall(r"\w+\[([\d,]+)\]", compiled.as_text())
    sizes = [[int(size) for size in shape.split(",")] for shape in shapes]
    return max([int(np.prod(size[:-1])) for size in sizes if size[-1] == last], default=0)


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference of any number of two trees."""
    pairs = zip(jax.tree.leaves(jax.device_get(ours)), jax.tree.leaves(jax.device_get(theirs)), strict=True)
    return max(float(np.abs(x - y).max()) for x, y in pairs)


def compare(
    model: Model, single: Shards, expected: tuple[TrainState, Any, Any], shards: Shards, shape: str
) -> dict[str, Any]:
    """The results of a mesh compared with those of one device."""
    updated, rollouts = shards.step(shards.state), shards.rollouts()
    host = jax.device_get(rollouts)
    apart = shards.rollouts(tensor) if (tensor := APART.get(shape, 0)) else rollouts
    sampler = models.params_to_dict(shards.state.params)
    return {
        "difference": difference(updated, expected[0]),
        "moved": difference(updated, single.state.replace(step=updated.step)),
        "same_tokens": bool(np.array_equal(host.token_ids, expected[1].token_ids)),
        "logprobs": float(np.abs(host.logprobs - expected[1].logprobs).max()),
        "apart": bool(np.array_equal(apart.token_ids, expected[1].token_ids)),
        "apart_draws": [
            jax.device_get(shards.rollouts(size, temperature=1.0).token_ids).tolist() for size in {0, tensor} if tensor
        ],
        "apart_logprobs": float(np.abs(np.asarray(apart.logprobs) - expected[1].logprobs).max()),
        "apart_layout": all(
            ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
            for ours, theirs in zip(jax.tree.leaves(apart), jax.tree.leaves(rollouts), strict=True)
        ),
        "scores": difference(shards.scores(), expected[2]),
        "groups_whole": all(
            shard.data.shape[1:] == leaf.shape[1:]
            for leaf in jax.tree.leaves((rollouts, shards.batch))
            for shard in leaf.addressable_shards
        ),
        "rows_of_a_shard": rollouts.token_ids.addressable_shards[0].data.shape[0],
        "kernel_part": sum(
            kernel.addressable_shards[0].data.size for name, kernel in sampler.items() if _is_up_proj(name)
        ),
        "kernel": sum(value.size for name, value in model.params.items() if _is_up_proj(name)),
        "collectives": collectives(shards.update),
        "row_shapes": [list(leaf.shape[1:]) for leaf in jax.tree.leaves(model.batch)],
        "whole_stacks": whole_stacks(shards),
        "vocabulary_rows": largest_with(shards.update, model.config.text.vocab_size // shards.mesh.shape["tensor"]),
    }


def restored(before: Shards, after: Shards, folder: Path) -> float:
    """The largest difference of the second step from an undisturbed one if the mesh changes between the two."""
    iterator = loader.make_train_iterator(Numbers(8), lambda record: record.id, batch_size=4, seed=0)
    first = before.step(before.state)
    checkpointer = Checkpointer(folder, keep_last=1, best_metric="none")
    checkpointer.save(first, iterator, None)
    checkpointer.wait()
    state = checkpointer.restore(sharding.place(after.mesh, first, state_specs(first)), iterator)
    checkpointer.close()
    assert all(
        ours.sharding == theirs.sharding
        for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.state.params), strict=True)
    )
    return difference(after.step(state), before.step(first))


def converted(shards: Shards, folder: Path) -> float:
    """The largest difference between a step from a converted model and one from the same parameters in memory."""
    save_params(
        folder,
        {
            name: StreamedParam(value.shape, value.dtype, lambda _, value=value: [((slice(None),) * value.ndim, value)])
            for name, value in shards.model.params.items()
        },
    )
    where = jax.tree.map(lambda x: x.sharding, models.params_to_dict(shards.state.params))
    params = models.params_from_dict(shards.model.config, load_params(folder, where))
    assert jax.tree.map(lambda x: x.sharding, models.params_to_dict(params)) == where
    return difference(shards.step(shards.state.replace(params=params)), shards.step(shards.state))


def _is_up_proj(name: str) -> bool:
    """True for a stack of the decoder's."""
    return name.startswith("layers.") and name.endswith("mlp.up_proj.kernel")


def main(folder: Path, name: str, meshes: tuple[str, ...]) -> dict[str, Any]:
    """Compares meshes of one of MODELS; with all of the first also steps across a restore and a conversion."""
    found: dict[str, Any] = {"meshes": {}, "restored": {}, "sizes": {}}
    prefill._UNIT = 8  # so that these short prompts are prefilled in chunks of several sizes
    model = Model(name.removesuffix("_lora"), folder / name, LORA if name.endswith("_lora") else None)
    single = Shards(model, "1x1x1")
    expected = single.step(single.state), jax.device_get(single.rollouts()), single.scores()
    made = {}
    for shape in meshes:
        made[shape] = Shards(model, shape)
        found["meshes"][f"{name} {shape}"] = compare(model, single, expected, made[shape], shape)
    if name == "qwen2_5_vl":
        found["sizes"] = {
            "parameters": sum(value.size for value in model.params.values()),
            "layer": max(
                model.params["layers.mlp.up_proj.kernel"][0].size,
                model.params["visual.merger.fc1.kernel"].size,
                model.params["visual.patch_embed.proj.kernel"].size,
            ),
            "head": model.params["embed_tokens.weight"].size,
        }
        if meshes == MESHES:
            found["restored"]["8x1x1 2x4x1"] = restored(made["8x1x1"], made["2x4x1"], folder / "a")
            found["restored"]["1x4x1 1x2x1"] = restored(Shards(model, "1x4x1"), Shards(model, "1x2x1"), folder / "b")
            found["restored"]["converted 2x4x1"] = converted(made["2x4x1"], folder / "c")
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], tuple(sys.argv[3:]))))
