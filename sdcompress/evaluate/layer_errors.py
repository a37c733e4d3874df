"""Where in the UNet the error arises: SQNR of the output of every layer with weights.

Both UNets answer the same call, one of the baseline's own trajectory, and every layer's output is
compared by name. Errors of earlier layers arrive at the later ones, so a drop from one layer to the
next shows where much is lost, and the last layers what comes out.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdcompress.evaluate.pictures import Shot, Variant
from sdcompress.evaluate.records import LayerError, LayerErrors
from sdcompress.evaluate.sqnr import UnetCall, sqnr_db, trace
from sdcompress.ir import IR_NAME
from sdcompress.precision import layers_of
from sdcompress.progress import Advance
from sdcompress.runtime.device import Target, compile_model, read_model

Array = np.ndarray[Any, Any]


def measure_layers(
    baseline: Variant, candidate: Variant, shot: Shot, folder: Path, on_side: Advance
) -> LayerErrors:
    """Compares the layers in the middle of a picture's trajectory, in `folder` for scratch."""
    pipeline = baseline.open()
    calls = trace(pipeline, shot, baseline.settings).calls
    call = calls[len(calls) // 2]
    del pipeline, calls
    reference, quantized = (one.folder / "unet" / IR_NAME for one in (baseline, candidate))
    known = {layer.name for layer in layers_of(reference)}
    layers = [layer for layer in layers_of(quantized) if layer.name in known]
    names = [layer.name for layer in layers]
    outputs = _outputs(reference, baseline, names, call)
    for index, output in enumerate(outputs):
        np.save(folder / f"{index}.npy", output)  # all of a large UNet's are gigabytes
    on_side(1, 2)
    found = []
    for index, output in enumerate(_outputs(quantized, candidate, names, call)):
        file = folder / f"{index}.npy"
        found.append(sqnr_db(np.load(file), output))
        file.unlink()
    on_side(2, 2)
    return LayerErrors(
        round(call.timestep),
        tuple(
            LayerError(layer.name, layer.type, layer.precision, db)
            for layer, db in zip(layers, found, strict=True)
        ),
    )


def _outputs(xml: Path, variant: Variant, names: Sequence[str], call: UnetCall) -> Iterator[Array]:
    """The outputs of the named layers, float32, in their order."""
    target = Target(variant.device, variant.execution_precision)
    model = read_model(target, xml)
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    for name in names:
        model.add_outputs([nodes[name].output(0)])
    inputs = {
        "sample": call.sample,
        "timestep": _timestep(model.input("timestep"), call),
        "encoder_hidden_states": call.encoder_hidden_states,
    }
    model.reshape({name: list(values.shape) for name, values in inputs.items()})
    compiled = compile_model(target, model, "unet")
    request = compiled.create_infer_request()
    request.infer(inputs)
    first = len(compiled.outputs) - len(names)
    for index in range(first, len(compiled.outputs)):
        yield request.get_output_tensor(index).data.astype(np.float32)


def _timestep(port: Any, call: UnetCall) -> Array:
    """The call's timestep in the type and shape of the model's input."""
    kind = port.element_type.to_dtype()
    if port.partial_shape.rank.get_length() == 0:
        return np.array(call.timestep, kind)
    length = len(call.sample) if port.partial_shape.is_dynamic else port.shape[0]
    return np.full(length, call.timestep, kind)
