"""The UNet: as the device runs it, and as the denoising loop asks it.

Both guidance branches go through it in one batch, as halves of it side by side, or one after the
other. Side by side is quickest on a CPU: each half has its own share of the cores, and neither
waits for the other after every layer.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import openvino as ov

from sdcompress.runtime.arrays import Array, Float32
from sdcompress.runtime.components import Component, Shapes
from sdcompress.runtime.denoise import Unet
from sdcompress.runtime.device import Target, opened_model
from sdcompress.runtime.economy import BRANCHES, IN_TURN, SIDE_BY_SIDE, TOGETHER, Economy
from sdcompress.runtime.errors import InputError
from sdcompress.runtime.graph import DEEP, offer_deep, split_gates, take_deep, thin_attention
from sdcompress.runtime.settings import Settings

_TEXT = "encoder_hidden_states"


class UnetComponent(Component):
    """The whole network."""

    inputs = ("sample", "timestep", _TEXT)
    whole = True  # not only some of its layers

    def __init__(
        self,
        path: Path,
        target: Target,
        attention_stride: int = 1,
        declared: "Declared | None" = None,
    ) -> None:
        super().__init__("unet", path, target)
        self.declared = declared or Declared(self)
        self._attention_stride = attention_stride

    def prepare(self, model: ov.Model) -> dict[str, ov.PartialShape]:
        # Exports declare whole timesteps, yet the graph turns them into floats at once. Samplers
        # such as Euler ask between two training steps, which integers would round away.
        timestep = model.input("timestep").get_node()
        timestep.set_element_type(ov.Type.f32)
        self.change(model)
        self.copied_bytes = sum(split_gates(model))
        model.validate_nodes_and_infer_types()
        declared = super().prepare(model)
        if declared[_TEXT][0].is_dynamic:
            # Exports fix 77 tokens also where all else is dynamic; long prompts have more.
            declared[_TEXT] = ov.PartialShape([-1, -1, declared[_TEXT][2]])
        return declared

    def change(self, model: ov.Model) -> None:
        """What else is done to the model's inputs and outputs: nothing."""

    def shapes(self, asked: Shapes) -> Shapes:
        """Those of all inputs but the timestep, when these are asked for."""
        return asked

    def settle(self, model: ov.Model) -> None:
        # Shapes are open where nothing is known of them yet; what is compiled then is not used.
        if self._attention_stride == 1 or model.input("sample").partial_shape.is_dynamic:
            return
        if not thin_attention(model, self._attention_stride) and self.whole:
            raise InputError(
                f"attention_stride is {self._attention_stride}, but {self.path} has no attention "
                "over all latent cells that could be thinned: leave it at 1."
            )

    def read_declared(self) -> dict[str, ov.PartialShape]:
        """The shapes of the inputs that the file allows."""
        with opened_model(self._target, self.path) as model:
            self._require_inputs(model)
            return {name: model.input(name).partial_shape for name in self.inputs}

    def complete(
        self, declared: Mapping[str, ov.PartialShape], shapes: Shapes
    ) -> dict[str, ov.PartialShape]:
        asked = super().complete(declared, shapes)
        timestep = declared["timestep"]
        if "sample" in shapes and timestep.rank.get_length() == 1 and timestep.is_dynamic:
            asked["timestep"] = ov.PartialShape([shapes["sample"][0]])
        return asked

    def ask(
        self, asking: "Asking", sample: Float32, timestep: float, *further: Float32
    ) -> tuple[Float32, ...]:
        """All outputs for a batch; `further` are the inputs after the timestep."""
        parts = asking.parts(len(sample))
        columns = zip(*(np.split(values, parts) for values in (sample, *further)), strict=True)
        runs = [self._named(one, timestep, *rest) for one, *rest in columns]
        if asking.branches == SIDE_BY_SIDE:
            found = self.infer_side_by_side(runs)
        else:
            found = [one for run in runs for one in self.infer_side_by_side([run])]
        return tuple(np.concatenate(outputs) for outputs in zip(*found, strict=True))

    def _named(self, sample: Float32, timestep: float, *further: Float32) -> dict[str, Array]:
        """Exports declare the timestep as a scalar, as one value or as one value per sample."""
        declared = self.declared.shapes["timestep"]
        shape = (len(sample),) if declared.is_dynamic else tuple(declared.to_shape())
        _, _, *names = (*self.inputs, *self.added)
        rest = dict(zip(names, further, strict=True))
        return {"sample": sample, "timestep": np.full(shape, timestep, np.float32), **rest}


