"""One encoded prompt, and its padding into a batch of static shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from care_jax.errors import InputError
from care_jax.inputs.images import with_frames
from care_jax.structs import Prompts, Record

if TYPE_CHECKING:
    from care_jax.inputs.images import ImageSpec
    from care_jax.inputs.processor import Processor


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt before padding: P tokens, I patches in window order."""

    record: Record
    token_ids: npt.NDArray[np.int32]  # [P]
    position_ids: npt.NDArray[np.int32]  # [3, P] (time, height, width)
    next_position: int  # of the first response token
    vision_index: npt.NDArray[np.int32]  # [P] row of the merged features, -1 at text
    patches: npt.NDArray[np.uint8]  # [I, F]; one frame a patch unless the prompts may have videos
    patch_position_ids: npt.NDArray[np.int32]  # [I, 2] (height, width)
    window_ids: npt.NDArray[np.int32]  # [I] from 1
    image_ids: npt.NDArray[np.int32]  # [I] from 1, one an image or frame
    grid_index: npt.NDArray[np.int32]  # [I, 4 or 0] cells of the learned position grid
    grid_weights: npt.NDArray[np.float32]  # [I, 4 or 0]


def blank(spec: ImageSpec) -> Example:
    """The prompt of a row that nothing is asked in: one token, no image."""

    def none(*tail: int) -> npt.NDArray[np.int32]:
        return np.zeros((0, *tail), np.int32)

    return Example(
        record=Record(id="", source="", prompt="", images=(), answer="", answer_kind="text"),
        token_ids=np.zeros(1, np.int32),
        position_ids=np.zeros((3, 1), np.int32),
        next_position=1,
        vision_index=np.full(1, -1, np.int32),
        patches=np.zeros((0, spec.frame_values), np.uint8),
        patch_position_ids=none(2),
        window_ids=none(),
        image_ids=none(),
        grid_index=none(spec.grid_cells),
        grid_weights=np.zeros((0, spec.grid_cells), np.float32),
    )


class BatchSizes(NamedTuple):
    """The sizes of the prompts of a batch, without padding."""

    most_tokens: int  # of a prompt
    most_patches: int
    num_tokens: int  # of all prompts
    num_patches: int
    num_prompts: int

    @classmethod
    def of(cls, examples: Sequence[Example]) -> BatchSizes:
        """The sizes of some of the batch's prompts, or all."""
        tokens = [len(example.token_ids) for example in examples]
        patches = [len(example.patches) for example in examples]
        return cls(max(tokens), max(patches), sum(tokens), sum(patches), len(examples))

    @classmethod
    def join(cls, parts: Sequence[Sequence[int]]) -> BatchSizes:
        """The sizes of a batch whose parts have these sizes."""
        columns = list(zip(*parts, strict=True))
        return cls(*map(max, columns[:2]), *map(sum, columns[2:]))

    def metrics(self, bucket: tuple[int, int]) -> dict[str, float]:
        """Computes the sizes of a prompt on average, and the shares of padding in a bucket."""
        tokens, patches = (size * self.num_prompts for size in bucket)
        return {
            "prompt_len/mean": self.num_tokens / self.num_prompts,
            "patches/mean": self.num_patches / self.num_prompts,
            "padding/prompt_tokens": 1 - self.num_tokens / tokens,
            "padding/patches": 1 - self.num_patches / patches,
        }


def collate(processor: Processor, examples: Sequence[Example], sizes: BatchSizes | None = None) -> Prompts:
    """Pads examples on the right to the smallest prompt bucket and patch bucket that hold the whole batch.

    Args:
        processor: has the buckets and the padding token.
        examples: B prompts, or this process's part of them.
        sizes: of the whole batch; None: of `examples`.

    Returns:
        Prompts of NumPy arrays.

    Raises:
        InputError: an example is larger than the largest bucket.
    """
    sizes = BatchSizes.of(examples) if sizes is None else sizes
    prompt_len = np.array([len(example.token_ids) for example in examples], np.int32)
    size = _bucket(sizes.most_tokens, processor.prompt_buckets, "tokens", "data.prompt_buckets")
    spec = processor.image_spec
    norm = np.stack([np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)])
    room = _bucket(sizes.most_patches, processor.patch_buckets, "patches", "data.patch_buckets")
    return Prompts(
        token_ids=_pad([e.token_ids for e in examples], size, processor.pad_token_id),
        prompt_len=prompt_len,
        position_ids=_pad([e.position_ids.T for e in examples], size, 0).transpose(0, 2, 1).copy(),
        next_position=np.array([e.next_position for e in examples], np.int32),
        vision_index=_pad([e.vision_index for e in examples], size, -1),
        patches=_pad([with_frames(e.patches, processor.sent_values, spec) for e in examples], room, 0),
        pixel_norm=np.repeat(norm[None], len(examples), axis=0),
        patch_position_ids=_pad([e.patch_position_ids for e in examples], room, 0),
        window_ids=_pad([e.window_ids for e in examples], room, 0),
        image_ids=_pad([e.image_ids for e in examples], room, 0),
        grid_index=_pad([e.grid_index for e in examples], room, 0),
        grid_weights=_pad([e.grid_weights for e in examples], room, 0),
    )


def _bucket(needed: int, buckets: tuple[int, ...], unit: str, name: str) -> int:
    for bucket in buckets:
        if needed <= bucket:
            return bucket
    raise InputError(f"a prompt of {needed} {unit} exceeds the largest of {name}, {buckets[-1]}; raise it")


def _pad(rows: Sequence[npt.NDArray], length: int, value: int) -> npt.NDArray:
    """Stacks rows [n, ...] of several lengths into [B, length, ...], filled on the right."""
    padded = np.full((len(rows), length, *rows[0].shape[1:]), value, rows[0].dtype)
    for row, target in zip(rows, padded, strict=True):
        target[: len(row)] = row
    return padded
