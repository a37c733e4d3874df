"""Builds the CLIP tokenizer: byte-pair encoding trained on the demo's captions.

The vocabulary has CLIP's layout: the 256 bytes, the same at a word's end, the merges, and the two
special tokens. Padding is "!" (id 0), as in SD 2.1's tokenizer.
"""

import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from sdcompress.demo.grammar import caption, sample_split

MAX_TOKENS = 77
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def build(folder: Path, captions: int = 4000) -> CLIPTokenizer:
    """Trains on `captions` captions of the training split and writes all tokenizer files."""
    rng = random.Random(0)  # noqa: S311 - reproducible, not secret
    texts = [caption(sample_split(rng, held_out=False), rng) for _ in range(captions)]
    merges = _train(texts)
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [first + second for first, second in merges] + [_START, _END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(
        folder,
        model_max_length=MAX_TOKENS,
        pad_token="!",  # noqa: S106 - the padding token's text
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _train(texts: list[str]) -> list[tuple[str, str]]:
    """Returns the merges, most frequent first."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1000, end_of_word_suffix="</w>", show_progress=False, min_frequency=20
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(first, second) for first, second in merges]


def _byte_letters() -> list[str]:
    """Returns the printable stand-in for each byte, in the order of OpenAI's CLIP vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = len([byte for byte in range(256) if byte not in printable])
    return [chr(code) for code in (*printable, *range(256, 256 + others))]
