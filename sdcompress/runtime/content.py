"""What a model will hold when it is compiled, told from its graph."""

from dataclasses import dataclass, replace
from math import prod

import openvino as ov

from sdcompress.runtime.unpacking import packed_weights

# Fitted to Stable Diffusion 2.1, W8A8; docs/performance.md has the measurements.
_GRAPH_OF_ANOTHER_RUN = 0.61


@dataclass(frozen=True)
class Content:
    """Bytes of what is kept of a model's weights, of its largest layer's output, of its graph.

    `scores_bytes` are those of the largest attention's scores, where these are kept.
    """

    kept_bytes: int
    largest_output_bytes: int
    graph_bytes: int
    scores_bytes: int = 0

    def __add__(self, other: "Content") -> "Content":
        """What both hold when they are there at the same time."""
        return Content(
            self.kept_bytes + other.kept_bytes,
            self.largest_output_bytes + other.largest_output_bytes,
            self.graph_bytes + other.graph_bytes,
            self.scores_bytes + other.scores_bytes,
        )

    def times(self, runs: int) -> "Content":
        """The same with so many runs at once, which share weights and some of the graph."""
        return replace(
            self,
            largest_output_bytes=runs * self.largest_output_bytes,
            scores_bytes=runs * self.scores_bytes,
            graph_bytes=round((1 + _GRAPH_OF_ANOTHER_RUN * (runs - 1)) * self.graph_bytes),
        )


def content_of(
    model: ov.Model, float_bytes: int, graph_bytes: int, *, keeps_scores: bool = False
) -> Content:
    """Reads a model of fixed shapes, executed with `float_bytes` a floating-point value.

    `graph_bytes` are those of the file that describes the graph; `keeps_scores` tells that
    attention has its scores in memory as a whole.
    """
    weights = largest = scores = 0
    computed: set[str] = set()  # what depends on the inputs
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Constant":
            element = node.output(0).get_element_type()
            bits = 8 * float_bytes if element.is_real() else element.bitwidth
            weights += prod(node.output(0).shape) * bits // 8
            continue
        sources = [one.get_source_output().get_node() for one in node.inputs()]
        if kind != "Parameter" and computed.isdisjoint(one.get_name() for one in sources):
            continue
        computed.add(node.get_name())
        if keeps_scores and kind == "ScaledDotProductAttention":
            query, key = (node.get_input_partial_shape(place) for place in (0, 1))
            if query.is_static and key.is_static:
                values = prod(query.to_shape()[:-1]) * key.to_shape()[-2]
                scores = max(scores, float_bytes * values)
        for output in node.outputs():
            if output.partial_shape.is_static:
                largest = max(largest, float_bytes * prod(output.shape))
    unpacked = {stored.get_name(): stored for _, stored in packed_weights(model)}
    for stored in unpacked.values():
        more_bits = 8 * float_bytes - stored.get_element_type().bitwidth
        weights += prod(stored.output(0).shape) * more_bits // 8
    return Content(weights, largest, graph_bytes, scores)
