"""A curve as text for a terminal, or as an SVG image. Standard library only."""

import math
from collections.abc import Sequence
from html import escape

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a braille cell, by column and row
_BLANK = 0x2800
_MAX_POINTS = 2000  # in an SVG


def text(values: Sequence[float], *, width: int = 72, height: int = 14, labels: tuple[str, str] = ("", "")) -> str:
    """`values` over their index, from 0 to the highest, in braille dots; `labels` stand under the first and the last.

    A column shows the whole range of the values that fall into it.
    """
    top = max(values) or 1.0
    cells = [[_BLANK] * width for _ in range(height)]
    columns, rows = 2 * width, 4 * height
    for column in range(columns):
        first = column * len(values) // columns
        # one value beyond the column's own: jumps are drawn through
        part = values[first : max((column + 1) * len(values) // columns, first + 1) + 1]
        low, high = (round((rows - 1) * (1.0 - value / top)) for value in (max(part), min(part)))
        for row in range(low, high + 1):
            cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
    marks = {0: f"{top:.3g}", height // 2: f"{top / 2:.3g}", height - 1: "0"}
    margin = max(map(len, marks.values()))
    lines = [
        f"{marks.get(i, ''):>{margin}} ┤{''.join(map(chr, row)).rstrip(chr(_BLANK))}" for i, row in enumerate(cells)
    ]
    foot = f"{labels[0]}{labels[1]:>{max(width - len(labels[0]), 0)}}"
    return "\n".join([*lines, f"{'':>{margin}} └{'─' * width}", f"{'':>{margin}}  {foot}"])


def svg(values: Sequence[float], *, title: str, labels: tuple[str, str] = ("", "")) -> str:
    """The same as an image of 720 x 360 pixels, to be read by anything that shows SVG."""
    top = max(values) or 1.0
    left, right, upper, lower = 70, 700, 40, 320
    stride = math.ceil(len(values) / _MAX_POINTS)
    indices = [*range(0, len(values), stride), len(values) - 1]
    across = (right - left) / max(len(values) - 1, 1)
    points = " ".join(f"{left + i * across:.1f},{lower - (lower - upper) * values[i] / top:.1f}" for i in indices)
    marks = [
        f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>'
        f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{top * share:.3g}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
        for y in [lower - (lower - upper) * share]
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 360" font-family="sans-serif" font-size="12">'
        f'<rect width="720" height="360" fill="white"/><text x="{left}" y="22" font-size="14">{escape(title)}</text>'
        f"{''.join(marks)}"
        f'<polyline points="{points}" fill="none" stroke="#1f77b4" stroke-width="1.5"/>'
        f'<text x="{left}" y="342">{escape(labels[0])}</text>'
        f'<text x="{right}" y="342" text-anchor="end">{escape(labels[1])}</text></svg>\n'
    )
