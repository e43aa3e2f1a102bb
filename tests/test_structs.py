"""Structs made from their annotations: shapes, dtypes, and a clear word on a wrong dimension."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from care_jax import structs
from care_jax.structs import Forced, Prompts, Rollouts, TrainBatch, Verdicts, VisionFeatures, abstract, zeros

PROMPT_DIMS = {"B": 2, "P": 7, "I": 8, "F": 6, "X": 4}


def test_abstract_prompts_have_the_shapes_and_dtypes_of_collated_ones(tiny_processor, tiny_prompts):
    """Catches an annotation that differs from what the processor makes, and dimensions in another order."""
    made = abstract(Prompts, B=3, P=40, I=64, F=tiny_prompts.patches.shape[-1], X=0)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(lambda x: (x.shape, x.dtype), tiny_prompts)


def test_zeros_are_numpy_arrays_of_every_dtype():
    """Catches a mask made as float, and zeros on a device where the host's are wanted."""
    made = zeros(Verdicts, B=2, G=3, R=5)
    assert all(isinstance(leaf, np.ndarray) and not leaf.any() for leaf in jax.tree.leaves(made))
    assert (made.correct.dtype, made.correct.shape) == (np.dtype(bool), (2, 3))
    assert (made.rewards.dtype, made.rewards.shape) == (np.dtype(np.float32), (2, 3))
    assert (made.think_mask.dtype, made.think_mask.shape) == (np.dtype(bool), (2, 3, 5))


def test_a_struct_inside_a_struct_shares_the_dimensions():
    """Catches nested prompts that are left out, or whose dimensions count as unknown."""
    made = abstract(TrainBatch, S=5, R=9, **PROMPT_DIMS)
    assert made.prompts.patches == jax.ShapeDtypeStruct((2, 8, 6), np.uint8)
    assert made.prompts.position_ids == jax.ShapeDtypeStruct((2, 3, 7), np.int32)
    assert made.token_weights == jax.ShapeDtypeStruct((2, 5, 9), np.float32)


def test_optional_fields_are_made_when_they_are_named():
    """Catches an optional field that is filled unasked, which changes the compiled program's arguments."""
    assert zeros(Rollouts, B=1, G=2, R=3).entropy is None
    made = zeros(Rollouts, "entropy", B=1, G=2, R=3)
    assert (made.entropy.shape, made.states) == ((1, 2, 3), None)
    with pytest.raises(ValueError, match="Rollouts has no optional field logprobs"):
        zeros(Rollouts, "logprobs", B=1, G=2, R=3)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"B": 1, "J": 2}, "Forced has the dimensions B, J, W; missing here: W; unknown: none"),
        ({"B": 1, "J": 2, "W": 0, "F": 3}, "missing here: none; unknown: F"),
    ],
)
def test_a_wrong_dimension_is_one_clear_error(dims, message):
    """Catches a KeyError for a dimension that was forgotten, and one that is ignored silently."""
    with pytest.raises(ValueError, match=message):
        abstract(Forced, **dims)


def test_a_field_of_any_float_type_is_refused():
    """Catches a guess at the dtype: the vision features have the model's, which the annotation leaves open."""
    with pytest.raises(ValueError, match=r"VisionFeatures\.merged leaves its shape or dtype open"):
        abstract(VisionFeatures, B=1, U=2, D=3, E=0)


def letters_used(source: str) -> set[str]:
    """Dimension letters in the annotations, einsums, rearrangements and bracketed shapes of a file."""
    annotations = re.findall(r"(?:Array|ndarray), \"([^\"]*)\"\]", source)
    einsums = re.findall(r"einsum\(\s*\"([^\"]*)\"", source)
    rearranged = re.findall(r"rearrange\([^\"]*\"([^\"]*)\"", source)
    shapes = re.findall(r"\[((?:[A-Z]|\d|\.\.\.)(?:, [\w.+* /]+)+)\]", source)
    used = set(re.findall(r"\b[A-Z]\b", " ".join(annotations + shapes)))
    return (
        used
        | set(re.findall(r"[A-Z]", " ".join(einsums).upper()))
        | {letter.upper() for letter in re.findall(r"\b[a-z]\b", " ".join(rearranged))}
    )


def test_every_letter_is_in_the_key():
    """Catches a dimension that the key of structs.py does not explain, in annotations, einsums and comments."""
    key = set(re.findall(r"(?:^ {4}| {2})([A-Z]) ", structs.__doc__, flags=re.M))
    assert len(key) > 20
    source = 'x: Float[Array, "B Q"]; einsum("rk,...k->r"); einops.rearrange(f(x), "(p q) one -> p q")  # [G, I / E]'
    assert letters_used(source) == {*"BQRKPGIE"}
    root = Path(structs.__file__).parent
    unknown = {str(path): letters_used(path.read_text()) - key for path in sorted(root.rglob("*.py"))}
    assert not {path: letters for path, letters in unknown.items() if letters}
