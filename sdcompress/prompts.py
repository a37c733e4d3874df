"""Reads prompt sets: JSON Lines with a `prompt`, and optionally `category`, `negative_prompt`."""

import difflib
import random
from dataclasses import dataclass
from pathlib import Path

from sdcompress.errors import CalibrationError
from sdcompress.quiet import quiet_libraries
from sdcompress.shipped import shipped_folder


@dataclass(frozen=True)
class Prompt:
    text: str
    negative: str | None = None
    category: str | None = None


def prompt_file(name: str) -> Path:
    """Resolves a shipped set's name, for example `sd`, or a path to a user's own JSONL file.

    Raises CalibrationError when there is neither.
    """
    folder = shipped_folder("calibration")
    shipped = {path.stem: path for path in folder.glob("*.jsonl")}
    if name in shipped:
        return shipped[name]
    if Path(name).is_file():
        return Path(name)
    nearest = difflib.get_close_matches(name, shipped, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    raise CalibrationError(
        f"prompt set '{name}' is neither a file nor one of: {', '.join(sorted(shipped))}{hint}"
    )


def load_prompts(name: str, count: int, seed: int) -> tuple[Prompt, ...]:
    """Draws `count` prompts from a set, the same ones for the same seed.

    Raises CalibrationError when the set is unreadable, lacks `prompt` or is too small.
    """
    prompts = _read(prompt_file(name))
    if count > len(prompts):
        raise CalibrationError(
            f"prompt set '{name}' has {len(prompts)} prompts, {count} were asked for"
        )
    return tuple(random.Random(seed).sample(prompts, count))  # noqa: S311 - not for secrets


def _read(file: Path) -> list[Prompt]:
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    if not file.read_bytes().strip():
        raise CalibrationError(f"{file}: holds no prompts")
    try:
        with quiet_libraries("datasets"):
            rows = Dataset.from_json(str(file), keep_in_memory=True)
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise CalibrationError(
            f"{file}: cannot be read as JSON Lines, one object with a `prompt` per line: {error}"
        ) from error
    if "prompt" not in rows.column_names:
        raise CalibrationError(f"{file}: no `prompt` field, found: {', '.join(rows.column_names)}")
    prompts = []
    for line, row in enumerate(rows, start=1):
        text = row["prompt"]
        if not isinstance(text, str) or not text.strip():
            raise CalibrationError(f"{file}:{line}: `prompt` is empty or not text: {text!r}")
        negative = row.get("negative_prompt")
        if not isinstance(negative, str | None):
            raise CalibrationError(f"{file}:{line}: `negative_prompt` is not text: {negative!r}")
        prompts.append(Prompt(text, negative, row.get("category")))
    return prompts
