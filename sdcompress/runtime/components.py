"""The compiled parts of a pipeline, each a callable from arrays to an array.

A component is compiled at its first call, so a pipeline that only encodes prompts never pays for
the UNet.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import openvino as ov

from sdcompress.runtime.arrays import Array, Float32
from sdcompress.runtime.device import Target, compile_model, precision_in_force, read_model
from sdcompress.runtime.errors import BundleError, InputError


class Component:
    """One IR file on one device."""

    inputs: tuple[str, ...] = ()
    output: str | None = None  # None: the first one

    def __init__(self, name: str, path: Path, target: Target) -> None:
        self.name = name
        self.path = path
        self._target = target

    @cached_property
    def compiled(self) -> ov.CompiledModel:
        model = read_model(self._target, self.path)
        names = {port.get_any_name() for port in model.inputs}
        if names != set(self.inputs):
            raise BundleError(
                f"{self.path} takes the inputs {sorted(names)}, but {sorted(self.inputs)} are "
                "expected: it is not a Stable Diffusion 1 or 2 model of the kind run here."
            )
        self.prepare(model)
        return compile_model(self._target, model, self.name)

    @cached_property
    def _request(self) -> ov.InferRequest:
        return self.compiled.create_infer_request()

    @property
    def execution_precision(self) -> str:
        return precision_in_force(self.compiled)

    @property
    def is_compiled(self) -> bool:
        return "compiled" in self.__dict__

    def prepare(self, model: ov.Model) -> None:
        """Adapt the model before compilation."""

    def infer(self, values: Mapping[str, Array]) -> Float32:
        """Run once; returns an array that belongs to the caller."""
        typed = {name: self._fitted(name, value) for name, value in values.items()}
        try:
            results = self._request.infer(typed, share_inputs=True)
        except RuntimeError as fault:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in typed.items())
            raise InputError(
                f"{self.name} cannot process inputs of these shapes: {shapes}. Choose a width and "
                f"height near the model's own. ({str(fault).strip().splitlines()[-1].strip()})"
            ) from fault
        output = results[self.output or 0]
        return np.asarray(output, dtype=np.float32)

    def _fitted(self, name: str, value: Array) -> Array:
        port = self.compiled.input(name)
        if not port.partial_shape.compatible(ov.PartialShape(list(value.shape))):
            raise InputError(
                f"{self.name} in {self.path.parent} was built for {name} of shape "
                f"{port.partial_shape}, but got {list(value.shape)}. Use the size, and guidance on "
                "or off, that it was built for, or build it again with dynamic shapes."
            )
        return np.ascontiguousarray(value, dtype=port.element_type.to_dtype())


class TextEncoder(Component):
    """Token ids int64 [n, 77] -> embeddings float32 [n, 77, d]."""

    inputs = ("input_ids",)
    output = "last_hidden_state"

    def __call__(self, ids: Array) -> Float32:
        return self.infer({"input_ids": ids})


class UnetComponent(Component):
    """The network the samplers ask; a `Unet` in the sense of :mod:`sdcompress.runtime.denoise`."""

    inputs = ("sample", "timestep", "encoder_hidden_states")

    def prepare(self, model: ov.Model) -> None:
        # Exports declare whole timesteps, yet the graph turns them into floats at once. Samplers
        # such as Euler ask between two training steps, which integers would round away.
        timestep = model.input("timestep").get_node()
        timestep.set_element_type(ov.Type.f32)
        model.validate_nodes_and_infer_types()

    def __call__(self, sample: Float32, timestep: float, encoder_hidden_states: Float32) -> Float32:
        shape = self._timestep_shape(len(sample))
        return self.infer(
            {
                "sample": sample,
                "timestep": np.full(shape, timestep, dtype=np.float32),
                "encoder_hidden_states": encoder_hidden_states,
            }
        )

    def _timestep_shape(self, batch: int) -> tuple[int, ...]:
        """Exports declare the timestep as a scalar, as one value or as one value per sample."""
        shape = self.compiled.input("timestep").partial_shape
        if shape.rank.is_static and shape.rank.get_length() == 0:
            return ()
        return tuple(shape.to_shape()) if shape.is_static else (batch,)


class VaeDecoder(Component):
    """Unscaled latents float32 [n, 4, h/8, w/8] -> picture float32 [n, 3, h, w] in -1 to 1."""

    inputs = ("latent_sample",)
    output = "sample"

    def __call__(self, latents: Float32) -> Float32:
        return self.infer({"latent_sample": latents})
