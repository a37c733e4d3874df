"""Groups of layers that are compressed alike, told from the names that export gives to layers.

Names follow the modules of diffusers' UNet, so the patterns of a group find the same layers in any
fine-tune of the architecture.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sdcompress.methods import Grouping

CONTENT_KINDS = ("text", "cross_attention", "feed_forward")
"""What decides whether a picture shows its prompt (MixDQ, arXiv:2405.17873)."""

_BLOCK = re.compile(r"(?:down|up)_blocks\.\d+|mid_block")
_PART = re.compile(rf"(?:{_BLOCK.pattern})\.(?:resnets|attentions|\w*samplers)\.\d+")
KINDS = {
    "time_embedding": r"time_emb",
    "self_attention": r"attn1[./]",
    "text": r"attn2\.to_[kv]/",
    "cross_attention": r"attn2(/|\.to_(q|out))",
    "feed_forward": r"ff\.",
    "projection": r"proj_(in|out)/",
    "sampler": r"\w*samplers\.",
    "resnet": r"conv(1|2|_shortcut)/",
    "conv_in": r"conv_in/",
    "conv_out": r"conv_out/",
}
_OTHER = "other"


@dataclass(frozen=True)
class Group:
    """Layers, in graph order; `place` is the block, part or layer they lie in, "" for any."""

    place: str
    kind: str
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.place, self.kind)))

    @property
    def pattern(self) -> str:
        """The regular expression that is found in the names of its layers only."""
        return pattern_of(self.kind, [self.place])


def kind_of(layer: str) -> str:
    """Tells what kind of part of the UNet a layer belongs to."""
    found = (kind for kind, inner in KINDS.items() if re.search(rf"\.{inner}", layer))
    return next(found, _OTHER)


def pattern_of(kind: str, places: Sequence[str]) -> str:
    """The expression for a kind's layers in some places; "" is every place."""
    if "" in places:
        return rf"\.{KINDS[kind]}"
    modules = "|".join(re.escape(place) for place in places)
    inside = modules if len(places) == 1 else f"({modules})"
    if kind == _OTHER:
        return rf"(^|\.){inside}(/|$)"  # not all of these lie in a module
    if not all(_BLOCK.fullmatch(one) or _PART.fullmatch(one) for one in places):
        return rf"\.{inside}/"
    if all("samplers" in one for one in places):
        return rf"\.{inside}\."
    return rf"\.{inside}\.(.*\.)?{KINDS[kind]}"


def group_layers(layers: Iterable[str], grouping: Grouping) -> tuple[Group, ...]:
    """Puts layers together by block and kind, by part of a block and kind, or each by itself.

    The layers of the time embedding are one group, unless each is by itself.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        found.setdefault(_place(layer, grouping), []).append(layer)
    return tuple(Group(*place, tuple(names)) for place, names in found.items())


def _place(layer: str, grouping: Grouping) -> tuple[str, str]:
    """Where a layer's group lies, and of what kind it is."""
    kind = kind_of(layer)
    if grouping == "layer" or kind == _OTHER:
        return layer.split("/", maxsplit=1)[0].removeprefix("__module."), kind
    if kind == "time_embedding":
        return "", kind
    inside = (_BLOCK if grouping == "block" else _PART).search(layer)
    return inside[0] if inside else "", kind
