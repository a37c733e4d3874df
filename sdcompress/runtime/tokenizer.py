"""CLIP's tokenizer with the `tokenizers` library alone.

A prompt becomes start token, its tokens, end token and padding, 77 in all. What does not fit is
cut off and reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.errors import BundleError, InputError
from sdcompress.runtime.layout import read_json
from sdcompress.runtime.weighting import Fragment

DEFAULT_LENGTH = 77
_DEFAULT_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}

# CLIP splits text into its special tokens, English contractions, words, single digits and the rest.
_CLIP_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@dataclass(frozen=True)
class Tokens:
    """Token ids of some prompts, and for each the text that was cut off ("" if none)."""

    ids: NDArray[np.int64]  # [n, 77]
    cut_off: tuple[str, ...]


@dataclass(frozen=True)
class Pieces:
    """A prompt as one or more rows of token ids, the weight of each token, and what was cut off."""

    ids: NDArray[np.int64]  # [k, 77]
    weights: Float32  # [k, 77]
    cut_off: str


class PromptTokenizer:
    """Turns prompts into the text encoder's input ids."""

    def __init__(self, tokenizer: Tokenizer, special: Mapping[str, str], length: int) -> None:
        self._tokenizer = tokenizer
        self._length = length
        self._start, self._end, self._pad = (
            _token_id(tokenizer, special[key], key)
            for key in ("bos_token", "eos_token", "pad_token")
        )

    @classmethod
    def load(cls, folder: Path) -> "PromptTokenizer":
        """Read `tokenizer.json`, or `vocab.json` and `merges.txt`, and the configuration beside."""
        special, length = _read_settings(folder)
        if (folder / "tokenizer.json").is_file():
            tokenizer = _from_file(folder / "tokenizer.json")
        else:
            tokenizer = _clip_tokenizer(folder, special)
        # Both are done here, so that what is cut off can be reported.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        for key, token in special.items():
            _token_id(tokenizer, token, key)
        # A padding token such as "!" is a token of its own wherever it stands in a prompt.
        tokenizer.add_special_tokens(
            [AddedToken(token, special=True) for token in dict.fromkeys(special.values())]
        )
        return cls(tokenizer, special, length)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Token ids int64 [n, 77] of the prompts."""
        pieces = [self.pieces([Fragment(text)], most=1) for text in texts]
        rows = [piece.ids for piece in pieces]
        table = np.concatenate(rows) if rows else np.empty((0, self._length), dtype=np.int64)
        return Tokens(table, tuple(piece.cut_off for piece in pieces))

    def pieces(self, fragments: Sequence[Fragment], most: int | None = None) -> Pieces:
        """One prompt in rows of 77, at most `most` of them; None stands for as many as needed."""
        ids: list[int] = []
        weights: list[float] = []
        room = self._length - 2
        limit = None if most is None else most * room
        cut_off = ""
        for fragment in fragments:
            encoding = self._encoding(fragment.text)
            left = len(encoding.ids) if limit is None else max(limit - len(ids), 0)
            if len(encoding.ids) > left:
                cut_off += fragment.text[encoding.offsets[left][0] :]
            ids += encoding.ids[:left]
            weights += [fragment.weight] * len(encoding.ids[:left])
        count = max(-(-len(ids) // room), 1)
        table = np.full((count, self._length), self._pad, dtype=np.int64)
        scale = np.ones((count, self._length), dtype=np.float32)
        for row in range(count):
            part = ids[row * room : (row + 1) * room]
            table[row, : len(part) + 2] = [self._start, *part, self._end]
            scale[row, 1 : len(part) + 1] = weights[row * room : (row + 1) * room]
        return Pieces(table, scale, cut_off.strip())

    def _encoding(self, text: str) -> Encoding:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as fault:
            raise InputError(
                f"The prompt {text!r} cannot be tokenized: {fault}. Pass a string of valid Unicode."
            ) from fault


def _from_file(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as fault:  # the library raises nothing more precise
        raise BundleError(
            f"{path} cannot be read: {fault}. Build or copy the folder again."
        ) from fault


def _clip_tokenizer(folder: Path, special: Mapping[str, str]) -> Tokenizer:
    """CLIP's byte-level BPE, built from the two files of older folders."""
    try:
        model = BPE.from_file(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            unk_token=special["unk_token"],
            end_of_word_suffix="</w>",
        )
    except Exception as fault:  # the library raises nothing more precise
        raise BundleError(
            f"{folder}: vocab.json or merges.txt cannot be read: {fault}. "
            "Build or copy the folder again."
        ) from fault
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _read_settings(folder: Path) -> tuple[dict[str, str], int]:
    """Special tokens and length; tokenizer_config.json wins over special_tokens_map.json."""
    special = dict(_DEFAULT_TOKENS)
    length = DEFAULT_LENGTH
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        settings = read_json(folder / name)
        special = {key: _token_text(settings.get(key), text) for key, text in special.items()}
        declared = settings.get("model_max_length", length)
        # Folders without a limit store an astronomically large number instead.
        if isinstance(declared, int) and 2 < declared <= 4096:
            length = declared
    return special, length


def _token_text(value: Any, default: str) -> str:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else default


def _token_id(tokenizer: Tokenizer, token: str, key: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise BundleError(
            f"The tokenizer has no token {token!r} ({key}). Build or copy the folder again."
        )
    return int(number)
