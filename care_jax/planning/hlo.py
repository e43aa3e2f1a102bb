"""The traffic of a compiled TPU program, read from its optimised HLO: bytes to and from HBM, and bytes over the links.

XLA's own cost analysis counts the body of a loop once; this module counts it as often as the loop runs, which the
constant bound in its condition says. The decoding loop, which may also end early, when every row has ended, is counted
at full length; a loop that starts where another one stopped (the rest of a compacted batch) then has nothing left to do
and counts as not run. One kind of loop has no such bound, that over the streams of a packing, and the caller says how
many there are.

Bytes are those of the layout: a TPU pads the two inner axes of an array to tiles, and moves the padding too.
"""

from __future__ import annotations

import copy
import functools
import math
import re
from collections import Counter
from collections.abc import Iterator

from care_jax.planning.hlo_text import Buffer, Computation, Instruction, parse_module

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "copy-done", "slice-done"}


class HloModule:
    """A compiled program: its computations by name, `entry` being the name of the one that runs first."""

    def __init__(self, text: str, *, num_streams: int | None = None):
        """Parses the module.

        Args:
            text: the optimised HLO, as `jax.stages.Compiled.as_text` gives it.
            num_streams: trips of a loop without a constant bound; None if there is none.
        """
        self.computations, self.entry = parse_module(text)
        self._num_streams = num_streams

    def with_streams(self, num_streams: int) -> HloModule:
        """A copy of the program with another number of streams."""
        other = copy.copy(self)
        other._num_streams = num_streams
        return other

    def loops(self, computation: str | None = None) -> list[Instruction]:
        """The loops of a computation (default: the entry), without the loops inside them."""
        body = self.computations[computation or self.entry].instructions.values()
        return [i for i in body if i.opcode == "while"]

    def trips(self, computation: str, loop: Instruction) -> int:
        """The number of times that the loop in `computation` runs; see the module's docstring.

        Raises:
            ValueError: the loop has no constant bound, and the number of streams was not given.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        bounds, counters = [], []
        for counter, bound in self._tests(self.computations[loop.calls["condition"]]):
            if counter.opcode == "get-tuple-element":
                counters.append(_index(counter))
                bounds += [(int(bound.literal), counters[-1])] if bound.opcode == "constant" else []
        if not bounds and self._num_streams is not None:
            # Over full streams a loop counts from 0, over shorter ones from where that has ended.
            is_first = any(self._start(computation, loop, index) == 0 for index in counters)
            return self._num_streams if is_first else 0
        if not bounds:
            raise ValueError(f"the loop {loop.name} has no constant bound, so its trips cannot be counted")
        end, index = min(bounds)
        start = self._start(computation, loop, index)
        return 0 if start is None else end - start

    def _tests(self, condition: Computation) -> Iterator[tuple[Instruction, ...]]:
        """The sides of each "less than" of a condition; CPUs have them in fusions, whose parameters are looked up."""
        for test in condition.instructions.values():
            where = self.computations[test.calls["calls"]] if test.opcode == "fusion" else condition
            for less in where.instructions.values() if test.opcode == "fusion" else (test,):
                if less.opcode == "compare" and "direction=LT" in less.attributes:
                    sides = (where.instructions[name] for name in less.operands)
                    yield tuple(
                        condition.instructions[test.operands[int(side.literal)]] if side.opcode == "parameter" else side
                        for side in sides
                    )

    def _start(self, computation: str, loop: Instruction, index: int) -> int | None:
        """The constant that a loop's counter starts from, or None if the counter comes from another loop."""
        instructions = self.computations[computation].instructions
        if instructions[loop.operands[0]].opcode == "parameter":  # CPUs put a small loop into a call of its own
            caller, call = next(
                (name, i)
                for name, other in self.computations.items()
                for i in other.instructions.values()
                if computation in i.calls.values()
            )
            return self._start(caller, call, index)
        start = instructions[instructions[loop.operands[0]].operands[index]]
        while start.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            start = instructions[start.operands[0]]
        return int(start.literal) if start.opcode == "constant" else None

    def runs(
        self, computation: str | None = None, times: float = 1
    ) -> Iterator[tuple[Computation, Instruction, float]]:
        """Yields each instruction outside fusions, and its runs; the branches of a conditional run equally often."""
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
        """Bytes that one run of a computation, its loops included, reads from and writes to HBM, by instruction.

        A slice of an array counts as the slice, an update in place as the part it writes. A kernel (custom-call) counts
        all of its arguments, which is too much for a kernel that skips blocks.
        """
        moved: dict[str, float] = {}
        for where, instruction, times in self.runs(computation):
            moved[instruction.name] = moved.get(instruction.name, 0) + times * self._moved(where, instruction)
        return Counter({name: round(size) for name, size in moved.items()})

    def collective_bytes(self, *, waited: bool = False) -> dict[str, int]:
        """Bytes that each chip receives over its links, by kind of collective, if each sends the least that it can.

        For n chips and an array of s bytes in all: all-gather and reduce-scatter (n - 1) / n * s, all-reduce twice
        that, all-to-all (n - 1) / n of the chip's part, collective-permute the chip's part.

        Args:
            waited: count only the collectives during which the chip does nothing else.
        """
        received = dict.fromkeys(COLLECTIVES, 0)
        for where, instruction, times in self.runs():
            for inner, found in self._collectives(where, instruction):
                kind = found.opcode.removesuffix("-start")
                if waited and _channel(found) in self._hidden:
                    continue
                if kind == "all-reduce" and _is_scattered(inner, found):
                    kind = "reduce-scatter"
                received[kind] += round(times * _received(kind, found, inner))
        return received

    def largest(self, *opcodes: str) -> int:
        """The number of elements of the largest array that an instruction returns, inside fusions too.

        Args:
            *opcodes: count only the instructions of these kinds; without any, all of them.
        """
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
        """The collectives that an instruction is or, if it is a fusion, contains.

        A collective that the compiler splits appears in the fusion that starts it, in the fusions of the work that
        hides it, and in the fusion that ends it; it is counted in the first.
        """
        if instruction.opcode.removesuffix("-start") in COLLECTIVES:
            yield where, instruction
        elif instruction.opcode == "fusion":
            name = instruction.calls["calls"]
            inner = self.computations[name]
            for nested in inner.instructions.values():
                if name in self._starts.get(_channel(nested), {name}):
                    yield from self._collectives(inner, nested)

    @functools.cached_property
    def _starts(self) -> dict[str, set[str]]:
        """The computations that start split collectives, by channel, which several collectives may share."""
        starts: dict[str, set[str]] = {}
        for name, computation in self.computations.items():
            instructions = computation.instructions.values()
            if any("AsyncCollectiveStart" in instruction.attributes for instruction in instructions):
                for channel in filter(None, map(_channel, instructions)):
                    starts.setdefault(channel, set()).add(name)
        return starts

    @functools.cached_property
    def _hidden(self) -> set[str]:
        """The channels of the collectives that run beside other work."""
        instructions = [(name, i) for name, c in self.computations.items() for i in c.instructions.values()]
        beside = {called for _, i in instructions if i.opcode == "async-start" for called in i.calls.values()}
        begun = {_channel(i) for name, i in instructions if i.opcode.endswith("-start") or name in beside}
        return (begun | {*self._starts}) - {""}

    def _moved(self, where: Computation, instruction: Instruction) -> int:
        """Bytes of HBM that an instruction reads and writes."""
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
        """Bytes that an instruction reads from its argument `index`."""
        opcode = instruction.opcode
        if opcode in ("dynamic-slice", "slice", "slice-start", "gather") and index == 0:
            return min(buffer.layout_bytes, instruction.outputs[0].layout_bytes)
        if opcode in ("dynamic-update-slice", "scatter") and index == 0:
            return 0
        if opcode != "fusion":
            return buffer.layout_bytes
        return self._read_inside(instruction.calls["calls"], index)

    @functools.cache  # noqa: B019  (modules are few and short-lived)
    def _read_inside(self, fused: str, index: int) -> int:
        """Bytes that a fused computation reads from its parameter `index`."""
        inner = self.computations[fused]
        parameter = inner.parameter(index)
        whole, total, pending = parameter.outputs[0].layout_bytes, 0, [parameter]
        while pending:
            value = pending.pop()
            if value.is_root:  # returned unchanged
                return whole
            for user in inner.users(value.name):
                if user.opcode in ("bitcast", "reshape") or _is_view(user):
                    pending.append(user)
                else:
                    at = [position for position, name in enumerate(user.operands) if name == value.name]
                    total += sum(self._read(inner, user, position, parameter.outputs[0]) for position in at)
        return min(whole, total)

    def _written(self, where: Computation, instruction: Instruction) -> list[int]:
        """Bytes that an instruction writes to each of its results."""
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


