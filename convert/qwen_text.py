"""The weights of the decoder, which both families share; they differ only in options of its config."""

from __future__ import annotations

from care_jax.convert.weight import Weight
from care_jax.models.model_config import TextConfig


def text_weights(text: TextConfig) -> list[Weight]:
    """All weights but those of the vision tower. A tied head has no tensor of its own."""
    width, ffn, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    heads, kv_heads = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim

    def layer(name: str, ours: str, shape: tuple[int, ...], *, kernel: bool = False) -> Weight:
        return Weight("model.layers.{i}." + name, "layers." + ours, shape, kernel=kernel, layers=layers)

    def projection(name: str, shape: tuple[int, ...], *, use_bias: bool) -> list[Weight]:
        weights = [layer(f"{name}.weight", f"{name}.kernel", shape, kernel=True)]
        return [*weights, layer(f"{name}.bias", f"{name}.bias", shape[:1])] if use_bias else weights

    def vector(name: str, size: int) -> Weight:
        return layer(f"{name}.weight", f"{name}.weight", (size,))

    weights = [
        Weight("model.embed_tokens.weight", "embed_tokens.weight", (text.vocab_size, width)),
        vector("input_layernorm", width),
        *projection("self_attn.q_proj", (heads, width), use_bias=text.qkv_bias),
        *projection("self_attn.k_proj", (kv_heads, width), use_bias=text.qkv_bias),
        *projection("self_attn.v_proj", (kv_heads, width), use_bias=text.qkv_bias),
        *([vector("self_attn.q_norm", text.head_dim), vector("self_attn.k_norm", text.head_dim)] * text.qk_norm),
        *projection("self_attn.o_proj", (width, heads), use_bias=text.o_bias),
        vector("post_attention_layernorm", width),
        *projection("mlp.gate_proj", (ffn, width), use_bias=False),
        *projection("mlp.up_proj", (ffn, width), use_bias=False),
        *projection("mlp.down_proj", (width, ffn), use_bias=False),
        Weight("model.norm.weight", "norm.weight", (width,)),
    ]
    if not text.tie_word_embeddings:
        weights.append(Weight("lm_head.weight", "lm_head.kernel", (text.vocab_size, width), kernel=True))
    return weights
