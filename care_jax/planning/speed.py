"""Speed of a step: the work that its tokens need, over the time it took and the peak of the devices.

Useful work is counted from the true lengths of prompts, images and responses, in the groups from which the step learns.
Padding, what the backward pass computes again, and groups without an advantage are time and no work. On a device whose
peak is unknown, as a CPU, there are no shares of a peak.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh
from jaxtyping import Int32

from care_jax.inputs.batch import Example
from care_jax.parallel.processes import ALL_ROWS, HostShare
from care_jax.planning.chips import GIB, PEAKS
from care_jax.planning.passes import Pass
from care_jax.planning.sizes import Sizes
from care_jax.run.step_summary import Step
from care_jax.stages.model import make_model_config
from care_jax.structs import Array

# Those on the progress line, with their names there.
SHOWN = {
    "speed/update_tokens_per_s": "update tok/s/device",
    "speed/update_mfu": "MFU",
    "speed/idle_seconds": "idle s",
}


class PromptSizes(NamedTuple):
    """The sizes of prompts, [B] each; a pair is two patches that meet in attention."""

    tokens: npt.NDArray[np.float64]
    patches: npt.NDArray[np.float64]
    frame_pairs: npt.NDArray[np.float64]  # in one image or frame
    window_pairs: npt.NDArray[np.float64]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> PromptSizes:
        """The sizes of prompts that are not padded."""

        def pairs(ids: npt.NDArray[np.int32]) -> float:
            return float(np.sum(np.bincount(ids).astype(np.float64) ** 2))

        sizes = [(len(e.token_ids), len(e.patches), pairs(e.image_ids), pairs(e.window_ids)) for e in examples]
        return cls(*np.array(sizes, np.float64).T)

    def only(self, is_used: npt.NDArray[np.bool_]) -> PromptSizes:
        """A copy in which prompts that are not used [B] have size 0."""
        return PromptSizes(*(size * is_used for size in self))


def useful_pass(sizes: Sizes, prompts: PromptSizes, row_len: npt.ArrayLike) -> Pass:
    """The forward pass over prompts and the rows [B, J] behind them, in their true length; 0 for a row left out."""
    lengths = np.asarray(row_len, np.float64)
    tokens, num_tokens = prompts.tokens, float(prompts.tokens.sum() + lengths.sum())
    pairs = np.sum(tokens * (tokens + 1) / 2) + np.sum(lengths * (tokens[:, None] + (lengths + 1) / 2))
    tower = sizes.tower_flops(*(float(np.sum(size)) for size in prompts[1:]))
    return Pass(num_tokens, tower, sizes.decoder_flops(num_tokens, float(pairs)), 2 * float(lengths.sum()) * sizes.head)


def keys_read(prompts: PromptSizes, row_len: npt.ArrayLike) -> float:
    """Keys that decoding must read: for each token the prompt's once for its live rows, and each row's own."""
    lengths = np.asarray(row_len, np.float64)
    return float(np.sum(prompts.tokens * lengths.max(axis=1)) + np.sum(lengths * (lengths + 1) / 2))


class Speed:
    """Figures of a run's stages, as metrics `speed/...`."""

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh) -> None:
        """Reads the sizes of the model."""
        device, self._config = mesh.devices.flat[0], config
        model = make_model_config(config, device.platform)
        self._sizes = Sizes.of(config, model, (0, 0), dict(mesh.shape))
        self._num_devices, self._peak = mesh.size, PEAKS.get(device.device_kind)

    def step(
        self, done: Step, prompts: PromptSizes, times: Mapping[str, float], share: HostShare = ALL_ROWS
    ) -> dict[str, float]:
        """The figures of a step's rollouts, scoring pass and update.

        Args:
            done: the step.
            prompts: of its batch.
            times: seconds by stage, `time/...`.
            share: the rows of `done` and `prompts`; the processes exchange their work.

        Returns:
            The figures. Left out are those of rollouts that dynamic sampling has drawn several times, and those of a
            scoring pass that shares its seconds with the reference's.
        """
        batch, has_reference = done.batch, self._config.objective.kl_coef > 0
        teaches = np.asarray(batch.row_mask) & ((np.asarray(batch.advantages) != 0) | has_reference)
        figures = self.update(prompts, batch.response_len * teaches, times["time/update"], share)
        if self._config.score.old_from == "pass" and not has_reference:
            scored_len = done.rollouts.response_len * teaches.any(axis=1, keepdims=True)
            figures |= self.forward("score", prompts, scored_len, times["time/score"], share)
        if done.drawn.num_draws == 1:
            figures |= self.decode(prompts, done.rollouts.response_len, times["time/rollout"], share)
        return figures

    def forward(
        self,
        name: str,
        prompts: PromptSizes,
        row_len: Int32[Array, "B J"],
        seconds: float,
        share: HostShare = ALL_ROWS,
    ) -> dict[str, float]:
        """Tokens a second and device, and model FLOPs utilisation, of a pass over prompts and their rows.

        Args:
            name: the stage.
            prompts: of the batch.
            row_len: [B, J] tokens of each row; 0 for a row that is not needed. A prompt without a row is not either.
            seconds: that the pass took.
            share: the rows of the batch that these are.
        """
        done = self._pass(prompts, row_len, share)
        return self._figures(name, done.tokens, done.flops, seconds)

    def update(
        self, prompts: PromptSizes, row_len: Int32[Array, "B J"], seconds: float, share: HostShare = ALL_ROWS
    ) -> dict[str, float]:
        """Figures of `forward` with the backward pass, twice its work if all of the model is trained."""
        done = self._pass(prompts, row_len, share)
        work = done.updated(self._sizes.backward)
        return self._figures("update", done.tokens, work, seconds)

    def decode(
        self, prompts: PromptSizes, row_len: Int32[Array, "B J"], seconds: float, share: HostShare = ALL_ROWS
    ) -> dict[str, float]:
        """Tokens a second and device, their share of the rows' slots, and the share of the memory's bandwidth.

        A token that is decoded reads the weights once for all rows, the prompt's keys once for its rows, and the row's
        own, and reads and writes the row's states; the rows [B, G] that have ended read nothing. Prefill is part of the
        seconds.
        """
        sizes, lengths = self._sizes, np.asarray(row_len, np.float64)
        own = (lengths.max(), lengths.size, lengths.sum(), keys_read(prompts, lengths))
        parts = share.exchange([float(x) for x in own])
        most, *sums = zip(*parts, strict=True)
        num_steps, (num_rows, num_tokens, keys) = max(most), map(sum, sums)
        figures = {
            "speed/rollout_tokens_per_s": num_tokens / seconds / self._num_devices,
            "speed/rollout_useful_tokens": num_tokens / max(num_steps * num_rows, 1),
        }
        if self._peak is not None:
            weights = sizes.decode_bytes * num_steps / sizes.decode_tensor
            read = weights + sizes.cache_bytes(keys, num_tokens) / self._num_devices
            figures["speed/decode_bandwidth"] = read / seconds / self._peak.bytes_per_s
        return {name: float(value) for name, value in figures.items()}

    def _pass(self, prompts: PromptSizes, row_len: Int32[Array, "B J"], share: HostShare) -> Pass:
        """The forward pass over the rows of all processes; a prompt without a row is left out."""
        used = prompts.only(np.any(row_len, axis=1))
        parts = share.exchange(list(useful_pass(self._sizes, used, row_len)))
        return Pass(*map(sum, zip(*parts, strict=True)))

    def _figures(self, name: str, num_tokens: float, work: float, seconds: float) -> dict[str, float]:
        figures = {f"speed/{name}_tokens_per_s": num_tokens / seconds / self._num_devices}
        if self._peak is not None:
            figures[f"speed/{name}_mfu"] = work / seconds / (self._num_devices * self._peak.flops)
        return figures


def memory() -> dict[str, float]:
    """GiB that this process holds, and the most that its first device has held, if the device says so."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        num_bytes = int(statm.read_text().split()[1]) * resource.getpagesize()
    else:  # the most so far, in bytes on macOS
        num_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    figures = {"speed/host_gib": num_bytes / GIB}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        figures["speed/device_gib"] = stats["peak_bytes_in_use"] / GIB
    return figures
