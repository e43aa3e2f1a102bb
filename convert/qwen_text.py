"""The weights of the decoder, which all families share; they differ only in options of its config."""

from __future__ import annotations

from care_jax.convert.weight import Weight
from care_jax.models.model_config import TextConfig


def text_weights(text: TextConfig) -> list[Weight]:
    """All weights but those of the vision tower. A tied head has no tensor of its own."""
    width = text.hidden_size
    weights = [Weight("model.embed_tokens.weight", "embed_tokens.weight", (text.vocab_size, width))]
    for kind in dict.fromkeys(text.period):
        weights += _layer_weights(text, kind)
    weights.append(Weight("model.norm.weight", "norm.weight", (width,)))
    if not text.tie_word_embeddings:
        weights.append(Weight("lm_head.weight", "lm_head.kernel", (text.vocab_size, width), kernel=True))
    return weights


def _layer_weights(text: TextConfig, kind: str) -> list[Weight]:
    """The weights of all layers of a kind."""
    width, ffn, layers = text.hidden_size, text.intermediate_size, text.layers_of(kind)
    stack = f"layers.{kind}." if len(text.period) > 1 else "layers."

    def layer(name: str, ours: str, shape: tuple[int, ...], *, kernel: bool = False, sections: tuple = ()) -> Weight:
        num_heads = text.linear_num_key_heads if sections else 1
        return Weight(
            "model.layers.{i}." + name,
            stack + ours,
            shape,
            kernel=kernel,
            layers=layers,
            sections=sections,
            num_heads=num_heads,
        )

    def projection(name: str, shape: tuple[int, ...], *, use_bias: bool = False, sections: tuple = ()) -> list[Weight]:
        weights = [layer(f"{name}.weight", f"{name}.kernel", shape, kernel=True, sections=sections)]
        return [*weights, layer(f"{name}.bias", f"{name}.bias", shape[:1])] if use_bias else weights

    def vector(name: str, size: int) -> Weight:
        return layer(f"{name}.weight", f"{name}.weight", (size,))

    def full_attention() -> list[Weight]:
        heads, kv_heads = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
        return [
            *projection("self_attn.q_proj", (heads * (2 if text.output_gate else 1), width), use_bias=text.qkv_bias),
            *projection("self_attn.k_proj", (kv_heads, width), use_bias=text.qkv_bias),
            *projection("self_attn.v_proj", (kv_heads, width), use_bias=text.qkv_bias),
            *([vector("self_attn.q_norm", text.head_dim), vector("self_attn.k_norm", text.head_dim)] * text.qk_norm),
            *projection("self_attn.o_proj", (width, heads), use_bias=text.o_bias),
        ]

    def linear_attention() -> list[Weight]:
        keys = text.linear_num_key_heads * text.linear_key_head_dim
        heads, values = text.linear_num_value_heads, text.linear_num_value_heads * text.linear_value_head_dim
        sections, taps = (keys, keys, values), text.linear_conv_kernel_dim
        conv = layer(
            "linear_attn.conv1d.weight",
            "linear_attn.conv1d.kernel",
            (text.linear_channels, 1, taps),
            kernel=True,
            sections=sections,
        )
        return [
            *projection("linear_attn.in_proj_qkv", (text.linear_channels, width), sections=sections),
            *projection("linear_attn.in_proj_z", (values, width)),
            *projection("linear_attn.in_proj_b", (heads, width)),
            *projection("linear_attn.in_proj_a", (heads, width)),
            conv,
            layer("linear_attn.A_log", "linear_attn.A_log", (heads,)),
            layer("linear_attn.dt_bias", "linear_attn.dt_bias", (heads,)),
            vector("linear_attn.norm", text.linear_value_head_dim),
            *projection("linear_attn.out_proj", (width, values)),
        ]

    return [
        vector("input_layernorm", width),
        *(full_attention() if kind == "full_attention" else linear_attention()),
        vector("post_attention_layernorm", width),
        *projection("mlp.gate_proj", (ffn, width)),
        *projection("mlp.up_proj", (ffn, width)),
        *projection("mlp.down_proj", (width, ffn)),
    ]
