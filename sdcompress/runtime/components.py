"""The compiled parts of a pipeline, each a callable from arrays to an array.

A component is compiled at its first call, so a pipeline that only encodes prompts never pays for
the UNet. Calls may come from several threads; each borrows an inference request of its own.
"""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
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

Shapes = dict[str, tuple[int, ...]]

_TEXT = "encoder_hidden_states"


@dataclass(frozen=True)
class _Port:
    """An input: the shapes that the file allows, those it was compiled for, and its type."""

    declared: ov.PartialShape
    compiled: ov.PartialShape
    dtype: np.dtype[Any]


class _Request:
    """An inference request with input tensors of its own, filled anew for each run."""

    def __init__(self, compiled: ov.CompiledModel, output: str | int, *, alone: bool) -> None:
        self._alone = alone
        self._request = compiled.create_infer_request()
        self._output = compiled.output(output)
        self._buffers: dict[str, Array] = {}

    def run(self, values: Mapping[str, Array], ports: Mapping[str, _Port]) -> Float32:
        for name, value in values.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != value.shape:
                buffer = np.empty(value.shape, ports[name].dtype)
                self._request.set_tensor(name, ov.Tensor(buffer, shared_memory=True))
                self._buffers[name] = buffer
            np.copyto(buffer, value, casting="unsafe")
        if self._alone:
            self._request.infer()  # in this thread, whose caches are warm
        else:
            self._request.start_async()
            self._request.wait()
        return np.array(self._request.get_tensor(self._output).data, dtype=np.float32)


@dataclass
class _Executable:
    """A compiled model and the requests that nobody is using."""

    compiled: ov.CompiledModel
    ports: Mapping[str, _Port]
    output: str | int
    alone: bool  # no other request is executed beside
    provisional: bool = False  # compiled before any shape was known, though shapes matter
    idle: deque[_Request] = field(default_factory=deque)
    fitting: Shapes = field(default_factory=dict)  # those of the last call that was checked

    def borrow(self) -> _Request:
        try:
            return self.idle.pop()
        except IndexError:
            return _Request(self.compiled, self.output, alone=self.alone)

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

    inputs: tuple[str, ...] = ()
    output: str | None = None  # None: the first one

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
        return self._ready({}).compiled

    @property
    def execution_precision(self) -> str:
        return precision_in_force(self.compiled)

    def compile_for(self, shapes: Shapes) -> None:
        """Compile now what calls with inputs of these shapes need."""
        self._ready(shapes)

    def prepare(self, model: ov.Model) -> dict[str, ov.PartialShape]:
        """Adapt the model as it was read; returns the shapes of inputs that it then allows."""
        return {name: model.input(name).partial_shape for name in self.inputs}

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
            declared = self.prepare(model)
            asked = self.complete(declared, shapes)
            if not all(declared[name].compatible(shape) for name, shape in asked.items()):
                return None
            self._reshape(model, asked, shapes)
            content = content_of(model, float_bytes, self.path.stat().st_size)
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
        """Run once; returns an array that belongs to the caller."""
        shapes = {name: value.shape for name, value in values.items()}
        executable = self._ready(shapes)
        if shapes != executable.fitting:
            self._refuse(executable, shapes)
        request = executable.borrow()
        try:
            return request.run(values, executable.ports)
        except RuntimeError as fault:
            raise self._unsuitable(shapes, fault) from fault
        finally:
            executable.idle.append(request)

    def _ready(self, shapes: Shapes) -> _Executable:
        executables = self._executables
        if executables and executables[0].fits(shapes):
            return executables[0]
        with self._lock:
            fitting = next((one for one in self._executables if one.fits(shapes)), None)
            others = tuple(one for one in self._executables if one is not fitting)
            # What is not kept goes before the next one comes, for the sake of memory.
            self._executables = others[: self._target.streams - 1]
            if fitting is None:
                fitting = self._compile(shapes)
            self._executables = (fitting, *self._executables)
            return fitting

    def _compile(self, shapes: Shapes) -> _Executable:
        with opened_model(self._target, self.path) as model:
            return self._compile_model(model, shapes)

    def _compile_model(self, model: ov.Model, shapes: Shapes) -> _Executable:
        self._require_inputs(model)
        declared = self.prepare(model)
        self._fix_shapes(model, declared, shapes)
        compiled = compile_model(self._target, model, self.name)
        ports = {}
        for name in self.inputs:
            port = compiled.input(name)
            dtype = np.dtype(port.element_type.to_dtype())
            ports[name] = _Port(declared[name], port.partial_shape, dtype)
        return _Executable(
            compiled,
            ports,
            self.output or 0,
            alone=self._target.streams == 1,
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
    output = "last_hidden_state"

    def __call__(self, ids: Array) -> Float32:
        # Row by row, so that the number of prompts changes neither the model nor the last digit.
        return np.concatenate([self.infer({"input_ids": row[None]}) for row in ids])


class UnetComponent(Component):
    """The network the samplers ask; a `Unet` in the sense of :mod:`sdcompress.runtime.denoise`."""

    inputs = ("sample", "timestep", _TEXT)

    def prepare(self, model: ov.Model) -> dict[str, ov.PartialShape]:
        # Exports declare whole timesteps, yet the graph turns them into floats at once. Samplers
        # such as Euler ask between two training steps, which integers would round away.
        timestep = model.input("timestep").get_node()
        timestep.set_element_type(ov.Type.f32)
        model.validate_nodes_and_infer_types()
        declared = super().prepare(model)
        if declared[_TEXT][0].is_dynamic:
            # Exports fix 77 tokens also where all else is dynamic; long prompts have more.
            declared[_TEXT] = ov.PartialShape([-1, -1, declared[_TEXT][2]])
        return declared

    @cached_property
    def text_width(self) -> int:
        """Values of a token's embedding."""
        with opened_model(self._target, self.path) as model:
            self._require_inputs(model)
            width: int = model.input(_TEXT).partial_shape[2].get_length()
            return width

    def complete(
        self, declared: Mapping[str, ov.PartialShape], shapes: Shapes
    ) -> dict[str, ov.PartialShape]:
        asked = super().complete(declared, shapes)
        timestep = declared["timestep"]
        if "sample" in shapes and timestep.rank.get_length() == 1 and timestep.is_dynamic:
            asked["timestep"] = ov.PartialShape([shapes["sample"][0]])
        return asked

    def __call__(self, sample: Float32, timestep: float, encoder_hidden_states: Float32) -> Float32:
        declared = self._timestep_shape(
            {"sample": sample.shape, _TEXT: encoder_hidden_states.shape}
        )
        shape = (len(sample),) if declared.is_dynamic else tuple(declared.to_shape())
        return self.infer(
            {
                "sample": sample,
                "timestep": np.full(shape, timestep, np.float32),
                _TEXT: encoder_hidden_states,
            }
        )

    def _timestep_shape(self, shapes: Shapes) -> ov.PartialShape:
        """Exports declare the timestep as a scalar, as one value or as one value per sample."""
        executable = self._executables[0] if self._executables else self._ready(shapes)
        return executable.ports["timestep"].declared


class VaeDecoder(Component):
    """Unscaled latents float32 [n, 4, h/8, w/8] -> picture float32 [n, 3, h, w] in -1 to 1."""

    inputs = ("latent_sample",)
    output = "sample"

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
