"""Charts as SVG text that takes its colours from the page, so that they suit light and dark.

matplotlib draws in marker colours, which are then replaced by CSS variables. Text stays text, so it
can be read aloud, searched and copied.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST_LABEL = 40
_MARKERS = "osD^vPX"  # one more than colours, so that together they repeat late
_INK, _GRID = "#010203", "#010204"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
BASELINE, COMPRESSED = SERIES[0], SERIES[1]
_CSS = {_INK: "var(--ink)", _GRID: "var(--grid)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
_LOST = "#8b0000"
_PARTS = ("text_encoder", "unet", "vae_decoder", "other")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sdcompress",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # names are the user's
}


def sqnr_chart(report: Mapping[str, Any]) -> str:
    """SQNR by timestep: of the UNet's output and of the latents, with the precision's floors."""
    quality = report["quality"]

    def draw(axes: "Axes") -> None:
        for key, name, colour in (
            ("unet", "UNet output", SERIES[1]),
            ("latents", "latents", SERIES[2]),
        ):
            for floor, style in (("", "-"), ("_floor", ":")):
                values = quality[f"{key}_sqnr{floor}_db"]
                if values:
                    label = f"{name}, {'execution precision alone' if floor else 'compressed'}"
                    axes.plot(
                        [int(step) for step in values], list(values.values()), style,
                        color=colour, marker=".", label=label,
                    )  # fmt: skip
        axes.invert_xaxis()
        axes.set(xlabel="timestep (from noise to picture)", ylabel="SQNR in dB")
        _legend_above(axes, 2)

    return _svg("SQNR by timestep, higher is better", draw)


def layers_chart(report: Mapping[str, Any]) -> str:
    """SQNR of every layer's output in graph order, coloured by the layer's precision."""
    layers = report["quality"]["layer_errors"]["layers"]
    if not layers:
        return "<p>The two UNets share no layer names, so their layers cannot be compared.</p>"
    kinds = list(dict.fromkeys(layer["precision"] for layer in layers))

    def draw(axes: "Axes") -> None:
        for kind, colour in zip(kinds, cycle(SERIES)):
            points = [
                (i, one["sqnr_db"]) for i, one in enumerate(layers) if one["precision"] == kind
            ]
            places, values = zip(*points, strict=True)
            axes.scatter(places, values, s=14, color=colour, label=kind)
        axes.set(xlabel="layer, from input to output", ylabel="SQNR in dB")
        _legend_above(axes, 4)

    return _svg("SQNR of the UNet's layers, by precision", draw)


def latency_chart(report: Mapping[str, Any]) -> str:
    """The seconds of a picture, split into text encoder, UNet, VAE decoder and the rest."""
    sides = _sides(report)

    def draw(axes: "Axes") -> None:
        lefts = [0.0] * len(sides)
        for part, colour in zip(_PARTS, SERIES[1:], strict=False):
            seconds = [side["parts_seconds"][part] for side in sides.values()]
            name = part.replace("_", " ")
            axes.barh(list(sides), seconds, left=lefts, color=colour, label=name, height=0.5)
            lefts = [left + one for left, one in zip(lefts, seconds, strict=True)]
        axes.invert_yaxis()
        axes.set(xlabel="seconds")
        _legend_above(axes, 4)

    return _svg("Seconds of one picture, by component", draw, height=2.4)


def memory_chart(report: Mapping[str, Any]) -> str:
    """Memory over time through load, warm-up and a picture; anonymous, and all of it."""
    sides = _sides(report)

    def draw(axes: "Axes") -> None:
        for (name, side), colour in zip(sides.items(), (BASELINE, COMPRESSED), strict=True):
            seconds = [one[0] for one in side["memory"]]
            anonymous = [one[1] / 1e6 for one in side["memory"]]
            whole = [(one[1] + one[2]) / 1e6 for one in side["memory"]]
            axes.plot(seconds, whole, color=colour, label=f"{name}, with mapped files")
            axes.plot(seconds, anonymous, ":", color=colour, label=f"{name}, anonymous")
            axes.axvline(side["loaded_at"], color=colour, lw=0.8, ls="--")
        axes.set(xlabel="seconds since the process began (dashed: loaded)", ylabel="MB")
        axes.set_ylim(bottom=0)
        _legend_above(axes, 2)

    return _svg("Memory of a process that loads, warms up and draws a picture", draw)


def size_chart(report: Mapping[str, Any]) -> str:
    """Bytes of the components' files on both sides."""
    components = report["components"]

    def draw(axes: "Axes") -> None:
        places = range(len(components))
        for offset, side, colour in (
            (-0.2, "baseline", BASELINE),
            (0.2, "compressed", COMPRESSED),
        ):
            sizes = [part[f"{side}_bytes"] / 1e6 for part in components.values()]
            bars = axes.barh(
                [one + offset for one in places], sizes, height=0.38, color=colour, label=side
            )
            axes.bar_label(bars, fmt=" %.1f", color=_INK)
        axes.set_yticks(list(places), [name.replace("_", " ") for name in components])
        axes.invert_yaxis()
        axes.set(xlabel="MB")
        _legend_above(axes, 2)

    return _svg("Size of the components", draw, height=0.6 * len(components) + 1.2)


