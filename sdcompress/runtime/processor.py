"""What the processor's instructions mean for the memory that OpenVINO's CPU plugin takes."""

import platform
import sys
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_PF_AVX512F = 41  # of Windows' IsProcessorFeaturePresent


@cache
def keeps_attention_scores() -> bool:
    """Whether attention scores are in memory as a whole.

    So it is on x86 without AVX-512: attention is executed as two products and a softmax there, and
    in blocks elsewhere. Where the system does not tell, blocks are assumed.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if sys.platform == "win32":
        import ctypes

        return not ctypes.windll.kernel32.IsProcessorFeaturePresent(_PF_AVX512F)
    if not _CPUINFO.exists():
        return False
    return "avx512f" not in _CPUINFO.read_text("utf-8").split()
