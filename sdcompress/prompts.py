"""Reads prompt sets: JSON Lines, CSV, plain text or a dataset, all through `datasets`.

A row has a `prompt`, and optionally `category` and `negative_prompt`, in any case; of a text file,
each line is a prompt.
"""

import difflib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcompress.errors import CalibrationError
from sdcompress.quiet import quiet_libraries
from sdcompress.shipped import shipped_folder

_SUFFIXES = (".jsonl", ".csv", ".txt")


@dataclass(frozen=True)
class Prompt:
    text: str
    negative: str | None = None
    category: str | None = None


def load_prompts(name: str, count: int, seed: int) -> tuple[Prompt, ...]:
    """Draws `count` prompts from a set, the same ones for the same seed.

    `name` is a shipped set's, for example `sd`; a .jsonl, .csv or .txt file; or a dataset: a folder
    or a hub id, with ``:split`` behind it for another split than train. Raises CalibrationError
    when the set is unreadable, lacks `prompt` or is too small.
    """
    return draw_prompts(name, read_prompts(name), count, seed)


def read_prompts(name: str) -> tuple[Prompt, ...]:
    """Reads a whole set, as `load_prompts` finds it."""
    file = prompt_file(name)
    rows = _read_file(file) if file else _read_dataset(name)
    return tuple(_prompts(str(file or name), rows))


def draw_prompts(name: str, prompts: Sequence[Prompt], count: int, seed: int) -> tuple[Prompt, ...]:
    """Draws `count` of a set's prompts. Raises CalibrationError when there are fewer."""
    if count > len(prompts):
        raise CalibrationError(
            f"prompt set '{name}' has {len(prompts)} prompts, {count} were asked for: ask for at "
            f"most {len(prompts)}, or name a larger set"
        )
    # A larger count begins with the prompts of a smaller one, whose pictures may be there already.
    shuffled = random.Random(seed).sample(prompts, len(prompts))  # noqa: S311 - not for secrets
    return tuple(shuffled[:count])


def prompt_file(name: str) -> Path | None:
    """The file of a shipped set, or the user's own; None for what may be a dataset.

    Raises CalibrationError for what is neither.
    """
    folder = shipped_folder("calibration")
    shipped = {path.stem: path for path in folder.glob("*.jsonl")}
    if name in shipped:
        return shipped[name]
    if Path(name).is_file():
        return Path(name)
    place, _ = _dataset_place(name)
    if Path(place).is_dir() or ("/" in name and not name.endswith(_SUFFIXES)):
        return None
    nearest = difflib.get_close_matches(name, shipped, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    raise CalibrationError(
        f"prompt set '{name}' is neither a file nor a dataset (owner/name) nor one of: "
        f"{', '.join(sorted(shipped))}{hint}"
    )


def _read_file(file: Path) -> Any:
    from datasets import Dataset

    readers = {".jsonl": Dataset.from_json, ".csv": Dataset.from_csv, ".txt": Dataset.from_text}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise CalibrationError(f"{file}: prompts are read from {', '.join(_SUFFIXES)} files")
    if not file.read_bytes().strip():
        raise CalibrationError(f"{file}: holds no prompts")
    rows = _loaded(str(file), lambda: reader(str(file), keep_in_memory=True))
    if file.suffix.lower() != ".txt":
        return rows
    return rows.rename_column("text", "prompt").filter(lambda row: row["prompt"].strip())


def _read_dataset(name: str) -> Any:
    from datasets import load_dataset

    place, split = _dataset_place(name)
    return _loaded(name, lambda: load_dataset(place, split=split))


def _dataset_place(name: str) -> tuple[str, str]:
    """A dataset's folder or hub id, and its split; a drive's colon is part of the folder."""
    if Path(name).is_dir():
        return name, "train"
    place, colon, split = name.rpartition(":")
    return (place, split) if colon and split else (name, "train")


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        with quiet_libraries("datasets"):
            return load()
    except Exception as error:  # whatever the readers of so many formats raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CalibrationError(
            f"{name}: cannot be read as a table of prompts, with a `prompt` column: {first}"
        ) from error


def _prompts(name: str, rows: Any) -> Iterator[Prompt]:
    columns = {column.lower(): column for column in rows.column_names}
    if "prompt" not in columns:
        raise CalibrationError(f"{name}: no `prompt` field, found: {', '.join(rows.column_names)}")
    for line, row in enumerate(rows, start=1):
        values = {known: row[column] for known, column in columns.items()}
        text = values["prompt"]
        if not isinstance(text, str) or not text.strip():
            raise CalibrationError(f"{name}:{line}: `prompt` is empty or not text: {text!r}")
        negative = values.get("negative_prompt")
        if not isinstance(negative, str | None):
            raise CalibrationError(f"{name}:{line}: `negative_prompt` is not text: {negative!r}")
        category = values.get("category")
        if not isinstance(category, str | int | None):  # a column of numbers is read as such
            raise CalibrationError(f"{name}:{line}: `category` is not text: {category!r}")
        yield Prompt(text, negative, None if category is None else str(category))
