"""Preconditioned L-BFGS for smooth convex objectives that are computed with rounding (Nocedal & Wright, algorithm 7.4)."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


MEMORY = 10  # pairs that L-BFGS keeps
MAX_TRIALS = 20  # step lengths per iteration
SUFFICIENT_DECREASE, CURVATURE = 1e-4, 0.9  # of Wolfe's conditions
FIRST_RENEWAL, RENEWAL = 10, 50  # iterations after which the approximate Hessian is made anew
LOSS_NOISE = 1e-7  # nats within which two losses cannot be told apart in float32
STEP_TOLERANCE, MOVE_TOLERANCE = 1e-5, 2e-4  # of the coefficients' norm: the next step, the last ten steps together


class Objective(Protocol):
    """What is minimised, as a function of a point (K, D + 1) whose last column is not penalised."""

    is_sharp: bool  # whether it is computed more exactly than at first

    def __call__(self, point: Tensor) -> tuple[float, Tensor, float]:
        """The loss, its gradient (K, D + 1), and what `tol` is compared with."""

    def precondition(self, gradient: Tensor) -> Tensor:
        """Solve the approximate Newton equations for a gradient (K, D + 1)."""

    def renew_curvature(self, point: Tensor) -> None:
        """Approximate the Hessian at a point."""

    def sharpen(self, point: Tensor) -> bool:
        """Compute more exactly from a point on, where rounding is in the way; False if that cannot be."""

    def refresh(self, point: Tensor, step: Tensor) -> bool:
        """Whether more is known of a point, computed anew since the step that led there is so short."""


@dataclass
class Minimum:
    """Where a search ended, with the largest entry of the gradient there."""

    point: Tensor
    gradient: float
    iterations: int


def minimize(fit: Objective, point: Tensor, tol: float, max_iterations: int) -> Minimum:
    """Find where the objective's figure is at most `tol` and the coefficients have settled, from a point (K, D + 1)."""
    loss, gradient, largest = fit(point)
    pairs = deque(maxlen=MEMORY)
    iterations, renewed, renewal = 0, 0, FIRST_RENEWAL
    while iterations < max_iterations:
        if iterations == renewal:
            fit.renew_curvature(point)
            pairs.clear()
            renewed, renewal = iterations, iterations + RENEWAL
        direction = -_newton_step(gradient, pairs, fit.precondition)
        if largest <= tol and _is_short(direction, point, STEP_TOLERANCE):
            break
        # Where convergence is slow, the next step says little of the way that is left; the last ones together do, if
        # they were made with a good Hessian.
        if (
            largest <= tol
            and len(pairs) == MEMORY
            and _is_short(sum(pair[0] for pair in pairs), point, MOVE_TOLERANCE)
        ):
            if iterations - renewed <= 2 * MEMORY:
                break
            renewal = iterations
            continue
        found = None
        if largest > tol or fit.is_sharp:
            found = _search_line(fit, point, direction, loss, gradient)
        if found is None:
            # What is left to go is within rounding: compute more exactly, then from nothing learnt.
            if not fit.sharpen(point):
                if not pairs:
                    break
                pairs.clear()
            loss, gradient, largest = fit(point)
            continue
        iterations += 1
        step, change = found.point - point, found.gradient - gradient
        product = (step * change).sum()
        if product > 0:
            pairs.append((step, change, 1 / product))
        point, loss, gradient, largest = found.point, found.loss, found.gradient, found.largest
        if fit.refresh(point, step):
            loss, gradient, largest = fit(point)
    return Minimum(point, largest, iterations)


def _is_short(move: Tensor, point: Tensor, tolerance: float) -> bool:
    """Whether a move changes the coefficients by no more than a share of them."""
    return bool(move[:, :-1].norm() <= tolerance * point[:, :-1].norm())


def _newton_step(gradient: Tensor, pairs: deque, precondition: Callable[[Tensor], Tensor]) -> Tensor:
    """The inverse of L-BFGS's Hessian times the gradient, by two loops over the pairs."""
    step, weights = gradient.clone(), []
    for move, change, inverse in reversed(pairs):
        weights.append(inverse * (move * step).sum())
        step -= weights[-1] * change
    step = precondition(step)
    if pairs:
        _, change, inverse = pairs[-1]
        step /= inverse * (change * precondition(change)).sum()
    for (move, change, inverse), weight in zip(pairs, reversed(weights), strict=True):
        step += (weight - inverse * (change * step).sum()) * move
    return step


@dataclass
class _Trial:
    point: Tensor
    loss: float
    gradient: Tensor
    largest: float


def _search_line(fit: Objective, point: Tensor, direction: Tensor, loss: float, gradient: Tensor) -> _Trial | None:
    """A point along the direction that meets the strong Wolfe conditions; None if there is none to be found.

    The objective is convex, so the slope brackets the minimum, and a length is guessed where the slope would be 0.
    """
    slope = (direction * gradient).sum().item()
    if not slope < 0:
        return None
    length, low, low_slope, high, high_slope = 1.0, 0.0, slope, None, None
    for _ in range(MAX_TRIALS):
        trial = _Trial(point + length * direction, *fit(point + length * direction))
        trial_slope = (direction * trial.gradient).sum().item()
        is_lower = trial.loss <= loss + SUFFICIENT_DECREASE * length * slope + LOSS_NOISE * max(1, loss)
        if is_lower and abs(trial_slope) <= -CURVATURE * slope:
            return trial
        if is_lower and trial_slope < 0:
            low, low_slope = length, trial_slope
        else:
            high, high_slope = length, trial_slope
        if high is None:
            length *= 2
            continue
        share = 0.5 if math.isfinite(high_slope) else 0.1  # too far by orders of magnitude
        if high_slope > 0:
            share = min(max(low_slope / (low_slope - high_slope), 0.1), 0.9)
        length = low + share * (high - low)
    return None
