"""Compiles IR files for a device, with an execution precision that is asked for and checked."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openvino as ov
from openvino import properties
from openvino.properties import device, hint

from sdcompress.runtime.compiled_cache import folder_of, keep_within, note_use
from sdcompress.runtime.errors import BundleError, DeviceError, InputError
from sdcompress.runtime.mapping import reading
from sdcompress.runtime.unpacking import unpack_convolutions

EXECUTION_PRECISIONS: dict[str, ov.Type] = {
    "f32": ov.Type.f32,
    "bf16": ov.Type.bf16,
    "f16": ov.Type.f16,
}
_CAPABILITIES = {"bf16": "BF16", "f16": "FP16"}  # every device has f32
_NAMES = {kind.get_type_name(): name for name, kind in EXECUTION_PRECISIONS.items()}

CACHE_BYTES = 4_000_000_000  # what compiled models may take on disk

# Names that stand for a choice among devices rather than for one.
_VIRTUAL = {"AUTO", "HETERO", "MULTI", "BATCH"}


@dataclass(frozen=True)
class Target:
    """Where and how models are to be executed.

    A precision of None leaves it to the plugin, threads of None to OpenVINO. Compiled models are
    kept in `cache_dir`, if there is one, `cache_bytes` at most. `streams` is how many requests a
    model executes side by side. `static` compiles for the shapes that are met, and
    again when they change. `profiling` has requests tell what each layer took.
    """

    device: str = "CPU"
    execution_precision: str | None = None
    cache_dir: Path | None = None
    cache_bytes: int = CACHE_BYTES
    threads: int | None = None
    streams: int = 1
    static: bool = True
    profiling: bool = False
    core: ov.Core = field(default_factory=ov.Core, repr=False, compare=False)

    def __post_init__(self) -> None:
        known = EXECUTION_PRECISIONS
        if self.execution_precision is not None and self.execution_precision not in known:
            raise InputError(
                f"There is no execution precision {self.execution_precision!r}. "
                f"Choose one of: {', '.join(known)}."
            )
        for name, value in (("threads", self.threads), ("streams", self.streams)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1.")
        require_device(self.device, self.core)

    @property
    def may_be_cpu(self) -> bool:
        """Whether the CPU is, or may be among, what the device's name stands for."""
        kind, _, members = self.device.partition(":")
        return "CPU" in (members or kind) or (kind in _VIRTUAL and not members)


@contextmanager
def opened_model(target: Target, path: Path) -> Iterator[ov.Model]:
    """Reads an IR file. Its weights are mapped from disk, and given back after they were used."""
    with ExitStack() as stack:
        try:
            model = stack.enter_context(reading(path, target.core))
        except RuntimeError as fault:
            raise BundleError(
                f"{path} is not a readable OpenVINO model: {_last_line(fault)}. "
                "Build or copy the folder again."
            ) from fault
        yield model


def compile_model(target: Target, model: ov.Model, name: str) -> ov.CompiledModel:
    """Compile for the target, and make sure the precision asked for is the one in force.

    Changes the model where several streams would be compiled wrongly as it is.
    """
    options: dict[str, object] = {hint.performance_mode(): hint.PerformanceMode.LATENCY}
    if target.streams > 1:
        options = {properties.num_streams(): str(target.streams)}
        if target.may_be_cpu:
            unpack_convolutions(model)
    if target.profiling:
        options[properties.enable_profiling()] = True
    if target.threads is not None:
        options[properties.inference_num_threads()] = target.threads
    wanted = target.execution_precision
    if wanted is not None:
        options[hint.inference_precision()] = EXECUTION_PRECISIONS[wanted]
    cached = None
    if target.cache_dir is not None:
        cached = folder_of(target.cache_dir, model, name, {"device": target.device, **options})
        options[properties.cache_dir()] = str(cached)
    try:
        compiled = target.core.compile_model(model, target.device, options)
    except RuntimeError as fault:
        raise DeviceError(
            f"{name} cannot be compiled for {target.device}: {_last_line(fault)}. "
            f"Devices present: {', '.join(target.core.available_devices)}."
        ) from fault
    if target.cache_dir is not None and cached is not None:
        note_use(cached)
        keep_within(target.cache_dir, target.cache_bytes)
    in_force = precision_in_force(compiled)
    if wanted is not None and in_force not in (wanted, "unknown"):
        raise DeviceError(
            f"{target.device} executes {name} in {in_force} although {wanted} was asked for: it "
            f"has no {wanted}. Ask for {in_force}, or for none to let the device choose."
        )
    return compiled


def precision_by_default(target: Target) -> str:
    """The precision that floating-point layers will run in, as far as it is known beforehand."""
    if target.execution_precision is not None:
        return target.execution_precision
    if target.device != "CPU":
        return "f16"
    return "bf16" if executes_bf16(target.core) else "f32"


def executes_bf16(core: ov.Core) -> bool:
    """Whether the CPU plugin multiplies in bfloat16."""
    return _CAPABILITIES["bf16"] in _capabilities(core, "CPU")


def _capabilities(core: ov.Core, name: str) -> list[str]:
    return list(core.get_property(name, device.capabilities()))


def precision_in_force(compiled: ov.CompiledModel) -> str:
    """The precision that floating-point layers really run in, "unknown" if not reported."""
    try:
        kind = compiled.get_property(hint.inference_precision())
    except RuntimeError:
        # Virtual devices do not report it.
        return "unknown"
    name = kind.get_type_name() if isinstance(kind, ov.Type) else str(kind)
    return _NAMES.get(name, name)


def require_device(
    device: str, core: ov.Core | None = None, *, execution_precision: str | None = None
) -> None:
    """Raises DeviceError when `device` is not present, or says that it has no such precision."""
    core = core or ov.Core()
    present = core.available_devices
    kind, _, members = device.partition(":")
    asked = [name for name in members.split(",") if name] if kind in _VIRTUAL else [device]
    for name in asked:
        # "GPU" means the first of "GPU.0", "GPU.1".
        if name not in present and not any(known.split(".")[0] == name for known in present):
            raise DeviceError(
                f"There is no device {name!r} here. Present: {', '.join(present)}. "
                "Names are written in capitals; AUTO lets OpenVINO choose."
            )
    wanted = _CAPABILITIES.get(execution_precision or "")
    if wanted and (kind in _VIRTUAL or wanted not in _capabilities(core, device)):
        told = "does not tell whether it executes" if kind in _VIRTUAL else "does not execute"
        raise DeviceError(
            f"{device} {told} in {execution_precision} here: ask for f32, or for none (null in a "
            "recipe) to let the device choose."
        )


def _last_line(fault: Exception) -> str:
    """OpenVINO's messages end with the reason, after the source lines it passed through."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(fault).__name__
