"""Other people's clients against `care_jax.generate --serve`: openai's own, and lmms-eval's model "openai".

    python -m venv clients && clients/bin/pip install openai lmms-eval 'filelock<4'
    clients/bin/python benchmarks/openai_clients.py --url=http://127.0.0.1:8000/v1 --data=my_data/heldout.jsonl

Neither client is a dependency, so this file imports nothing of care_jax and runs in an environment of its own. The data
is a file of your own data (docs/generate.md). lmms-eval asks for all greedy answers, eight at a time, and openai for
the first eight, whole and streamed; these must be equal. The last line is one JSON object; "accuracy" counts answers
that are the row's, letter for letter.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from pathlib import Path
from typing import Any

import openai
from PIL import Image

_TOKENS = 1024


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, with the paths of their images resolved."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row | {"images": [path.parent / image for image in row["images"]]} for row in rows]


def ask_openai(client: openai.OpenAI, row: dict[str, Any]) -> str:
    """The answer to a row, which comes whole and streamed alike."""
    urls = [f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" for path in row["images"]]
    content: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content.append({"type": "text", "text": row["prompt"].replace("<image>", "")})
    asked: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": content}], "temperature": 0}
    whole = client.chat.completions.create(**asked)
    stream = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    answer = whole.choices[0].message.content
    deltas = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]
    assert "".join(deltas) == answer, (deltas, answer)
    assert stream[-1].usage == whole.usage
    samples = client.chat.completions.create(**asked | {"temperature": 1.0}, n=3, seed=1, max_tokens=8)
    assert [choice.index for choice in samples.choices] == [0, 1, 2]
    try:
        client.chat.completions.create(**asked, logprobs=True)
    except openai.BadRequestError:
        return str(answer)
    raise AssertionError("logprobs were neither given nor refused")


def ask_lmms_eval(url: str, rows: list[dict[str, Any]]) -> tuple[list[str], float]:
    """The answers of lmms-eval's client to all rows, which it asks for eight at a time, and the seconds that took."""
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.chat.openai import OpenAICompatible

    model = OpenAICompatible(model_version="any", base_url=url, api_key="none", num_concurrent=8)
    model.task_dict = {"own": {"test": rows}}

    def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
        pictures = [{"type": "image", "url": Image.open(path)} for path in row["images"]]
        return [
            {"role": "user", "content": [*pictures, {"type": "text", "text": row["prompt"].replace("<image>", "")}]}
        ]

    settings = {"max_new_tokens": _TOKENS, "temperature": 0}
    instances = [
        Instance(
            request_type="generate_until",
            arguments=("", messages, settings, number, "own", "test"),
            idx=0,
            metadata={"task": "own", "doc_id": number, "repeats": 1},
        )
        for number in range(len(rows))
    ]
    started = time.perf_counter()  # the imports above take longer than the questions
    answers = [result.text for result in model.generate_until(instances)]
    return answers, time.perf_counter() - started


def main() -> None:
    """Asks, compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    rows = read_rows(args.data)
    client = openai.OpenAI(base_url=args.url, api_key="none")
    [model] = client.models.list().data
    some = [ask_openai(client, row) for row in rows[:8]]
    answers, seconds = ask_lmms_eval(args.url, rows)
    assert answers[: len(some)] == some, list(zip(answers, some, strict=False))
    right = sum(answer.strip() == row["answer"] for answer, row in zip(answers, rows, strict=True))
    figures = {"model": model.id, "questions": len(rows), "accuracy": right / len(rows)}
    print(json.dumps(figures | {"questions_per_s": round(len(rows) / seconds, 1)}))


if __name__ == "__main__":
    main()
