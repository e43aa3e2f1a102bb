"""The tokenizer files of a model folder, loaded and rendered once within limits before this process loads them.

A chat template is a program, and a tokenizer is built by a compiled library: either may run for ever, take all memory
or end the process. So both are tried in a process of their own, with bounds. A template that passes is trusted with the
texts of the data: rendering those has no deadline.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from care_jax.errors import shown

_CPU_SECONDS, _MEMORY = 6, 4 * 2**30  # of the trial; the files of a published model take 1 s and 300 MB
_WALL_SECONDS = 120  # starting Python included
_ANSWER = "care-jax answer"  # an assistant's turn
_QUESTION = [{"role": "user", "content": [{"type": "image"}]}]

Contents = tuple[tuple[str, bytes], ...]  # name and bytes of each file


@contextlib.contextmanager
def written(contents: Contents) -> Iterator[Path]:
    """A folder with these files alone."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in contents:
            (Path(folder) / name).write_bytes(data)
        yield Path(folder)


def _auto_tokenizer() -> Any:
    """Transformers' AutoTokenizer, which takes seconds to import; a step's table needs none of it."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch was not found
    from transformers import AutoTokenizer

    return AutoTokenizer


def open_tokenizer(folder: Path) -> Any:
    """Transformers' tokenizer of the files in `folder`, with the chat template that transformers' processor uses.

    A chat_template.json comes before the template in tokenizer_config.json: the hub's Qwen2.5-VL has both, and the
    second is that of a text model, without images.
    """
    tokenizer: Any = _auto_tokenizer().from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    own = folder / "chat_template.json"
    if own.is_file():
        tokenizer.chat_template = json.loads(own.read_bytes())["chat_template"]
    return tokenizer


def render_question(tokenizer: Any) -> str:
    """A user's turn of one image, and the opening of the assistant's."""
    return str(tokenizer.apply_chat_template(_QUESTION, tokenize=False, add_generation_prompt=True))


def render_end(tokenizer: Any) -> str:
    """The text that the template puts behind an assistant's answer; "" if it does not render the answer."""
    for content in ([{"type": "text", "text": _ANSWER}], _ANSWER):
        turns = [*_QUESTION, {"role": "assistant", "content": content}]
        with contextlib.suppress(Exception):  # of a template that takes the other form
            _, answer, end = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(_ANSWER)
            if answer:
                return end
    return ""


@functools.lru_cache(maxsize=8)
def try_apart(contents: Contents) -> str:
    """Loads and renders the files in a process of their own, and returns what is wrong with them, "" if nothing is.

    Raises:
        TimeoutError: the process has not ended in 120 s. Its own work is bounded, so that the machine is what is slow.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (
        written(contents) as folder,
        subprocess.Popen(
            (sys.executable, "-m", __name__, str(folder)),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as trial,
    ):
        try:
            _auto_tokenizer()  # is needed next, and is imported meanwhile
            output, _ = trial.communicate(timeout=_WALL_SECONDS)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"loading the tokenizer of a model folder has not ended in {_WALL_SECONDS} s; the machine or its disk "
                "is slow"
            ) from None
        finally:
            trial.kill()
    if trial.returncode in {-signal.SIGXCPU, -signal.SIGKILL}:
        return f"tokenizer files or a chat template that take more than {_CPU_SECONDS} s"
    try:
        return str(json.loads(output.splitlines()[-1]))
    except (ValueError, IndexError):
        return f"tokenizer files that end the process that loads them (exit code {trial.returncode})"


def _main() -> None:
    """The trial: prints the fault as a JSON string."""
    _auto_tokenizer()  # before the clock starts
    used = int(time.process_time()) + 1
    _limit(resource.RLIMIT_CPU, used + _CPU_SECONDS, used + _CPU_SECONDS + 1)
    _limit(resource.RLIMIT_DATA, _MEMORY, _MEMORY)
    _limit(resource.RLIMIT_CORE, 0, 0)
    print(json.dumps(_fault(Path(sys.argv[1]))))


def _limit(what: int, soft: int, hard: int) -> None:
    """Limits this process; a lower limit that it was started with stays, since raising one is not allowed."""
    _, most = resource.getrlimit(what)
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(what, (soft, hard))


def _fault(folder: Path) -> str:
    try:
        tokenizer = open_tokenizer(folder)
        known, own = tokenizer.get_vocab(), Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        if not own:
            return "a tokenizer.json without tokens"
        # transformers numbers tokens of tokenizer_config.json anew if it does not find them.
        if moved := [token for token, token_id in own.items() if known.get(token) != token_id]:
            return f"tokenizer files that contradict each other about {len(moved)} tokens, as {shown(min(moved))}"
    except BaseException as error:  # a panic of the compiled library is no Exception
        return f"unreadable tokenizer files ({_told(error)})"
    try:
        if tokenizer.chat_template is not None:
            render_question(tokenizer)
            render_end(tokenizer)
    except BaseException as error:
        return f"a chat template that cannot be rendered ({_told(error)})"
    return ""


def _told(error: BaseException) -> str:
    return shown(f"{type(error).__name__}: {error}", 160)


if __name__ == "__main__":
    _main()
