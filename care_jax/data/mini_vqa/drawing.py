"""The drawings of mini_vqa: 84 x 84 pixels, dark on white, cut into 28-pixel cells.

A cell is one vision token of a Qwen-VL model (patch 14, merge 2), so scans and labels keep to multiples of 7, 14 and 28
pixels: the same glyph then looks the same to the patch embedding wherever it stands.
"""

from __future__ import annotations

import functools
import math
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CANVAS = 84  # pixels
CELL = 28  # pixels, one vision token
GRID = 7  # pixels; a printed digit is one unit wide and two high
BASELINE = 70  # pixels from the top, value 0 of a chart; the row below holds the labels
CHART_HEIGHT = 63  # pixels between value 0 and the top of the axis

Point = tuple[float, float]


class Tilt(NamedTuple):
    """The rotation and shift of a scan in its cell."""

    degrees: float
    right: int  # pixels
    down: int  # pixels


def draw_digits(scans: list[np.ndarray], tilts: list[Tilt]) -> bytes:
    """Puts handwritten digits side by side, one to a cell, three to a row.

    Args:
        scans: 1 to 9 arrays [8, 8], ink from 0 to 16.
        tilts: one a scan.

    Returns:
        The PNG.
    """
    canvas = Image.new("L", (CANVAS, CANVAS), 255)
    top = CELL if len(scans) <= 3 else 0
    for i, (scan, tilt) in enumerate(zip(scans, tilts, strict=True)):
        ink = Image.fromarray((255 - np.minimum(scan * 16, 255)).astype(np.uint8))
        glyph = ink.resize((24, 24), Image.Resampling.BICUBIC)
        cell = Image.new("L", (CELL, CELL), 255)
        cell.paste(glyph, (2, 2))
        moved = cell.rotate(tilt.degrees, Image.Resampling.BILINEAR, translate=(tilt.right, tilt.down), fillcolor=255)
        canvas.paste(moved, (i % 3 * CELL, top + i // 3 * CELL))
    return _png(canvas)


def draw_chart(series: list[list[int]], *, num_levels: int, line: bool) -> bytes:
    """Draws values as bars, or as a line with square markers, over a grid with one line a level; A, B, .. below.

    Args:
        series: 2 to 6 integers from 1 to num_levels, drawn dark; or two such lists, and the bars of the second stand
            lighter to the right of the first's.
        num_levels: the top of the axis; a level is 63 // num_levels pixels.
        line: a line with markers instead of the bars of one series.

    Returns:
        The PNG.
    """
    canvas = Image.new("L", (CANVAS, CANVAS), 255)
    draw = ImageDraw.Draw(canvas)
    pitch = CHART_HEIGHT // num_levels
    for level in range(1, num_levels + 1):
        y = BASELINE - pitch * level
        draw.line((0, y, CANVAS - 1, y), fill=150 if level % 5 == 0 else 215)
    slot = 2 * GRID  # one patch
    centers = [slot * i + slot // 2 for i in range(len(series[0]))]
    bars = ((-4, 4, 40),) if len(series) == 1 else ((-5, -1, 40), (1, 5, 130))  # from, to, shade
    for values, (left, right, shade) in zip(series, bars, strict=True):
        tops = [BASELINE - pitch * value for value in values]
        if line:
            draw.line(list(zip(centers, tops, strict=True)), fill=110, width=3)
        for x, y in zip(centers, tops, strict=True):
            draw.rectangle((x - 3, y - 3, x + 3, y + 3) if line else (x + left, y, x + right, BASELINE), fill=shade)
    draw.line((0, BASELINE, CANVAS - 1, BASELINE), fill=0)
    for i, x in enumerate(centers):
        canvas.paste(_glyph(chr(ord("A") + i), 2 * GRID), (x - GRID, BASELINE + 1))
    return _png(canvas)


class TriangleLayout(NamedTuple):
    """The places of a triangle and of the labels of its first two angles, in pixels."""

    corners: list[Point]
    angles: tuple[int, int]
    labels: list[tuple[int, int]]  # top left corners

    @property
    def read(self) -> tuple[int, int]:
        """The two angles in reading order: by the left edges of their labels, then from the top."""
        first, second = self.angles
        return (first, second) if self.labels[0] <= self.labels[1] else (second, first)


def lay_out_triangle(first: int, second: int, *, rotation: int, mirrored: bool) -> TriangleLayout | None:
    """Places a triangle to scale, at the largest size that leaves room for its labels; None if there is no such size.

    Args:
        first: angle at the first corner, degrees.
        second: angle at the second corner, degrees; first + second < 180.
        rotation: of the triangle, degrees.
        mirrored: flip it left to right first.
    """
    unit = _unit_corners(first, second, rotation=rotation, mirrored=mirrored)
    texts = (str(first), str(second))
    for size in range(76, 20, -4):
        corners = _fit(unit, texts, size)
        labels = None if corners is None else _place_labels(corners, texts)
        if corners is not None and labels is not None:
            return TriangleLayout(corners, (first, second), labels)
    return None


def draw_triangle(layout: TriangleLayout) -> bytes:
    """Draws the triangle, prints the two angles beside their corners, and returns the PNG."""
    scale = 4  # drawn larger and reduced, for clean slanted lines
    large = Image.new("L", (CANVAS * scale, CANVAS * scale), 255)
    outline = [(x * scale, y * scale) for x, y in layout.corners]
    ImageDraw.Draw(large).line([*outline, *outline[:2]], fill=40, width=6, joint="curve")
    canvas = large.reduce(scale)
    for angle, (x, y) in zip(layout.angles, layout.labels, strict=True):
        for i, digit in enumerate(str(angle)):
            canvas.paste(_glyph(digit, GRID), (x + GRID * i, y))
    return _png(canvas)


def _unit_corners(first: int, second: int, *, rotation: int, mirrored: bool) -> list[Point]:
    """Corners with the given angles at the first two, centroid at 0, longest extent 1."""
    a, b = math.radians(first), math.radians(second)
    side = math.sin(b) / math.sin(a + b)
    corners = np.array([(0.0, 0.0), (1.0, 0.0), (side * math.cos(a), side * math.sin(a))])
    if mirrored:
        corners[:, 0] *= -1
    turn = math.radians(rotation)
    corners = corners @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    corners -= corners.mean(axis=0)
    corners /= np.ptp(corners, axis=0).max()
    return [(float(x), float(y)) for x, y in corners]


def _label_center(corner: Point, text: str) -> Point:
    """Offset of a label's middle from its corner: outwards, just clear of the corner."""
    length = math.hypot(*corner)
    x, y = corner[0] / length, corner[1] / length
    return x * (GRID * len(text) / 2 + 2), y * (GRID + 1)


def _fit(unit: list[Point], labels: tuple[str, str], size: int) -> list[Point] | None:
    """Corners in pixels, with the labels' room included and centred; None when that is too large for the canvas."""
    corners = [(x * size, y * size) for x, y in unit]
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    for corner, text in zip(corners, labels, strict=False):
        x, y = _label_center(corner, text)
        half = GRID * len(text) / 2
        xs += [corner[0] + x - half, corner[0] + x + half]
        ys += [corner[1] + y - GRID, corner[1] + y + GRID]
    if max(max(xs) - min(xs), max(ys) - min(ys)) > CANVAS - 6:
        return None
    dx, dy = (CANVAS - max(xs) - min(xs)) / 2, (CANVAS - max(ys) - min(ys)) / 2
    return [(x + dx, y + dy) for x, y in corners]


def _place_labels(corners: list[Point], labels: tuple[str, str]) -> list[tuple[int, int]] | None:
    """Top left corners of the labels: each in a cell of its own, near its ideal place and clear of the sides."""
    middle = (sum(x for x, _ in corners) / 3, sum(y for _, y in corners) / 3)
    placed: list[tuple[int, int]] = []
    for corner, text in zip(corners, labels, strict=False):
        offset = _label_center((corner[0] - middle[0], corner[1] - middle[1]), text)
        width = GRID * len(text)
        ideal = (corner[0] + offset[0] - width / 2, corner[1] + offset[1] - GRID)
        best = None
        for left, top in _nearby_cells(ideal):
            distance = math.hypot(left - ideal[0], top - ideal[1])
            if best is not None and distance >= best[0]:
                continue
            if (left, top) not in placed and not _touches_sides(corners, left, top, width):
                best = (distance, left, top)
        if best is None:
            return None
        placed.append((best[1], best[2]))
    return placed


def _nearby_cells(ideal: Point) -> list[tuple[int, int]]:
    """Upper left corners of the cells within 28 pixels of `ideal` on both axes.

    Labels stand in the same place of a cell, so that every vision token shows a label alike: a tiny model then learns
    to read them in fewer steps.
    """
    starts = range(0, CANVAS, CELL)
    return [(x, y) for x in starts for y in starts if abs(x - ideal[0]) <= CELL and abs(y - ideal[1]) <= CELL]


def _touches_sides(corners: list[Point], left: float, top: float, width: float) -> bool:
    """Tells if a side of the triangle crosses the box of a label, by the separating axes of a box and a segment."""
    half = (width / 2, GRID)
    center = (left + width / 2, top + GRID)
    for i in range(3):
        (ax, ay), (bx, by) = corners[i], corners[(i + 1) % 3]
        mid = ((ax + bx) / 2 - center[0], (ay + by) / 2 - center[1])
        arm = (abs(bx - ax) / 2, abs(by - ay) / 2)
        if abs(mid[0]) > half[0] + arm[0] or abs(mid[1]) > half[1] + arm[1]:
            continue
        across = abs(mid[0] * (by - ay) - mid[1] * (bx - ax))
        if across <= half[0] * abs(by - ay) + half[1] * abs(bx - ax):
            return True
    return False


@functools.cache
def _glyph(character: str, width: int) -> Image.Image:
    """One character in the middle of a white box, 14 pixels high; rendering text takes longer than all the rest."""
    box = Image.new("L", (width, 2 * GRID), 255)
    middle = (width / 2, GRID)
    ImageDraw.Draw(box).text(middle, character, fill=0, font=ImageFont.load_default(12), anchor="mm")
    return box


def _png(canvas: Image.Image) -> bytes:
    """An RGB PNG with unfiltered rows: PIL tries all filters on every row, which takes as long as the drawing."""
    rows = np.zeros((CANVAS, 1 + 3 * CANVAS), np.uint8)  # a row starts with the number of its filter
    rows[:, 1:] = np.repeat(np.asarray(canvas), 3, axis=1)
    header = struct.pack(">IIBBBBB", CANVAS, CANVAS, 8, 2, 0, 0, 0)  # 8 bits, RGB, no interlace
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