class Declared:
    """What a UNet's file says of its inputs. Reads it when it is first asked."""

    def __init__(self, unet: UnetComponent) -> None:
        self._unet = unet

    @cached_property
    def shapes(self) -> dict[str, ov.PartialShape]:
        """The shapes of the inputs that the file allows."""
        return self._unet.read_declared()

    @property
    def any_batch(self) -> bool:
        """Whether the file leaves open how many samples come at once."""
        return bool(self.shapes["sample"][0].is_dynamic)

    @property
    def text_width(self) -> int | None:
        """Values of a token's embedding; None where the file leaves that open."""
        width = self.shapes[_TEXT][2]
        return width.get_length() if width.is_static else None


@dataclass(frozen=True)
class Asking:
    """One of economy.BRANCHES, for so many pictures at once."""

    branches: str
    pictures: int

    def parts(self, batch: int) -> int:
        """In how many parts a batch is asked for: a branch of guidance is one."""
        return 2 if self.branches != TOGETHER and batch == 2 * self.pictures else 1


class _DividedUnet(UnetComponent):
    """A network that is divided at so many skip connections from the outside."""

    def __init__(self, path: Path, target: Target, stride: int, declared: Declared, depth: int):
        super().__init__(path, target, stride, declared)
        self._depth = depth


class OfferingUnet(_DividedUnet):
    """The whole network, which also returns what its outermost layers get from below."""

    outputs = (0, DEEP)

    def change(self, model: ov.Model) -> None:
        offer_deep(model, self._depth)


class OuterUnet(_DividedUnet):
    """The network's outermost layers, which are given what comes from below."""

    added = (DEEP,)
    whole = False

    def __init__(self, path: Path, target: Target, stride: int, declared: Declared, depth: int):
        super().__init__(path, target, stride, declared, depth)
        self._from_below: dict[tuple[object, ...], tuple[int, ...]] = {}

    def change(self, model: ov.Model) -> None:
        take_deep(model, self._depth)

    def shapes(self, asked: Shapes) -> Shapes:
        key = tuple(asked.items())
        if key not in self._from_below:
            self._from_below[key] = self._read_from_below(asked)
        return asked | {DEEP: self._from_below[key]}

    def _read_from_below(self, asked: Shapes) -> tuple[int, ...]:
        """The shape of what comes from below, for which the file is read."""
        with opened_model(self._target, self.path) as model:
            offer_deep(model, self._depth)
            model.reshape({name: ov.PartialShape(shape) for name, shape in asked.items()})
            deep = model.output(DEEP).partial_shape
            return (asked["sample"][0], *(one.get_length() for one in [*deep][1:]))


class CachedUnet:
    """Asks the whole network only at every `interval`-th call, the outermost layers at the others.

    What comes to them from below changes little from one timestep to the next (DeepCache,
    arXiv:2312.00858). Made anew for every denoising.
    """

    def __init__(
        self, whole: OfferingUnet, outer: OuterUnet, asking: Asking, interval: int
    ) -> None:
        self._whole = partial(whole.ask, asking)
        self._outer = partial(outer.ask, asking)
        self._interval = interval
        self._since = 0  # calls since the whole network was asked, that one included
        self._deep: Float32 | None = None

    def __call__(self, sample: Float32, timestep: float, encoder_hidden_states: Float32) -> Float32:
        due = self._since == self._interval
        self._since += 1
        if due or self._deep is None or len(self._deep) < len(sample):
            self._since = 1
            noise, self._deep = self._whole(sample, timestep, encoder_hidden_states)
            return noise
        # Where guidance has ended, the second half is left: that of the prompt.
        deep = self._deep[-len(sample) :]
        return self._outer(sample, timestep, encoder_hidden_states, deep)[0]


