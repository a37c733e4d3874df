"""Where in the UNet the error arises: SQNR of the output of every layer with weights.

Both UNets answer the same call, one of the baseline's own trajectory, and every layer's output is
compared by name. Errors of earlier layers arrive at the later ones, so a drop from one layer to the
next shows where much is lost, and the last layers what comes out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from sdcompress.evaluate.pictures import Variant
from sdcompress.evaluate.records import LayerError, LayerErrors
from sdcompress.evaluate.sqnr import Trajectory, UnetCall, sqnr_db
from sdcompress.ir import IR_NAME
from sdcompress.precision import layers_of
from sdcompress.progress import Advance
from sdcompress.runtime.device import Target, compile_model, opened_model

Array = np.ndarray[Any, Any]
# Of the outputs of one execution: a full-size UNet's would be gigabytes all together.
WATCHED_BYTES = 1_000_000_000


def measure_layers(
    baseline: Variant,
    candidate: Variant,
    call_file: Path,
    folder: Path,
    on_run: Advance,
    most_bytes: int = WATCHED_BYTES,
) -> LayerErrors:
    """Compares the layers for a call, as `measure_sqnr` leaves one; `folder` is for scratch.

    Only so many layers are watched at once that their outputs take `most_bytes`.
    """
    (call,) = Trajectory.load(call_file).calls
    sides = [(one, one.folder / "unet" / IR_NAME) for one in (baseline, candidate)]
    known = {layer.name for layer in layers_of(sides[0][1])}
    layers = [layer for layer in layers_of(sides[1][1]) if layer.name in known]
    names = [layer.name for layer in layers]
    with _opened(*sides[0], call) as model:
        groups = _groups(model, names, most_bytes)
    numbers = count(1)

    def ran() -> None:
        on_run(next(numbers), 2 * len(groups))

    for index, output in enumerate(_outputs(*sides[0], groups, call, ran)):
        np.save(folder / f"{index}.npy", output)
    found = []
    for index, output in enumerate(_outputs(*sides[1], groups, call, ran)):
        file = folder / f"{index}.npy"
        found.append(sqnr_db(np.load(file), output))
        file.unlink()
    return LayerErrors(
        round(call.timestep),
        tuple(
            LayerError(layer.name, layer.type, layer.precision, db)
            for layer, db in zip(layers, found, strict=True)
        ),
    )


def _groups(model: ov.Model, names: Sequence[str], most_bytes: int) -> list[list[str]]:
    """The layers in order, so many together that their outputs in float32 take `most_bytes`."""
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    groups: list[list[str]] = []
    taken = most_bytes
    for name in names:
        size = 4 * prod(nodes[name].output(0).shape)
        if taken + size > most_bytes:
            groups.append([])
            taken = 0
        groups[-1].append(name)
        taken += size
    return groups


def _outputs(
    variant: Variant,
    xml: Path,
    groups: Sequence[Sequence[str]],
    call: UnetCall,
    on_run: Callable[[], None],
) -> Iterator[Array]:
    """The outputs of the named layers, float32, in their order."""
    for names in groups:
        yield from _executed(variant, xml, names, call)
        on_run()


def _executed(variant: Variant, xml: Path, names: Sequence[str], call: UnetCall) -> Iterator[Array]:
    """The same of one group. Its compiled model is gone before the next one is compiled."""
    with _opened(variant, xml, call) as model:
        nodes = {node.get_friendly_name(): node for node in model.get_ops()}
        for name in names:
            model.add_outputs([nodes[name].output(0)])
        inputs = _inputs(model, call)
        compiled = compile_model(_target(variant), model, "unet")
    del model, nodes
    request = compiled.create_infer_request()
    request.infer(inputs)
    for index in range(len(compiled.outputs) - len(names), len(compiled.outputs)):
        yield request.get_output_tensor(index).data.astype(np.float32)


@contextmanager
def _opened(variant: Variant, xml: Path, call: UnetCall) -> Iterator[ov.Model]:
    """The UNet, its inputs as large as the call's."""
    with opened_model(_target(variant), xml) as model:
        model.reshape({name: list(one.shape) for name, one in _inputs(model, call).items()})
        yield model


def _target(variant: Variant) -> Target:
    return Target(variant.device, variant.execution_precision)


def _inputs(model: ov.Model, call: UnetCall) -> dict[str, Array]:
    return {
        "sample": call.sample,
        "timestep": _timestep(model.input("timestep"), call),
        "encoder_hidden_states": call.encoder_hidden_states,
    }


def _timestep(port: Any, call: UnetCall) -> Array:
    """The call's timestep in the type and shape of the model's input."""
    kind = port.element_type.to_dtype()
    if port.partial_shape.rank.get_length() == 0:
        return np.array(call.timestep, kind)
    length = len(call.sample) if port.partial_shape.is_dynamic else port.shape[0]
    return np.full(length, call.timestep, kind)
