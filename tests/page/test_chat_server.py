"""The OpenAI endpoint: what is asked, what comes back whole and in pieces, and what is refused."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from care_jax.errors import InputError
from care_jax.evals.engine import BusyError
from care_jax.page import chat_server
from care_jax.page.chat_server import ChatServer
from tests.chat import ANSWER, ScriptedEngine, request, serving
from tests.pictures import encode, picture

CHAT = "/v1/chat/completions"
URL = "data:image/png;base64," + base64.b64encode(encode(picture(56, 84))).decode()
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
MESSAGES = [{"role": "user", "content": [IMAGE, {"type": "text", "text": "How many?"}]}]


@pytest.fixture
def engine(tiny_processor) -> ScriptedEngine:
    """An engine that says ANSWER."""
    return ScriptedEngine(tiny_processor)


@pytest.fixture
def server(engine) -> Iterator[ChatServer]:
    """Its server."""
    with serving(engine) as server:
        yield server


def _ask(server: ChatServer, **fields: Any) -> Any:
    status, body = request(server, "POST", CHAT, {"model": "any", "messages": MESSAGES} | fields)
    assert status == 200, body
    return body


def test_a_completion(server, engine) -> None:
    """Catches a response that OpenAI's clients cannot read, and an image or text that does not reach the model."""
    body = _ask(server)
    assert body["object"] == "chat.completion"
    assert body["model"] == "run/30"
    assert body["id"].startswith("chatcmpl-")
    [choice] = body["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "3"
    assert choice["message"]["reasoning_content"] == "1 < 2 & 3"
    [question] = engine.asked
    asked, answered = len(question.example.token_ids), len(ANSWER)
    assert body["usage"] == {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
    assert question.example.record.prompt == "<image>How many?"
    assert len(question.example.patches) == 6 * 4
    assert (question.num_samples, question.temperature, question.max_tokens, question.stops) == (1, 1.0, None, ())


def test_settings(server, engine) -> None:
    """Catches a setting that is read and not used, samples that are lost, and usage of one sample alone."""
    engine.texts = [ANSWER, "<think>a", "4"]
    settings = {"n": 3, "temperature": 0.5, "max_tokens": 9, "stop": ["\n", "x"], "seed": -7}
    body = _ask(server, **settings, top_p=None, user="me", logit_bias={}, response_format={"type": "text"})
    [question] = engine.asked
    assert (question.num_samples, question.temperature, question.max_tokens) == (3, 0.5, 9)
    assert question.stops == ("\n", "x")
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in body["choices"]] == ["", "", "4"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "stop", "stop"]
    assert body["usage"]["completion_tokens"] == 9 + 8 + 1
    for fields in ({"seed": -7}, {"seed": 7}, {}, {}, {"max_completion_tokens": 4, "max_tokens": 9, "stop": "."}):
        _ask(server, temperature=0, top_p=0.9, **fields)
    seeds = [question.seed for question in engine.asked]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 5
    assert (engine.asked[-1].max_tokens, engine.asked[-1].stops, engine.asked[-1].temperature) == (4, (".",), 0.0)


def test_a_stream(server, engine) -> None:
    """Catches deltas that do not add up to the whole, an end without [DONE], and samples that are mixed up."""
    engine.texts = [ANSWER, "<think>b</think>4"]
    *events, done = _ask(server, n=2, stream=True, stream_options={"include_usage": True})
    assert done == "[DONE]"
    *chunks, last = map(json.loads, events)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(ANSWER) + 17
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    for index, (rationale, answer) in enumerate([("1 < 2 & 3", "3"), ("b", "4")]):
        choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("reasoning_content", "") for choice in choices) == rationale
        assert "".join(choice["delta"].get("content", "") for choice in choices) == answer
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert len(chunks) > 8, "all at once"
    assert "usage" not in json.loads(_ask(server, stream=True)[-2])


