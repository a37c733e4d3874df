"""DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095) and UniPC (Zhao et al. 2023, arXiv 2302.04867).

Both integrate in lambda = log(a / s) = -log(sigma), where a step has the length h. What they
extrapolate is x0, the clean latents. On the way to the clean end h is infinite, and only the first
order is defined.
"""

import math
from dataclasses import dataclass

import numpy as np

from sdcompress.runtime.arrays import Float32
from sdcompress.runtime.schedulers.estimate import FreshNoise, Predict, Walk, split
from sdcompress.runtime.schedulers.levels import signal_and_noise
from sdcompress.runtime.schedulers.plan import Plan

_FEW_STEPS = 15  # below this, diffusers ends with a lower order for stability


@dataclass(frozen=True)
class _Answer:
    """An estimate of the clean latents and the noise level it was made at."""

    clean: Float32
    sigma: float


@dataclass(frozen=True)
class _Step:
    """The way from one noise level to another, `sde` if part of it is made up by fresh noise."""

    sigma: float
    next: float
    sde: bool

    @property
    def shrink(self) -> float:  # exp(-h)
        return self.next / self.sigma

    @property
    def h(self) -> float:
        return lambda_step(self.sigma, self.next)

    @property
    def kept(self) -> float:
        """exp(-h), squared where fresh noise takes the place of the rest."""
        return self.shrink**2 if self.sde else self.shrink

    def linear(self, x: Float32, clean: Float32, noise: FreshNoise) -> Float32:
        """The first-order step, exact if x0 does not change on the way."""
        s = signal_and_noise(self.sigma)[1]
        a_next, s_next = signal_and_noise(self.next)
        moved = x * (s_next / s * self.kept / self.shrink if self.sde and self.next else s_next / s)
        moved = moved + clean * (a_next * (1 - self.kept))
        return moved + noise() * (s_next * math.sqrt(1 - self.kept)) if self.sde else moved

    def slope_weight(self, solver_type: str) -> float:
        """How much the change of x0 in a whole step counts, by the midpoint or Heun's rule."""
        a_next = signal_and_noise(self.next)[0]
        if solver_type == "midpoint":
            return 0.5 * a_next * (1 - self.kept)
        h = 2 * self.h if self.sde else self.h
        return a_next * ((self.kept - 1) / h + 1)

    def bend_weight(self) -> float:
        """How much the change of that change counts; without fresh noise."""
        h = self.h
        return -signal_and_noise(self.next)[0] * ((self.shrink - 1 + h) / h**2 - 0.5)


def lambda_step(sigma: float, following: float) -> float:
    """The length of a step in lambda, infinite on the way to the clean end."""
    return math.log(sigma / following) if following > 0 else math.inf


def multistep(plan: Plan, x: Float32, predict: Predict, noise: FreshNoise) -> Walk:
    """Algorithm 2 of DPM-Solver++: each step uses up to three calls, its own and those before."""
    config = plan.config
    history: list[_Answer] = []  # newest first
    for call, row in enumerate(plan.rows()):
        clean, _ = split(config.prediction_type, x, row.sigma, predict(x, row.t))
        history = [_Answer(clean, row.sigma), *history[: config.solver_order - 1]]
        step = _Step(row.sigma, row.next, config.algorithm_type == "sde-dpmsolver++")
        x = step.linear(x, clean, noise)
        order = min(len(history), _highest_order(plan, len(plan) - call))
        if order == 2:
            slope = _slope(step, history[0], history[1])
            x = x + slope * step.slope_weight(config.solver_type)
        elif order == 3:
            slope, bend = _slope_and_bend(step, history)
            x = x + slope * step.slope_weight("heun") + bend * step.bend_weight()
        x = yield x


def _highest_order(plan: Plan, calls_left: int) -> int:
    config = plan.config
    few = config.lower_order_final and plan.skipped + len(plan) < _FEW_STEPS
    if calls_left == 1 and (few or config.euler_at_final or config.final_sigmas_type == "zero"):
        return 1
    return min(2, config.solver_order) if calls_left == 2 and few else config.solver_order


def _slope(step: _Step, later: _Answer, earlier: _Answer) -> Float32:
    """How much x0 changes in a whole step, going by its change from one answer to a later one."""
    ratio = step.h / lambda_step(earlier.sigma, later.sigma)
    return (later.clean - earlier.clean) * ratio


def _slope_and_bend(step: _Step, history: list[_Answer]) -> tuple[Float32, Float32]:
    newest, middle, oldest = history
    r0 = lambda_step(middle.sigma, newest.sigma) / step.h
    r1 = lambda_step(oldest.sigma, middle.sigma) / step.h
    late, early = _slope(step, newest, middle), _slope(step, middle, oldest)
    bend: Float32 = (late - early) * (1 / (r0 + r1))
    return late + bend * r0, bend


