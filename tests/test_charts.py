"""Heat maps: what is worse is darker, by either yardstick."""

import re

import pytest

from sdcompress.report.charts import CONTENT, FIDELITY, Shading, heat_map


def lightness(colour: str) -> int:
    return sum(bytes.fromhex(colour))


@pytest.mark.parametrize(
    ("shading", "worse", "better", "beyond"), [(FIDELITY, 10, 50, -1), (CONTENT, 0.1, 1e-4, 1.5)]
)
def test_dark_is_sensitive_and_red_is_worse_than_the_scale(
    shading: Shading, worse: float, better: float, beyond: float
) -> None:
    values = [[worse], [better], [beyond]]
    svg = heat_map("map", ["worse", "better", "beyond"], ["981"], values, shading)
    cells = svg[svg.index('id="map-QuadMesh_1"') :]
    first, second, third = re.findall(r"fill: #([0-9a-f]{6})", cells)[:3]
    assert lightness(first) < lightness(second)
    assert third == "8b0000"
    assert shading.label in svg
    assert "$" not in svg  # formulas are not typeset
