"""OpenAI's chat completions: requests to questions, and pieces of answers to completions and chunks.

A message's `content` is the answer and its `reasoning_content` the rationale, as vLLM names them. A request has one
question, as in training: no earlier turns, and no system turn that says something. Images are data: URLs; nothing is
fetched and no path is opened. `max_tokens` beyond a run's own limit is cut to it. Keys that cannot be obeyed and would
change the answers (`_REFUSED`) are errors; other unknown keys are ignored.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from care_jax import files
from care_jax.data.conversations import read_turns
from care_jax.data.parsing import is_number
from care_jax.errors import InputError, shown
from care_jax.evals.answer_text import Parts, split_response
from care_jax.evals.engine import HOTTEST, MOST_SAMPLES, Piece, Question
from care_jax.evals.questions import encode_question, read_question
from care_jax.inputs.processor import Processor
from care_jax.structs import Record

_MOST_STOPS = 16
_SEEDS = 1 << 64
# Keys that would change the answers, with the values that do not.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}
_OF_DRAWS = ("top_p", "top_k", "min_p")  # which greedy decoding does without


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A request for a chat completion."""

    question: Question
    is_streamed: bool
    with_usage: bool  # at the end of a stream


def read_request(body: bytes, processor: Processor) -> ChatRequest:
    """Reads a request's body and encodes its question.

    Raises:
        InputError: it is no such request; the message says what is allowed.
    """
    raw = files.parse_object(body, "the request", remedy="send a JSON object")
    raw = {key: value for key, value in raw.items() if value is not None}
    temperature = raw.get("temperature", 1.0)
    if not (is_number(temperature) and 0 <= temperature <= HOTTEST):
        message = f"temperature={shown(temperature)}: must be a number from 0, which decodes greedily, to {HOTTEST:g}"
        raise InputError(message)
    for key, neutral in _REFUSED.items():
        if key in raw and raw[key] not in neutral and not (key in _OF_DRAWS and temperature == 0):
            raise InputError(f"{key}={shown(raw[key])} is not supported; leave it out")
    limit = "max_completion_tokens" if "max_completion_tokens" in raw else "max_tokens"
    options = raw.get("stream_options", {})
    if not isinstance(options, dict):
        raise InputError(f"stream_options={shown(options)}: must be an object")
    seed = _whole_number(raw, "seed", -_SEEDS, _SEEDS)
    question = Question(
        example=encode_question(processor, _record(raw.get("messages"))),
        num_samples=_whole_number(raw, "n", 1, MOST_SAMPLES) or 1,
        temperature=float(temperature),
        max_tokens=_whole_number(raw, limit, 1, 1 << 31),
        stops=_stops(raw.get("stop", [])),
        seed=(secrets.randbelow(_SEEDS) if seed is None else seed % _SEEDS,),
    )
    return ChatRequest(question, _is_true(raw, "stream"), _is_true(options, "include_usage"))


def _record(messages: Any) -> Record:
    """The one question of a conversation, with its images."""
    if not isinstance(messages, list) or not messages or not all(isinstance(turn, dict) for turn in messages):
        raise InputError(f"messages={shown(messages)}: must be a list of turns, each with a role and its content")
    if (role := messages[-1].get("role")) != "user":
        raise InputError(f"the last of messages is of the role {shown(role)}; it must be the user's question")
    exchange = read_turns(messages)
    if exchange.videos:  # their frames would be files of this machine
        raise InputError("a message holds a video; send its frames as images, each as a data: URL")
    row = read_question({"prompt": exchange.question, "images": exchange.images}, Path())
    if not all(isinstance(image, bytes) for image in row.images):
        raise InputError('an image must be a data: URL, {"type": "image_url", "image_url": {"url": "data:..."}}')
    return row.load()


def _whole_number(raw: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    value = raw.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most):
        return value
    raise InputError(f"{key}={shown(value)}: must be a whole number from {least} to {most}")


def _is_true(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{key}={shown(value)}: must be true or false")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    is_list = isinstance(stops, list) and len(stops) <= _MOST_STOPS and all(isinstance(x, str) and x for x in stops)
    if not is_list:
        raise InputError(f"stop={shown(value)}: must be a text that is not empty, or up to {_MOST_STOPS} of them")
    return tuple(stops)


class Completion:
    """The response to a request, whole or in chunks.

    Args:
        request: the request.
        model: the name that the response gives.
    """

    def __init__(self, request: ChatRequest, model: str) -> None:
        """Has no tokens yet."""
        self._request, self._num_tokens = request, [0] * request.question.num_samples
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, pieces: Iterable[Piece]) -> dict[str, Any]:
        """Waits for all samples."""
        ended = {piece.sample: piece for piece in pieces if piece.finish}
        choices = []
        for sample, piece in sorted(ended.items()):
            self._num_tokens[sample] = piece.num_tokens
            rationale, answer = split_response(piece.text)
            message = {"role": "assistant", "content": answer, "reasoning_content": rationale, "refusal": None}
            choice = {"index": sample, "message": message, "logprobs": None, "finish_reason": piece.finish}
            choices.append(choice)
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage()}

    def chunks(self, pieces: Iterable[Piece]) -> Iterator[dict[str, Any]]:
        """Yields what each piece adds."""
        shown_so_far = [Parts("", "")] * len(self._num_tokens)
        for sample in range(len(shown_so_far)):
            yield self._chunk(sample, {"role": "assistant", "content": ""}, "")
        for piece in pieces:
            old, new = shown_so_far[piece.sample], split_response(piece.text, is_whole=bool(piece.finish))
            added = {"reasoning_content": new.rationale[len(old.rationale) :], "content": new.answer[len(old.answer) :]}
            delta = {key: text for key, text in added.items() if text}
            shown_so_far[piece.sample], self._num_tokens[piece.sample] = new, piece.num_tokens
            if delta or piece.finish:
                yield self._chunk(piece.sample, delta, piece.finish)
        if self._request.with_usage:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()}

    def _chunk(self, sample: int, delta: dict[str, str], finish: str) -> dict[str, Any]:
        choice = {"index": sample, "delta": delta, "logprobs": None, "finish_reason": finish or None}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _usage(self) -> dict[str, int]:
        asked, answered = len(self._request.question.example.token_ids), sum(self._num_tokens)
        return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
