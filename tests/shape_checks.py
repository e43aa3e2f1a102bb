"""The type checker of the tests: beartype, and beyond it the fields of every struct that a function takes or returns.

jaxtyping's import hook (conftest.py) puts it around each function of the rooms in CHECKED. A letter means one size in
all arguments of a call, arrays and fields of structs alike. Structs are checked where a function's signature names
them and not where they are made: jax makes them too, with whatever leaves a tree.map or a vmap puts in.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jax
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from jax.sharding import PartitionSpec, Sharding
from jaxtyping import AbstractArray

CHECKED = ("care_jax.structs", "care_jax.method", "care_jax.models", "care_jax.parallel", "care_jax.stages")
TYPECHECKER = "tests.shape_checks.typechecked"  # jaxtyping imports it by its name

_CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float, as it is to mypy
_PLACEHOLDERS = (PartitionSpec, Sharding, jax.ShapeDtypeStruct)  # in an array's place


def typechecked(function: Callable) -> Callable:
    """Wraps one of jaxtyping's stand-ins for a function, which takes its arguments and returns its result."""
    checked = beartype(function, conf=_CONF)
    structs = {name: hint for name, hint in function.__annotations__.items() if _is_struct(hint)}
    signature = inspect.signature(function)

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        if function.__name__ == "__init__" and (_is_struct(type(args[0])) or _checks_itself(type(args[0]))):
            return None
        result = checked(*args, **kwargs)
        values = signature.bind(*args, **kwargs).arguments | {"return": result}
        for name, hint in structs.items():
            if name in values:
                _check_fields(values[name], hint)
        return result

    return check


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and "_flax_dataclass" in vars(hint)


def _checks_itself(record: type) -> bool:
    """True for a record whose own errors, which users see, say what is wrong."""
    return "__post_init__" in vars(record)


def _is_of_arrays(hint: Any) -> bool:
    return any(map(_is_of_arrays, typing.get_args(hint))) or (
        isinstance(hint, type) and issubclass(hint, AbstractArray)
    )


@functools.cache
def _checked_fields(struct_type: type) -> dict[str, Any]:
    """The annotations that name arrays or structs; a model or an optimizer's state is no concern of ours."""
    hints = inspect.get_annotations(struct_type, eval_str=True)
    return {name: hint for name, hint in hints.items() if _is_struct(hint) or _is_of_arrays(hint)}


def _check_fields(value: Any, struct_type: type) -> None:
    for name, hint in _checked_fields(struct_type).items():
        field = getattr(value, name)
        if field is None:  # a part that the host leaves on the device (stages/table.py: Value.read)
            continue
        if any(isinstance(leaf, _PLACEHOLDERS) for leaf in jax.tree.leaves(field)):
            continue
        if _is_struct(hint) and isinstance(field, hint):
            _check_fields(field, hint)
        elif not is_bearable(field, hint, conf=_CONF):
            found = jax.tree.map(lambda leaf: getattr(leaf, "aval", leaf), field)
            raise TypeError(f"{struct_type.__name__}.{name} is {found}, not {hint}")
