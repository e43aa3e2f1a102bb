"""Rollouts from token ids and lengths, for what reads nothing else of them."""

from __future__ import annotations

import numpy as np

from care_jax.structs import Rollouts


def rollouts_of(token_ids: np.ndarray, response_len: np.ndarray, *, forced_len: np.ndarray | int = 0) -> Rollouts:
    """Rollouts [B, G, R] of given lengths [B, G], of which the first `forced_len` tokens were forced."""
    at = np.arange(token_ids.shape[-1])
    sampled_mask = (at >= np.asarray(forced_len)[..., None]) & (at < response_len[..., None])
    return Rollouts(
        token_ids=token_ids,
        response_len=response_len,
        logprobs=np.zeros(token_ids.shape, np.float32),
        sampled_mask=sampled_mask,
        finished=np.ones(response_len.shape, bool),
    )
