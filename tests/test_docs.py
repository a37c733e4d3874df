"""The docs cannot rot: every command they show parses, every link and make verb exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from test_runtime_imports import BLOCK
from toy_model import write_toy_model

from sdcompress import methods, recipe
from sdcompress.catalogue import shipped_recipes
from sdcompress.cli import main
from sdcompress.recipe_yaml import Section

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "calibration/README.md", ROOT / "sdcompress/demo/MODEL_CARD.md"]


def commands() -> list[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES) + (main.help or "")
    found = re.findall(r"^ +(?:\.venv/bin/)?(sdcompress .*)$", text, re.MULTILINE)
    return sorted({line.strip() for line in found})


def test_the_docs_show_commands() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_parses(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    context = click.Context(main)
    command = main.get_command(context, words[0])
    assert command is not None, words[0]
    command.make_parser(click.Context(command)).parse_args(words[1:])
    for word in words[1:]:
        if re.fullmatch(r"(sd21|unet|weights)_\w+", word):
            assert word in shipped_recipes()
        if word.startswith("recipes/"):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_make_verbs_exist() -> None:
    verbs = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    shown = set(re.findall(r"(?:^    |`)make ([\w-]+)", pages, re.MULTILINE))
    assert {"quantize", "bench-compress"} <= shown
    assert shown <= verbs


def test_every_key_of_a_recipe_is_explained() -> None:
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(\w+)(?:: \w+)?`", page))
    kinds = [kind for room in (recipe, methods) for kind in vars(room).values()]
    sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
    keys = {field.alias or name for kind in sections for name, field in kind.model_fields.items()}
    assert len(keys) > 40
    assert keys - explained == {"method"}


def test_the_application_of_the_shipping_page_runs(tmp_path: Path) -> None:
    """As shown, in an interpreter that finds the base installation only."""
    page = (ROOT / "docs/shipping.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    folder = write_toy_model(tmp_path / "model")
    command = [sys.executable, "-c", BLOCK + code, folder, "a red circle", tmp_path / "x.png"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "20 of 20" in done.stderr or "21 of 21" in done.stderr
    assert (tmp_path / "x.png").is_file()
