"""lmms-eval's comparison of two free answers, only for the score under its rules: it equates "5 apples" and "5 pears".

Source: its release 0.7.2, _task_utils/reasoning_utils.py without a judge model, as its tasks named *_reasoning use it.
"""

from __future__ import annotations

from care_jax.rewards.verifiers import symbolic
from care_jax.rewards.verifiers.own import answer_verifier

_SHARE = 0.9  # of the longer text's length that the shorter one must have to be counted as equal when it is inside
_math_verify = symbolic.load()  # at import: a worker's deadline does not run while it loads a kind


@answer_verifier
def equal(given: str, gold: str) -> tuple[bool, bool, str]:
    """Accept an answer that is the gold, holds or is nearly all of it, or equals it in math-verify's judgement."""
    found, wanted = (text.removesuffix(".").strip() for text in (given, gold))
    shorter, longer = sorted((found, wanted), key=len)
    if found == wanted or (shorter in longer and len(shorter) >= _SHARE * len(longer)):
        return True, True, "compared"
    # The worker's parent keeps the time; math-verify's own alarm is for the main thread alone.
    expressions = [_math_verify.parse(text, parsing_timeout=None) for text in (wanted, found)]
    return bool(_math_verify.verify(*expressions, timeout_seconds=None)), True, "compared"
