"""A UNet each group of whose layers answers as in the baseline or as in a variant, call by call.

One compiled model has every layer twice, the variant's as the device will run it, and a switch
behind each pair. So the error of any choice of groups costs an inference, not a compilation.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from sdcompress.grafting import Joint, join
from sdcompress.ir import IR_NAME
from sdcompress.precision import layers_of
from sdcompress.runtime.device import Target, compile_model, opened_model
from sdcompress.search.groups import Group

Array = np.ndarray[Any, Any]
_SWITCHES = "switches"
_EXACT = "f32"


class Switchboard:
    """The baseline and one variant of it, both read from IR files, in one compiled model.

    Layers of none of the `groups` are the baseline's. `shapes` are those of the inputs.
    Floating-point layers run in float32. Raises BundleError for what is no IR and DeviceError for a
    device that is not there.
    """

    def __init__(
        self,
        baseline: Path,
        variant: Path,
        groups: Sequence[Group],
        shapes: Mapping[str, Sequence[int]],
        device: str = "CPU",
    ) -> None:
        target = Target(device, _EXACT)
        with opened_model(target, baseline) as model, opened_model(target, variant) as other:
            for one in (model, other):
                one.reshape({name: list(shape) for name, shape in shapes.items()})
            joints = join(model, other)
            self.groups = tuple(groups)
            compiled = compile_model(target, _switched(model, joints, self.groups), "unet")
        del model, other, joints
        self._request = compiled.create_infer_request()

    def ask(self, inputs: Mapping[str, Array], variant: Collection[str] = ()) -> Array:
        """The prediction float32 [batch, 4, h/8, w/8] with the named groups as in the variant."""
        switches = np.array([group.name in variant for group in self.groups])
        self._request.infer({**inputs, _SWITCHES: switches}, share_inputs=True)
        return np.array(self._request.get_output_tensor(0).data, np.float32)


def compressed_layers(baseline: Path, variants: Mapping[str, Path]) -> dict[str, set[str]]:
    """The layers of the baseline's IR that compression changes, in its order, and the variants.

    With weights, they are those that a variant has in integers; without, such as the products of
    attention, those that read what it quantizes.
    """
    core = ov.Core()
    found: dict[str, set[str]] = {}
    for name, folder in variants.items():
        variant = core.read_model(folder / IR_NAME)
        kept = {one.name for one in layers_of(variant) if not one.precision.startswith("int")}
        for joint in join(core.read_model(baseline), variant):
            if joint.name not in kept:
                found.setdefault(joint.name, set()).add(name)
    names = (one.get_friendly_name() for one in core.read_model(baseline).get_ordered_ops())
    return {name: found[name] for name in names if name in found}


def _switched(model: ov.Model, joints: Sequence[Joint], groups: Sequence[Group]) -> ov.Model:
    switches = opset.parameter([len(groups)], ov.Type.boolean, _SWITCHES)
    switches.output(0).set_names({_SWITCHES})
    conditions = {
        layer: opset.gather(switches, opset.constant(index), opset.constant(0))
        for index, group in enumerate(groups)
        for layer in group.layers
    }
    for joint in joints:
        if joint.name in conditions:
            chosen = opset.select(conditions[joint.name], joint.variant, joint.baseline)
            joint.lead(chosen.output(0))
    whole = ov.Model(model.get_results(), [*model.get_parameters(), switches])
    whole.validate_nodes_and_infer_types()
    return whole
