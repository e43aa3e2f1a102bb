"""The part of a model that is trained, as a tree of its own: all of it, all but some groups, or adapters alone.

Which parameters are trained is written on the parameters, as their axes are. So gradients, an optimizer's moments and
checkpoints are those of a smaller tree, and whoever handles them needs to know nothing of adapters or groups:

    trained, frozen = partition(model)      # two trees like the model, each without the other's arrays
    model = combine(trained, frozen)
"""

from __future__ import annotations

import fnmatch
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from care_jax.errors import InputError, listed
from care_jax.models.layers import Linear, map_linears
from care_jax.models.model_config import LoraConfig
from care_jax.parallel.sharding import param_name

M = TypeVar("M", bound=nnx.Module)

# Linears that take no adapter: logits are made without a call of the head, and in Hugging Face's models the patch
# embedding is a convolution.
_NO_TARGETS = ("lm_head", "visual.patch_embed.proj")


def group_of(name: str, *, tied: bool) -> str:
    """The group of a parameter, one of options.GROUPS; `tied`: the head is the embedding table."""
    head, _, rest = name.partition(".")
    if head == "visual":
        return "merger" if "merger" in rest.partition(".")[0] else "vision"
    return "head" if head == ("embed_tokens" if tied else "lm_head") else "decoder"


def freeze_groups(model: M, groups: tuple[str, ...], *, tied: bool) -> M:
    """The model whose parameters of `groups` are not trained."""

    def of_param(path: tuple, param: nnx.Variable) -> nnx.Variable:
        return param.replace(trained=False) if group_of(param_name(path), tied=tied) in groups else param

    return jax.tree_util.tree_map_with_path(of_param, model, is_leaf=_is_param)


def add_adapters(model: M, lora: LoraConfig, dtype: jnp.dtype, key: jax.Array) -> M:
    """The model with adapters beside the linears that `lora` names; they are trained, and nothing else is.

    What is not trained is in `dtype`.

    Raises:
        InputError: a pattern of lora.targets that names no linear; lists the linears.
    """
    nodes = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda node: isinstance(node, Linear))
    names = [param_name(path) for path, node in nodes if isinstance(node, Linear)]
    names = [name for name in names if name not in _NO_TARGETS]
    found = {pattern: [name for name in names if fnmatch.fnmatchcase(name, pattern)] for pattern in lora.targets}
    if idle := [pattern for pattern, matching in found.items() if not matching]:
        raise InputError(f"model.lora.targets: no linear is called {listed(idle)}; there are {', '.join(names)}")
    targets = [name for name in names if any(name in matching for matching in found.values())]
    keys = dict(zip(targets, jax.random.split(key, len(targets)), strict=True))

    def frozen(param: nnx.Variable) -> nnx.Variable:
        return param.replace(param[...].astype(dtype), trained=False)

    def adapted(name: str, layer: Linear) -> Linear:
        return layer.with_adapter(lora.rank, lora.scale, keys[name]) if name in keys else layer

    return map_linears(adapted, jax.tree.map(frozen, model, is_leaf=_is_param))


def without_adapters(model: M) -> M:
    """The model with its adapters off."""
    return map_linears(lambda _, layer: layer.without_adapter(), model)


def has_adapters(model: nnx.Module) -> bool:
    """True if any linear of a model has an adapter."""
    linears = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, Linear))
    return any(isinstance(node, Linear) and node.lora_a is not None for node in linears)


def is_trained(module: Any) -> bool:
    """True if any parameter of a module is trained."""
    return any(_is_trained(param) for param in jax.tree.leaves(module, is_leaf=_is_param))


def partition(model: M) -> tuple[M, M]:
    """The model's trained part and the rest, each in the model's structure, with nothing in the places of the other."""

    def part(*, trained: bool) -> M:
        def kept(param: nnx.Variable) -> nnx.Variable:
            return param if _is_trained(param) == trained else param.replace(None)

        return jax.tree.map(kept, model, is_leaf=_is_param)

    return part(trained=True), part(trained=False)


def combine(trained: M, frozen: M) -> M:
    """Undoes `partition`; the leaves may be anything."""
    return jax.tree.map(lambda one, other: one if jax.tree.leaves(one) else other, trained, frozen, is_leaf=_is_param)


def reference_part(model: M) -> M:
    """The part of the reference policy that is no part of `model`: the trained one, or with adapters nothing."""
    return partition(without_adapters(model))[0]


def reference_policy(part: M, model: M) -> M:
    """The reference policy: its own `part`, beside what is not trained of `model`.

    Without adapters in `part` those of the model are off.
    """
    return combine(part, partition(model if has_adapters(part) else without_adapters(model))[1])


def _is_param(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _is_trained(param: nnx.Variable) -> bool:
    return bool(param.get_metadata("trained", True))
