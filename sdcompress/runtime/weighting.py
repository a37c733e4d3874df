"""Emphasis in prompts, as image tools have it: `(red:1.3)`, `(red)`, `[red]`, `\\(` for a bracket.

Weights multiply the embeddings of a fragment's tokens, and the whole is scaled back to the mean it
had, so that emphasis shifts the meaning and not the overall strength.
"""

import re
from dataclasses import dataclass

import numpy as np

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.errors import InputError

_MOST = 10.0
_BRACKETS = {")": ("(", 1.1), "]": ("[", 1 / 1.1)}
_TOKEN = re.compile(
    r"(?P<escaped>\\[()\[\]\\])|(?P<open>[(\[])|(?P<close>(?::[\s\d.,eE+-]*)?\)|\])"
    r"|(?P<text>[^\\()\[\]:]+|.)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Fragment:
    """Some text, all of the same weight."""

    text: str
    weight: float = 1.0


def parse_weights(prompt: str) -> tuple[Fragment, ...]:
    """Split a prompt by weight. Raises InputError for unpaired brackets and impossible weights."""
    parts: list[Fragment] = []
    starts: list[tuple[str, int]] = []
    for match in _TOKEN.finditer(prompt):
        token = match.group()
        if match.lastgroup == "open":
            starts.append((token, len(parts)))
        elif match.lastgroup == "close":
            opening, usual = _BRACKETS[token[-1]]
            if not starts or starts[-1][0] != opening:
                raise _fault(prompt, f"{token[-1]!r} closes nothing")
            _, start = starts.pop()
            factor = _number(token[1:-1], prompt) if len(token) > 1 else usual
            parts[start:] = [Fragment(part.text, part.weight * factor) for part in parts[start:]]
        else:
            parts.append(Fragment(token[1:] if match.lastgroup == "escaped" else token))
    if starts:
        raise _fault(prompt, f"{starts[-1][0]!r} is never closed")
    return tuple(_merged(parts))


def weighted(embeddings: Float32, weights: Float32) -> Float32:
    """Embeddings [k, 77, d] times weights [k, 77], with the mean they had before."""
    if (weights == 1).all():
        return embeddings
    scaled = embeddings * weights[..., None]
    before, after = embeddings.mean(dtype=np.float64), scaled.mean(dtype=np.float64)
    if before * after <= 0 or not abs(before / after) < _MOST:
        raise InputError("The weights of the prompt leave nothing of its mean. Use milder ones.")
    restored = float(before / after)
    return np.asarray(scaled * restored, dtype=np.float32)


def _number(text: str, prompt: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _fault(prompt, f"{text.strip()!r} is not a weight") from None
    if not 0 < value <= _MOST:
        raise _fault(prompt, f"the weight {value:g} is not between 0 and {_MOST:g}")
    return value


def _merged(parts: list[Fragment]) -> list[Fragment]:
    """Neighbours of the same weight as one, so that words are not cut in two."""
    merged: list[Fragment] = []
    for part in parts:
        if merged and merged[-1].weight == part.weight:
            merged[-1] = Fragment(merged[-1].text + part.text, part.weight)
        else:
            merged.append(part)
    return merged


def _fault(prompt: str, what: str) -> InputError:
    return InputError(
        f"The weights in the prompt {prompt!r} cannot be read: {what}. Write (word:1.2), put a "
        "backslash before a bracket that belongs to the text, or leave weights off."
    )
