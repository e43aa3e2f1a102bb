"""Damages of a file: bytes cut off, flipped, put in, or everything replaced, each drawn from a seeded generator.

    emptied, cut, flipped, inserted      of the bytes there are; any file
    null, [], {}, 7, "text", true, NaN   the whole file as another JSON value
    binary, zeros, utf-16, brackets      the whole file as something else
    retyped, unset, renamed              one value of a JSON file as another type, one key gone, one key misspelt

`damages` names all that apply to a file. A damaged file is made from the sound one each time, so that a case can be
made again from its name alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Makes other bytes of the bytes of a file.
Damage = Callable[[bytes, random.Random], bytes]

OTHER_VALUES: tuple[Any, ...] = (None, [], {}, 7, -1, 1.5, "text", True, [None], {"a": None}, 10**30, float("nan"))


def empty(data: bytes, rng: random.Random) -> bytes:
    """Nothing."""
    return b""


def cut(data: bytes, rng: random.Random) -> bytes:
    """A proper prefix, as a kill or a full disk leaves it."""
    return data[: rng.randrange(len(data))] if data else data


def flip(data: bytes, rng: random.Random) -> bytes:
    """1 to 4 bits turned over."""
    flipped = bytearray(data)
    for _ in range(rng.randint(1, 4)) if data else ():
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def insert(data: bytes, rng: random.Random) -> bytes:
    """1 to 16 random bytes put in somewhere."""
    place = rng.randint(0, len(data))
    return data[:place] + rng.randbytes(rng.randint(1, 16)) + data[place:]


def replace_by(value: Any) -> Damage:
    """The whole file becomes this JSON value."""
    return lambda data, rng: json.dumps(value).encode() + b"\n"


def retype(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON document, at any depth, becomes a value of another kind."""
    return _edit(data, rng, lambda parent, key: parent.__setitem__(key, rng.choice(OTHER_VALUES)))


def unset(data: bytes, rng: random.Random) -> bytes:
    """One key of an object, or one entry of a list, is gone."""
    return _edit(data, rng, lambda parent, key: parent.__delitem__(key))


def rename(data: bytes, rng: random.Random) -> bytes:
    """One key of an object is misspelt."""

    def misspell(parent: Any, key: Any) -> None:
        if isinstance(parent, dict):
            parent[f"{key}\x1b[2J"] = parent.pop(key)
        else:
            parent.append(parent[key])

    return _edit(data, rng, misspell)


ANY_FILE: Mapping[str, Damage] = {
    "emptied": empty,
    "cut": cut,
    "flipped": flip,
    "inserted": insert,
    **{json.dumps(value): replace_by(value) for value in OTHER_VALUES},
    "binary": lambda data, rng: rng.randbytes(64),
    "zeros": lambda data, rng: bytes(len(data)),
    "utf-16": lambda data, rng: data.decode("utf-8", "replace").encode("utf-16"),
    "brackets": lambda data, rng: b"[" * 100_000,
    "digits": lambda data, rng: b"9" * 5_000,
}
JSON_DOCUMENT: Mapping[str, Damage] = {"retyped": retype, "unset": unset, "renamed": rename}


def by_line(damage: Damage) -> Damage:
    """The damage of one line of a file of lines; the others stay."""

    def damage_one(data: bytes, rng: random.Random) -> bytes:
        lines = data.splitlines(keepends=True)
        if not lines:
            return damage(data, rng)
        index = rng.randrange(len(lines))
        line = lines[index].removesuffix(b"\n")
        lines[index] = damage(line, rng).removesuffix(b"\n") + b"\n"
        return b"".join(lines)

    return damage_one


def damages(name: str, sound: bytes = b"") -> dict[str, Damage]:
    """The damages that a file can take, by name; JSON lines, and JSON by its name or bytes, can take more."""
    if name.endswith(".jsonl"):
        lines = {**ANY_FILE, **JSON_DOCUMENT}
        return {**ANY_FILE, **{f"a line {kind}": by_line(damage) for kind, damage in lines.items()}}
    return {**ANY_FILE, **JSON_DOCUMENT} if name.endswith(".json") or sound[:1] in (b"{", b"[") else dict(ANY_FILE)


def damaged_files(sound: Mapping[str, bytes], num_cases: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Files that are damaged one at a time: each damage of each file once before the first comes again.

    Args:
        sound: the files by name, as they should be.
        num_cases: how many are made.
        seed: of the random places.

    Yields:
        The case's name, the file's name, and its damaged bytes.
    """
    every = [(name, kind, damage) for name in sorted(sound) for kind, damage in damages(name, sound[name]).items()]
    random.Random(seed).shuffle(every)
    for number in range(num_cases):
        name, kind, damage = every[number % len(every)]
        rng = random.Random(f"{seed} {number}")
        yield f"{name} {kind} ({number}, seed {seed})", name, damage(sound[name], rng)


def _edit(data: bytes, rng: random.Random, change: Callable[[Any, Any], object]) -> bytes:
    """A JSON document after `change(parent, key)` at a random place; other bytes stay as they are."""
    try:
        root = json.loads(data)
    except ValueError:
        return data
    places = list(_places(root))
    if places:
        change(*rng.choice(places))
    return json.dumps(root).encode() + (b"\n" if data.endswith(b"\n") else b"")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each (parent, key) inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)
