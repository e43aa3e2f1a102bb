"""A parser of the HLO text that the compiler prints: computations, their instructions, and the arrays they return.

Only what hlo.py counts is kept; no text is written back.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_BUFFER = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_CALLED = re.compile(r"(calls|body|condition|to_apply|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Buffer(NamedTuple):
    """One array that an instruction returns."""

    dtype: str
    dims: tuple[int, ...]
    layout_bytes: int  # with the padding to whole tiles
    in_hbm: bool  # False: in one of the chip's small memories, which takes no HBM bandwidth

    @property
    def data_bytes(self) -> int:
        """Bytes without padding."""
        return math.prod(self.dims) * _bits(self.dtype) // 8


class Instruction(NamedTuple):
    """One line of HLO."""

    name: str
    opcode: str
    outputs: tuple[Buffer, ...]
    operands: tuple[str, ...]
    literal: str  # the value of a constant, or the number of a parameter; else ""
    calls: dict[str, str]  # called computations by their role: calls, body, condition, branch 0, ...
    attributes: str
    is_root: bool


class Computation(NamedTuple):
    """A function of the module: its instructions by name, in order."""

    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result the computation returns."""
        return next(i for i in self.instructions.values() if i.is_root)

    def parameter(self, index: int) -> Instruction:
        """The instruction that stands for argument `index`."""
        wanted = str(index)
        return next(i for i in self.instructions.values() if i.opcode == "parameter" and i.literal == wanted)

    def users(self, name: str) -> list[Instruction]:
        """The instructions that take the result of instruction `name`."""
        return [i for i in self.instructions.values() if name in i.operands]


def parse_module(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and the name of its entry computation."""
    computations: dict[str, Computation] = {}
    name = entry = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            computations[name] = Computation({})
            entry = name if header[1] else entry
        elif (found := _INSTRUCTION.match(line)) and computations:
            instruction = _parse(found[2], found[3], is_root=bool(found[1]))
            computations[name].instructions[instruction.name] = instruction
    return computations, entry


def _bits(dtype: str) -> int:
    """Bits of one element; HLO stores a bool in a byte."""
    if dtype in ("pred", "token"):
        return 8
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8


def _parse(name: str, text: str, *, is_root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside, attributes = rest[len(opcode) + 1 : close], rest[close + 1 :]
    calls = {kind: called for kind, called in _CALLED.findall(attributes) if kind != "to_apply" or opcode == "call"}
    if branches := _BRANCHES.search(attributes):
        calls |= {f"branch {i}": called for i, called in enumerate(_OPERAND.findall(branches[1]))}
    return Instruction(
        name=name,
        opcode=opcode,
        outputs=tuple(_buffer(found) for found in _BUFFER.finditer(shape)),
        operands=() if opcode in ("constant", "parameter") else tuple(_OPERAND.findall(inside)),
        literal=inside if opcode in ("constant", "parameter") else "",
        calls=calls,
        attributes=attributes,
        is_root=is_root,
    )


def _closing(text: str, start: int) -> int:
    """The position at which the parenthesis that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise ValueError(f"unbalanced parentheses in HLO: {text[start : start + 200]}")


def _buffer(found: re.Match[str]) -> Buffer:
    dtype, dims_text, order_text, tail = found.groups()
    dims = tuple(map(int, dims_text.split(","))) if dims_text else ()
    # Sizes from the innermost axis in memory outward; the first ones are padded to the tile.
    padded = [dims[axis] for axis in map(int, order_text.split(","))] if order_text else list(reversed(dims))
    tile = re.search(r"T\(([\d,]+)\)", tail or "")
    for place, size in enumerate(reversed([int(n) for n in tile[1].split(",")] if tile else [])):
        if place < len(padded):
            padded[place] = -(-padded[place] // size) * size
    space = re.search(r"S\((\d+)\)", tail or "")
    return Buffer(dtype, dims, math.prod(padded) * _bits(dtype) // 8, in_hbm=space is None)
