"""Puts layers of a compressed model into the model it was made from.

Both have the same layers under the same names. What lies between two layers of a compressed one,
quantizers, scales and compressed weights, belongs to the layer that reads it, so a layer can be
taken over together with that, and reads what the other model's layers return.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import openvino as ov

from sdcompress.activations import REARRANGING, bias_behind
from sdcompress.precision import weight_constant


@dataclass(frozen=True)
class Joint:
    """A layer that a variant computes in another way, and what comes out either way, bias included.

    `variant` already reads from the baseline's layers.
    """

    name: str
    baseline: ov.Output
    variant: ov.Output

    def lead(self, output: ov.Output) -> None:
        """Lets all that reads the baseline's result read `output` instead."""
        for reader in self.baseline.get_target_inputs():
            if reader.get_node() != output.get_node():
                reader.replace_source_output(output)


def join(baseline: ov.Model, variant: ov.Model) -> tuple[Joint, ...]:
    """Lets the variant's changed layers read from the baseline's and returns them in graph order.

    The baseline still computes what it did. The variant is of no other use afterwards.
    """
    known = {one.get_friendly_name(): one for one in baseline.get_ops()}
    graft = _Graft(known, {}, set())
    changed = [one for one in variant.get_ordered_ops() if graft.changes(one)]
    found = [
        Joint(name, _result(known[name]), _result(one))
        for one in changed
        if (name := one.get_friendly_name())
    ]
    for layer in changed:
        graft.root(layer)
    return tuple(found)


@dataclass(frozen=True)
class _Graft:
    """A variant on its way into the baseline, whose operations are `known` by name."""

    known: dict[str, ov.Node]
    told: dict[str, bool]
    rooted: set[str]

    def changes(self, operation: ov.Node) -> bool:
        """Whether an operation of the baseline reads something that the baseline does not have."""
        if operation.get_friendly_name() not in self.known or _only_rearranges(operation):
            return False
        if not operation.get_output_size() or not operation.get_output_element_type(0).is_real():
            return False  # computes shapes
        return any(self._is_new(one) for one in _inputs(operation))

    def _is_new(self, node: ov.Node) -> bool:
        """Whether what a node returns was quantized, scaled or compressed by the variant."""
        name = node.get_friendly_name()
        if name not in self.told:
            self.told[name] = node.get_type_name() != "Constant" and (
                name not in self.known
                or (_only_rearranges(node) and any(self._is_new(one) for one in _inputs(node)))
            )
        return self.told[name]

    def root(self, operation: ov.Node) -> None:
        """Follows what the variant put before an operation, and lets it begin in the baseline."""
        for place in operation.inputs():
            source = place.get_source_output()
            node = source.get_node()
            name = node.get_friendly_name()
            if not self._is_new(node) and weight_constant(node) is None:
                place.replace_source_output(self.known[name].output(source.get_index()))
            elif name not in self.rooted:
                self.rooted.add(name)
                self.root(node)


def _inputs(node: ov.Node) -> Iterator[ov.Node]:
    return (place.get_source_output().get_node() for place in node.inputs())


def _only_rearranges(node: ov.Node) -> bool:
    return node.get_type_name() in (*REARRANGING, "ShapeOf")


def _result(layer: ov.Node) -> ov.Output:
    biased = bias_behind(layer.output(0))
    return biased[0] if biased else layer.output(0)
