"""Teaches the vision tower what is where; contrast with captions alone learns that too slowly.

Linear heads name, for each patch, what covers it, and for the whole picture, what each colour
shows. Objects never share a colour, so a colour is a slot. The heads are dropped after training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from sdcompress.demo.grammar import BACKGROUNDS, COLOURS, SHAPES, SIZES
from sdcompress.demo.render import RADII, SIZE, Placed
from sdcompress.demo.train.data import Example

_COLOURS, _SHAPES, _BACKGROUNDS = list(COLOURS), list(SHAPES), list(BACKGROUNDS)
_PATCH_FIELDS = (len(_SHAPES) + 1, len(_COLOURS), len(SIZES))
_SLOT = len(_SHAPES) + 1 + len(SIZES) + 2  # shape or nothing, size, position
_UNUSED = -100  # cross_entropy's ignored index


@dataclass(frozen=True)
class Names:
    """What is to be named: indices, `_UNUSED` where nothing is shown.

    patches [n, 3, rows, columns]: 0 or shape + 1, colour, size. slots [n, colours, 2]: 0 or shape
    + 1, size. positions [n, colours, 2] in -1..1. backgrounds [n].
    """

    patches: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor
    backgrounds: torch.Tensor

    def to(self, place: torch.device) -> "Names":
        """Moves all of them."""
        return Names(
            self.patches.to(place),
            self.slots.to(place),
            self.positions.to(place),
            self.backgrounds.to(place),
        )


class Naming(torch.nn.Module):
    """The heads: patch states [n, patches, width] and picture embeddings [n, projection]."""

    def __init__(self, width: int, projection: int) -> None:
        super().__init__()
        self.patch = torch.nn.Linear(width, sum(_PATCH_FIELDS))
        self.slots = torch.nn.Linear(projection, len(_COLOURS) * _SLOT)
        self.background = torch.nn.Linear(projection, len(_BACKGROUNDS))

    def loss(self, patches: torch.Tensor, embeds: torch.Tensor, names: Names) -> torch.Tensor:
        """Returns the cross-entropies of all names and the squared error of positions, summed."""
        fields = self.patch(patches).float().split(_PATCH_FIELDS, dim=-1)
        wanted = names.patches.flatten(2).unbind(1)
        shape, colour, size = (
            functional.cross_entropy(field.flatten(0, 1), one.flatten(), ignore_index=_UNUSED)
            for field, one in zip(fields, wanted, strict=True)
        )
        return shape + 0.3 * (colour + size) + self._picture_loss(embeds, names)

    def _picture_loss(self, embeds: torch.Tensor, names: Names) -> torch.Tensor:
        slots = self.slots(embeds).float().unflatten(-1, (len(_COLOURS), _SLOT))
        shape, size, position = slots.split([len(_SHAPES) + 1, len(SIZES), 2], dim=-1)
        shown = names.slots[..., 0] > 0
        return (
            2 * functional.cross_entropy(shape.flatten(0, 1), names.slots[..., 0].flatten())
            + functional.cross_entropy(shape[shown], names.slots[..., 0][shown])
            + 0.5 * functional.cross_entropy(size[shown], names.slots[..., 1][shown])
            + functional.mse_loss(position[shown], names.positions[shown])
            + 0.3 * functional.cross_entropy(self.background(embeds).float(), names.backgrounds)
        )


def names(examples: Sequence[Example], patch: int) -> Names:
    """Returns what is to be named in these pictures, cut into squares of `patch` pixels."""
    count, side = len(examples), SIZE // patch
    patches = torch.full((count, 3, side, side), _UNUSED)
    patches[:, 0] = 0
    slots = torch.zeros(count, len(_COLOURS), 2, dtype=torch.long)
    positions = torch.zeros(count, len(_COLOURS), 2)
    for index, example in enumerate(examples):
        for thing, placed in zip(example.scene.objects, example.places, strict=True):
            colour, shape = _COLOURS.index(thing.colour), _SHAPES.index(thing.shape) + 1
            size = _nearest_size(placed)
            patches[index][:, _covered(placed, patch)] = torch.tensor([[shape], [colour], [size]])
            slots[index, colour] = torch.tensor([shape, size])
            positions[index, colour] = torch.tensor([placed.x, placed.y]) / (SIZE / 2) - 1
    backgrounds = [_BACKGROUNDS.index(one.scene.background or "white") for one in examples]
    return Names(patches, slots, positions, torch.tensor(backgrounds))


def _nearest_size(placed: Placed) -> int:
    return min(range(len(SIZES)), key=lambda index: abs(RADII[SIZES[index]] - placed.radius))


def _covered(placed: Placed, patch: int) -> torch.Tensor:
    """Returns which patches the object's square reaches well into, bool [rows, columns]."""
    centres = np.arange(patch / 2, SIZE, patch)
    reach = placed.radius + patch / 4
    rows, columns = abs(centres - placed.y) < reach, abs(centres - placed.x) < reach
    return torch.from_numpy(rows[:, None] & columns)
