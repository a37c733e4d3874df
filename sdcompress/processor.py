"""What the target processor can do, as far as compression decisions need it."""

import os
import platform
from functools import cache
from typing import Any

import cpuinfo

# Any of these multiplies 8-bit integers into 32-bit sums without intermediate saturation.
# Linux names the first avx512_vnni; read from the processor itself, as on Windows, avx512vnni.
_VNNI_FLAGS = {"avx512_vnni", "avx512vnni", "avx_vnni", "amx_int8"}


@cache
def processor_flags() -> frozenset[str]:
    """Returns the instruction-set flags the operating system reports, lower case."""
    return frozenset(flag.lower() for flag in _asked().get("flags", []))


def has_vnni() -> bool:
    """True where 8-bit products do not overflow, so NNCF's overflow fix is not needed."""
    return bool(_VNNI_FLAGS & processor_flags())


@cache
def executes_bf16() -> bool:
    """True where OpenVINO's CPU plugin multiplies in bfloat16."""
    import openvino as ov

    from sdcompress.runtime import device

    return device.executes_bf16(ov.Core())


def processor_brand() -> str:
    """Returns the processor's name."""
    return str(_asked().get("brand_raw", "unknown"))


def described_target(execution_precision: str | None) -> str:
    """Returns what times of a recipe's candidates are measured on: the processor, how it executes.

    None is the device's own precision.
    """
    executed = f", executing in {execution_precision}" if execution_precision else ""
    return processor_brand() + executed


def processor_record() -> list[str]:
    """Returns what times and roundings depend on: name, cores, instruction sets."""
    return [processor_brand(), str(os.cpu_count()), *sorted(processor_flags())]


def describe_machine() -> str:
    """Returns what figures were measured on: processor, cores, BF16, system."""
    bf16 = "BF16" if executes_bf16() else "no BF16"
    return f"{processor_brand()}, {os.cpu_count()} cores, {bf16}, {platform.platform()}"


@cache
def _asked() -> dict[str, Any]:
    """What the processor says of itself; asking takes a second."""
    return dict(cpuinfo.get_cpu_info())
