"""Writes a choice as a recipe's `compress` section, in patterns that a reader can check."""

from collections import Counter
from collections.abc import Mapping, Sequence

from sdcompress.methods import PLAIN, Mixed, Plain
from sdcompress.search.groups import KINDS, Group, pattern_of
from sdcompress.search.solver import Choice


def as_method(
    choice: Choice, groups: Sequence[Group], variants: Mapping[str, Plain]
) -> Mixed | Plain | None:
    """The method that gives each group its variant; None for 16 bits throughout.

    What most layers are goes without patterns; a kind that is all alike needs one. Groups that are
    not in the choice have nothing to choose.
    """
    counted: Counter[str] = Counter()
    for group in groups:
        if group.name in choice:
            counted[choice[group.name]] += len(group.layers)
    otherwise = max(counted, key=lambda name: (counted[name], name))
    layers: dict[str, str] = {}
    for kind in dict.fromkeys(group.kind for group in groups):
        alike = [group for group in groups if group.kind == kind and group.name in choice]
        chosen = [choice[group.name] for group in alike]
        for name in dict.fromkeys(chosen):
            places = [group.place for group in alike if choice[group.name] == name]
            everywhere = len(places) == len(alike) and kind in KINDS
            layers[pattern_of(kind, [""] if everywhere else places)] = name
    layers = {pattern: name for pattern, name in layers.items() if name != otherwise}
    if not layers:
        return variants.get(otherwise)
    used = {*layers.values(), otherwise} - {PLAIN}
    return Mixed(
        method="mixed",
        variants={name: one for name, one in variants.items() if name in used},
        layers=layers,
        otherwise=otherwise,
    )
