"""The weights of Qwen3-VL and Qwen3.5: Hugging Face's name, our name, Hugging Face's shape."""

from __future__ import annotations

from care_jax.convert.qwen_text import text_weights
from care_jax.convert.weight import Layout, Weight
from care_jax.models.model_config import ModelConfig, VisionConfig

LAYOUT: Layout = "nested"  # of the published files
CARRIED: tuple[str, ...] = ()  # prefixes of tensors that the model does not have


def weights(config: ModelConfig) -> list[Weight]:
    """All weights, in the order they are written, in the same key layout as Qwen2.5-VL's."""
    return [*text_weights(config.text), *_vision(config.vision)]


def _vision(vision: VisionConfig) -> list[Weight]:
    width, ffn, out = vision.hidden_size, vision.intermediate_size, vision.out_hidden_size
    joined = width * vision.merge_unit
    # Flattened in this order by the processor too: the convolution's stride is its size, so it is a matrix product.
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)

    blocks, mergers = range(vision.depth), range(len(vision.deepstack_visual_indexes))

    def linear(name: str, shape: tuple[int, ...], layers: range | None = None) -> list[Weight]:
        ours = name.replace(".{i}", "")
        return [
            Weight(f"visual.{name}.weight", f"visual.{ours}.kernel", shape, kernel=True, layers=layers),
            Weight(f"visual.{name}.bias", f"visual.{ours}.bias", shape[:1], layers=layers),
        ]

    def norm(name: str, size: int, layers: range | None = None) -> list[Weight]:
        ours = name.replace(".{i}", "")
        return [
            Weight(f"visual.{name}.{part}", f"visual.{ours}.{part}", (size,), layers=layers)
            for part in ("weight", "bias")
        ]

    def merger(name: str, norm_size: int, layers: range | None = None) -> list[Weight]:
        return [
            *norm(f"{name}.norm", norm_size, layers),
            *linear(f"{name}.linear_fc1", (joined, joined), layers),
            *linear(f"{name}.linear_fc2", (out, joined), layers),
        ]

    return [
        *linear("patch_embed.proj", (width, *patch)),
        Weight("visual.pos_embed.weight", "visual.pos_embed.weight", (vision.num_position_embeddings, width)),
        *norm("blocks.{i}.norm1", width, blocks),
        *linear("blocks.{i}.attn.qkv", (3 * width, width), blocks),
        *linear("blocks.{i}.attn.proj", (width, width), blocks),
        *norm("blocks.{i}.norm2", width, blocks),
        *linear("blocks.{i}.mlp.linear_fc1", (ffn, width), blocks),
        *linear("blocks.{i}.mlp.linear_fc2", (width, ffn), blocks),
        *merger("merger", width),
        *(merger("deepstack_merger_list.{i}", joined, mergers) if mergers else []),
    ]
