"""What a compiled TPU program moves, read from its optimised HLO: bytes to and from HBM, and bytes over the links.

XLA's own cost analysis counts the body of a loop once; here it counts as often as the loop runs. A bound that is not
written in a loop's condition as a constant does not occur in this project: its loops are scans, and the decoding loop,
which also ends when every row has ended. The counts are those of responses of full length; a loop that starts where
another ended (the rest of a compacted batch) then has nothing left to do and counts as not run.

Bytes are those of the layout: a TPU pads the two inner axes of an array to tiles, and moves the padding too.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_HEADER = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_BUFFER = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_CALLED = re.compile(r"(calls|body|condition|to_apply|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "copy-done", "slice-done"}


class Buffer(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    layout_bytes: int  # with the padding of its tiles
    in_hbm: bool  # False: in one of the chip's small memories, which costs no bandwidth

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
    literal: str  # of a constant, or the number of a parameter
    calls: dict[str, str]  # computations by what they are: calls, body, condition, branch 0, ...
    attributes: str
    is_root: bool


class Computation(NamedTuple):
    """A function of HLO: its instructions by name, in order."""

    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(i for i in self.instructions.values() if i.is_root)

    def parameter(self, index: int) -> Instruction:
        """The instruction that stands for an argument."""
        wanted = str(index)
        return next(i for i in self.instructions.values() if i.opcode == "parameter" and i.literal == wanted)

    def users(self, name: str) -> list[Instruction]:
        """The instructions that take the result of another."""
        return [i for i in self.instructions.values() if name in i.operands]


class Program:
    """A compiled program, from the text of `jax.stages.Compiled.as_text`."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        for line in text.splitlines():
            if header := _HEADER.match(line):
                name = header[2]
                self.computations[name] = Computation({})
                self.entry = name if header[1] else self.entry
            elif (found := _INSTRUCTION.match(line)) and self.computations:
                instruction = _parse(found[2], found[3], is_root=bool(found[1]))
                self.computations[name].instructions[instruction.name] = instruction

    def loops(self, computation: str | None = None) -> list[Instruction]:
        """The loops that stand in a computation, the entry if none is named, those in other loops not counted."""
        body = self.computations[computation or self.entry].instructions.values()
        return [i for i in body if i.opcode == "while"]

    def trips(self, computation: str, loop: Instruction) -> int:
        """How often the loop in `computation` runs (see the module's text)."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition = self.computations[loop.calls["condition"]]
        bounds = []
        for test in condition.instructions.values():
            if test.opcode != "compare" or "direction=LT" not in test.attributes:
                continue
            counter, bound = (condition.instructions[name] for name in test.operands)
            if counter.opcode == "get-tuple-element" and bound.opcode == "constant":
                bounds.append((int(bound.literal), _index(counter)))
        if not bounds:
            raise ValueError(f"the loop {loop.name} has no constant bound; its rounds cannot be counted")
        end, index = min(bounds)
        start = self._start(computation, loop, index)
        return 0 if start is None else end - start

    def _start(self, computation: str, loop: Instruction, index: int) -> int | None:
        """The constant a loop's counter starts from, None where another loop left it."""
        instructions = self.computations[computation].instructions
        start = instructions[instructions[loop.operands[0]].operands[index]]
        while start.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            start = instructions[start.operands[0]]
        return int(start.literal) if start.opcode == "constant" else None

    def runs(
        self, computation: str | None = None, times: float = 1
    ) -> Iterator[tuple[Computation, Instruction, float]]:
        """Every instruction outside of fusions with how often it runs; of a conditional each branch equally often."""
        name = computation or self.entry
        for instruction in self.computations[name].instructions.values():
            yield self.computations[name], instruction, times
            if instruction.opcode == "while":
                trips = self.trips(name, instruction)
                yield from self.runs(instruction.calls["body"], times * trips)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for called in instruction.calls.values():
                    yield from self.runs(called, times / len(instruction.calls))

    def hbm_bytes(self, computation: str | None = None) -> Counter[str]:
        """Bytes read from and written to HBM by a computation run once, by instruction, its own loops included.

        A slice of an array counts as the slice, an update in place as what it writes. A kernel (custom-call) counts
        all of its arguments, which is too much where it skips blocks.
        """
        moved: dict[str, float] = {}
        for where, instruction, times in self.runs(computation):
            moved[instruction.name] = moved.get(instruction.name, 0) + times * self._moved(where, instruction)
        return Counter({name: round(size) for name, size in moved.items()})

    def collective_bytes(self) -> dict[str, int]:
        """Bytes that each chip receives over its links, by kind, where every collective sends the least that it can.

        For n chips and an array of s bytes, whole: all-gather and reduce-scatter (n - 1) / n * s, all-reduce twice
        that, all-to-all (n - 1) / n of the chip's part, collective-permute the chip's part.
        """
        received = dict.fromkeys(COLLECTIVES, 0)
        for where, instruction, times in self.runs():
            for inner, found in self._collectives(where, instruction):
                kind = found.opcode.removesuffix("-start")
                if kind == "all-reduce" and _is_scattered(inner, found):
                    kind = "reduce-scatter"
                received[kind] += round(times * _received(kind, found, inner))
        return received

    def largest(self, *opcodes: str) -> int:
        """Numbers in the largest array that is the result of an instruction, of these kinds if any are given, be it
        inside a fusion or not."""
        return max(
            (
                math.prod(buffer.dims)
                for computation in self.computations.values()
                for instruction in computation.instructions.values()
                if not opcodes or instruction.opcode.removesuffix("-start") in opcodes
                for buffer in instruction.outputs
            ),
            default=0,
        )

    def _collectives(self, where: Computation, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """The collectives that an instruction is or, as a fusion, holds.

        One that the compiler splits stands in the fusion that starts it, in those of the work that it is hidden behind,
        and in the one that ends it; it is counted where it starts.
        """
        if instruction.opcode.removesuffix("-start") in COLLECTIVES:
            yield where, instruction
        elif instruction.opcode == "fusion":
            name = instruction.calls["calls"]
            inner = self.computations[name]
            for nested in inner.instructions.values():
                if self._starts.get(_channel(nested), name) == name:
                    yield from self._collectives(inner, nested)

    @functools.cached_property
    def _starts(self) -> dict[str, str]:
        """The computation that starts a split collective, by its channel."""
        return {
            _channel(instruction): name
            for name, computation in self.computations.items()
            if any(
                "AsyncCollectiveStart" in instruction.attributes for instruction in computation.instructions.values()
            )
            for instruction in computation.instructions.values()
            if _channel(instruction)
        }

    def _moved(self, where: Computation, instruction: Instruction) -> int:
        opcode = instruction.opcode
        if opcode in _FREE or opcode in ("while", "call", "conditional") or opcode.startswith("async-"):
            return 0
        outputs = instruction.outputs[:1] if opcode in ("copy-start", "slice-start") else instruction.outputs
        moved = sum(size for size, out in zip(self._written(where, instruction), outputs, strict=False) if out.in_hbm)
        for index, name in enumerate(instruction.operands):
            buffers = where.instructions[name].outputs
            if len(buffers) == 1 and buffers[0].in_hbm:
                moved += self._read(where, instruction, index, buffers[0])
        return moved

    def _read(self, where: Computation, instruction: Instruction, index: int, buffer: Buffer) -> int:
        """Bytes that an instruction reads of its argument `index`."""
        opcode = instruction.opcode
        if opcode in ("dynamic-slice", "slice", "slice-start", "gather") and index == 0:
            return min(buffer.layout_bytes, instruction.outputs[0].layout_bytes)
        if opcode in ("dynamic-update-slice", "scatter") and index == 0:
            return 0
        if opcode != "fusion":
            return buffer.layout_bytes
        return self._read_inside(instruction.calls["calls"], index)

    @functools.cache  # noqa: B019  (programs are few and short-lived)
    def _read_inside(self, fused: str, index: int) -> int:
        inner = self.computations[fused]
        parameter = inner.parameter(index)
        whole, total, pending = parameter.outputs[0].layout_bytes, 0, [parameter]
        while pending:
            value = pending.pop()
            if value.is_root:  # handed on as it is
                return whole
            for user in inner.users(value.name):
                if user.opcode in ("bitcast", "reshape"):
                    pending.append(user)
                else:
                    at = [position for position, name in enumerate(user.operands) if name == value.name]
                    total += sum(self._read(inner, user, position, parameter.outputs[0]) for position in at)
        return min(whole, total)

    def _written(self, where: Computation, instruction: Instruction) -> list[int]:
        """Bytes that an instruction writes of each of its results."""
        if instruction.opcode == "dynamic-update-slice":
            return [where.instructions[instruction.operands[1]].outputs[0].layout_bytes]
        if instruction.opcode == "scatter":
            return [where.instructions[instruction.operands[2]].outputs[0].layout_bytes]
        if instruction.opcode == "bitcast":
            source = where.instructions[instruction.operands[0]]
            return self._written(where, source) if source.opcode == "dynamic-update-slice" else [_size(instruction)]
        if instruction.opcode == "tuple":
            parts = [where.instructions[name] for name in instruction.operands]
            return [self._written(where, part)[0] for part in parts]
        if instruction.opcode == "fusion":
            inner = self.computations[instruction.calls["calls"]]
            return self._written(inner, inner.root)
        return [buffer.layout_bytes for buffer in instruction.outputs]


def _size(instruction: Instruction) -> int:
    return sum(buffer.layout_bytes for buffer in instruction.outputs)


def _index(element: Instruction) -> int:
    """Which element of a tuple."""
    found = re.search(r"index=(\d+)", element.attributes)
    assert found is not None
    return int(found[1])


def _channel(instruction: Instruction) -> str:
    """The number of a collective, the same in all its pieces; "" of anything else."""
    found = re.search(r"channel_id=(\d+)", instruction.attributes)
    return found[1] if found else ""


def _is_scattered(where: Computation, reduced: Instruction) -> bool:
    """Whether only a part of an all-reduce is used: the TPU compiler's spelling of a reduce-scatter."""
    users = where.users(reduced.name)
    return bool(users) and all(user.opcode == "dynamic-slice" for user in users)


def _received(kind: str, found: Instruction, where: Computation) -> float:
    """Bytes that one chip receives in one collective; see Program.collective_bytes."""
    given = sum(buffer.data_bytes for name in found.operands for buffer in where.instructions[name].outputs)
    if kind == "collective-permute":
        return given
    size = group_size(found.attributes)
    parts = {"all-gather": size, "all-reduce": 2.0, "reduce-scatter": 1.0, "all-to-all": 1.0}
    return parts[kind] * given * (size - 1) / size


def group_size(attributes: str) -> int:
    """Chips that take part in one collective, from its replica_groups in any of HLO's three spellings."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        # 'axis':(m)k stands for k chips of a larger axis.
        return math.prod(
            int(part) if part else sizes[name] for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        )
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found[1].split(","))
    raise ValueError(f"a collective without replica_groups: {attributes[:200]}")


def _bits(dtype: str) -> int:
    if dtype in ("pred", "token"):
        return 8
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8


def _parse(name: str, text: str, *, is_root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opcode, _, tail = rest.partition("(")
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
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise ValueError(f"unbalanced parentheses in HLO: {text[start : start + 200]}")


def _buffer(found: re.Match[str]) -> Buffer:
    dtype, dims_text, order_text, tail = found.groups()
    dims = tuple(map(int, dims_text.split(","))) if dims_text else ()
    padded = [dims[axis] for axis in map(int, order_text.split(","))] if order_text else list(reversed(dims))
    tile = re.search(r"T\(([\d,]+)\)", tail or "")
    for place, size in enumerate(reversed([int(n) for n in tile[1].split(",")] if tile else [])):
        if place < len(padded):
            padded[place] = -(-padded[place] // size) * size
    space = re.search(r"S\((\d+)\)", tail or "")
    return Buffer(dtype, dims, math.prod(padded) * _bits(dtype) // 8, in_hbm=space is None)
