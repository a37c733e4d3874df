"""Prompt sets: shipped ones, files of three kinds, datasets; faults say file and line."""

from pathlib import Path

import pytest

from sdcompress.errors import CalibrationError
from sdcompress.prompts import Prompt, load_prompts


def test_prompts_are_drawn_alike_for_the_same_seed() -> None:
    assert load_prompts("demo", 8, 1) == load_prompts("demo", 8, 1)
    assert load_prompts("demo", 8, 1) != load_prompts("demo", 8, 2)
    assert load_prompts("demo", 100, 1)[:8] == load_prompts("demo", 8, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"text": "a"}\n', "no `prompt` field"),
        ('{"prompt": "a"}\n{"prompt": ""}\n', ":2: `prompt` is empty"),
        ("not json\n", "cannot be read as a table of prompts"),
        ("\n", "holds no prompts"),
        ('{"prompt": "a", "negative_prompt": 5}\n', "`negative_prompt` is not text"),
        ('{"prompt": "a"}\n', "has 1 prompts, 2 were asked for"),
    ],
)
def test_unusable_prompt_files_say_why(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(text)
    with pytest.raises(CalibrationError, match=expected):
        load_prompts(str(file), 2, 0)


def test_an_unknown_prompt_set_names_the_nearest() -> None:
    with pytest.raises(CalibrationError, match="did you mean 'demo'"):
        load_prompts("demmo", 2, 0)


@pytest.mark.parametrize("name", ["mine.csv", "mine.txt", "folder"])
def test_files_and_datasets_of_other_kinds_are_read(name: str, tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [("a red fox, asleep", "animals"), ('a sign that says "open"', "text")]
    expected = {Prompt(text, None, category) for text, category in rows}
    place = tmp_path / name
    if name.endswith(".csv"):
        lines = [
            "Prompt,Category",
            '"a red fox, asleep",animals',
            '"a sign that says ""open""",text',
        ]
        place.write_text("\n".join(lines))
    elif name.endswith(".txt"):
        place.write_text("\n".join(text for text, _ in rows) + "\n\n")
        expected = {Prompt(text) for text, _ in rows}
    else:
        place.mkdir()
        columns = {"prompt": [text for text, _ in rows], "category": [kind for _, kind in rows]}
        Dataset.from_dict(columns).to_parquet(place / "test.parquet")
    found = load_prompts(str(place) if place.is_file() else f"{place}:test", 2, 0)
    assert set(found) == expected


def test_categories_are_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("prompt,category\na fox,1\na sign,2\n")
    assert {one.category for one in load_prompts(str(file), 2, 0)} == {"1", "2"}
    tagged = tmp_path / "tagged.jsonl"
    tagged.write_text('{"prompt": "a fox", "category": ["red", "animal"]}\n')
    with pytest.raises(CalibrationError, match=r"tagged\.jsonl:1: `category` is not text"):
        load_prompts(str(tagged), 1, 0)


def test_what_is_neither_file_nor_dataset_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("prompt: a")
    with pytest.raises(CalibrationError, match=r"read from \.jsonl, \.csv, \.txt files"):
        load_prompts(str(file), 1, 0)
    with pytest.raises(CalibrationError, match="neither a file nor a dataset"):
        load_prompts(str(tmp_path / "missing.csv"), 1, 0)
    with pytest.raises(CalibrationError, match="cannot be read as a table of prompts"):
        load_prompts("no-such-owner/no-such-set", 1, 0)
