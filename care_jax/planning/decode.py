"""The work of a decode whose branches end at different times: its batches, and the FLOPs and bytes of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from care_jax.planning.sizes import Sizes


class Phase(NamedTuple):
    """Tokens `start` to `end` of a decode, with so many rows of each shard in the batch."""

    start: int
    end: int
    rows: int

    @property
    def steps(self) -> int:
        """Tokens."""
        return self.end - self.start


def phases(lengths: npt.NDArray[np.int32], shares: Sequence[float]) -> list[Phase]:
    """The batches of a decode of rows [shards, rows], as `stages.rollout.generate` makes them.

    A batch ends once no shard has more rows left than the next one holds. `shares` are rollout.compact_shares.
    """
    total = lengths.shape[1]
    sizes = [total, *sorted({max(1, int(share * total)) for share in shares} - {total}, reverse=True), 0]
    longest = np.sort(lengths, axis=1)[:, ::-1].max(axis=0)  # of the shards, by rank in the shard
    ends = [int(longest[enough]) for enough in sizes[1:]]
    found = [Phase(*of) for of in zip([0, *ends], ends, sizes, strict=False)]
    return [phase for phase in found if phase.steps > 0]


@dataclasses.dataclass(frozen=True)
class Decode:
    """The FLOPs and reads of one chip, for branches that start with `forced` tokens or with room for as many."""

    sizes: Sizes
    branches: int  # of a prompt
    forced: int = 0

    @property
    def shards(self) -> int:
        """Parts of the batch, each decoded by chips that divide the model among them."""
        return self.sizes.num_chips // self.sizes.decode_tensor

    @property
    def full(self) -> Phase:
        """All rows of a shard in their full length, in one batch."""
        return Phase(0, self.sizes.response_len, self.sizes.prompts * self.branches // self.shards)

    def flops(self, phase: Phase) -> float:
        """FLOPs of one chip."""
        sizes, tokens = self.sizes, phase.rows * phase.steps
        # Moved branches are put back among all for the products with the keys of their prompts.
        beside_prompts = self.full.rows if phase.rows > sizes.prompts // self.shards else phase.rows
        pairs = beside_prompts * phase.steps * sizes.bucket[0] + phase.rows * self._own_slots(phase)
        return (sizes.decoder_flops(tokens, pairs) + 2 * tokens * sizes.head) / sizes.decode_tensor

    def forced_flops(self) -> float:
        """FLOPs of one chip before the first token is sampled: forced tokens of all prompts, with padding."""
        sizes, tokens = self.sizes, self.sizes.prompts * self.branches * self.forced
        pairs = tokens * (sizes.bucket[0] + self.forced + sizes.response_len)
        return sizes.decoder_flops(tokens, pairs) / sizes.num_chips

    def weights(self, steps: int) -> float:
        """Bytes of the weights that one chip reads for so many tokens."""
        return steps * self.sizes.decode_bytes / self.sizes.decode_tensor

    def bytes_read(self, phase: Phase) -> float:
        """Bytes that one chip reads: weights, padded prompts, and filled slots of all rows of the batch; and states.

        A state of linear attention is read and written for every token.

        Rows share their shard's prompts; a batch of fewer rows has a copy for each.
        """
        sizes = self.sizes
        copies = min(phase.rows, sizes.prompts // self.shards)
        keys = copies * phase.steps * sizes.bucket[0] + phase.rows * self._own_slots(phase)
        cache = sizes.cache_bytes(keys, phase.rows * phase.steps)
        return self.weights(phase.steps) + cache / sizes.decode_tensor

    def _own_slots(self, phase: Phase) -> float:
        """The filled slots of a row, added up over the tokens."""
        return phase.steps * self.forced + (phase.end * (phase.end + 1) - phase.start * (phase.start + 1)) / 2