def _is_view(nested: Instruction) -> bool:
    """True for a fusion within a fusion that names the tiles of its argument anew, as for int8 in a product."""
    return nested.opcode == "fusion" and "output_to_operand_aliasing={{}: (0, {})}" in nested.attributes


def _size(instruction: Instruction) -> int:
    return sum(buffer.layout_bytes for buffer in instruction.outputs)


def _index(element: Instruction) -> int:
    """The position in its tuple of what a get-tuple-element takes."""
    found = re.search(r"index=(\d+)", element.attributes)
    assert found is not None
    return int(found[1])


def _channel(instruction: Instruction) -> str:
    """The channel id of a collective, the same in all its pieces; "" for other instructions."""
    found = re.search(r"channel_id=(\d+)", instruction.attributes)
    return found[1] if found else ""


def _is_scattered(where: Computation, reduced: Instruction) -> bool:
    """True if only slices of an all-reduce are used: the TPU compiler's spelling of a reduce-scatter."""
    users = where.users(reduced.name)
    return bool(users) and all(user.opcode == "dynamic-slice" for user in users)


def _received(kind: str, found: Instruction, where: Computation) -> float:
    """Bytes that one chip receives in one collective; see HloModule.collective_bytes."""
    given = sum(buffer.data_bytes for name in found.operands for buffer in where.instructions[name].outputs)
    if kind == "collective-permute":
        return given
    size = group_size(found.attributes)
    parts = {"all-gather": size, "all-reduce": 2.0, "reduce-scatter": 1.0, "all-to-all": 1.0}
    return parts[kind] * given * (size - 1) / size


def group_size(attributes: str) -> int:
    """The number of chips that take part in one collective, from its replica_groups in any of HLO's three spellings.

    Raises:
        ValueError: there are no replica_groups.
    """
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        # 'axis':(m)k means k chips of a larger axis.
        return math.prod(
            int(part) if part else sizes[name] for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        )
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found[1].split(","))
    raise ValueError(f"a collective without replica_groups: {attributes[:200]}")
