"""What each group of layers costs on the device: time of a call, bytes in the file and in memory.

Times are the device's own performance counters, summed over the operations that stand for a group.
All models are measured in turn, so that a machine that changes its speed does so for all of them.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import openvino as ov

from sdcompress.executed import layers_of_compiled, noise_for, seconds_of
from sdcompress.ir import xml_bytes
from sdcompress.precision import Layer, layers_of
from sdcompress.progress import Advance
from sdcompress.runtime.device import Target, compile_model, opened_model
from sdcompress.search.groups import Group
from sdcompress.splitting import FIRST
from sdcompress.store import read_record, write_record

# Small models stay compiled for more rounds: their calls are over before a machine changes speed.
_ROUNDS, _ROUNDS_OF_SMALL = 2, 8
_SMALL_BYTES, _SMALL_BYTES_OF_ALL = 50_000_000, 500_000_000
# So many inferences are timed in a round, and more of a small model, for so many seconds.
_CALLS, _MOST_CALLS, _SECONDS = 8, 100, 0.4
_BITS = {"f32": 32, "f16": 16, "bf16": 16, "i8": 8, "u8": 8, "i4": 4, "u4": 4}
_STORED_BITS = {"fp32": 16, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4}  # saving halves fp32


@dataclass(frozen=True)
class GroupCost:
    """A group in one model: seconds of a call, bytes of its weights as stored and as executed."""

    group: str
    seconds: float
    stored_bytes: float
    executed_bytes: float


@dataclass(frozen=True)
class ModelCost:
    """A model: seconds of a whole call, bytes of all weights as executed, and its groups."""

    seconds: float
    executed_bytes: float
    groups: tuple[GroupCost, ...]

    def of(self, group: str) -> GroupCost:
        """What one group costs."""
        return next(one for one in self.groups if one.group == group)


def measure_costs(
    models: Mapping[str, Path],
    groups: Sequence[Group],
    shapes: Mapping[str, Sequence[int]],
    device: str,
    precision: str | None,
    folder: Path,
    on_model: Advance,
) -> dict[str, ModelCost]:
    """Compiles and runs each model for inputs of these shapes; the quickest of the rounds counts.

    Floating-point layers run in `precision`, by None in that which the device picks by itself. What
    is measured is kept in `folder`, and not measured again.
    """
    sizes = [xml_bytes(xml) for xml in models.values()]
    small = max(sizes) < _SMALL_BYTES and sum(sizes) < _SMALL_BYTES_OF_ALL
    target = Target(device, precision, profiling=True)
    total = (_ROUNDS_OF_SMALL if small else _ROUNDS) * len(models)
    found: dict[str, ModelCost] = {}
    kept: dict[str, _Profiled] = {}
    names = sorted(models)  # in whatever order a run before this was given them
    for number in range(total):
        name = names[number % len(names)]
        file = folder / f"{number:03d}.json"
        if not file.exists():
            profiled = kept.get(name) or _Profiled(models[name], groups, shapes, target)
            if small:
                kept[name] = profiled
            write_record(file, ModelCost, profiled.cost())
            del profiled  # a large one's memory, before the next is compiled
        cost = read_record(file, ModelCost)
        found[name] = _quicker(found[name], cost) if name in found else cost
        on_model(number + 1, total)
    return found


def _quicker(one: ModelCost, other: ModelCost) -> ModelCost:
    """The least of both, for the whole and for each group."""
    pairs = zip(one.groups, other.groups, strict=True)
    groups = (replace(a, seconds=min(a.seconds, b.seconds)) for a, b in pairs)
    return ModelCost(min(one.seconds, other.seconds), one.executed_bytes, tuple(groups))


class _Profiled:
    """A model that was compiled for inputs of these shapes."""

    def __init__(
        self,
        xml: Path,
        groups: Sequence[Group],
        shapes: Mapping[str, Sequence[int]],
        target: Target,
    ) -> None:
        with opened_model(target, xml) as model:
            # Those of the first token read the weights of the others.
            layers = [one for one in layers_of(model) if not one.name.endswith(FIRST)]
            model.reshape({name: list(shape) for name, shape in shapes.items()})
            self._compiled = compile_model(target, model, "unet")
        self._owners = _Owners(groups)
        self._stored, self._executed = (dict.fromkeys(self._owners.names, 0.0) for _ in range(2))
        for layer in layers:
            if (group := self._owners.of(layer.name)) is not None:
                bits = _STORED_BITS[layer.precision.split()[0]]
                self._stored[group] += layer.parameters * bits / 8
        self._all_executed = 0.0
        for group, kept in _executed_bytes(self._compiled, layers, self._owners):
            self._all_executed += kept
            if group is not None:
                self._executed[group] += kept

    def cost(self) -> ModelCost:
        """With the least time of some calls, and of each operation in them."""
        call, operations = _least_seconds(self._compiled)
        seconds = dict.fromkeys(self._owners.names, 0.0)
        for name, least in operations.items():
            if (group := self._owners.of(name)) is not None:
                seconds[group] += least
        groups = (
            GroupCost(name, seconds[name], self._stored[name], self._executed[name])
            for name in self._owners.names
        )
        return ModelCost(call, self._all_executed, tuple(groups))


def _least_seconds(compiled: ov.CompiledModel) -> tuple[float, dict[str, float]]:
    """Of a call, and of each executed operation by its name."""
    request, inputs = compiled.create_infer_request(), noise_for(compiled)
    request.infer(inputs)  # the first one also unpacks and allocates
    calls: list[float] = []
    operations: dict[str, float] = {}
    while len(calls) < _CALLS or (sum(calls) < _SECONDS and len(calls) < _MOST_CALLS):
        start = time.perf_counter()
        request.infer(inputs)
        calls.append(time.perf_counter() - start)
        for one in request.profiling_info:
            name = one.node_name
            operations[name] = min(operations.get(name, inf), seconds_of(one))
    return min(calls), operations


class _Owners:
    """Tells whose an operation is: a layer, what was put before it or fused behind it."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.names = [group.name for group in groups]
        self._patterns = [(group.name, re.compile(group.pattern)) for group in groups]

    def of(self, operation: str) -> str | None:
        """The group whose pattern an operation's name has, if there is one."""
        return next((name for name, one in self._patterns if one.search(operation)), None)


def _executed_bytes(
    compiled: ov.CompiledModel, layers: Sequence[Layer], owners: _Owners
) -> Iterator[tuple[str | None, float]]:
    """What the device keeps of each module's weights, and of which group; nothing if it won't tell.

    An executed layer may bear the name of the bias that is fused with it, so it is looked up by its
    module. Parts of a layer that was split share their module's weights.
    """
    parameters: Counter[str] = Counter()
    for layer in layers:
        parameters[_module(layer.name)] += layer.parameters
    bits: dict[tuple[str | None, str], list[int]] = {}
    for executed in layers_of_compiled(compiled):
        if executed.weights:
            place = owners.of(executed.name), _module(executed.name)
            bits.setdefault(place, []).append(_BITS[executed.weights])
    for (group, module), found in bits.items():
        yield group, parameters[module] * sum(found) / len(found) / 8


def _module(operation: str) -> str:
    return operation.split("/", maxsplit=1)[0]
