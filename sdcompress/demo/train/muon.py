"""Muon, for convolutions as well: momentum whose update is made orthogonal.

Keller Jordan's method (kellerjordan.github.io/posts/muon), with the step size of arXiv:2502.16982,
which lets it share AdamW's learning rate. PyTorch's own takes matrices only.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Newton-Schulz, tuned for slope at zero
_ITERATIONS = 5
_LIKE_ADAMW = 0.2  # root mean square of an AdamW update


def optimizers(model: torch.nn.Module, learning_rate: float) -> dict[str, torch.optim.Optimizer]:
    """Muon at twice the learning rate for weights; AdamW for embeddings, biases, norms, scalars."""
    tables = (module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    embeddings = {id(module.weight) for module in tables}
    weights: list[torch.Tensor] = []
    rest: list[torch.Tensor] = []
    for one in model.parameters():
        (weights if one.ndim > 1 and id(one) not in embeddings else rest).append(one)
    return {
        "weights": Muon(weights, 2 * learning_rate, weight_decay=0.01),
        "rest": torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01),
    }


class Muon(torch.optim.Optimizer):
    """Takes parameters of two or more dimensions; all but the first count as one."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Does one step. Raises ValueError when given a closure."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.flatten(1).shape].append(parameter)
            for parameters in alike.values():
                self._step(parameters, group)

    def _step(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        updates = orthogonal(torch.stack([self._momentum(one).flatten(1) for one in parameters]))
        scale = group["lr"] * _LIKE_ADAMW * max(updates.shape[1:]) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(update.view(parameter.shape), alpha=scale)

    def _momentum(self, parameter: torch.Tensor) -> torch.Tensor:
        """Returns the Nesterov momentum of the gradient."""
        state, gradient = self.state[parameter], parameter.grad
        if gradient is None:
            raise ValueError("no gradient")
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(state["momentum"], _MOMENTUM)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Brings all singular values of float32 [n, rows, columns] near one, in bfloat16."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    result: torch.Tensor = x.mT if tall else x
    return result.float()
