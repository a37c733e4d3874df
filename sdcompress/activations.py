"""Collects the range and the mean of a model's activations, channel by channel and item by item.

One pass over the recorded inputs serves every activation quantizer, SmoothQuant and bias
correction. Reductions run inside the graph, so no activation leaves the device, and each item's
figures are written to disk as soon as they are there: a killed run goes on with the next item, and
another preset or ignored scope needs no new pass.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from sdcompress.errors import CalibrationError, CompressionError
from sdcompress.precision import weight_constant
from sdcompress.processor import executes_bf16
from sdcompress.runtime.mapping import reading
from sdcompress.store import written_whole

Array = np.ndarray[Any, Any]
_REDUCTIONS = (opset.reduce_min, opset.reduce_max, opset.reduce_mean)
_OUTPUT = "statistics"
_MOST_OPEN = 256
_INDEX = "index.json"
_DECISION = "precision.json"
# What "auto" asks of bf16: on so many items, averaged, no range may move by more than this share of
# its width. A step of an 8-bit quantizer is 0.004 of it.
PROBES = 8
LARGEST_SHIFT = 0.02
_MULTIPLYING = {
    "Convolution",
    "ConvolutionBackpropData",
    "GroupConvolution",
    "MatMul",
    "ScaledDotProductAttention",
}
# A quantizer may sit before these just as well as behind them.
REARRANGING = {
    "Concat",
    "Interpolate",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}


@dataclass(frozen=True, order=True)
class Activation:
    """An output of a node, and the axis along which its channels lie (counted from the front)."""

    node: str
    port: int
    axis: int


@dataclass(frozen=True)
class _Collected:
    """Where an activation's channels lie in the files of one folder, and its shape for one item."""

    activation: Activation
    offset: int
    shape: tuple[int, ...]

    def of(self, figures: Array) -> Array:
        """Cuts minimum, maximum and mean, float32 [3, channels], out of an item's figures."""
        rows, channels = len(_REDUCTIONS), self.shape[self.activation.axis]
        return figures[self.offset : self.offset + rows * channels].reshape(rows, channels)