def test_what_is_decoded_is_sent_at_once(server, engine) -> None:
    """Catches a stream that is kept back until it has ended."""
    engine.may_go_on.clear()
    body = json.dumps({"messages": MESSAGES, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        received = b""
        while b'"reasoning_content": "1"' not in received:
            received += client.recv(1 << 16)
        assert b"[DONE]" not in received
        engine.may_go_on.set()
        while new := client.recv(1 << 16):
            received += new
    assert received.endswith(b"data: [DONE]\n\n")


def test_a_client_that_leaves_gives_its_question_up(server, engine) -> None:
    """Catches decoding for nobody, and a traceback on stderr for every closed tab."""
    engine.may_go_on.clear()
    engine.texts = ["<think>" + "a" * 200_000]
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as client:
        body = json.dumps({"messages": MESSAGES, "stream": True}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert client.recv(100)
    engine.may_go_on.set()
    for _ in range(2000):
        if engine.given_up:
            break
        threading.Event().wait(0.01)
    assert engine.given_up == 1


def test_models_and_page(server) -> None:
    """Catches clients that ask for the model first, and a page that is not sent as one."""
    status, models = request(server, "GET", "/v1/models")
    assert status == 200
    assert [model["id"] for model in models["data"]] == ["run/30"]
    assert request(server, "GET", "/v1/models/run%2F30") == (200, models["data"][0])
    status, page = request(server, "GET", "/?from=here")
    assert status == 200
    assert page.startswith("<!DOCTYPE html>")
    assert "http://" not in page
    assert "https://" not in page


PARTS = "messages"
BAD: dict[str, tuple[Any, list[str]]] = {
    "not JSON": ("{", ["not JSON"]),
    "not an object": ("[1]", ["not a JSON object"]),
    "no messages": ({}, ["messages=None", "list of turns"]),
    "no turns": ({PARTS: []}, ["messages", "list of turns"]),
    "not turns": ({PARTS: ["hello"]}, ["messages", "list of turns"]),
    "an answer last": ({PARTS: [*MESSAGES, {"role": "assistant", "content": "3"}]}, ["'assistant'", "user's question"]),
    "two questions": ({PARTS: MESSAGES * 2}, ["user, user", "one question"]),
    "a system turn": ({PARTS: [{"role": "system", "content": "Be brief."}, *MESSAGES]}, ["'Be brief.'", "question"]),
    "a file": (
        {PARTS: [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}]},
        ["data: URL"],
    ),
    "a file's address": (
        {PARTS: [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
        ["data: URL"],
    ),
    "a path in a part": (
        {PARTS: [{"role": "user", "content": [{"type": "image", "image": {"path": "/etc/passwd"}}]}]},
        ["data: URL"],
    ),
    "frames in files": (
        {PARTS: [{"role": "user", "content": [{"type": "video", "video": ["/etc/passwd"] * 2, "fps": 1}]}]},
        ["holds a video"],
    ),
    "a folder of frames": (
        {PARTS: [{"role": "user", "content": [{"type": "video", "video": "/etc", "fps": 1}]}]},
        ["holds a video"],
    ),
    "no folder of frames": (
        {PARTS: [{"role": "user", "content": [{"type": "video", "video": "/absent", "fps": 1}]}]},
        ["holds a video"],
    ),
    "frames in a turn of another form": (
        {PARTS: [{"role": "user", "value": [{"type": "video", "video": ["/etc/passwd"] * 2, "fps": 1}]}]},
        ["holds a video"],
    ),
    "the web": (
        {PARTS: [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]}]},
        ["https://a.b/c.png", "nothing is downloaded"],
    ),
    "no image": (
        {PARTS: [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,abc"}}]}]},
        ["not a readable image"],
    ),
    "audio": ({PARTS: [{"role": "user", "content": [{"type": "input_audio"}]}]}, ["input_audio", "texts, images"]),
    "no text": ({PARTS: [{"role": "user", "content": ""}]}, ["prompt"]),
    "too long": ({PARTS: [{"role": "user", "content": "1+2" * 40}]}, ["data.prompt_buckets", "tokens"]),
    "control tokens": ({PARTS: [{"role": "user", "content": "<|im_end|>"}]}, ["<|im_end|>"]),
    "half a character": ({PARTS: [{"role": "user", "content": "1 + \ud800"}]}, ["UTF-8"]),
    "n": ({PARTS: MESSAGES, "n": 0}, ["n=0", "from 1 to 64"]),
    "half a sample": ({PARTS: MESSAGES, "n": 1.5}, ["n=1.5", "whole number"]),
    "true samples": ({PARTS: MESSAGES, "n": True}, ["n=True", "whole number"]),
    "temperature": ({PARTS: MESSAGES, "temperature": -1}, ["temperature=-1", "from 0"]),
    "no number": ('{"messages": [], "temperature": NaN}', ["temperature=nan"]),
    "limit": ({PARTS: MESSAGES, "max_tokens": 0}, ["max_tokens=0", "from 1"]),
    "stop": ({PARTS: MESSAGES, "stop": [""]}, ["stop=['']", "not empty"]),
    "stream": ({PARTS: MESSAGES, "stream": "yes"}, ["stream='yes'", "true or false"]),
    "top_p": ({PARTS: MESSAGES, "top_p": 0.9}, ["top_p=0.9", "leave it out"]),
    "logprobs": ({PARTS: MESSAGES, "logprobs": True}, ["logprobs=True", "leave it out"]),
    "tools": ({PARTS: MESSAGES, "tools": [{"type": "function"}]}, ["tools=", "leave it out"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(server, engine, name) -> None:
    """Catches a request that is answered as if it had asked something else, and one that reads this machine's files."""
    sent, words = BAD[name]
    status, body = request(server, "POST", CHAT, sent)
    assert status == 400, body
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    assert "\n" not in body["error"]["message"]
    for word in words:
        assert word in body["error"]["message"], body
    assert engine.asked == []


REFUSED: dict[str, tuple[tuple[str, str, Any, dict[str, str]], int]] = {
    "no such path": (("GET", "/v1/nothing", None, {}), 404),
    "no such model": (("GET", "/v1/models/other", None, {}), 404),
    "nothing to post to": (("POST", "/v1/completions", {"prompt": "?"}, {}), 404),
    "a question that is fetched": (("GET", CHAT, None, {}), 405),
    "a page that is posted": (("POST", "/", {}, {}), 405),
    "another method": (("DELETE", CHAT, None, {}), 501),
    "a form": (("POST", CHAT, "{}", {"Content_Type": "text/plain"}), 415),
    "another host": (("GET", "/", None, {"Host": "evil.example:8000"}), 403),
    "a rebound host": (("POST", CHAT, {"messages": MESSAGES}, {"Host": "evil.example"}), 403),
    "no length": (("POST", CHAT, {}, {"Content_Length": "many"}), 411),
    "too large": (("POST", CHAT, {}, {"Content_Length": str(chat_server.MOST_BYTES + 1)}), 413),
    "far too large": (("POST", CHAT, {}, {"Content_Length": "9" * 5000}), 413),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(server, engine, name) -> None:
    """Catches pages of other origins that ask, bodies that fill the memory, and errors in a form of their own."""
    (method, path, body, headers), wanted = REFUSED[name]
    status, answer = request(server, method, path, body, **headers)
    assert status == wanted, answer
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]
    assert engine.asked == []


def test_hosts_behind_an_address_of_their_own(engine) -> None:
    """Catches a server that was opened to a network and refuses the names it has there."""
    with serving(engine, "0.0.0.0") as server:
        assert request(server, "GET", "/v1/models", Host="lab-machine:8000")[0] == 200


def test_faults_have_statuses_of_their_own(server, engine, monkeypatch, capsys) -> None:
    """Catches a client that takes a full queue or a fault of the program for its own mistake."""

    def fails(error: Exception) -> Any:
        def ask(question: Any) -> Any:
            raise error

        return ask

    monkeypatch.setattr(engine, "ask", fails(BusyError()))
    status, body = request(server, "POST", CHAT, {"messages": MESSAGES})
    assert (status, body["error"]["type"]) == (429, "rate_limit_error")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(engine, "ask", fails(FloatingPointError("the model gives NaN")))
    status, body = request(server, "POST", CHAT, {"messages": MESSAGES})
    assert (status, body["error"]["type"]) == (500, "server_error")
    assert "NaN" in body["error"]["message"]
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_within_a_stream_is_its_last_event(server, engine, monkeypatch) -> None:
    """Catches an answer that looks whole though it was broken off."""

    def pieces(question: Any) -> Any:
        yield from ()
        raise FloatingPointError("the model gives NaN")

    monkeypatch.setattr(engine, "_pieces", pieces)
    last = json.loads(_ask(server, stream=True)[-1])
    assert last["error"]["type"] == "server_error"


def test_one_connection_takes_several_questions(server) -> None:
    """Catches a connection that is closed, or out of step, after each answer."""
    body = json.dumps({"messages": MESSAGES}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as client:
        received = b""
        for count in (1, 2, 3):
            client.sendall(sent)
            while received.count(b'"total_tokens"') < count:
                received += client.recv(1 << 16)
    assert received.count(b"HTTP/1.1 200 OK") == 3


def test_a_port_that_is_taken() -> None:
    """Catches a traceback, or minutes of loading a model, before it is said."""
    with (
        ChatServer("127.0.0.1", 0, model="a") as first,
        pytest.raises(InputError, match=f"--port={first.server_port}: .*another port"),
    ):
        ChatServer("127.0.0.1", first.server_port, model="b")
    for host, port in (("127.0.0.1", 70_000), ("no such host", 0)):
        with pytest.raises(InputError, match="--host="):
            ChatServer(host, port, model="b")
