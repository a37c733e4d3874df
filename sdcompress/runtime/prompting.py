"""From prompts to embeddings: tokens, the text encoder, weights, prompts of any length."""

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.components import TextEncoder
from sdcompress.runtime.denoise import require_finite
from sdcompress.runtime.errors import InputError
from sdcompress.runtime.settings import Job, Settings
from sdcompress.runtime.tokenizer import Pieces, PromptTokenizer
from sdcompress.runtime.weighting import Fragment, parse_weights, weighted

_log = logging.getLogger(__name__)

# Conditional and, with guidance, unconditional embeddings, both float32 [n, 77, d].
Texts = tuple[Float32, Float32 | None]


def require_readable(jobs: Iterable[Job], settings: Settings) -> None:
    """Raises InputError for the first prompt whose weights cannot be read."""
    if settings.prompt_weights:
        for text in {text for job in jobs for text in (job.negative_prompt, job.prompt)}:
            parse_weights(text)


class PromptEncoder:
    """A tokenizer and a text encoder."""

    def __init__(self, tokenizer: PromptTokenizer, text_encoder: TextEncoder) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Prompts -> token ids int64 [n, 77], as the text encoder gets them."""
        return self._tokenizer.encode(texts).ids

    def encode(self, texts: Sequence[str], settings: Settings) -> Float32:
        """Prompts -> embeddings float32 [n, 77, d]. What is cut off is logged as a warning.

        With long prompts in `settings` the second dimension is 77 times the pieces of the longest.
        """
        if isinstance(texts, str) or not texts:
            raise InputError("encode takes a list of at least one prompt.")
        pieces = [self._pieces(text, settings) for text in texts]
        count = max(len(piece.ids) for piece in pieces)
        ids = np.concatenate([self._filled(piece.ids, count) for piece in pieces])
        embeddings = self._text_encoder(ids)
        each = embeddings.reshape(len(texts), count, *embeddings.shape[1:])
        scaled = [
            np.concatenate([weighted(one[: len(piece.ids)], piece.weights), one[len(piece.ids) :]])
            for one, piece in zip(each, pieces, strict=True)
        ]
        whole = np.stack(scaled).reshape(len(texts), -1, embeddings.shape[-1])
        require_finite(whole, "text embeddings")
        return whole

    def encode_jobs(
        self, jobs: Sequence[Job], settings: Settings, known: dict[str, Float32] | None = None
    ) -> Texts:
        """The embeddings [n, 77, d] of a batch: conditional, and unconditional if guided.

        `known` embeddings are not computed again; new ones are added to it.
        """
        known = {} if known is None or settings.long_prompts else known
        prompts = [job.prompt for job in jobs]
        negatives = [job.negative_prompt for job in jobs] if settings.guided else []
        new = [text for text in dict.fromkeys([*negatives, *prompts]) if text not in known]
        if new:
            known.update(zip(new, self.encode(new, settings), strict=True))
        conditional = np.stack([known[text] for text in prompts])
        return conditional, np.stack([known[text] for text in negatives]) if negatives else None

    def warn_of_cuts(self, texts: Iterable[str], settings: Settings) -> None:
        """Logs which part of the prompts has no effect, as encoding them does."""
        for text in texts:
            self._pieces(text, settings)

    def _pieces(self, text: str, settings: Settings) -> Pieces:
        fragments = parse_weights(text) if settings.prompt_weights else (Fragment(text),)
        pieces = self._tokenizer.pieces(fragments, None if settings.long_prompts else 1)
        if pieces.cut_off:
            _log.warning(
                "The prompt %r is longer than the text encoder takes; this part has no effect: %r",
                text,
                pieces.cut_off,
            )
        return pieces

    def _filled(self, ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """A prompt of fewer pieces than others goes on with empty ones."""
        if len(ids) == count:
            return ids
        empty = self._tokenizer.encode([""]).ids
        return np.concatenate([ids, *[empty] * (count - len(ids))])
