"""AdamW with a schedule and global-norm clipping, from the run's config."""

from __future__ import annotations

import jax
import ml_collections
import numpy as np
import optax

from care_jax.models import QwenVL
from care_jax.parallel.sharding import is_matrix, map_params


def learning_rate(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Learning rate by optimizer update: a linear warm-up, then constant, cosine or linear to the end."""
    o = config.optimizer
    updates = config.train.steps * config.train.minibatches - o.warmup_steps
    decay = {
        "constant": lambda: optax.constant_schedule(o.lr),
        "cosine": lambda: optax.cosine_decay_schedule(o.lr, updates, alpha=o.final_lr_ratio),
        "linear": lambda: optax.linear_schedule(o.lr, o.lr * o.final_lr_ratio, updates),
    }[o.schedule]()
    if o.warmup_steps == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, o.lr, o.warmup_steps), decay], [o.warmup_steps])


def schedule_table(config: ml_collections.ConfigDict) -> np.ndarray:
    """Learning rates of all updates of a run [steps * minibatches] float32, for the metrics."""
    updates = np.arange(config.train.steps * config.train.minibatches, dtype=np.int32)
    rates = jax.vmap(learning_rate(config))(updates)
    return np.broadcast_to(np.asarray(rates, np.float32), updates.shape)


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Clips the global norm, then AdamW; weight decay on matrices only."""
    o = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(o.clip_norm),
        optax.adamw(learning_rate(config), b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, mask=_decayed),
    )


def _decayed(params: QwenVL) -> QwenVL:
    """True where weight decay applies: matrices, except the learned position table, whose rows act as biases."""
    return map_params(lambda axes, _: is_matrix(axes) and "grid_cells" not in axes, params)
