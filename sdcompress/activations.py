"""Collects the range and the mean of a model's activations, channel by channel and item by item.

One pass over the recorded inputs serves every activation quantizer, SmoothQuant and bias
correction. Reductions run inside the graph, so no activation leaves the device, and each item's
figures are written to disk as soon as they are there: a killed run goes on with the next item, and
another preset or ignored scope needs no new pass.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from sdcompress.errors import CalibrationError, CompressionError
from sdcompress.mapping import reading
from sdcompress.precision import weight_constant
from sdcompress.store import written_whole

Array = np.ndarray[Any, Any]
_REDUCTIONS = (opset.reduce_min, opset.reduce_max, opset.reduce_mean)
_OUTPUT = "statistics"
_INDEX = "index.json"
_MULTIPLYING = {
    "Convolution",
    "ConvolutionBackpropData",
    "GroupConvolution",
    "MatMul",
    "ScaledDotProductAttention",
}
# A quantizer may sit before these just as well as behind them.
_REARRANGING = {
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
    run time, where it came from before it was rearranged, and what those with weights return.
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
        if len(computed) < len(inputs):
            watched |= _activation(operation.output(0))
    return tuple(watched)


def _origins(output: ov.Output) -> Iterator[ov.Output]:
    """The outputs from which an activation was put together by rearranging only."""
    node = output.get_node()
    if node.get_type_name() not in _REARRANGING:
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
) -> None:
    """Runs a model on every recorded input and writes `folder`/00000.npy and so on.

    `activations` default to the model's watch list. Each file is float32 and holds minimum, maximum
    and mean over the other axes, channel by channel, of one activation after the other. Items whose
    file is there are not run again. `execution_precision` is "f32" or "bf16". Raises
    CalibrationError for an activation that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [item for item in range(len(inputs)) if not _item_file(folder, item).exists()]
    if on_item:
        on_item(len(inputs) - len(missing), len(inputs))
    if not missing:  # killed between its last item and its end
        return
    with reading(xml) as model:
        request, index = _compiled(model, activations, inputs, execution_precision)
        del model
        rows = [asdict(one) for one in index]
        text = json.dumps({"items": len(inputs), "activations": rows})
        (folder / _INDEX).write_text(text, "utf-8")
        for item, values in enumerate(inputs):
            if item < missing[0]:
                continue
            request.infer(values, share_inputs=True)
            figures = request.get_tensor(_OUTPUT).data
            _require_finite(figures, index, item)
            with written_whole(_item_file(folder, item)) as stream:
                np.save(stream, figures.astype("f4", copy=False))
            if on_item:
                on_item(item + 1, len(inputs))


def _compiled(
    model: ov.Model,
    activations: Sequence[Activation] | None,
    inputs: ModelInputs,
    precision: str,
) -> tuple[ov.InferRequest, tuple[_Collected, ...]]:
    """Compiles the model with its statistics for inputs of the recorded shapes."""
    model.reshape({name: values.shape for name, values in next(iter(inputs)).items()})
    model, index = _watched(model, activations or watch_list(model))
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return compiled.create_infer_request(), index


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
    """Collected figures of one model, from one folder or several, opened for reading."""

    def __init__(self, *folders: Path) -> None:
        self._files: list[list[Array]] = []
        self._found: dict[tuple[str, int], dict[int, tuple[int, _Collected]]] = {}
        for number, folder in enumerate(folders):
            index = json.loads((folder / _INDEX).read_text("utf-8"))
            self.items: int = index["items"]
            self._files.append(
                [np.load(_item_file(folder, item), mmap_mode="r") for item in range(self.items)]
            )
            for row in index["activations"]:
                activation = Activation(**row["activation"])
                one = _Collected(activation, row["offset"], tuple(row["shape"]))
                axes = self._found.setdefault((activation.node, activation.port), {})
                axes[activation.axis] = (number, one)

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
        number, one = axes[chosen]
        return one.of(self._files[number][item]), chosen