_InUse = tuple[UnetComponent] | tuple[OfferingUnet, OuterUnet]


class Unets:
    """The UNet's file as whichever network the settings ask for; those not in use are given back.

    May be asked from several threads, with the same settings.
    """

    def __init__(self, path: Path, target: Target) -> None:
        plain = UnetComponent(path, target)
        self.declared = plain.declared
        self._path = path
        self._target = target
        self._lock = threading.Lock()
        # By attention stride and depth of the division; 0 is not divided.
        self._made: dict[tuple[int, int], _InUse] = {(1, 0): (plain,)}
        self._kind = (1, 0)

    @property
    def in_use(self) -> _InUse:
        """The networks that were asked last: the whole one comes first."""
        return self._made[self._kind]

    def release(self) -> None:
        """Give back the memory of all networks, until they are used again."""
        for parts in [*self._made.values()]:
            for one in parts:
                one.release()

    def asked(self, settings: Settings, economy: Economy, pictures: int) -> Unet:
        """What denoising asks with these settings, for so many pictures; for one denoising."""
        asking = Asking(self.branches(settings, economy), pictures)
        parts = self.parts(settings)
        if len(parts) > 1:
            return CachedUnet(*parts, asking, settings.cache_interval)
        return lambda *inputs: parts[0].ask(asking, *inputs)[0]

    def branches(self, settings: Settings, economy: Economy) -> str:
        """How the network is asked for the branches of guidance.

        Raises InputError for a guidance interval where the file fixes the batch.
        """
        if settings.partly_guided and not self.declared.any_batch:
            raise InputError(
                "guidance_begin and guidance_end need a UNet that takes any batch, and "
                f"{self._path} takes {self.declared.shapes['sample'][0]} samples only. Leave them "
                "out, or build it again with convert.batch: null."
            )
        if economy.branches:
            return economy.branches
        if not settings.guided or not self.declared.any_batch:
            return TOGETHER
        if settings.partly_guided:
            # One branch alone would leave half of the cores idle that were shared before, and
            # compiling anew takes longer than two branches in turn cost.
            return IN_TURN
        busy = self._target.device != "CPU" or self._target.streams > 1
        return TOGETHER if busy else SIDE_BY_SIDE

    def other_branches(self, settings: Settings) -> tuple[str, ...]:
        """The ways to ask for the branches of guidance that may be quicker than the usual one.

        With guidance for some calls only there are none: others compile anew in every picture.
        """
        if not settings.guided or settings.partly_guided or not self.declared.any_batch:
            return ()
        usual = self.branches(settings, Economy())
        return tuple(way for way in BRANCHES if way != usual)

    def parts(self, settings: Settings) -> _InUse:
        """The networks that are asked with these settings, the whole one first."""
        depth = settings.cache_depth if settings.cache_interval > 1 else 0
        kind = (settings.attention_stride, depth)
        with self._lock:
            if kind not in self._made:
                self._made[kind] = self._make(*kind)
            if kind != self._kind:
                for one in self.in_use:
                    one.release()
                self._kind = kind
            return self._made[kind]

    def _make(self, stride: int, depth: int) -> _InUse:
        if stride > 1 and not self._target.static:
            raise InputError(
                f"attention_stride is {stride}, which needs models that are compiled for one size: "
                "draw with --static."
            )
        if depth:
            given = (self._path, self._target, stride, self.declared, depth)
            return OfferingUnet(*given), OuterUnet(*given)
        return (UnetComponent(self._path, self._target, stride, self.declared),)
