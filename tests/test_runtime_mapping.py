"""Mapped weights are given back while work goes on, and nothing else is."""

import sys
import time
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as opset

from sdcompress.runtime.mapping import mapped, reading

SHAPE = (1024, 2048)
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a call of Linux")


@pytest.fixture
def xml(tmp_path: Path) -> Path:
    values = opset.parameter([1, SHAPE[0]], np.float32)
    weights = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    model = ov.Model([opset.matmul(values, weights, False, False)], [values])
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    return tmp_path / "model.xml"


def weights_of(model: ov.Model) -> np.ndarray:
    (found,) = (one for one in model.get_ops() if one.get_type_name() == "Constant")
    values: np.ndarray = found.data
    return values


def resident_bytes(file: Path) -> int:
    """What the kernel says of all mappings of a file."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        field = line.split()[0]
        if not field.endswith(":"):
            inside = line.endswith(str(file))
        elif inside and field == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


def test_pages_are_given_back_and_read_again(xml: Path) -> None:
    file = xml.with_suffix(".bin")
    with reading(xml) as model:
        total = float(weights_of(model).sum(dtype=np.float64))
        deadline = time.monotonic() + 10
        while resident_bytes(file) > 1_000_000 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert resident_bytes(file) <= 1_000_000
        assert float(weights_of(model).sum(dtype=np.float64)) == total
    count = int(np.prod(SHAPE))
    assert total == count * (count - 1) / 2


def test_the_file_stays_mapped_when_its_model_is_gone(xml: Path) -> None:
    file = xml.with_suffix(".bin")
    with reading(xml) as model:
        spans = mapped(file)
        del model
        assert mapped(file) == spans != set()
    assert mapped(file) == set()


def test_the_mapping_of_another_reader_is_left_alone(xml: Path) -> None:
    file = xml.with_suffix(".bin")
    other = ov.Core().read_model(xml)
    weights_of(other).sum()
    before = resident_bytes(file)
    assert before > 0.9 * file.stat().st_size
    with reading(xml):
        time.sleep(0.5)
    assert resident_bytes(file) >= before
