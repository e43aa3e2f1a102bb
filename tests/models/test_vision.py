"""Bytes to normalised pixels on a device, bit for bit."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from care_jax.models.vision import pixels

NORMS = {
    "qwen2_5_vl": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "qwen3_vl": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "the tiny model": ((1.0, 1.0, 1.0), (0.27, 0.27, 0.27)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def reference(bytes_: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Normalised bytes [..., 3, n] as transformers' image processors compute them: the product in float64."""
    scaled = (bytes_.astype(np.float64) * (1 / 255)).astype(np.float32)
    return (scaled - norm[0][:, None]) / norm[1][:, None]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_every_byte_is_normalised_bit_for_bit(name: str, compiled: bool) -> None:
    """Catches a division that a compiler turns into a product: its last bit differs, and no tolerance would show it.

    Not compiled, every operation is rounded alone; compiled, products and sums are fused.
    """
    norm = np.array(NORMS[name], np.float32)
    bytes_ = np.arange(256, dtype=np.uint8).reshape(1, 256)  # of each channel: a patch of 16 x 16 pixels
    patches = np.broadcast_to(bytes_, (3, 256)).reshape(1, 1, -1)
    with jax.disable_jit(not compiled):
        values = jax.jit(pixels, static_argnames=("patch_size", "num_frames"))(
            patches, norm[None], patch_size=16, num_frames=2
        )
    wanted = reference(np.broadcast_to(bytes_, (3, 256)), norm)
    got = np.asarray(values).reshape(3, 2, 256)
    assert np.array_equal(got[:, 0].view(np.uint32), wanted.view(np.uint32))
    assert np.array_equal(got[:, 1], got[:, 0])  # the still picture's frame is repeated


def test_any_normalisation_is_exact() -> None:
    """Catches a quotient that is right for the published means and deviations alone."""
    rng = np.random.default_rng(0)
    norms = np.stack([rng.uniform(-1, 1, (200, 3)), rng.uniform(0.01, 3, (200, 3))], axis=1).astype(np.float32)
    patches = np.broadcast_to(np.arange(256, dtype=np.uint8), (200, 1, 3, 256)).reshape(200, 1, -1)
    values = jax.jit(lambda x, norm: pixels(x, norm, patch_size=16, num_frames=1))(patches, norms)
    for norm, got in zip(norms, np.asarray(values).reshape(200, 3, 256), strict=True):
        assert np.array_equal(got, reference(np.broadcast_to(np.arange(256), (3, 256)), norm))


def test_frames_of_a_video_stay_apart() -> None:
    """Catches the first frame of a patch shown twice, and channels mixed up with frames."""
    frames = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(1, 1, -1)
    norm = np.array([[[0.0] * 3, [1 / 255] * 3]], np.float32)
    values = pixels(frames, norm, patch_size=2, num_frames=2)
    assert np.round(np.asarray(values).ravel()).tolist() == list(range(24))
