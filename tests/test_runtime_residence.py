"""Memory of this process as the runtime sees it, against psutil."""

import time

import numpy as np
import psutil

from sdcompress.runtime.residence import PhasePeaks, peak_rss_bytes, resident_bytes


def test_what_is_resident_is_what_psutil_says() -> None:
    found = resident_bytes()
    assert found is not None
    assert abs(found - psutil.Process().memory_info().rss) < 20_000_000
    peak = peak_rss_bytes()
    assert peak is not None
    assert peak >= 0.99 * found


def test_memory_counts_in_the_phase_that_takes_it() -> None:
    peaks = PhasePeaks()
    with peaks.watching():
        peaks.begin("little")
        time.sleep(0.1)
        peaks.begin("much")
        block = np.ones(200_000_000, np.uint8)
        time.sleep(0.1)
        del block
        peaks.begin("little again")
        time.sleep(0.1)
    assert peaks.peaks["much"] - peaks.peaks["little"] > 190_000_000
    assert peaks.peaks["much"] - peaks.peaks["little again"] > 190_000_000
