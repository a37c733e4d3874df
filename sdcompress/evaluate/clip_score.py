"""CLIP score of pictures against their prompts, through torchmetrics.

100 x the cosine between CLIP's picture and text embeddings, at least 0 (Hessel et al.,
arXiv:2104.08718, without its factor 2.5). Scores of different CLIP models cannot be compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdcompress.errors import EvaluationError
from sdcompress.evaluate.metrics import Metric
from sdcompress.evaluate.picture_tensor import load_tensor
from sdcompress.quiet import quiet_libraries
from sdcompress.runtime.manifest import sha256_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ClipScorer:
    """A CLIP model on disk; `name` says which one in reports."""

    name: str
    folder: Path

    @property
    def made_by(self) -> str:
        """Scorer and preprocessing, for reports."""
        return f"{self.name}, through torchmetrics, pictures prepared by the model's own processor"

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the model's files by name."""
        files = (file for file in self.folder.iterdir() if file.is_file())
        return {file.name: sha256_of(file) for file in files}


def metric(scorer: ClipScorer) -> Metric:
    """The metric's card for a scorer."""
    return Metric(
        name="clip_score",
        title="CLIP score",
        kind="picture",
        better="higher",
        unit="",
        definition="100 x the cosine between CLIP's embeddings of picture and prompt, at least 0 "
        "(arXiv:2104.08718, without its factor 2.5). Comparable only for the same CLIP model",
        low=0.0,
        high=100.0,
        made_by=scorer.made_by,
    )


@dataclass(frozen=True)
class ClipLook:
    """What CLIP finds in pictures: `scores` float64 [n], `embeddings` float32 [n, d]."""

    scores: Array
    embeddings: Array


def locate_scorer(scorer: str) -> ClipScorer:
    """Finds a CLIP model: a local folder, or a hub id, fetched once and pinned to its commit.

    Raises EvaluationError when it cannot be had.
    """
    folder = Path(scorer).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise EvaluationError(_unusable(scorer, "the folder has no config.json"))
        if not any(folder.glob("*.safetensors")):
            raise EvaluationError(_unusable(scorer, "the folder has no .safetensors file"))
        return ClipScorer(scorer, folder)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "model.safetensors"]
    try:
        fetched = Path(snapshot_download(scorer, allow_patterns=patterns))
    except Exception as error:
        raise EvaluationError(_unusable(scorer, error)) from error
    return ClipScorer(f"{scorer}@{fetched.name}", fetched)


def _unusable(scorer: str, reason: object) -> str:
    first = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    return (
        f"the CLIP model '{scorer}' cannot be loaded: {first}. Pass a local folder with a "
        "CLIPModel and its processor: --set evaluate.scorer=FOLDER"
    )


class Clip:
    """A loaded scorer, for any number of pictures. Raises EvaluationError when it cannot be."""

    def __init__(self, scorer: ClipScorer) -> None:
        from torchmetrics.multimodal import CLIPScore

        with quiet_libraries("transformers"):
            self._features, processor = _load(scorer)
            self._score = CLIPScore(model_name_or_path=lambda: (self._features, processor))
        self._score.eval()

    def look(
        self, files: Sequence[Path], prompts: Sequence[str], on_picture: Callable[[], None]
    ) -> ClipLook:
        """Scores each picture against its prompt, and keeps the pictures' embeddings.

        Prompts longer than the model takes are cut at its limit.
        """
        import torch

        scores = np.empty(len(files))
        self._features.embeddings.clear()
        for index, (file, prompt) in enumerate(zip(files, prompts, strict=True)):
            with torch.inference_mode():
                self._score.update(load_tensor(file)[0].byte(), prompt)
                scores[index] = float(self._score.compute())
            self._score.reset()
            on_picture()
        return ClipLook(scores, np.concatenate(self._features.embeddings))


class ClipEyes:
    """The same model for pictures in memory. Raises EvaluationError when it cannot be loaded."""

    def __init__(self, scorer: ClipScorer) -> None:
        with quiet_libraries("transformers"):
            self._features, self._processor = _load(scorer)

    def embed(self, pictures: Array) -> Array:
        """Pictures uint8 [n, h, w, 3] to embeddings float32 [n, d]."""
        import torch

        inputs = self._processor(images=list(pictures), return_tensors="pt")
        with torch.inference_mode():
            found = self._features.get_image_features(inputs["pixel_values"])
        return np.asarray(found.float().cpu().numpy())


def _load(scorer: ClipScorer) -> "tuple[_Features, _Truncating]":
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(scorer.folder, use_safetensors=True).float().eval()
        processor = CLIPProcessor.from_pretrained(scorer.folder, backend="pil")
    except (OSError, ValueError) as error:
        raise EvaluationError(_unusable(scorer.name, error)) from error
    limit = model.config.text_config.max_position_embeddings
    return _Features(model), _Truncating(processor, limit)


class _Features:
    """A CLIPModel whose features are tensors, as torchmetrics expects them; keeps the pictures'.

    Since transformers 5 the model returns an output record instead.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.config = model.config
        self.embeddings: list[Array] = []

    def to(self, device: Any) -> "_Features":
        self._model.to(device)
        return self

    def get_image_features(self, pixels: Any) -> Any:
        found = self._model.get_image_features(pixels).pooler_output
        self.embeddings.append(found.float().cpu().numpy())
        return found

    def get_text_features(self, ids: Any, mask: Any) -> Any:
        return self._model.get_text_features(ids, attention_mask=mask).pooler_output


class _Truncating:
    """A CLIP processor that cuts long prompts but keeps their end token, which CLIP reads."""

    def __init__(self, processor: Any, limit: int) -> None:
        self._processor = processor
        self._limit = limit

    def __call__(self, *, text: Any = None, images: Any = None, **options: Any) -> Any:
        if text is not None:
            options |= {"truncation": True, "max_length": self._limit}
        return self._processor(text=text, images=images, **options)
