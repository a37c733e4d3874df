"""The UNet: as the device runs it, and as the denoising loop asks it.

Both guidance branches go through it in one batch, as halves of it side by side, or one after the
other. Side by side is quickest on a CPU: each half has its own share of the cores, and neither
waits for the other after every layer.
"""

import threading
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import openvino as ov

from sdcompress.runtime.arrays import Array, Float32
from sdcompress.runtime.components import Component, Shapes
from sdcompress.runtime.denoise import Unet
from sdcompress.runtime.device import Target, opened_model
from sdcompress.runtime.economy import IN_TURN, SIDE_BY_SIDE, TOGETHER, Economy
from sdcompress.runtime.graph import DEEP, offer_deep, split_gates, take_deep
from sdcompress.runtime.settings import Settings

_TEXT = "encoder_hidden_states"


class UnetComponent(Component):
    """The whole network."""

    inputs = ("sample", "timestep", _TEXT)

    def __init__(self, path: Path, target: Target) -> None:
        super().__init__("unet", path, target)

    def prepare(self, model: ov.Model) -> dict[str, ov.PartialShape]:
        # Exports declare whole timesteps, yet the graph turns them into floats at once. Samplers
        # such as Euler ask between two training steps, which integers would round away.
        timestep = model.input("timestep").get_node()
        timestep.set_element_type(ov.Type.f32)
        self.change(model)
        split_gates(model)
        model.validate_nodes_and_infer_types()
        declared = super().prepare(model)
        if declared[_TEXT][0].is_dynamic:
            # Exports fix 77 tokens also where all else is dynamic; long prompts have more.
            declared[_TEXT] = ov.PartialShape([-1, -1, declared[_TEXT][2]])
        return declared

    def change(self, model: ov.Model) -> None:
        """What else is done to the model's inputs and outputs: nothing."""

    @cached_property
    def declared(self) -> dict[str, ov.PartialShape]:
        """The shapes of the inputs that the file allows. Reads the file."""
        with opened_model(self._target, self.path) as model:
            self._require_inputs(model)
            return {name: model.input(name).partial_shape for name in self.inputs}

    @property
    def any_batch(self) -> bool:
        """Whether the file leaves open how many samples come at once."""
        return bool(self.declared["sample"][0].is_dynamic)

    def complete(
        self, declared: Mapping[str, ov.PartialShape], shapes: Shapes
    ) -> dict[str, ov.PartialShape]:
        asked = super().complete(declared, shapes)
        timestep = declared["timestep"]
        if "sample" in shapes and timestep.rank.get_length() == 1 and timestep.is_dynamic:
            asked["timestep"] = ov.PartialShape([shapes["sample"][0]])
        return asked

    def ask(
        self, branches: str, sample: Float32, timestep: float, *further: Float32
    ) -> tuple[Float32, ...]:
        """All outputs for a batch; `branches`, one of economy.BRANCHES, says how it is asked for.

        `further` are the inputs after the timestep.
        """
        parts = parts_of(branches, len(sample))
        columns = zip(*(np.split(values, parts) for values in (sample, *further)), strict=True)
        runs = [self._named(one, timestep, *rest) for one, *rest in columns]
        if branches == SIDE_BY_SIDE:
            found = self.infer_side_by_side(runs)
        else:
            found = [one for run in runs for one in self.infer_side_by_side([run])]
        return tuple(np.concatenate(outputs) for outputs in zip(*found, strict=True))

    def _named(self, sample: Float32, timestep: float, *further: Float32) -> dict[str, Array]:
        """Exports declare the timestep as a scalar, as one value or as one value per sample."""
        declared = self.declared["timestep"]
        shape = (len(sample),) if declared.is_dynamic else tuple(declared.to_shape())
        _, _, *names = (*self.inputs, *self.added)
        rest = dict(zip(names, further, strict=True))
        return {"sample": sample, "timestep": np.full(shape, timestep, np.float32), **rest}


