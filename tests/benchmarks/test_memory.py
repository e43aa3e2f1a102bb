"""The memory benchmark at a tiny width and few tokens, with the vocabulary of the real models."""

from __future__ import annotations

import json
from collections.abc import Iterator

import jax
import pytest

from benchmarks import memory

FLAGS = ["--layers=1", "--chunk=16", "--prompt_len=24", "--response_len=32", "--rows", "8", "16"]


@pytest.fixture(scope="module", autouse=True)
def promotion() -> Iterator[None]:
    """The standard promotion of types, which optax's Adam needs."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
def test_no_logits_of_all_tokens_and_growth_as_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a head that is not chunked, or whose chunks are kept for the backward pass."""
    figures = memory.main(FLAGS)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(figures))
    assert figures["vocabulary"] == 151936
    assert figures["tokens"] == 512
    # Less if other arrays share the room of the head's chunks, which are large at this vocabulary.
    assert 0 < figures["bytes_per_token"] <= 1.05 * figures["predicted_bytes_per_token"]
    assert figures["bytes_per_token"] < figures["logits_bytes_per_token"] / 10


@pytest.mark.slow
def test_a_head_over_all_tokens_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that cannot fail: it must reject one chunk as long as all tokens."""
    args = memory.parse(FLAGS)
    case = memory.make_case(args, vocab_size=args.vocabulary, num_rows=16)
    shape = memory.largest_array(memory.compile_score(case._replace(chunk=512)))
    limits = {"limit": args.vocabulary * 128, "logits": args.vocabulary * 512}
    with pytest.raises(ValueError, match=r"the score has an array \(512, 151936\)"):
        memory.require_chunks({"score": shape}, **limits)
    with pytest.raises(ValueError, match="the check is blind"):
        memory.require_chunks({"naive head": (16, args.vocabulary)}, **limits)
