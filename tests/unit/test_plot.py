"""Curves in a terminal and as images."""

import math
from xml.etree import ElementTree as ET

import pytest

from relight_trainer.plot import svg, text

CURVES = {
    "falling": [1.0 - i / 500 for i in range(500)],
    "wave": [0.5 + 0.5 * math.sin(i / 20) for i in range(333)],
    "few": [0.2, 0.1, 0.4],
    "one": [0.3],
    "zero": [0.0, 0.0],
    "steps": [0.1 ** (i // 30) for i in range(90)],
}


def dots(drawn: str, width: int, height: int) -> set[tuple[int, int]]:
    """(column, row) of every dot, rows counted from the top."""
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]  # of the bits of a braille character
    found = set()
    for r, line in enumerate(drawn.splitlines()[:height]):
        cells = line.partition("┤")[2]
        assert len(cells) <= width
        for c, cell in enumerate(cells):
            bits = ord(cell) - 0x2800
            found |= {(2 * c + x, 4 * r + y) for bit, (x, y) in enumerate(places) if bits >> bit & 1}
    return found


@pytest.mark.parametrize("name", CURVES)
def test_every_value_has_a_dot_where_it_belongs(name: str) -> None:
    values = CURVES[name]
    width, height = 40, 10
    found = dots(text(values, width=width, height=height), width, height)
    top = max(values) or 1.0
    for i, value in enumerate(values):
        column = -(-(i * 2 * width) // len(values))
        row = (4 * height - 1) * (1 - value / top)
        assert any((c, r) in found for c in (column - 1, column) for r in (math.floor(row), math.ceil(row))), i
    assert {c for c, _ in found} == set(range(2 * width))


def test_the_axes_are_labelled() -> None:
    drawn = text(CURVES["falling"], width=30, height=6, labels=("step 0", "step 499"))
    lines = drawn.splitlines()
    assert [lines[i].split()[0] for i in (0, 3, 5)] == ["1", "0.5", "0"]
    assert lines[-1].split("  ")[-1].strip() == "step 499"
    assert lines[-1].index("step 0") == lines[0].index("┤") + 1


@pytest.mark.parametrize("name", CURVES)
def test_an_image_is_sound_xml_with_the_curve_inside_its_frame(name: str) -> None:
    values = CURVES[name]
    root = ET.fromstring(svg(values, title="<a & b>", labels=("step 0", "end")))
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "<a & b>"
    assert {"step 0", "end", "0"} <= set(texts)
    [line] = root.iter("{http://www.w3.org/2000/svg}polyline")
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    assert all(70 <= x <= 700 and 40 <= y <= 320 for x, y in points)
    top = max(values) or 1.0
    for i, (_, y) in enumerate(points[: len(values)]):
        assert (320 - y) / 280 == pytest.approx(values[i] / top, abs=1e-3)
