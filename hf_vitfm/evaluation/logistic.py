"""Logistic regression on fixed features by full-batch L-BFGS, on CPU or GPU.

The objective is that of scikit-learn's `LogisticRegression(C=C)`, which CLIP's linear probes use (Radford et al. 2021,
appendix A.3), divided by C x rows: the mean loss + lambda / (2 rows) x the squared norm of the coefficients, lambda = 1 / C;
intercepts are free. A fit stops when no entry of that mean's gradient is above `tol`, like scikit-learn's, and the
coefficients hardly move: with a large C on separable classes, a small gradient alone may be far from the optimum.

L-BFGS starts every step from an approximate Newton step. Its Hessian is a Kronecker product of a (classes, classes) and a
(dim, dim) matrix: exact at first, where all rows have the same probabilities, and made anew for those of the day in fits
that take many steps. The eigenvectors of the first serve every C. Sums over rows are made chunk by chunk in float32, and in
float64 once rounding hides the rest of the way; everything else is float64.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


logger = logging.getLogger(__name__)

MEMORY = 10  # pairs that L-BFGS keeps
MAX_TRIALS = 12  # step lengths per iteration
SUFFICIENT_DECREASE, CURVATURE = 1e-4, 0.9  # of Wolfe's conditions
FIRST_RENEWAL, RENEWAL = 25, 50  # iterations after which the approximate Hessian is made anew
LOSS_NOISE = 1e-7  # nats within which two losses cannot be told apart in float32
STEP_TOLERANCE, MOVE_TOLERANCE = 1e-5, 4e-4  # of the coefficients' norm: the next step, the last ten steps together
_FEW_PRODUCTS = 1 << 24  # features x classes of all rows, below which one thread of a CPU is faster than two
_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}  # features or logits at a time; a CPU's stay in its cache


@dataclass(frozen=True)
class LogisticSolution:
    """What a fit found.

    Args:
        coefficients: (classes, dim) float64.
        intercept: (classes,) float64.
        gradient: largest absolute entry of the mean loss's gradient.
        iterations: of L-BFGS.
        evaluations: of loss and gradient, each two passes over the features.
        is_converged: whether `gradient` is no larger than the tolerance.
    """

    coefficients: Tensor
    intercept: Tensor
    gradient: float
    iterations: int
    evaluations: int
    is_converged: bool


class LogisticProblem:
    """Features with their targets, prepared once for fits at any number of C.

    Class ids give one softmax over the classes; for two classes the objective is scikit-learn's, a single sigmoid of the
    difference of their scores, so the two rows of coefficients are opposite. A matrix of targets gives one sigmoid per
    class, each as if fitted on its own.

    Args:
        features: (rows, dim), not copied; half precision is widened chunk by chunk.
        targets: (rows,) class indices 0..classes-1, every one of which must occur; or (rows, classes) of 1, 0 and -1,
            where rows of -1 are left out for that class.

    Raises:
        ValueError: if the shapes do not fit, or a class has no positive or no negative row.
    """

    def __init__(self, features: Tensor, targets: Tensor):
        if features.ndim != 2 or targets.ndim not in (1, 2) or len(features) != len(targets) or not len(features):
            raise ValueError(
                "`features` must be (rows, dim) with as many rows of `targets`, at least one; got "
                f"{tuple(features.shape)} and {tuple(targets.shape)}."
            )
        self.features, self.rows = features, len(features)
        self.dtype = torch.promote_types(features.dtype, torch.float32)
        targets = targets.to(features.device)
        self.is_pair = targets.ndim == 1 and int(targets.max()) <= 1
        self.is_softmax = targets.ndim == 1 and not self.is_pair
        if self.is_softmax:
            self.targets = targets.long()
            known = torch.tensor([float(self.rows)], dtype=torch.float64, device=features.device)
            positive = torch.bincount(self.targets).double()
        else:
            self.targets = targets.view(self.rows, -1).T.to(torch.int8).contiguous()  # (K, B): classes are far apart
            known, positive = ((self.targets >= low).sum(dim=1).double() for low in (0, 1))
        if (positive == 0).any() or (positive == known).any():
            wrong = torch.where((positive == 0) | (positive == known))[0].tolist()
            raise ValueError(
                "Every class must have rows that are of it and rows that are not; the classes of index "
                f"{', '.join(map(str, wrong[:5]))} do not. Leave such classes out."
            )
        widest = max(features.shape[1], len(positive))
        self.chunk_rows = max(64, _CHUNK.get(features.device.type, 1 << 24) // widest)
        self.scale = self.rows / known  # of the gradients: a class's mean is over the rows known to it
        self._prepare(positive / known, known / self.rows)

    def _prepare(self, frequencies: Tensor, known: Tensor) -> None:
        """Set the intercepts to begin at and the curvature there."""
        if self.is_softmax:
            self.start = frequencies.log()
            classes = torch.diag(frequencies) - frequencies[:, None] * frequencies
        else:
            self.start = frequencies.logit()
            classes = torch.diag(frequencies * (1 - frequencies) * known)
        trace = classes.trace()
        self.curvature = self.curvature_of(classes / trace, trace.expand(self.rows))
        self.mean = self.curvature.centre

    def curvature_of(self, classes: Tensor, weights: Tensor) -> "_Curvature":
        """Decompose the Hessian classes (K, K) x the mean of weight (B,) x feature x feature'."""
        total, dim = weights.sum(), self.features.shape[1]
        parts = weights.split(self.chunk_rows)
        centre = sum(w.double() @ chunk.double() for chunk, w in zip(self.chunks(), parts, strict=True)) / total
        if self.rows > dim:
            gram, narrow = centre.new_zeros(dim, dim), centre.to(self.dtype)
            for chunk, part in zip(self.chunks(), parts, strict=True):
                chunk = (chunk.to(self.dtype) - narrow) * part.to(self.dtype).sqrt()[:, None]
                gram += chunk.T @ chunk
            values, vectors = torch.linalg.eigh(gram / self.rows)
        else:  # what lies outside of the rows' span has no gradient
            rows = (self.features.double() - centre) * (weights.double()[:, None] / self.rows).sqrt()
            values, vectors = torch.linalg.eigh(rows @ rows.T)
            kept = values > 1e-13 * values[-1]
            values, vectors = values[kept], rows.T @ (vectors[:, kept] / values[kept].sqrt())
        return _Curvature(classes, centre, values.clamp_min(0), vectors, (total / self.rows).item())

    def chunks(self) -> tuple[Tensor, ...]:
        """The features in parts of `chunk_rows` rows."""
        return self.features.split(self.chunk_rows)

    @torch.no_grad()
    def solve(
        self, C: float, start: LogisticSolution | None = None, tol: float = 1e-6, max_iterations: int = 1000
    ) -> LogisticSolution:
        """Fit at one C.

        Args:
            C: inverse strength of the regularisation, above 0: 1 / lambda.
            start: a fit at another C to begin at; by default no coefficients.
            tol: largest absolute entry of the gradient at which to stop, above 0.
            max_iterations: after which to stop with a warning.

        Raises:
            ValueError: if an option is outside its range.
        """
        if not 0 < C < float("inf") or not tol > 0 or max_iterations < 1:
            raise ValueError(
                "`C` must be a finite number above 0, `tol` above 0 and `max_iterations` at least 1; got "
                f"{C!r}, {tol!r} and {max_iterations!r}."
            )
        fit = _Fit(self, 1 / (C * self.rows))
        point = fit.first_point(start)
        with self._threads():
            minimum = _minimize(fit, point, tol, max_iterations)
        if minimum.gradient > tol:
            logger.warning(
                f"The logistic regression at C = {C:g} stopped after {minimum.iterations} iterations at a gradient of "
                f"{minimum.gradient:.1e}, above {tol:.1e}. Raise `max_iterations`, or choose a smaller C."
            )
        coefficients, intercept = fit.plain(minimum.point)
        if self.is_pair:
            coefficients, intercept = (torch.cat([-half, half]) for half in (coefficients / 2, intercept / 2))
        return LogisticSolution(
            coefficients, intercept, minimum.gradient, minimum.iterations, fit.evaluations, minimum.gradient <= tol
        )

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """One thread for a small problem: its many short operations would spend their time waiting for each other's."""
        threads = torch.get_num_threads()
        products = self.rows * self.features.shape[1] * len(self.start)
        is_small = self.features.device.type == "cpu" and products < _FEW_PRODUCTS
        torch.set_num_threads(1 if is_small else threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


class _Curvature:
    """The approximate Hessian without the penalty, in its eigenvectors, to solve with at any penalty."""

    def __init__(self, classes: Tensor, centre: Tensor, values: Tensor, vectors: Tensor, weight: float):
        self.centre, self.values, self.vectors = centre, values, vectors
        class_values, self.class_vectors = torch.linalg.eigh(classes)
        self.class_values = class_values.clamp_min(0)
        # The direction in which all scores shift alike has no curvature and no gradient.
        self.inverse_classes = torch.linalg.pinv(classes * weight, rtol=1e-8, hermitian=True)

    def solve(self, gradient: Tensor, penalty: float, mean: Tensor) -> Tensor:
        """The Newton step for a gradient (K, D + 1) by coefficients and by scores at the mean feature."""
        shift = self.centre - mean
        offsets = gradient[:, -1:]
        inner = self.class_vectors.T @ (gradient[:, :-1] - offsets * shift) @ self.vectors
        inner /= self.class_values[:, None] * self.values + penalty
        coefficients = self.class_vectors @ inner @ self.vectors.T
        offsets = self.inverse_classes @ offsets - coefficients @ shift[:, None]
        return torch.cat([coefficients, offsets], dim=1)


class _Fit:
    """The objective at one C as a function of a point (K, D + 1): coefficients, and the scores at the mean feature.

    In these coordinates, those of centred features, intercepts and coefficients hardly interact.
    """

    def __init__(self, problem: LogisticProblem, penalty: float):
        self.problem, self.penalty, self.evaluations = problem, penalty, 0
        self.dtype = problem.dtype
        self.curvature = problem.curvature
        self._buffers = {}

    def first_point(self, start: LogisticSolution | None) -> Tensor:
        problem = self.problem
        if start is None:
            coefficients = problem.mean.new_zeros(len(problem.start), len(problem.mean))
            return torch.cat([coefficients, problem.start[:, None]], dim=1)
        coefficients, intercept = start.coefficients, start.intercept
        if problem.is_pair:
            coefficients, intercept = (rows[1:] - rows[:1] for rows in (coefficients, intercept))
        return torch.cat([coefficients, (intercept + coefficients @ problem.mean)[:, None]], dim=1)

    def plain(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients and intercepts for features as they are."""
        coefficients, centred = point[:, :-1], point[:, -1]
        return coefficients.clone(), centred - coefficients @ self.problem.mean

    def precondition(self, gradient: Tensor) -> Tensor:
        """Solve the approximate Newton equations."""
        return self.curvature.solve(gradient, self.penalty, self.problem.mean)

    def renew_curvature(self, point: Tensor) -> None:
        """Take the approximate Hessian at a point."""
        problem = self.problem
        narrow, offset = (values.to(problem.dtype) for values in self.plain(point))
        classes, weights, first = point.new_zeros(len(point), len(point)), [], 0
        for chunk in problem.chunks():
            logits = torch.addmm(offset[:, None], narrow, chunk.to(problem.dtype).T)
            if problem.is_softmax:
                shares = logits.softmax(dim=0)
                spread = shares * (1 - shares)
                classes -= shares @ shares.T
                classes.diagonal().add_(shares.sum(dim=1))
            else:
                shares = logits.sigmoid()
                spread = shares * (1 - shares) * (problem.targets[:, first : first + len(chunk)] >= 0)
                classes.diagonal().add_(spread.sum(dim=1))
            first += len(chunk)
            weights.append(spread.sum(dim=0))
        self.curvature = problem.curvature_of((classes + classes.T) / (2 * classes.trace()), torch.cat(weights))

    def widen(self) -> bool:
        """Go on in float64; False if that is where it is already."""
        if self.dtype == torch.float64:
            return False
        self.dtype, self._buffers = torch.float64, {}
        return True

    def __call__(self, point: Tensor) -> tuple[float, Tensor, float]:
        """The loss, its gradient, and the largest entry of the gradient by plain coefficients and intercepts."""
        problem = self.problem
        self.evaluations += 1
        coefficients, intercept = self.plain(point)
        narrow, offset = coefficients.to(self.dtype), intercept.to(self.dtype)[:, None]
        gradient, loss = torch.zeros_like(point), torch.zeros((), dtype=torch.float64, device=point.device)
        first = 0
        for chunk in problem.chunks():
            last, chunk = first + len(chunk), chunk.to(self.dtype)
            logits = torch.addmm(offset, narrow, chunk.T, out=self._buffer("logits", len(point), len(chunk)))
            loss += self._to_residuals(logits, problem.targets[..., first:last])
            gradient[:, :-1] += torch.mm(logits, chunk, out=self._buffer("gradient", *coefficients.shape))
            gradient[:, -1] += logits.sum(dim=1, dtype=torch.float64)
            first = last
        gradient /= problem.rows
        gradient[:, :-1] += self.penalty * coefficients
        loss = loss.item() / problem.rows + 0.5 * self.penalty * coefficients.square().sum().item()
        largest = (gradient.abs().amax(dim=1) * problem.scale).max().item()
        gradient[:, :-1] -= gradient[:, -1:] * problem.mean
        return loss, gradient, largest

    def _to_residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Turn logits (K, B) into probabilities minus targets in place; return the sum of the losses."""
        if not self.problem.is_softmax:
            known = targets >= 0
            wanted = (targets > 0).to(logits.dtype)
            loss = F.binary_cross_entropy_with_logits(logits, wanted, weight=known.to(logits.dtype), reduction="none")
            logits.sigmoid_().sub_(wanted).mul_(known)
            return loss.sum(dtype=torch.float64)
        index = targets[None]
        logits -= logits.amax(dim=0, keepdim=True)
        right = logits.gather(0, index)
        total = logits.exp_().sum(dim=0, keepdim=True)
        logits /= total
        logits.scatter_add_(0, index, torch.full_like(right, -1))
        return (total.log() - right).sum(dtype=torch.float64)

    def _buffer(self, name: str, *shape: int) -> Tensor:
        if (name, shape) not in self._buffers:
            self._buffers[name, shape] = torch.empty(shape, dtype=self.dtype, device=self.problem.features.device)
        return self._buffers[name, shape]


@dataclass
class _Minimum:
    point: Tensor
    gradient: float
    iterations: int


def _minimize(fit: _Fit, point: Tensor, tol: float, max_iterations: int) -> _Minimum:
    """Preconditioned L-BFGS (Nocedal & Wright, algorithm 7.4)."""
    loss, gradient, largest = fit(point)
    pairs = deque(maxlen=MEMORY)
    iterations, renewal = 0, FIRST_RENEWAL
    while iterations < max_iterations:
        if iterations == renewal:
            fit.renew_curvature(point)
            pairs.clear()
            renewal += RENEWAL
        direction = -_newton_step(gradient, pairs, fit.precondition)
        if largest <= tol and _has_settled(point, direction, pairs):
            break
        found = None
        if largest > tol or fit.dtype == torch.float64:
            found = _search_line(fit, point, direction, loss, gradient)
        if found is None:
            # What is left to go is within float32's rounding: compute more exactly, then from nothing learnt.
            if not fit.widen():
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
    return _Minimum(point, largest, iterations)


def _has_settled(point: Tensor, direction: Tensor, pairs: deque) -> bool:
    """Whether the coefficients hardly move any more.

    Where convergence is slow, the next step says little of the way that is left; the last ones together do.
    """
    norm = point[:, :-1].norm()
    if direction[:, :-1].norm() <= STEP_TOLERANCE * norm:
        return True
    moved = sum(move[:, :-1] for move, _, _ in pairs)
    return len(pairs) == MEMORY and bool(moved.norm() <= MOVE_TOLERANCE * norm)


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


def _search_line(fit: _Fit, point: Tensor, direction: Tensor, loss: float, gradient: Tensor) -> _Trial | None:
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
        share = 0.5
        if high_slope > 0:
            share = min(max(low_slope / (low_slope - high_slope), 0.1), 0.9)
        length = low + share * (high - low)
    return None
