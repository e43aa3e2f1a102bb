"""The reward of a response: the weighted sum of its parts, minus a penalty on length."""

from __future__ import annotations

import dataclasses

import numpy as np

from care_jax.errors import InputError
from care_jax.rewards.response_format import ResponseFormat


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The layout that a response should have, and what each part of its reward is worth."""

    response_format: ResponseFormat  # the one that the prompts ask for
    correct_weight: float  # reward of a correct answer
    format_weight: float  # reward of a well-formed response
    overlong_buffer_len: int = 0  # tokens before the limit at which the length penalty sets in; 0: no penalty
    overlong_penalty: float = 0.0  # reward subtracted at the limit


def total_reward(
    correct: np.ndarray, format_ok: np.ndarray, sampled_len: np.ndarray, limit: int, config: RewardConfig
) -> np.ndarray:
    """Adds up the reward: correct_weight * correct + format_weight * format_ok - length penalty.

    Args:
        correct: [B, G] bool.
        format_ok: [B, G] bool.
        sampled_len: [B, G] int, tokens that the policy sampled; forced tokens are not penalised.
        limit: tokens a response may have, R.
        config: the weights.

    Returns:
        float32 [B, G].
    """
    rewards = config.correct_weight * correct + config.format_weight * format_ok
    rewards += length_penalty(sampled_len, limit, config.overlong_buffer_len, config.overlong_penalty)
    return rewards.astype(np.float32)


def length_penalty(sampled_len: np.ndarray, limit: int, buffer_len: int, penalty: float) -> np.ndarray:
    """Returns the (negative) reward of long responses: DAPO's soft overlong punishment, arXiv 2503.14476 eq. 13.

    0 up to `limit - buffer_len` tokens, then linear, -penalty from `limit` on. A `buffer_len` of 0 means no penalty.

    Args:
        sampled_len: tokens, any shape.
        limit: tokens a response may have, R.
        buffer_len: tokens before the limit at which the penalty sets in, 0 to `limit`.
        penalty: reward subtracted at the limit, 0 or more.

    Returns:
        float32 of the same shape, 0 or less.

    Raises:
        InputError: `buffer_len` or `penalty` is out of range.
    """
    if not 0 <= buffer_len <= limit or penalty < 0:
        raise InputError(
            f"overlong_buffer_len={buffer_len}, overlong_penalty={penalty}: the buffer is 0 to {limit} tokens (the "
            "response length), the penalty 0 or more"
        )
    if buffer_len == 0:
        return np.zeros(np.shape(sampled_len), np.float32)
    overshoot = np.asarray(sampled_len) - (limit - buffer_len)
    return np.float32(-penalty) * np.clip(overshoot / buffer_len, 0, 1).astype(np.float32)