def parts_of(branches: str, batch: int) -> int:
    """In how many parts a batch is asked for."""
    return 1 if branches == TOGETHER or batch % 2 else 2


class OfferingUnet(UnetComponent):
    """The whole network, which also returns what its outermost layers get from below."""

    outputs = (0, DEEP)

    def __init__(self, path: Path, target: Target, depth: int) -> None:
        super().__init__(path, target)
        self._depth = depth

    def change(self, model: ov.Model) -> None:
        offer_deep(model, self._depth)


class OuterUnet(UnetComponent):
    """The network's outermost layers, which are given what comes from below."""

    added = (DEEP,)

    def __init__(self, path: Path, target: Target, depth: int) -> None:
        super().__init__(path, target)
        self._depth = depth

    def change(self, model: ov.Model) -> None:
        take_deep(model, self._depth)


class CachedUnet:
    """Asks the whole network only at every `interval`-th call, the outermost layers at the others.

    What comes to them from below changes little from one timestep to the next (DeepCache,
    arXiv:2312.00858). Made anew for every denoising.
    """

    def __init__(self, whole: OfferingUnet, outer: OuterUnet, branches: str, interval: int) -> None:
        self._whole = partial(whole.ask, branches)
        self._outer = partial(outer.ask, branches)
        self._interval = interval
        self._calls = 0
        self._deep: Float32 | None = None

    def __call__(self, sample: Float32, timestep: float, encoder_hidden_states: Float32) -> Float32:
        due = self._calls % self._interval == 0
        self._calls += 1
        if due or self._deep is None or len(self._deep) < len(sample):
            noise, self._deep = self._whole(sample, timestep, encoder_hidden_states)
            return noise
        # Where guidance has ended, the second half is left: that of the prompt.
        deep = self._deep[-len(sample) :]
        return self._outer(sample, timestep, encoder_hidden_states, deep)[0]


_InUse = tuple[UnetComponent] | tuple[OfferingUnet, OuterUnet]


class Unets:
    """The UNet's file as whichever network the settings ask for; those not in use are given back.

    May be asked from several threads.
    """

    def __init__(self, path: Path, target: Target) -> None:
        self.plain = UnetComponent(path, target)
        self.in_use: _InUse = (self.plain,)
        self._path = path
        self._target = target
        self._lock = threading.Lock()
        self._depth = 0  # of the networks in use; 0 is the plain one

    @property
    def text_width(self) -> int:
        """Values of a token's embedding."""
        width: int = self.plain.declared[_TEXT][2].get_length()
        return width

    def asked(self, settings: Settings, economy: Economy) -> Unet:
        """What denoising asks with these settings; for one denoising."""
        branches = self.branches(settings, economy)
        parts = self._for(settings)
        if len(parts) > 1:
            return CachedUnet(*parts, branches, settings.cache_interval)
        return lambda *inputs: parts[0].ask(branches, *inputs)[0]

    def main(self, settings: Settings) -> UnetComponent:
        """The network that is asked first."""
        return self._for(settings)[0]

    def branches(self, settings: Settings, economy: Economy) -> str:
        """How the network is asked for the branches of guidance."""
        if economy.branches:
            return economy.branches
        busy = self._target.device != "CPU" or self._target.streams > 1
        if busy or not settings.guided or not self.plain.any_batch:
            return TOGETHER
        # One branch alone would leave half of the cores idle, and compiling anew takes longer
        # than two branches in turn cost.
        partly = (settings.guidance_begin, settings.guidance_end) != (0.0, 1.0)
        return IN_TURN if partly else SIDE_BY_SIDE

    def _for(self, settings: Settings) -> _InUse:
        depth = settings.cache_depth if settings.cache_interval > 1 else 0
        with self._lock:
            if depth != self._depth:
                for one in self.in_use:
                    one.release()
                self._depth = depth
                self.in_use = (self.plain,) if depth == 0 else (
                    OfferingUnet(self._path, self._target, depth),
                    OuterUnet(self._path, self._target, depth),
                )  # fmt: skip
            return self.in_use
