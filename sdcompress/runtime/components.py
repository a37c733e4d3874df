"""The compiled parts of a pipeline, each a callable from arrays to an array.

A component is compiled at its first call, so a pipeline that only encodes prompts never pays for
the UNet. Calls may come from several threads; each borrows an inference request of its own.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from sdcompress.runtime.arrays import Array, Float32
from sdcompress.runtime.content import Content, content_of
from sdcompress.runtime.device import (
    Target,
    compile_model,
    opened_model,
    precision_by_default,
    precision_in_force,
)
from sdcompress.runtime.errors import BundleError, InputError
from sdcompress.runtime.mapping import GIVES_BACK, give_back_freed
from sdcompress.runtime.noise import Noise
from sdcompress.runtime.processor import keeps_attention_scores
from sdcompress.runtime.upsampling import convolve_before_doubling

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Port:
    """An input: the shapes that the file allows, those it was compiled for, and its type."""

    declared: ov.PartialShape
    compiled: ov.PartialShape
    dtype: np.dtype[Any]


class _Request:
    """An inference request with input tensors of its own, filled anew for each run."""

    def __init__(
        self, compiled: ov.CompiledModel, outputs: Sequence[str | int], *, alone: bool
    ) -> None:
        self._alone = alone
        self._request = compiled.create_infer_request()
        self._outputs = [compiled.output(one) for one in outputs]
        self._buffers: dict[str, Array] = {}

    def start(self, values: Mapping[str, Array], ports: Mapping[str, _Port]) -> None:
        """Begins a run, if others may run beside it."""
        for name, value in values.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != value.shape:
                buffer = np.empty(value.shape, ports[name].dtype)
                self._request.set_tensor(name, ov.Tensor(buffer, shared_memory=True))
                self._buffers[name] = buffer
            np.copyto(buffer, value, casting="unsafe")
        if not self._alone:
            self._request.start_async()

    def finish(self) -> tuple[Float32, ...]:
        """The outputs of the run that was begun."""
        if self._alone:
            self._request.infer()  # in this thread, whose caches are warm
        else:
            self._request.wait()
        return tuple(
            np.array(self._request.get_tensor(one).data, dtype=np.float32) for one in self._outputs
        )


@dataclass
class _Executable:
    """A compiled model and the requests that nobody is using."""

    compiled: ov.CompiledModel
    ports: Mapping[str, _Port]
    outputs: Sequence[str | int]
    streams: int  # requests that are executed side by side
    provisional: bool = False  # compiled before any shape was known, though shapes matter
    idle: deque[_Request] = field(default_factory=deque)
    fitting: Shapes = field(default_factory=dict)  # those of the last call that was checked

    def borrow(self) -> _Request:
        try:
            return self.idle.pop()
        except IndexError:
            return _Request(self.compiled, self.outputs, alone=self.streams == 1)

    def fits(self, shapes: Shapes) -> bool:
        """Whether inputs of these shapes can be run, or never will be, whatever is compiled."""
        if shapes == self.fitting:
            return True
        if self.provisional:
            return not shapes
        ports = [(self.ports[name], ov.PartialShape(shape)) for name, shape in shapes.items()]
        if all(port.compiled.compatible(shape) for port, shape in ports):
            self.fitting = shapes
            return True
        return not all(port.declared.compatible(shape) for port, shape in ports)


class Component:
    """One IR file on one device."""

    inputs: tuple[str, ...] = ()  # of the file
    added: tuple[str, ...] = ()  # inputs that `prepare` adds
    outputs: tuple[str | int, ...] = (0,)
    copied_bytes = 0  # of weights, by `prepare`

    def __init__(self, name: str, path: Path, target: Target) -> None:
        self.name = name
        self.path = path
        self._target = target
        self._lock = threading.Lock()
        # The last used comes first. There are as many as streams, which may need different ones.
        self._executables: tuple[_Executable, ...] = ()
        self._contents: dict[tuple[object, ...], Content | None] = {}

    @property
    def compiled(self) -> ov.CompiledModel:
        return self._ready({}, None).compiled

    @property
    def execution_precision(self) -> str:
        return precision_in_force(self.compiled)

    def compile_for(self, shapes: Shapes, side_by_side: int = 1) -> None:
        """Compile now what calls with inputs of these shapes need."""
        self._ready(shapes, side_by_side)

    def prepare(self, model: ov.Model) -> dict[str, ov.PartialShape]:
        """Adapt the model as it was read; returns the shapes of inputs that it then allows."""
        return {name: model.input(name).partial_shape for name in (*self.inputs, *self.added)}

    def settle(self, model: ov.Model) -> None:
        """Adapt the model once its shapes are as fixed as they will be: not at all."""

    def complete(
        self, declared: Mapping[str, ov.PartialShape], shapes: Shapes
    ) -> dict[str, ov.PartialShape]:
        """The shapes of all inputs, as far as those that are known tell them."""
        del declared
        return {name: ov.PartialShape(shape) for name, shape in shapes.items()}

    def content(self, shapes: Shapes) -> Content | None:
        """What compiling for inputs of these shapes will put into memory; None if it cannot be.

        Reads the file.
        """
        key = tuple(shapes.items())
        if key not in self._contents:
            self._contents[key] = self._read_content(shapes)
        return self._contents[key]

    def _read_content(self, shapes: Shapes) -> Content | None:
        float_bytes = 4 if precision_by_default(self._target) == "f32" else 2
        with opened_model(self._target, self.path) as model:
            self._require_inputs(model)
            whole = len(model.get_ops())
            declared = self.prepare(model)
            asked = self.complete(declared, shapes)
            if not all(declared[name].compatible(shape) for name, shape in asked.items()):
                return None
            self._reshape(model, asked, shapes)
            graph_bytes = self.path.stat().st_size * len(model.get_ops()) // whole
            keeps_scores = keeps_attention_scores()
            content = content_of(model, float_bytes, graph_bytes, keeps_scores=keeps_scores)
            content = replace(content, kept_bytes=content.kept_bytes + self.copied_bytes)
        if GIVES_BACK:
            return content
        mapped = self.path.with_suffix(".bin").stat().st_size
        return replace(content, kept_bytes=content.kept_bytes + mapped)

    def release(self) -> None:
        """Give back the memory of what was compiled. The next call compiles again."""
        with self._lock:
            self._executables = ()
        give_back_freed()

    def infer(self, values: Mapping[str, Array]) -> Float32:
        """Run once; returns the first output, an array that belongs to the caller."""
        return self.infer_side_by_side([values])[0][0]

    def infer_side_by_side(self, runs: Sequence[Mapping[str, Array]]) -> list[tuple[Float32, ...]]:
        """Run once for each of several inputs, all of the same shapes; returns all outputs."""
        shapes = {name: value.shape for name, value in runs[0].items()}
        executable = self._ready(shapes, len(runs))
        if shapes != executable.fitting:
            self._refuse(executable, shapes)
        requests = [executable.borrow() for _ in runs]
        try:
            for request, values in zip(requests, runs, strict=True):
                request.start(values, executable.ports)
            found = [request.finish() for request in requests]
        except RuntimeError as fault:
            raise self._unsuitable(shapes, fault) from fault
        executable.idle.extend(requests)  # not after a fault: others may still be running
        return found

    def _ready(self, shapes: Shapes, side_by_side: int | None = 1) -> _Executable:
        """What runs inputs of these shapes, so many at once; None is content with any number."""
        streams = side_by_side and max(side_by_side, self._target.streams)

        def serves(one: _Executable) -> bool:
            return streams in (None, one.streams) and one.fits(shapes)

        executables = self._executables
        if executables and serves(executables[0]):
            return executables[0]
        with self._lock:
            fitting = next((one for one in self._executables if serves(one)), None)
            others = tuple(one for one in self._executables if one is not fitting)
            # What is not kept goes before the next one comes, for the sake of memory.
            self._executables = others[: self._target.streams - 1]
            if fitting is None:
                fitting = self._compile(shapes, streams or self._target.streams)
            self._executables = (fitting, *self._executables)
            return fitting

    def _compile(self, shapes: Shapes, streams: int) -> _Executable:
        with opened_model(self._target, self.path) as model:
            return self._compile_model(model, shapes, streams)

    def _compile_model(self, model: ov.Model, shapes: Shapes, streams: int) -> _Executable:
        self._require_inputs(model)
        declared = self.prepare(model)
        self._fix_shapes(model, declared, shapes)
        self.settle(model)
        compiled = compile_model(replace(self._target, streams=streams), model, self.name)
        ports = {}
        for name, allowed in declared.items():
            port = compiled.input(name)
            dtype = np.dtype(port.element_type.to_dtype())
            ports[name] = _Port(allowed, port.partial_shape, dtype)
        return _Executable(
            compiled,
            ports,
            self.outputs,
            streams,
            provisional=self._target.static and not shapes,
        )

    def _require_inputs(self, model: ov.Model) -> None:
        names = {port.get_any_name() for port in model.inputs}
        if names != set(self.inputs):
            raise BundleError(
                f"{self.path} takes the inputs {sorted(names)}, but {sorted(self.inputs)} are "
                "expected: it is not a Stable Diffusion 1 or 2 model of the kind run here."
            )

    def _fix_shapes(
        self, model: ov.Model, declared: Mapping[str, ov.PartialShape], shapes: Shapes
    ) -> None:
        """Makes the model fit the shapes, and nothing but them if the target is static."""
        asked = self.complete(declared, shapes)
        if not all(declared[name].compatible(shape) for name, shape in asked.items()):
            return  # what does not fit is reported when the values come
        if self._target.static:
            changed = asked
        else:
            changed = {
                name: declared[name]
                for name, shape in asked.items()
                if not model.input(name).partial_shape.compatible(shape)
            }
        if changed:
            self._reshape(model, changed, shapes)

    def _reshape(
        self, model: ov.Model, changed: Mapping[str, ov.PartialShape], shapes: Shapes
    ) -> None:
        try:
            model.reshape(dict(changed))
        except RuntimeError as fault:
            raise self._unsuitable(shapes, fault) from fault

    def _unsuitable(self, shapes: Shapes, fault: Exception) -> InputError:
        sizes = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        reason = str(fault).strip().splitlines()[-1].strip()
        return InputError(
            f"{self.name} cannot process inputs of these shapes: {sizes}. Choose a width and "
            f"height near the model's own. ({reason})"
        )

    def _refuse(self, executable: _Executable, shapes: Shapes) -> None:
        for name, shape in shapes.items():
            port = executable.ports[name]
            if not port.compiled.compatible(ov.PartialShape(shape)):
                raise InputError(
                    f"{self.name} in {self.path.parent} was built for {name} of shape "
                    f"{port.declared}, but got {list(shape)}. Use the size, and guidance on "
                    "or off, that it was built for, or build it again with dynamic shapes."
                )


class TextEncoder(Component):
    """Token ids int64 [n, 77] -> embeddings float32 [n, 77, d]."""

    inputs = ("input_ids",)
    outputs = ("last_hidden_state",)

    def __call__(self, ids: Array) -> Float32:
        # Row by row, so that the number of prompts changes neither the model nor the last digit.
        return np.concatenate([self.infer({"input_ids": row[None]}) for row in ids])


class VaeDecoder(Component):
    """Unscaled latents float32 [n, 4, h/8, w/8] -> picture float32 [n, 3, h, w] in -1 to 1."""

    inputs = ("latent_sample",)
    outputs = ("sample",)

    def prepare(self, model: ov.Model) -> dict[str, ov.PartialShape]:
        if self._target.device == "CPU":  # others were not measured
            self.copied_bytes = sum(convolve_before_doubling(model))
        return super().prepare(model)

    def __call__(self, latents: Float32) -> Float32:
        return self.infer({"latent_sample": latents})


class VaeEncoder(Component):
    """Picture float32 [n, 3, h, w] in -1 to 1 -> unscaled latents float32 [n, 4, h/8, w/8]."""

    inputs = ("sample",)

    def __call__(self, pixels: Float32, noise: Noise) -> Float32:
        """Draws from the distribution that the encoder gives for the picture."""
        mean, log_variance = np.split(self.infer({"sample": pixels}), 2, axis=1)
        deviation = np.exp(0.5 * np.clip(log_variance, -30.0, 20.0))
        return np.asarray(mean + deviation * noise.normal(mean.shape), dtype=np.float32)