def front_chart(points: Sequence[tuple[str, float, float, bool]], xlabel: str, ylabel: str) -> str:
    """Candidates by cost (x, lower is better) and quality (y); those on the front are joined."""

    def draw(axes: "Axes") -> None:
        front = sorted((x, y) for _, x, y, best in points if best)
        if front:
            axes.plot(*zip(*front, strict=True), color=_INK, lw=0.8)
        for (name, x, y, _), marker, colour in zip(points, cycle(_MARKERS), cycle(SERIES)):
            axes.scatter([x], [y], color=colour, marker=marker, s=42, label=_shortened(name))
        axes.margins(0.12)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _legend_above(axes, 2)

    return _svg(f"{ylabel} against {xlabel}", draw)


@dataclass(frozen=True)
class Shading:
    """What the colours of a heat map mean, from the darkest on; beyond `worst` they are red.

    It is the same for all maps of a kind, so that they can be compared.
    """

    label: str
    worst: float
    best: float
    logarithmic: bool = False


# More noise than signal, or pictures that have nothing in common, is worse than all colours.
FIDELITY = Shading("SQNR in dB", 0.0, 60.0)
CONTENT = Shading("1 - cosine (CLIP)", 1.0, 1e-5, logarithmic=True)


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    shading: Shading,
) -> str:
    """Values of rows by columns: the darker, the more is lost."""
    import matplotlib as mpl
    from matplotlib.colors import LogNorm, Normalize

    low, high = sorted((shading.worst, shading.best))
    norm = (LogNorm if shading.logarithmic else Normalize)(low, high)
    if shading.worst == low:
        colours = mpl.colormaps["viridis"].with_extremes(under=_LOST)
    else:
        colours = mpl.colormaps["viridis_r"].with_extremes(over=_LOST)

    def draw(axes: "Axes") -> None:
        mesh = axes.pcolormesh(values, cmap=colours, norm=norm, edgecolors=_GRID, linewidth=0.4)
        axes.set_yticks([place + 0.5 for place in range(len(rows))], rows, fontsize=8)
        axes.set_xticks([place + 0.5 for place in range(len(columns))], columns)
        axes.invert_yaxis()
        axes.set(xlabel="timestep (from noise to picture)")
        axes.grid(visible=False)
        if axes.figure is not None:
            axes.figure.colorbar(mesh, ax=axes, label=shading.label, extend="both", format="%g")

    return _svg(title, draw, height=0.19 * len(rows) + 1.4)


def _shortened(name: str) -> str:
    """Long names would leave no room for the points."""
    return name if len(name) <= _LONGEST_LABEL else f"…{name[1 - _LONGEST_LABEL :]}"


def _legend_above(axes: "Axes", columns: int) -> None:
    """Where it covers no data."""
    axes.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.3)


def _sides(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: report["performance"][name] for name in ("baseline", "compressed")}


def _svg(title: str, draw: Callable[["Axes"], None], *, height: float = 3.4) -> str:
    """Draws a chart and returns it as an element for an HTML page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, height))
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for marker, colour in _CSS.items():
        svg = svg.replace(marker, colour)
    svg = _with_own_ids(svg, re.sub(r"\W+", "-", title.lower()))
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head = f'<svg role="img" aria-label="{escape(title)}"'
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", svg.replace("<svg", head, 1), count=2)


def _with_own_ids(svg: str, prefix: str) -> str:
    """Several charts on one page must not share the names of their parts."""
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    return svg.replace("url(#", f"url(#{prefix}-")
