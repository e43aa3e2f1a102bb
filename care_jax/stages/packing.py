"""Packing: prompts and the rows that belong to them lie behind each other in streams of a fixed number of tokens.

    prompt 1 | row | row | row | prompt 2 | row | padding          a stream of T tokens
    prompt 3 | row | row | padding                                 the next one of the same shard

Only what has a use is packed, in its true length, so that a pass over the streams computes little else. The host
decides the places from lengths alone; the devices take tokens and patches from the batch as it lies (streams.py). The
number of streams that are used differs from step to step, their shape never does: of streams that are no fuller on any
shard, three quarters are computed.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
import numpy.typing as npt
from jaxtyping import Int32

from care_jax.parallel.processes import ALL_ROWS, HostShare
from care_jax.structs import Array, Packing, Prompts, Streams, abstract, zeros

Bucket = tuple[int, int]  # prompt tokens, patches


def shorter_len(stream_len: int) -> int:
    """Tokens that are computed of streams which are no longer than that on any shard; even, as cuDNN wants them."""
    return stream_len - stream_len // 8 * 2


def computed_tokens(filled: npt.NDArray[np.integer], stream_len: int) -> int:
    """Tokens that each shard computes of streams of which the fullest shard has filled so many, by turn."""
    lengths = np.where(filled > shorter_len(stream_len), stream_len, np.where(filled > 0, shorter_len(stream_len), 0))
    return int(lengths.sum())


def stream_patches(stream_len: int, bucket: Bucket, row_len: int) -> int:
    """Patches of a stream: as many as the prompts of a bucket have that fit with one whole row each."""
    return max(stream_len // (bucket[0] + row_len), 1) * bucket[1]


@dataclasses.dataclass(frozen=True)
class StreamSizes:
    """The shape of a packing; every step of a run has the same for a bucket of prompts."""

    num_prompts: int  # B
    bucket: Bucket  # tokens and patches of a padded prompt, P and I
    row_len: int  # tokens of a padded row, R
    shards: int  # of the batch
    parts: int  # minibatches of an update, which take turns of a shard's prompts; else 1
    num_streams: int  # of a part of a shard: enough for any lengths
    num_tokens: int  # T
    num_patches: int  # of a stream

    @classmethod
    def of(
        cls,
        config: ml_collections.ConfigDict,
        bucket: Bucket,
        num_rows: int,
        *,
        shards: int,
        parts: int = 1,
    ) -> StreamSizes:
        """The shape for a step of a run with this config, with so many rows a prompt."""
        return cls.make(
            num_prompts=config.train.prompts,
            num_rows=num_rows,
            bucket=bucket,
            row_len=config.rollout.response_len,
            stream_len=config.train.stream_len,
            shards=shards,
            parts=parts,
        )

    @classmethod
    def make(
        cls,
        *,
        num_prompts: int,
        num_rows: int,
        bucket: Bucket,
        row_len: int,
        stream_len: int,
        shards: int,
        parts: int = 1,
    ) -> StreamSizes:
        """The shape for a batch of `num_prompts` with `num_rows` rows each.

        `stream_len` is at least a padded prompt and row together.
        """
        prompt_len, patch_len = bucket
        num_patches = stream_patches(stream_len, bucket, row_len)
        # First fit leaves no two streams that would fit into one, so together they fill more than half of what a
        # stream has of tokens or of patches. A group for which no stream has room repeats its prompt.
        copies = -(-num_rows // max((stream_len - prompt_len) // row_len, 1))
        of_group = (copies * prompt_len + num_rows * row_len) / stream_len + copies * patch_len / num_patches
        groups = num_prompts // shards // parts
        num_streams = min(int(2 * groups * of_group) + 1, groups * copies)
        return cls(num_prompts, bucket, row_len, shards, parts, num_streams, stream_len, num_patches)

    def abstract(self) -> Packing:
        """Shapes of the packing."""
        return abstract(Packing, B=self.num_prompts, **self._dims(self.shards))

    def empty(self, shards: int) -> Streams:
        """The streams of so many shards, of NumPy arrays with nothing in them."""
        streams = zeros(Streams, **self._dims(shards))
        return dataclasses.replace(streams, source=streams.source - 1, patch_source=streams.patch_source - 1)

    def _dims(self, shards: int) -> dict[str, int]:
        return {"A": shards * self.parts * self.num_streams, "T": self.num_tokens, "patches": self.num_patches}


class _Piece(NamedTuple):
    """A prompt and those of its rows that lie behind it in one stream."""

    prompt: int  # of the shard's own
    rows: tuple[int, ...]
    num_tokens: int
    num_patches: int


class PromptLengths(NamedTuple):
    """The tokens and patches of each prompt of a batch, without padding."""

    tokens: Int32[np.ndarray, "B"]
    patches: Int32[np.ndarray, "B"]

    @classmethod
    def of(cls, prompts: Prompts) -> PromptLengths:
        """The sizes of prompts (NumPy)."""
        return cls(np.asarray(prompts.prompt_len), (np.asarray(prompts.image_ids) > 0).sum(axis=1, dtype=np.int32))


def pack(
    sizes: StreamSizes, prompts: PromptLengths, row_len: Int32[Array, "B J"], share: HostShare = ALL_ROWS
) -> Packing:
    """Divides groups among the shards and places them in streams, the longest first, each where it first fits.

    Args:
        sizes: the shape of the packing.
        prompts: those of `share`.
        row_len: tokens of each row; 0 leaves it out, and a prompt with no row left is left out too.
        share: this process's rows; the processes exchange their lengths.

    Returns:
        The packing, of NumPy arrays with the rows and streams of `share`.
    """
    shards = range(sizes.shards) if share.is_whole else share.shards
    gathered = share.gather(np.column_stack([*prompts, row_len]).astype(np.int32))
    prompts, rows_of = PromptLengths(gathered[:, 0], gathered[:, 1]), gathered[:, 2:]
    streams = sizes.empty(len(shards))
    group_len = np.where(rows_of.any(axis=1), prompts.tokens + rows_of.sum(axis=1), 0)
    order = _balanced(group_len, sizes)
    prompts, rows_of = PromptLengths(prompts.tokens[order], prompts.patches[order]), rows_of[order]
    size = sizes.num_prompts // sizes.shards
    for place, shard in enumerate(shards):
        own = slice(shard * size, (shard + 1) * size)
        lengths, rows = PromptLengths(prompts.tokens[own], prompts.patches[own]), rows_of[own]
        writer = _Writer(streams, sizes, lengths, rows)
        for part in range(sizes.parts):
            pieces = [
                piece
                for prompt in range(part, size, sizes.parts)
                for piece in _pieces(prompt, lengths, rows[prompt], sizes)
            ]
            first = (place * sizes.parts + part) * sizes.num_streams
            streams_of_part = sorted(_first_fit(pieces, sizes), key=lambda some: -sum(p.num_tokens for p in some))
            for number, stream in enumerate(streams_of_part):
                writer.write(first + number, stream)
    home = np.argsort(order).astype(np.int32)
    own_rows = share.rows(sizes.num_prompts)
    return Packing(order[own_rows], home[own_rows], streams)


def _balanced(group_len: npt.NDArray, sizes: StreamSizes) -> Int32[np.ndarray, "B"]:
    """The group at each place: of every part the longest first, each to the shard with the fewest tokens and a place.

    A shard keeps its number of groups, and a group its part. A shard's groups lie as in the batch: one shard has the
    batch's own order.
    """
    numbers = np.arange(sizes.num_prompts, dtype=np.int32).reshape(sizes.shards, -1, sizes.parts)
    order = np.empty_like(numbers)
    for part in range(sizes.parts):
        shards = [(0, 0, shard) for shard in range(sizes.shards)]  # tokens, groups: a heap
        own = numbers[:, :, part].reshape(-1)
        for group in own[np.argsort(-group_len[own], kind="stable")]:
            num_tokens, num_groups, shard = heapq.heappop(shards)
            order[shard, num_groups, part] = group
            if num_groups + 1 < order.shape[1]:
                heapq.heappush(shards, (num_tokens + int(group_len[group]), num_groups + 1, shard))
    return np.sort(order, axis=1).reshape(-1)


def padding_share(packing: Packing, sizes: StreamSizes, share: HostShare = ALL_ROWS) -> float:
    """The share of the computed tokens that are padding; shards with fewer streams wait for those with more.

    1 if nothing is packed. `packing` has the streams of `share`; the processes exchange what they need.
    """
    used = (np.asarray(packing.streams.group) > 0).sum(axis=-1).reshape(-1, sizes.parts * sizes.num_streams)
    parts = share.exchange([used.sum(axis=1).tolist(), used.max(axis=0).tolist()])
    most = np.max([most for _, most in parts], axis=0)  # of all shards, by turn
    computed = computed_tokens(most, sizes.num_tokens) * sizes.shards
    return 1.0 - float(np.sum([np.sum(filled) for filled, _ in parts]) / max(computed, 1))


def _pieces(prompt: int, prompts: PromptLengths, row_len: npt.NDArray, sizes: StreamSizes) -> list[_Piece]:
    """A group in pieces that fit a stream, most often one."""
    prompt_len, patch_len = int(prompts.tokens[prompt]), int(prompts.patches[prompt])
    pieces, rows, filled = list[_Piece](), list[int](), prompt_len
    for row in np.flatnonzero(row_len).tolist():
        length = int(row_len[row])
        if rows and filled + length > sizes.num_tokens:
            pieces.append(_Piece(prompt, tuple(rows), filled, patch_len))
            rows, filled = [], prompt_len
        rows.append(row)
        filled += length
    return [*pieces, _Piece(prompt, tuple(rows), filled, patch_len)] if rows else pieces


def _first_fit(pieces: Sequence[_Piece], sizes: StreamSizes) -> list[list[_Piece]]:
    """First fit decreasing: streams with room for the tokens and patches of their pieces."""
    streams, room = list[list[_Piece]](), list[tuple[int, int]]()
    for piece in sorted(pieces, key=lambda piece: -piece.num_tokens):
        fitting = (
            n for n, (tokens, patches) in enumerate(room) if tokens >= piece.num_tokens and patches >= piece.num_patches
        )
        number = next(fitting, len(streams))
        if number == len(streams):
            streams.append([])
            room.append((sizes.num_tokens, sizes.num_patches))
        streams[number].append(piece)
        tokens, patches = room[number]
        room[number] = tokens - piece.num_tokens, patches - piece.num_patches
    return streams


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes the streams of one shard."""

    streams: Streams
    sizes: StreamSizes
    prompts: PromptLengths
    row_len: npt.NDArray[np.int32]

    def write(self, stream: int, pieces: Sequence[_Piece]) -> None:
        """Fills stream number `stream`."""
        streams, (padded_prompt, padded_patches) = self.streams, self.sizes.bucket
        first_row = len(self.row_len) * padded_prompt  # source of the first row's first token
        place = target = patch = 0
        for group, piece in enumerate(pieces, start=1):
            length, patches = int(self.prompts.tokens[piece.prompt]), piece.num_patches
            streams.group[stream, place : place + piece.num_tokens] = group
            streams.source[stream, place : place + length] = piece.prompt * padded_prompt + np.arange(length)
            streams.patch_source[stream, patch : patch + patches] = piece.prompt * padded_patches + np.arange(patches)
            place, patch = place + length, patch + patches
            last_of_prompt = place - 1
            for branch, row in enumerate(piece.rows, start=1):
                length = int(self.row_len[piece.prompt, row])
                source = first_row + (piece.prompt * self.row_len.shape[1] + row) * self.sizes.row_len
                places = np.arange(place, place + length)
                streams.source[stream, places] = source + np.arange(length)
                streams.branch[stream, places] = branch
                streams.target[stream, target : target + length] = places
                streams.predictor[stream, target] = last_of_prompt
                streams.predictor[stream, target + 1 : target + length] = places[:-1]
                place, target = place + length, target + length
        streams.num_targets[stream] = target
