"""The tokenizer against transformers' CLIPTokenizer, for both file layouts and paddings."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import write_json, write_toy_tokenizer

from sdcompress.runtime.errors import BundleError, InputError
from sdcompress.runtime.tokenizer import PromptTokenizer

# transformers itself builds its BPE from files in a way that tokenizers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0:DeprecationWarning")

FIXED = [
    "",
    " ",
    "a photo of a small red circle",
    "  many \t spaces\n and lines  ",
    "UPPER lower MiXeD",
    "don't we'll they're it's I'd I've I'm",
    "3 stars, 42 circles; 3.14!",
    "!!! wow !! so ! nice",
    "naïve café ÀÉÎÕÜ ﬁ ﬂ",
    "e\u0301 against \u00e9",
    "红色的圆 赤い円 красный круг दायरा",
    "🙂🚀 🧑‍🚀 flags 🇩🇪",
    "zero\u200bwidth and \u00a0nbsp \u3000wide",
    "<|startoftext|> inside <|endoftext|> a prompt",
    "< |endoftext| > almost",
    "under_score hy-phen sl/ash back\\slash",
    "İstanbul ß ẞ Σς",
    "\x00\x01 control \x7f",
    "word " * 75,
    "word " * 76,
    "long " * 500,
    "supercalifragilistic" * 40,
]


@pytest.fixture(scope="module", params=[True, False], ids=["tokenizer.json", "vocab+merges"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    write_toy_tokenizer(path, single_file=request.param)
    return path


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"], ids=["pad-end", "pad-!"])
def folder_as_saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the export writes: the tokenizer saved by transformers."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("saved")
    write_toy_tokenizer(root / "plain", padding=request.param, single_file=False)
    transformers.CLIPTokenizer.from_pretrained(root / "plain").save_pretrained(root / "saved")
    return root / "saved"


def expected_ids(folder: Path, texts: list[str]) -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    return tokenizer(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="np"
    ).input_ids


def random_texts(count: int) -> list[str]:
    draw = np.random.default_rng(11)
    alphabets = [
        "abcdefghijklmnopqrstuvwxyz     '",
        "AaBb09 .,!?-'\"()<|>_\t\n",
        "éàüßøñçЖяα中文日本 ",
        "".join(chr(code) for code in range(0x20, 0x2FF)),
        "🙂🚀👍🏽🇫🇷‍️ a",
    ]
    picked = (alphabets[draw.integers(len(alphabets))] for _ in range(count))
    return ["".join(draw.choice(list(letters), size=draw.integers(120))) for letters in picked]


def test_fixed_prompts_as_transformers(folder: Path) -> None:
    actual = PromptTokenizer.load(folder).encode(FIXED).ids
    np.testing.assert_array_equal(actual, expected_ids(folder, FIXED))
    assert actual.shape == (len(FIXED), 77)
    assert actual.dtype == np.int64


def test_random_prompts_as_transformers(folder: Path) -> None:
    texts = random_texts(10_000)
    actual = PromptTokenizer.load(folder).encode(texts).ids
    np.testing.assert_array_equal(actual, expected_ids(folder, texts))


def test_saved_folders_as_transformers(folder_as_saved: Path) -> None:
    texts = FIXED + random_texts(300)
    actual = PromptTokenizer.load(folder_as_saved).encode(texts).ids
    np.testing.assert_array_equal(actual, expected_ids(folder_as_saved, texts))


@pytest.mark.parametrize("single_file", [True, False])
def test_padding_with_an_exclamation_mark_is_id_0(tmp_path: Path, single_file: bool) -> None:
    """SD 2.1 pads with "!", which is id 0, and a "!" in a prompt is that token too."""
    write_toy_tokenizer(tmp_path / "t", padding="!", single_file=single_file)
    texts = ["red!", "! red", *FIXED]
    actual = PromptTokenizer.load(tmp_path / "t").encode(texts).ids
    assert actual[0, -1] == 0
    np.testing.assert_array_equal(actual, expected_ids(tmp_path / "t", texts))


def test_special_tokens_map_of_older_folders(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    write_toy_tokenizer(folder, single_file=False)
    write_json(folder / "tokenizer_config.json", {"model_max_length": 77})
    write_json(
        folder / "special_tokens_map.json",
        {"pad_token": "!", "bos_token": {"content": "<|startoftext|>", "normalized": True}},
    )
    actual = PromptTokenizer.load(folder).encode(FIXED).ids
    assert actual[0].tolist()[2:] == [0] * 75
    np.testing.assert_array_equal(actual, expected_ids(folder, FIXED))


def test_what_is_cut_off_is_reported(folder: Path) -> None:
    tokenizer = PromptTokenizer.load(folder)
    fits, too_long = "red " * 75, "red " * 75 + "circle above"
    tokens = tokenizer.encode([fits, too_long, ""])
    assert tokens.cut_off == ("", "circle above", "")
    np.testing.assert_array_equal(tokens.ids[0], tokens.ids[1])


def test_text_that_is_no_unicode_is_an_input_error(folder: Path) -> None:
    with pytest.raises(InputError, match="cannot be tokenized"):
        PromptTokenizer.load(folder).encode(["lone surrogate \ud800"])


def test_damaged_files_are_bundle_errors(tmp_path: Path) -> None:
    write_toy_tokenizer(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        PromptTokenizer.load(tmp_path / "a")
    write_toy_tokenizer(tmp_path / "b", single_file=False)
    (tmp_path / "b" / "merges.txt").write_text("not in the vocabulary at all\n")
    with pytest.raises(BundleError, match="merges"):
        PromptTokenizer.load(tmp_path / "b")


def test_a_special_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    write_toy_tokenizer(tmp_path / "t", padding="[PAD]")
    with pytest.raises(BundleError, match=r"\[PAD\]"):
        PromptTokenizer.load(tmp_path / "t")


def test_loading_is_silent(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="sdcompress"):
        PromptTokenizer.load(folder).encode(["a red circle"])
    assert not caplog.records
