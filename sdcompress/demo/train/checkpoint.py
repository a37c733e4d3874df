"""The training loop, with checkpoints that a kill cannot tear and from which it resumes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_SECONDS_BETWEEN_SAVES = 60.0
_SECONDS_BETWEEN_LINES = 20.0


@dataclass(frozen=True)
class Job:
    """How long to train one part and where its checkpoint lies."""

    name: str
    steps: int
    batch: int
    learning_rate: float
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.pt"


def run(
    job: Job,
    modules: dict[str, torch.nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    loss: Callable[[int], torch.Tensor],
    after: Callable[[], None] | None = None,
) -> None:
    """Lowers `loss(index)` for each step left, with warm-up and cosine decay, saving on the way.

    Gradients are clipped to norm 1; `after` is called after each update. Randomness must depend on
    the index alone, so that a resumed run equals an uninterrupted one.
    """
    state = {**modules, **optimizers}
    peaks = [group["lr"] for group in _groups(optimizers)]
    done = _resume(job, state)
    groups = _groups(optimizers)
    parameters = [one for group in groups for one in group["params"]]
    saved = shown = time.monotonic()
    for index in range(done, job.steps):
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * schedule(index, job.steps)
        current = loss(index)
        current.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        if after:
            after()
        now = time.monotonic()
        if now - saved > _SECONDS_BETWEEN_SAVES or index + 1 == job.steps:
            save(job, state, index + 1)
            saved = now
        if now - shown > _SECONDS_BETWEEN_LINES or index + 1 == job.steps:
            print(f"{job.name} {index + 1}/{job.steps} loss {current.item():.5f}", flush=True)  # noqa: T201
            shown = now


def _groups(optimizers: dict[str, torch.optim.Optimizer]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers.values() for group in optimizer.param_groups]


def schedule(index: int, steps: int) -> float:
    """Linear warm-up over 3 % of the steps, then cosine decay to nearly zero."""
    warm_up = max(steps * 3 // 100, 1)
    if index < warm_up:
        return (index + 1) / warm_up
    progress = (index - warm_up) / max(steps - warm_up, 1)
    return 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi)))) + 1e-3


def save(job: Job, state: dict[str, Any], done: int) -> None:
    """Writes the checkpoint beside the old one and replaces it in one move."""
    job.folder.mkdir(parents=True, exist_ok=True)
    partial = job.checkpoint.with_suffix(".partial")
    torch.save({"done": done} | {name: part.state_dict() for name, part in state.items()}, partial)
    partial.replace(job.checkpoint)


def _resume(job: Job, state: dict[str, Any]) -> int:
    if not job.checkpoint.exists():
        return 0
    stored = torch.load(job.checkpoint, map_location="cpu", weights_only=True)
    for name, part in state.items():
        part.load_state_dict(stored[name])
    return int(stored["done"])


def device() -> torch.device:
    """A GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
