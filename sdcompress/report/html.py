"""The report as one self-contained HTML page: verdict, pictures, figures, charts, provenance."""

import base64
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sdcompress.report import charts, markdown

_TEMPLATES = Path(__file__).parent / "templates"
_THUMB_PIXELS = 256
_THUMB_QUALITY = 80
_SIGNS = {"passed": "✓", "failed": "✗", "undecided": "?"}
_HEADLINES = {
    "passed": "Passed: every budget holds",
    "failed": "Failed: do not ship this",
    "undecided": "Undecided: too few pictures to tell",
}


def render_html(report: Mapping[str, Any], folder: Path) -> str:
    """Turns a report document into a page; its pictures are read from `folder`.

    Small pictures are inside the page, the full ones are linked.
    """
    signs = {
        one["name"]: 1 if one["better"] == "higher" else -1 for one in report["quality"]["metrics"]
    }
    samples = [_sample(one, signs, folder) for one in report["samples"]]
    orders = _orders(report)
    samples.sort(key=lambda one: one["ranks"]["ssim"])
    return render_page(
        "report.html.j2",
        report=report,
        drawn_with=markdown.drawn_with(report),
        decoders_alone=markdown.decoders_alone(report),
        headline=_HEADLINES[report["status"]],
        signs=_SIGNS,
        measured=markdown.measured,
        outcome=markdown.verdict,
        meaning=markdown.meaning,
        cards=list(_cards(report)),
        samples=samples,
        categories=sorted(Counter(one["category"] for one in samples if one["category"]).items()),
        orders=orders,
        charts={
            "sqnr": charts.sqnr_chart(report),
            "layers": charts.layers_chart(report),
            "latency": charts.latency_chart(report),
            "memory": charts.memory_chart(report),
            "size": charts.size_chart(report),
        },
        quality_rows=list(markdown.quality_rows(report)),
        sqnr_rows=list(markdown.sqnr_rows(report)),
        layer_rows=list(_layer_rows(report)),
        looks_rows=list(_looks_rows(report)),
        performance_rows=list(markdown.performance_rows(report)),
        component_rows=list(markdown.component_rows(report)),
        stage_rows=list(markdown.stage_rows(report)),
        environment_rows=list(markdown.environment_rows(report)),
        recipe_yaml=_yaml(report["recipe"]),
        environment_json=json.dumps(report["environment"], indent=2),
    )


def render_page(template: str, **values: Any) -> str:
    """Renders one of the templates, the style and the script inside."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    inside = {
        name: (_TEMPLATES / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")
    }
    return environment.get_template(template).render(**inside, **values)


def _cards(report: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The four numbers that matter."""
    clip = report["quality"]["clip_score"]
    low, high = clip["ci95"]
    yield {
        "title": "Quality: CLIP score",
        "before": f"{clip['baseline']:.2f}",
        "after": f"{clip['compressed']:.2f}",
        "change": f"{clip['difference']:+.2f} (95 %: {low:+.2f} to {high:+.2f})",
        "fine": f"means over {clip['samples']} pairs of pictures",
    }
    performance = report["performance"]
    for key, title, scale, unit, digits in (
        ("image_seconds", "Time: seconds a picture", 1.0, "s", 2),
        ("peak_rss_bytes", "Memory: peak resident", 1e-6, "MB", 0),
        ("disk_bytes", "Size: on disk", 1e-6, "MB", 1),
    ):
        before, after = (performance[side][key] for side in ("baseline", "compressed"))
        fine = "the files that drawing needs"
        if key in performance["ratios"]:
            turns = report["recipe"]["evaluate"]["timed_images"]
            fine = f"medians of {turns} turns; ratio of neighbouring turns, least to most"
        yield {
            "title": title,
            "before": f"{before * scale:.{digits}f} {unit}",
            "after": f"{after * scale:.{digits}f} {unit}",
            "change": markdown.ratio(performance, key),
            "fine": fine,
        }


def _orders(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What pairs can be sorted by: SSIM first, then the other metrics of pairs and pictures."""
    metrics = [one for one in report["quality"]["metrics"] if one["kind"] != "set"]
    metrics.sort(key=lambda one: one["name"] != "ssim")
    suffix = {"pair": "", "picture": ", difference"}
    return [(one["name"], one["title"] + suffix[one["kind"]]) for one in metrics]


def _sample(sample: Mapping[str, Any], signs: Mapping[str, int], folder: Path) -> dict[str, Any]:
    """What the page shows of a pair; the smaller a rank, the worse is the pair."""
    before, size = _thumbnail(folder / sample["baseline"])
    after, _ = _thumbnail(folder / sample["compressed"])
    scores, likeness = sample["scores"], sample["likeness"]
    changes = {name: one["compressed"] - one["baseline"] for name, one in scores.items()}
    # A metric that too few prompts have a value for is not in the report.
    ranks = {
        name: signs[name] * value for name, value in (likeness | changes).items() if name in signs
    }
    clip = scores["clip_score"]
    return {
        "prompt": sample["prompt"],
        "category": sample["category"],
        "seed": sample["seed"],
        "baseline": sample["baseline"],
        "compressed": sample["compressed"],
        "before": before,
        "after": after,
        "width": size[0],
        "height": size[1],
        "ranks": {name: round(value, 6) for name, value in ranks.items()},
        "figures": f"SSIM {likeness['ssim']:.3f}, PSNR {likeness['psnr_db']:.1f} dB, CLIP score "
        f"{clip['baseline']:.1f} → {clip['compressed']:.1f}",
    }


def _thumbnail(file: Path) -> tuple[str, tuple[int, int]]:
    """A small WebP copy as a data URI, and its size in pixels."""
    with Image.open(file) as image:
        small = image.convert("RGB")
    small.thumbnail((_THUMB_PIXELS, _THUMB_PIXELS), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="WEBP", quality=_THUMB_QUALITY, method=4)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f"data:image/webp;base64,{data}", small.size


def _layer_rows(report: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    yield "layer", "type", "precision", "SQNR"
    for layer in report["quality"]["layer_errors"]["layers"]:
        yield layer["name"], layer["type"], layer["precision"], f"{layer['sqnr_db']:.1f} dB"


def _looks_rows(report: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    yield "budget", "pictures", "mean", "repeated 95 % interval", "outcome"
    for look in report["quality"]["looks"]:
        interval = f"{look['low']:+.3f} to {look['high']:+.3f}"
        mean = f"{look['mean']:+.3f}"
        yield look["budget"], str(look["samples"]), mean, interval, look["outcome"]


def _yaml(recipe: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
