"""Values of expressions at points, against SymPy, and the equality that is decided by them, against math-verify."""

from __future__ import annotations

import itertools

import pytest
import sympy

from care_jax.rewards.verifiers import symbolic
from care_jax.rewards.verifiers.reading.evaluation import NUM_POINTS, _letter, values
from care_jax.rewards.verifiers.reading.spelling import canonical

X, Y = sympy.symbols("x y")


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("2x^3-y", 2 * X**3 - Y),
        (r"\frac{x+1}{2y}", (X + 1) / (2 * Y)),
        (r"\frac{1}{2}x", X / 2),
        ("x/2y", X / 2 * Y),  # from left to right, like a calculator
        ("-x^2", -(X**2)),
        ("x^{-2}", X**-2),
        (r"\sqrt{x}+\sqrt[3]{y}", sympy.sqrt(X) + Y ** sympy.Rational(1, 3)),
        (r"\sin 2x\cos y", sympy.sin(2 * X) * sympy.cos(Y)),
        (r"\sin^2x+1", sympy.sin(X) ** 2 + 1),
        (r"\log_{2}(x)", sympy.log(X, 2)),
        (r"e^{i\pi}+x", X - 1),
        (r"2\cdot(x+3)(y-1)", 2 * (X + 3) * (Y - 1)),
        (r"x\div y\times 3", X / Y * 3),
    ],
)
def test_values_are_those_of_the_expression(text, expression):
    """Catches a wrong precedence, which would take right answers for wrong ones."""
    for point, value in zip(range(NUM_POINTS), values(text), strict=True):
        wanted = complex(expression.subs({X: _letter("x", point), Y: _letter("y", point)}).evalf())
        assert value == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "x+", "(x", "x)", r"\pm x", r"x^{\circ}", "x=2", "x^12", r"\frac{1}{0}", "x!", r"\frac{x}", "x||y", "()"],
)
def test_what_has_no_value_is_left_to_others(text):
    """Catches a guess at a text that the grammar does not hold."""
    assert values(text) is None


EXPRESSIONS = [
    "x^2+2x+1", "(x+1)^2", "x^2+2x+2", r"\sin 2x", r"2\sin x\cos x", r"\sin x\cos x", r"\sqrt{x^2}", "x",
    r"\frac{1}{x}", "x^{-1}",
]  # fmt: skip
RELATIONS = [
    "y=2x+1", "2x-y+1=0", "y-1=2x", "y=2x-1", "x=2y+1", "(x,y)", "(y,x)", r"\{x,y\}", r"\{y,x\}", "[x,y)", "[x,y]",
    r"(-\infty,x)\cup(y,\infty)", r"(y,\infty)\cup(-\infty,x)", "x<y", "y>x", "x>y", r"x\leq y",
]  # fmt: skip


@pytest.mark.parametrize("texts", [EXPRESSIONS, RELATIONS], ids=["expressions", "relations"])
def test_values_decide_as_math_verify_does(texts):
    """Catches a pair that is taken for equal or different on its values alone, and is not."""
    decided = 0
    for given, gold in itertools.permutations(map(canonical, texts), 2):
        if symbolic._letters(given) != symbolic._letters(gold) or symbolic._shape(given) != symbolic._shape(gold):
            continue
        by_values = symbolic._equal_by_values(given, gold)
        if by_values is not None:
            parse = symbolic.load().parse
            expressions = [parse(f"${text}$", parsing_timeout=None) for text in (gold, given)]
            assert symbolic.load().verify(*expressions, float_rounding=12, timeout_seconds=None) is by_values, (
                given,
                gold,
            )
            decided += 1
    assert decided > 60  # the comparison is not empty


def test_a_pair_is_asked_about_once(monkeypatch):
    """Catches a group of equal answers that costs one symbolic comparison each."""
    symbolic.is_equal.cache_clear()
    asked = []
    monkeypatch.setattr(symbolic, "_equal_by_values", lambda given, gold: asked.append(given) or False)
    for _ in range(3):
        assert not symbolic.is_equal("x+1", "x+2")
    assert len(asked) == 1
    symbolic.is_equal.cache_clear()
