"""FLOPs of a forward pass by part of the model, and what a backward pass adds to each part."""

from __future__ import annotations

from typing import NamedTuple


class Pass(NamedTuple):
    """Tokens of a forward pass, and its FLOPs by part of the model; of several passes all parts add up."""

    tokens: float  # of the decoder
    tower: float
    layers: float
    head: float

    @property
    def flops(self) -> float:
        """The whole pass."""
        return self.tower + self.layers + self.head

    def updated(self, backward: Backward) -> float:
        """The pass and its backward pass, without what is computed again."""
        parts = (backward.tower * self.tower, backward.layers * self.layers, backward.head * self.head)
        return self.flops + sum(parts)

    def recomputed(self, backward: Backward, *, remat: str) -> float:
        """Products that the backward pass computes again; chunks of the head are in any case."""
        if remat != "full":
            return self.head
        return self.head + (self.layers if backward.layers else 0) + (self.tower if backward.tower else 0)


class Backward(NamedTuple):
    """FLOPs of a backward pass for each of the forward pass, by part of the model.

    Of each product 1 for the gradient of its input, if anything before it is trained, and 1 if its matrix is trained.
    """

    tower: float
    layers: float
    head: float