class ModelInputs(Protocol):
    """Recorded inputs of one component, by name, that can be iterated again and again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Any: ...


def watch_list(model: ov.Model) -> tuple[Activation, ...]:
    """Lists what any way of quantizing a model asks for, in graph order without repetition.

    That is what every convolution, matrix multiplication and attention reads that is computed at
    run time, where it came from before it was rearranged, and what convolutions return, bias
    included. What else is asked of a layer with weights follows from that: its mean without the
    bias, and for a matrix multiplication the mean of what it returns. Each further activation would
    keep the device from fusing the operations around it.
    """
    watched: dict[Activation, None] = {}
    for operation in model.get_ordered_ops():
        kind = operation.get_type_name()
        if kind not in _MULTIPLYING:
            continue
        inputs = [operation.input_value(port) for port in range(operation.get_input_size())]
        computed = [one for one in inputs if weight_constant(one.get_node()) is None]
        for source in computed:
            for output in (source, *_origins(source)):
                watched |= _activation(output)
        if len(computed) < len(inputs) and kind != "MatMul":
            returned = operation.output(0)
            biased = bias_behind(returned)
            watched |= _activation(biased[0] if biased else returned)
    return tuple(watched)


def bias_behind(output: ov.Output) -> tuple[ov.Output, ov.Node] | None:
    """Returns what comes of adding a constant to `output`, and the constant's node.

    None if anything else is done with it.
    """
    readers = list(output.get_target_inputs())
    if len(readers) != 1 or readers[0].get_node().get_type_name() != "Add":
        return None
    addition = readers[0].get_node()
    other = addition.input_value(1 - readers[0].get_index()).get_node()
    return None if weight_constant(other) is None else (addition.output(0), other)


def _origins(output: ov.Output) -> Iterator[ov.Output]:
    """The outputs from which an activation was put together by rearranging only."""
    node = output.get_node()
    if node.get_type_name() not in REARRANGING:
        yield output
        return
    joined = node.get_input_size() if node.get_type_name() == "Concat" else 1
    for port in range(joined):
        yield from _origins(node.input_value(port))


def _activation(output: ov.Output) -> dict[Activation, None]:
    rank = len(output.get_partial_shape())
    if rank < 2 or not output.get_element_type().is_real():
        return {}
    return {
        Activation(
            output.get_node().get_friendly_name(), output.get_index(), channel_axis(rank)
        ): None
    }


def channel_axis(rank: int) -> int:
    """Returns where channels lie: second in pictures [batch, channels, h, w], else last."""
    return 1 if rank == 4 else rank - 1


def collect(
    xml: Path,
    activations: Sequence[Activation] | None,
    inputs: ModelInputs,
    folder: Path,
    execution_precision: str,
    on_item: Callable[[int, int], None] | None = None,
) -> str:
    """Runs a model on every recorded input and writes `folder`/00000.npy and so on.

    `activations` default to the model's watch list. Each file is float32 and holds minimum, maximum
    and mean over the other axes, channel by channel, of one activation after the other. Items whose
    file is there are not run again. `execution_precision` is "f32", "bf16" or "auto": bf16 where
    `PROBES` items show that it moves no activation's range by more than `LARGEST_SHIFT`, else f32,
    as for few items. Returns the one that was used; the probes' figures are those of f32. Raises
    CalibrationError for an activation that is not finite, and for bf16 where there is none.
    """
    require_executable(execution_precision)
    folder.mkdir(parents=True, exist_ok=True)
    with reading(xml) as model:
        collection = _Collection(model, activations, inputs, folder, on_item)
        del model
        chosen = execution_precision
        if chosen == "auto":
            chosen = collection.choose()
        collection.run(chosen, range(len(inputs)))
    return chosen


def require_executable(precision: str) -> None:
    """Raises CalibrationError for bf16 where there is none."""
    if precision == "bf16" and not executes_bf16():
        raise CalibrationError(
            "calibrate.statistics is bf16, but this processor has no BF16: use f32 or auto"
        )


def worth_comparing(items: int) -> bool:
    """Tells whether "auto" compares precisions where bf16 exists: items have to be left."""
    return items > 2 * PROBES


class _Collection:
    """A model and its inputs on the way to a folder of figures."""

    def __init__(
        self,
        model: ov.Model,
        activations: Sequence[Activation] | None,
        inputs: ModelInputs,
        folder: Path,
        on_item: Callable[[int, int], None] | None,
    ) -> None:
        model.reshape({name: values.shape for name, values in next(iter(inputs)).items()})
        self._model, self._index = _watched(model, activations or watch_list(model))
        self._inputs, self._folder, self._on_item = inputs, folder, on_item
        rows = [asdict(one) for one in self._index]
        text = json.dumps({"items": len(inputs), "activations": rows})
        (folder / _INDEX).write_text(text, "utf-8")
        self._compiled: tuple[str, ov.InferRequest] | None = None

    def run(self, precision: str, items: Iterable[int]) -> None:
        """Writes the files of those `items` that have none."""
        missing = {item for item in range(len(self._inputs)) if not self._file(item).exists()}
        done = len(self._inputs) - len(missing)
        self._tell(done)
        for item, figures in self._figures(precision, missing & set(items)):
            with written_whole(self._file(item)) as stream:
                np.save(stream, figures)
            done += 1
            self._tell(done)

    def choose(self) -> str:
        """Compares bf16 with f32 on some items, unless an earlier run did, and keeps the choice."""
        decision = self._folder / _DECISION
        if not decision.exists():
            comparable = executes_bf16() and worth_comparing(len(self._inputs))
            shift = self._shift() if comparable else None
            chosen = "f32" if shift is None or shift > LARGEST_SHIFT else "bf16"
            with written_whole(decision) as stream:
                stream.write(json.dumps({"precision": chosen, "largest_shift": shift}).encode())
        return str(json.loads(decision.read_text("utf-8"))["precision"])

    def _shift(self) -> float:
        """How far bf16 moves an end of a range, at most; 1 is the range's width.

        The ends are averaged over the probes, as NNCF averages them over all items.
        """
        probes = np.linspace(0, len(self._inputs) - 1, PROBES).astype(int).tolist()
        self.run("f32", probes)
        exact = np.mean([self._ranges(np.load(self._file(probe))) for probe in probes], axis=0)
        rounded = [self._ranges(figures) for _, figures in self._figures("bf16", probes)]
        widths = np.maximum(exact[:, 1] - exact[:, 0], np.finfo("f4").tiny)
        return float((np.abs(np.mean(rounded, axis=0) - exact).max(1) / widths).max())

    def _ranges(self, figures: Array) -> Array:
        """Lowest and highest value of each activation, [activations, 2]."""
        found = [one.of(figures) for one in self._index]
        return np.array([(one[0].min(), one[1].max()) for one in found])

    def _figures(self, precision: str, items: Collection[int]) -> Iterator[tuple[int, Array]]:
        """Runs the model on `items`, in rising order, and yields float32 figures."""
        if not items:
            return
        request = self._request(precision)
        for item, values in enumerate(self._inputs):
            if item in items:
                request.infer(values, share_inputs=True)
                figures = request.get_tensor(_OUTPUT).data.astype("f4")
                _require_finite(figures, self._index, item)
                yield item, figures

    def _request(self, precision: str) -> ov.InferRequest:
        if self._compiled is None or self._compiled[0] != precision:
            self._compiled = None  # gives its memory back before the other takes as much
            config = {"INFERENCE_PRECISION_HINT": precision}
            compiled = ov.Core().compile_model(self._model, "CPU", config)
            self._compiled = precision, compiled.create_infer_request()
        return self._compiled[1]

    def _tell(self, done: int) -> None:
        if self._on_item:
            self._on_item(done, len(self._inputs))

    def _file(self, item: int) -> Path:
        return _item_file(self._folder, item)


def _watched(
    model: ov.Model, activations: Sequence[Activation]
) -> tuple[ov.Model, tuple[_Collected, ...]]:
    """Returns the model with the output `statistics`, float32 [3 x channels], and what lies where.

    It is the first output, so that the network itself is visited before the reductions. The CPU
    plugin then reduces each activation as soon as it is there; in the other order it puts the
    reductions at the end, and all activations stay alive until then.
    """
    wanted: dict[tuple[str, int], list[Activation]] = {}
    for activation in activations:
        wanted.setdefault((activation.node, activation.port), []).append(activation)
    parts: list[Any] = []
    index, offset = [], 0
    for operation in model.get_ordered_ops():
        for output in operation.outputs():
            for activation in wanted.get((operation.get_friendly_name(), output.get_index()), ()):
                shape = tuple(output.get_shape())
                others = [axis for axis in range(len(shape)) if axis != activation.axis]
                parts += [reduce(output, others, False) for reduce in _REDUCTIONS]
                index.append(_Collected(activation, offset, shape))
                offset += len(_REDUCTIONS) * shape[activation.axis]
    unknown = set(activations) - {one.activation for one in index}
    if unknown:
        raise CalibrationError(
            f"{len(unknown)} activations to collect are not in the model, for example "
            f"{min(unknown).node}"
        )
    joined = opset.concat(parts, 0).output(0)
    joined.get_tensor().set_names({_OUTPUT})
    outputs = [opset.result(joined), *model.get_results()]
    return ov.Model(outputs, model.get_parameters()), tuple(index)


def _item_file(folder: Path, item: int) -> Path:
    return folder / f"{item:05d}.npy"


def _require_finite(figures: Array, index: Iterable[_Collected], item: int) -> None:
    if np.isfinite(figures).all():
        return
    for one in index:
        if not np.isfinite(one.of(figures)).all():
            raise CalibrationError(
                f"activations of {one.activation.node} are not finite for recorded input {item}: "
                "the baseline model itself overflows; check its weights"
            )


class MissingStatisticsError(CompressionError):
    """A configuration asks for activations that were not collected. `activations` names them."""

    def __init__(self, activations: tuple[Activation, ...]) -> None:
        super().__init__(f"{len(activations)} activations were not collected")
        self.activations = activations

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.activations,)


class Statistics:
    """Collected figures of one model, from one folder or several.

    Items that are `merged` count as one, with the least minimum and the largest maximum of them.
    """

    def __init__(self, *folders: Path, merged: Sequence[Sequence[int]] | None = None) -> None:
        # Each mapped file stays open, and systems allow a process about a thousand.
        self._mapped = lru_cache(_MOST_OPEN)(partial(np.load, mmap_mode="r"))
        self._found: dict[tuple[str, int], dict[int, tuple[Path, _Collected]]] = {}
        for folder in folders:
            index = json.loads((folder / _INDEX).read_text("utf-8"))
            self._members = merged or [[item] for item in range(index["items"])]
            for row in index["activations"]:
                activation = Activation(**row["activation"])
                one = _Collected(activation, row["offset"], tuple(row["shape"]))
                axes = self._found.setdefault((activation.node, activation.port), {})
                axes[activation.axis] = (folder, one)

    @property
    def items(self) -> int:
        return len(self._members)

    def names(self) -> tuple[tuple[str, int], ...]:
        """Node and port of every activation that was collected."""
        return tuple(self._found)

    def shape(self, node: str, port: int) -> tuple[int, ...]:
        """Returns an activation's shape for one item."""
        return next(iter(self._found[node, port].values()))[1].shape

    def has(self, node: str, port: int, axis: int | None = None) -> bool:
        """Tells whether an activation was collected, along `axis` if that matters."""
        axes = self._found.get((node, port), {})
        return bool(axes) if axis is None else axis in axes

    def read(self, node: str, port: int, item: int, axis: int | None = None) -> tuple[Array, int]:
        """Returns float32 [3, channels] and the axis of the channels."""
        axes = self._found[node, port]
        chosen = next(iter(axes)) if axis is None else axis
        folder, one = axes[chosen]
        files = (_item_file(folder, member) for member in self._members[item])
        found = np.stack([one.of(self._mapped(file)) for file in files])
        minimum, maximum, mean = found[:, 0].min(0), found[:, 1].max(0), found[:, 2].mean(0)
        return np.stack([minimum, maximum, mean]), chosen
