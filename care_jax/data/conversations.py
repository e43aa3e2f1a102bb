"""Rows that are lists of turns, as OpenAI, ShareGPT, LLaVA and LLaMA-Factory write them: one question, one response."""

from __future__ import annotations

from typing import Any, NamedTuple

from care_jax.data.parsing import PLACEHOLDER, VIDEO_PLACEHOLDER
from care_jax.errors import BadRowError, shown

_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names
# A system turn that says nothing: it is the one that Qwen2.5-VL's chat template adds by itself.
_PLAIN_SYSTEM = ("", "You are a helpful assistant.")
_THINK, _END_THINK, _ANSWER, _END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"


class Exchange(NamedTuple):
    """A question and, if there is one, its response."""

    question: str  # with one "<image>" for each image
    images: list[Any]  # those that stand in the turns themselves, as `image_column.image_of` takes them
    videos: list[Any]  # likewise, as `video_column.videos_of` takes them
    response: str | None


def read_turns(turns: Any, system: Any = None) -> Exchange:
    """Reads a list of turns: {"role", "content"}, or {"from", "value"}.

    A content is a text, or a list of parts: {"type": "text", "text"}, {"type": "image_url", "image_url": {"url"}} or
    {"type": "image", "image"}, or qwen_vl_utils' {"type": "video", "video": [frames], "fps"}; a part of type "image" or
    "video" without one stands for the next of the row's own.

    Args:
        turns: the list.
        system: the system turn of a row that has it in a column of its own.

    Raises:
        BadRowError: it is no such list, has more than one question, or a system turn that says something.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRowError(f"a conversation must be a list of turns, not {shown(turns)}", "no conversations")
    read = []
    for turn in turns:
        role = str(_either(turn, "role", "from"))
        read.append((_ROLES.get(role, role), *_content(_either(turn, "content", "value"))))
    if system is not None:
        read.insert(0, ("system", *_content(system)))
    while read and read[0][0] == "system":
        _, text, *_ = read.pop(0)
        if text.strip() not in _PLAIN_SYSTEM:
            raise BadRowError(
                f"the system turn {shown(text)} cannot be given to the model; move it into the question", "system turn"
            )
    roles = tuple(role for role, *_ in read)
    if roles not in (("user",), ("user", "assistant")):
        raise BadRowError(
            f"the roles are {shown(', '.join(roles))}; one question of the user and at most one response are needed",
            "several turns",
        )
    _, question, images, videos = read[0]
    if len(read) == 1:
        return Exchange(question, images, videos, None)
    _, response, *drawn = read[1]
    if any(drawn):
        raise BadRowError("the response holds an image or a video")
    return Exchange(question, images, videos, response)


def split_response(response: str) -> tuple[str | None, str]:
    """Splits a response into rationale and answer: <think>...</think>, and the rest or what <answer> holds of it.

    A response that does not begin with <think> has no rationale, and is the answer; an empty <think> is no rationale.
    """
    text = response.strip()
    if not text.startswith(_THINK) or _END_THINK not in text:
        return None, text
    rationale, _, answer = text.removeprefix(_THINK).partition(_END_THINK)
    answer = answer.strip()
    if answer.startswith(_ANSWER) and answer.endswith(_END_ANSWER):
        answer = answer[len(_ANSWER) : -len(_END_ANSWER)]
    return rationale.strip() or None, answer.strip()


def _content(content: Any) -> tuple[str, list[Any], list[Any]]:
    """Reads the content of a turn: its text with marks, and the images and the videos that stand in it."""
    if isinstance(content, str):
        return content, [], []
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise BadRowError(f"a turn must hold a text or a list of parts, not {shown(content)}", "unreadable turn")
    texts: list[str] = []
    images: list[Any] = []
    videos: list[Any] = []
    for part in content:
        kind = part.get("type")
        if kind in ("text", "input_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url", "input_image"):
            texts.append(PLACEHOLDER)
            image = _either(part, "image", "image_url")
            image = image["url"] if isinstance(image, dict) and "url" in image else image
            images += [] if image is None else [image]
        elif kind == "video":
            texts.append(VIDEO_PLACEHOLDER)
            videos += [] if part.get("video") is None else [part]
        else:
            raise BadRowError(
                f"a turn holds a part {shown(part)}; texts, images and videos are read", "unreadable turn"
            )
    return "".join(texts), images, videos


def _either(fields: dict[str, Any], first: str, second: str) -> Any:
    """Returns the field that is there; in a parquet file the other is None."""
    return fields.get(second) if fields.get(first) is None else fields[first]
