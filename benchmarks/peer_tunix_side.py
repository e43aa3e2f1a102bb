"""google-tunix's side of benchmarks/peer_tunix.py, run by the Python of its own environment.

Takes sizes as one JSON argument and prints the number of the model's parameters. Then reads jobs from stdin, a line
each, "rollout" or "update", and prints "done" when a job's result is ready. Imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

PAD_ID, NEVER = 0, -1  # NEVER: an id that no token has, so that no response stops


class Numbers:
    """A tokenizer of numbers, one token each, with the methods that the learner calls."""

    def encode(self, text: str) -> list[int]:
        """The numbers of a text."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """An empty text, which nothing reads."""
        return ""

    def bos_id(self) -> None:
        """None: prompts get no token in front."""

    def eos_id(self) -> int:
        """An id that is never sampled."""
        return NEVER

    def pad_id(self) -> int:
        """The id of padding."""
        return PAD_ID


def make_learner(sizes: dict[str, int]) -> grpo_learner.GRPOLearner:
    """A learner on one device, with its own rollout engine and the model shared by both."""
    config = qwen2.ModelConfig(
        num_layers=sizes["layers"],
        vocab_size=sizes["vocabulary"],
        embed_dim=sizes["width"],
        hidden_dim=sizes["intermediate"],
        num_heads=sizes["heads"],
        head_dim=sizes["width"] // sizes["heads"],
        num_kv_heads=sizes["kv_heads"],
        rope_theta=1_000_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
    total = sizes["prompt_len"] + sizes["response_len"]
    cluster = rl_cluster.RLCluster(
        actor=model,
        tokenizer=Numbers(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={rl_cluster.Role.ACTOR: mesh, rl_cluster.Role.ROLLOUT: mesh},
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6)),
                eval_every_n_steps=10**9,
                max_steps=10**9,
                mini_batch_size=sizes["prompts"],
                train_micro_batch_size=sizes["prompts"],
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=sizes["response_len"],
                max_prompt_length=sizes["prompt_len"],
                kv_cache_size=total,
                temperature=1.0,
                top_p=1.0,
                eos_tokens=[NEVER],
            ),
        ),
    )
    algorithm = grpo_learner.GRPOConfig(num_generations=sizes["rollouts"], beta=0.0)
    return grpo_learner.GRPOLearner(
        cluster, algorithm, reward_fns=lambda prompts, completions, **_: [0.0] * len(prompts)
    )


def make_jobs(cluster: rl_cluster.RLCluster, sizes: dict[str, int]) -> dict[str, Callable[[], Any]]:
    """The calls that the learner makes of its cluster, by name: G responses to each prompt, and an update on all."""
    rng = np.random.default_rng(0)
    rows = sizes["prompts"] * sizes["rollouts"]
    ids = rng.integers(1, sizes["vocabulary"], (sizes["prompts"], sizes["prompt_len"]))
    ids = np.repeat(ids, sizes["rollouts"], axis=0)
    texts = [" ".join(map(str, row)) for row in ids]
    responses = rng.integers(1, sizes["vocabulary"], (rows, sizes["response_len"]))
    example = grpo_learner.TrainExample(
        prompt_ids=jnp.asarray(ids),
        prompt_mask=jnp.ones(ids.shape, bool),
        completion_ids=jnp.asarray(responses),
        completion_mask=jnp.ones(responses.shape, bool),
        ref_per_token_logps=None,
        advantages=jnp.asarray(rng.normal(size=rows), jnp.float32),
        old_per_token_logps=None,
    )

    def rollout() -> None:
        tokens = cluster.generate(texts).tokens
        if [len(row) for row in tokens] != [sizes["response_len"]] * rows:
            raise ValueError(f"responses of {sorted({len(row) for row in tokens})} tokens")

    def update() -> None:
        cluster.update_actor([example], None)
        jax.block_until_ready(nnx.state(cluster.actor_trainer.model))

    return {"rollout": rollout, "update": update}


def main() -> None:
    """Serves jobs until stdin ends."""
    sizes = json.loads(sys.argv[1])
    learner = make_learner(sizes)  # sets the cluster's loss
    jobs = make_jobs(learner.rl_cluster, sizes)
    model = learner.rl_cluster.actor_trainer.model
    print(sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))), flush=True)
    for line in sys.stdin:
        jobs[line.strip()]()
        print("done", flush=True)


if __name__ == "__main__":
    main()