def singlestep(plan: Plan, x: Float32, predict: Predict, noise: FreshNoise) -> Walk:
    """Algorithm 1 of DPM-Solver++: steps of one, two or three calls that use no earlier ones.

    Every call moves on from where its step began, the first by order 1, the next by order 2 ...
    """
    config = plan.config
    orders = singlestep_orders(plan)
    start = x
    history: list[_Answer] = []
    for row, wanted in zip(plan.rows(), orders[plan.skipped :], strict=True):
        clean, _ = split(config.prediction_type, x, row.sigma, predict(x, row.t))
        history = [_Answer(clean, row.sigma), *history[: config.solver_order - 1]]
        order = min(wanted, len(history))
        if order == 1:
            start = x
        first = history[order - 1]
        step = _Step(first.sigma, row.next, config.algorithm_type == "sde-dpmsolver++")
        x = step.linear(start, first.clean, noise)
        if order == 2:
            slope = _slope(step, history[0], first)
            x = x + slope * step.slope_weight(config.solver_type)
        elif order == 3:
            x = x + _third_order(step, config.solver_type, history)
        x = yield x


def singlestep_orders(plan: Plan) -> list[int]:
    """The order of each call, for the number of steps asked for."""
    config, steps, order = plan.config, plan.steps, plan.config.solver_order
    lower_at_end = config.lower_order_final or config.final_sigmas_type == "zero"
    lower_at_end = lower_at_end or bool(steps % order)
    whole, rest = divmod(steps, order)
    rising = list(range(1, order + 1))
    if not lower_at_end or order == 1:
        orders = rising * whole
    elif rest:
        orders = rising * whole + rising[:rest]
    else:
        orders = rising * (whole - 1) + rising[:-1] + [1]
    if config.final_sigmas_type == "zero":
        orders[-1] = 1
    return orders


def _third_order(step: _Step, solver_type: str, history: list[_Answer]) -> Float32:
    newest, middle, first = history
    late, early = _slope(step, newest, first), _slope(step, middle, first)
    if solver_type == "midpoint":
        return late * step.slope_weight("heun")
    r0 = lambda_step(first.sigma, newest.sigma) / step.h
    r1 = lambda_step(first.sigma, middle.sigma) / step.h
    slope, bend = (early * r0 - late * r1) / (r0 - r1), (late - early) * (2 / (r0 - r1))
    return slope * step.slope_weight("heun") + bend * step.bend_weight()


def unipc(plan: Plan, x: Float32, predict: Predict, noise: FreshNoise) -> Walk:
    """UniPC, algorithms 1 and 2: each call first corrects the step that led to it."""
    del noise
    config = plan.config
    history: list[_Answer] = []
    last, last_order = x, 0
    for call, row in enumerate(plan.rows()):
        clean, _ = split(config.prediction_type, x, row.sigma, predict(x, row.t))
        now = _Answer(clean, row.sigma)
        if history and plan.skipped + call - 1 not in config.disable_corrector:
            x = _corrected(config.solver_type, last, history[:last_order], now)
        history = [now, *history[: config.solver_order - 1]]
        order = min(config.solver_order, len(history))
        if config.lower_order_final:
            order = min(order, len(plan) - call)
        last, last_order = x, order
        x = yield _predicted(config.solver_type, x, history[:order], row.next)


def _predicted(solver_type: str, x: Float32, history: list[_Answer], following: float) -> Float32:
    """UniP: from the newest of `history` to the level `following`."""
    start = history[0]
    step = _Step(start.sigma, following, sde=False)
    moved = step.linear(x, start.clean, _no_noise)
    if len(history) == 1 or math.isinf(step.h):
        return moved
    places, matrix, targets, scale = _system(solver_type, step, history)
    exact_for_two = len(history) == 2
    weights = [0.5] if exact_for_two else np.linalg.solve(matrix[:-1, :-1], targets[:-1]).tolist()
    return _bent(moved, history, places, weights, scale)


def _corrected(solver_type: str, x: Float32, history: list[_Answer], now: _Answer) -> Float32:
    """UniC: the same step as the predictor took from `x`, with the answer at its end."""
    start = history[0]
    step = _Step(start.sigma, now.sigma, sde=False)
    moved = step.linear(x, start.clean, _no_noise)
    places, matrix, targets, scale = _system(solver_type, step, history)
    weights = [0.5] if len(history) == 1 else np.linalg.solve(matrix, targets).tolist()
    moved = _bent(moved, history, places, weights[:-1], scale)
    return moved - (now.clean - start.clean) * (scale * weights[-1])


def _bent(
    moved: Float32,
    history: list[_Answer],
    places: list[float],
    weights: list[float],
    scale: float,
) -> Float32:
    """The first-order step, bent by how earlier answers differ from the one it began with."""
    for older, place, weight in zip(history[1:], places, weights, strict=True):
        moved = moved - (older.clean - history[0].clean) * (scale * weight / place)
    return moved


def _system(
    solver_type: str, step: _Step, history: list[_Answer]
) -> tuple[list[float], np.ndarray, np.ndarray, float]:
    """The equations for the weights (formulas 5 and 6), and the factor a' B(h) before them."""
    h, start = step.h, history[0]
    places = [-lambda_step(older.sigma, start.sigma) / h for older in history[1:]]
    nodes = np.array([*places, 1.0])
    shrunk = math.expm1(-h)
    b_h = -h if solver_type == "bh1" else shrunk
    phi, factorial, targets = shrunk / -h - 1, 1, []
    for index in range(1, len(nodes) + 1):
        targets.append(phi * factorial / b_h)
        factorial *= index + 1
        phi = phi / -h - 1 / factorial
    matrix = np.stack([nodes**power for power in range(len(nodes))])
    return places, matrix, np.array(targets), signal_and_noise(step.next)[0] * b_h


def _no_noise() -> Float32:
    raise AssertionError("a step without fresh noise asked for some")
