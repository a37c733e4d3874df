"""The borders of the house: who may import whom, read from the syntax tree."""

import ast
from pathlib import Path

import pytest

import sdcompress

ROOT = Path(sdcompress.__file__).parent
STAGES = {"source", "convert", "calibrate", "compress", "evaluate", "report", "bundle"}
ALLOWED_BETWEEN_STAGES = {
    ("convert", "source"),  # the record of what was located
    ("report", "evaluate"),  # the records of what was measured
}


def imports(file: Path) -> set[str]:
    """Returns the package's own modules that a file imports, as dotted names below it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sdcompress"):
            module = (node.module or "").removeprefix("sdcompress").lstrip(".")
            found |= {module} if module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            found |= {n.removeprefix("sdcompress.") for n in names if n.startswith("sdcompress.")}
    return found


def room(file: Path) -> str:
    return file.relative_to(ROOT).with_suffix("").parts[0]


def test_the_ways_to_import_are_all_seen(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("from sdcompress import a\nfrom sdcompress.b import c\nimport sdcompress.d\n")
    assert imports(file) == {"a", "b", "d"}


FILES = sorted(ROOT.rglob("*.py"))


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 40


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_are_absolute(file: Path) -> None:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_stages_do_not_import_each_other(file: Path) -> None:
    here = room(file)
    if here not in STAGES:
        return
    others = {name.split(".")[0] for name in imports(file)} & STAGES - {here}
    assert {(here, other) for other in others} <= ALLOWED_BETWEEN_STAGES


@pytest.mark.parametrize("file", sorted((ROOT / "runtime").rglob("*.py")), ids=lambda f: f.name)
def test_the_runtime_imports_nothing_outside_itself(file: Path) -> None:
    assert all(name.startswith("runtime") for name in imports(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_but_the_top_imports_the_workflow_or_the_command_line(file: Path) -> None:
    if room(file) in ("cli", "searching", "__init__", "__main__"):
        return
    assert not imports(file) & {"workflow", "assessment", "searching", "cli"}
