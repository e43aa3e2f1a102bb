"""The weights of Qwen2.5-VL: Hugging Face's name, our name, Hugging Face's shape."""

from __future__ import annotations

from care_jax.convert.qwen_text import text_weights
from care_jax.convert.weight import Layout, Weight
from care_jax.models.model_config import ModelConfig, VisionConfig

LAYOUT: Layout = "hub"  # of the published files
CARRIED: tuple[str, ...] = ()  # prefixes of tensors that the model does not have


def weights(config: ModelConfig) -> list[Weight]:
    """All weights, in the order they are written. A tied head has no tensor of its own."""
    return [*text_weights(config.text), *_vision(config.vision)]


def _vision(vision: VisionConfig) -> list[Weight]:
    width, ffn = vision.hidden_size, vision.intermediate_size
    merged = width * vision.merge_unit
    # Flattened in this order by the processor too: the convolution's stride is its size, so it is a matrix product.
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)

    def block(name: str, ours: str, shape: tuple[int, ...], *, kernel: bool = False) -> Weight:
        return Weight(
            "visual.blocks.{i}." + name, "visual.blocks." + ours, shape, kernel=kernel, layers=range(vision.depth)
        )

    def merger(name: str, ours: str, shape: tuple[int, ...], *, kernel: bool = False) -> Weight:
        return Weight("visual.merger." + name, "visual.merger." + ours, shape, kernel=kernel)

    return [
        Weight("visual.patch_embed.proj.weight", "visual.patch_embed.proj.kernel", (width, *patch), kernel=True),
        block("norm1.weight", "norm1.weight", (width,)),
        block("attn.qkv.weight", "attn.qkv.kernel", (3 * width, width), kernel=True),
        block("attn.qkv.bias", "attn.qkv.bias", (3 * width,)),
        block("attn.proj.weight", "attn.proj.kernel", (width, width), kernel=True),
        block("attn.proj.bias", "attn.proj.bias", (width,)),
        block("norm2.weight", "norm2.weight", (width,)),
        block("mlp.gate_proj.weight", "mlp.gate_proj.kernel", (ffn, width), kernel=True),
        block("mlp.gate_proj.bias", "mlp.gate_proj.bias", (ffn,)),
        block("mlp.up_proj.weight", "mlp.up_proj.kernel", (ffn, width), kernel=True),
        block("mlp.up_proj.bias", "mlp.up_proj.bias", (ffn,)),
        block("mlp.down_proj.weight", "mlp.down_proj.kernel", (width, ffn), kernel=True),
        block("mlp.down_proj.bias", "mlp.down_proj.bias", (width,)),
        merger("ln_q.weight", "ln_q.weight", (width,)),
        merger("mlp.0.weight", "fc1.kernel", (merged, merged), kernel=True),
        merger("mlp.0.bias", "fc1.bias", (merged,)),
        merger("mlp.2.weight", "fc2.kernel", (vision.out_hidden_size, merged), kernel=True),
        merger("mlp.2.bias", "fc2.bias", (vision.out_hidden_size,)),
    ]
