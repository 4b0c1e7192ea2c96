"""Logistic regression on fixed features by full-batch L-BFGS, on CPU or GPU.

The objective is that of scikit-learn's `LogisticRegression(C=C)`, which CLIP's linear probes use (Radford et al. 2021,
appendix A.3), divided by C x rows: the mean loss + lambda / (2 rows) x the squared norm of the coefficients, lambda = 1 / C;
intercepts are free. A fit stops when no entry of that mean's gradient is above `tol`, like scikit-learn's, and the
coefficients hardly move: with a large C on separable classes, a small gradient alone may be far from the optimum.

L-BFGS starts every step from an approximate Newton step. Its Hessian is a Kronecker product of a (classes, classes) and a
(dim, dim) matrix: exact at first, where all rows have the same probabilities, and made anew for those of the day in fits
that take many steps. The eigenvectors of the first serve every C. Sums over rows are made chunk by chunk in float32; once
rounding hides the rest of the way, in float64 at one point, and from there on the changes alone, whose rounding shrinks with
them; if that is not enough, in float64. Everything else is float64.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from .lbfgs import minimize


logger = logging.getLogger(__name__)

ANCHOR_SHARE = 1 / 32  # of the way from where the loss is known exactly; shorter steps ask for another such place
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
        curvature: the approximate Hessian, for fits that start here.
    """

    coefficients: Tensor
    intercept: Tensor
    gradient: float
    iterations: int
    evaluations: int
    is_converged: bool
    curvature: "_Curvature" = field(repr=False)


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
        weights, dim = weights.to(self.dtype), self.features.shape[1]
        total, parts = weights.sum(dtype=torch.float64), weights.split(self.chunk_rows)
        centre = torch.zeros(dim, dtype=torch.float64, device=weights.device)
        for chunk, part in zip(self.chunks(), parts, strict=True):
            centre += part @ chunk.to(self.dtype)
        centre /= total
        if self.rows > dim:
            gram, narrow = centre.new_zeros(dim, dim), centre.to(self.dtype)
            for chunk, part in zip(self.chunks(), parts, strict=True):
                chunk = (chunk.to(self.dtype) - narrow) * part.sqrt()[:, None]
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
        fit = _Fit(self, 1 / (C * self.rows), self.curvature if start is None else start.curvature)
        point = fit.first_point(start)
        with self._threads():
            minimum = minimize(fit, point, tol, max_iterations)
        if minimum.gradient > tol:
            logger.warning(
                f"The logistic regression at C = {C:g} stopped after {minimum.iterations} iterations at a gradient of "
                f"{minimum.gradient:.1e}, above {tol:.1e}. Raise `max_iterations`, or choose a smaller C."
            )
        coefficients, intercept = fit.plain(minimum.point)
        if self.is_pair:
            coefficients, intercept = (torch.cat([-half, half]) for half in (coefficients / 2, intercept / 2))
        return LogisticSolution(
            coefficients,
            intercept,
            minimum.gradient,
            minimum.iterations,
            fit.evaluations,
            minimum.gradient <= tol,
            fit.curvature,
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
        inverse = torch.where(class_values > 1e-12 * class_values[-1], 1 / (class_values * weight), 0)
        self.inverse_classes = self.class_vectors @ (inverse[:, None] * self.class_vectors.T)

    def solve(self, gradient: Tensor, penalty: float, mean: Tensor) -> Tensor:
        """The Newton step for a gradient (K, D + 1) by coefficients and by scores at the mean feature."""
        shift = self.centre - mean
        offsets = gradient[:, -1:]
        inner = self.class_vectors.T @ (gradient[:, :-1] - offsets * shift) @ self.vectors
        inner /= self.class_values[:, None] * self.values + penalty
        coefficients = self.class_vectors @ inner @ self.vectors.T
        offsets = self.inverse_classes @ offsets - coefficients @ shift[:, None]
        return torch.cat([coefficients, offsets], dim=1)


@dataclass(frozen=True, eq=False)
class _Anchor:
    """A point with its data term, exactly."""

    point: Tensor
    loss: float
    gradient: Tensor


class _Fit:
    """The objective at one C as a function of a point (K, D + 1): coefficients, and the scores at the mean feature.

    In these coordinates, those of centred features, intercepts and coefficients hardly interact.
    """

    def __init__(self, problem: LogisticProblem, penalty: float, curvature: _Curvature):
        self.problem, self.penalty, self.evaluations = problem, penalty, 0
        self.dtype = problem.dtype
        self.curvature = curvature
        self.anchor = None
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
                classes -= shares @ shares.T
                # The sum of share x (1 - share), without the difference of 1 and a share next to it.
                rest = shares.scatter_(0, shares.argmax(dim=0, keepdim=True), 0)
                others = rest.sum(dim=0)
                spread = others * (2 - others) - rest.square().sum(dim=0)
            else:
                shares = logits.sigmoid()
                spread = shares * logits.neg_().sigmoid_() * (problem.targets[:, first : first + len(chunk)] >= 0)
                classes.diagonal().add_(spread.sum(dim=1))
                spread = spread.sum(dim=0)
            first += len(chunk)
            weights.append(spread)
        if problem.is_softmax:  # a row's shares sum to 1, so rows of this matrix sum to 0
            classes = (classes + classes.T) / 2
            classes.diagonal().zero_().sub_(classes.sum(dim=1))
        if classes.trace() > 0:  # not where all probabilities are 0 and 1
            self.curvature = problem.curvature_of(classes / classes.trace(), torch.cat(weights))

    def sharpen(self, point: Tensor) -> bool:
        """Compute in float64 at a point and from there what changes, then in float64 alone; False if that is done."""
        if self.dtype == torch.float64:
            return False
        if self.anchor is None:
            self._anchor(point)
        else:
            self.anchor, self.dtype = None, torch.float64
        return True

    def refresh(self, point: Tensor, step: Tensor) -> bool:
        """Whether a point got the anchor, being far from the last one by the measure of a step."""
        if self.anchor is None or step.norm() >= ANCHOR_SHARE * (point - self.anchor.point).norm():
            return False
        self._anchor(point)
        return True

    def _anchor(self, point: Tensor) -> None:
        self.anchor = _Anchor(point, *self._data_term(point, torch.float64))

    @property
    def is_sharp(self) -> bool:
        """Whether it is computed more exactly than at first."""
        return self.dtype == torch.float64 or self.anchor is not None

    def __call__(self, point: Tensor) -> tuple[float, Tensor, float]:
        """The loss, its gradient, and the largest entry of the gradient by plain coefficients and intercepts."""
        problem, coefficients = self.problem, point[:, :-1]
        self.evaluations += 1
        if self.anchor is None:
            loss, gradient = self._data_term(point, self.dtype)
        elif torch.equal(self.anchor.point, point):
            loss, gradient = self.anchor.loss, self.anchor.gradient.clone()
        else:
            loss, gradient = self._data_term_from_anchor(point)
        gradient[:, :-1] += self.penalty * coefficients
        loss += 0.5 * self.penalty * coefficients.square().sum().item()
        largest = (gradient.abs().amax(dim=1) * problem.scale).max().item()
        gradient[:, :-1] -= gradient[:, -1:] * problem.mean
        return loss, gradient, largest

    def _data_term(self, point: Tensor, dtype: torch.dtype) -> tuple[float, Tensor]:
        """The mean loss without the penalty, and its gradient (K, D + 1) by plain coefficients and intercepts."""
        problem = self.problem
        narrow, offset = (values.to(dtype) for values in self.plain(point))
        gradient, loss, first = torch.zeros_like(point), point.new_zeros(()), 0
        for chunk in problem.chunks():
            last, chunk = first + len(chunk), chunk.to(dtype)
            logits = self._buffer("logits", len(point), len(chunk), dtype)
            torch.addmm(offset[:, None], narrow, chunk.T, out=logits)
            loss += self._to_residuals(logits, problem.targets[..., first:last])
            self._add_products(gradient, logits, chunk)
            first = last
        return loss.item() / problem.rows, gradient / problem.rows

    def _data_term_from_anchor(self, point: Tensor) -> tuple[float, Tensor]:
        """`_data_term` as the anchor's plus the change, which float32 holds to a share of itself."""
        problem, anchor, classes = self.problem, self.anchor, len(point)
        pairs = zip(self.plain(anchor.point), self.plain(point - anchor.point), strict=True)
        narrow, offset = (torch.cat(pair).to(self.dtype) for pair in pairs)  # one pass over the features for both
        gradient, loss, first = torch.zeros_like(point), point.new_zeros(()), 0
        for chunk in problem.chunks():
            last, chunk = first + len(chunk), chunk.to(self.dtype)
            logits = self._buffer("two logits", 2 * classes, len(chunk), self.dtype)
            torch.addmm(offset[:, None], narrow, chunk.T, out=logits)
            change, losses = self._changes(logits[:classes], logits[classes:], problem.targets[..., first:last])
            loss += losses
            self._add_products(gradient, change, chunk)
            first = last
        return anchor.loss + loss.item() / problem.rows, anchor.gradient + gradient / problem.rows

    def _add_products(self, gradient: Tensor, residuals: Tensor, chunk: Tensor) -> None:
        products = self._buffer("gradient", len(residuals), chunk.shape[1], chunk.dtype)
        gradient[:, :-1] += torch.mm(residuals, chunk, out=products)
        gradient[:, -1] += residuals.sum(dim=1, dtype=torch.float64)

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

    def _changes(self, logits: Tensor, change: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """How probabilities (K, B) and the sum of the losses change with the logits; overwrites both.

        Nothing is the difference of two nearly equal numbers: with e = exp(change) - 1, a sigmoid p changes by
        p (1 - p) e / (1 + p e) and its log-partition by log(1 + p e); a softmax by p (e - s) / (1 + s) and log(1 + s),
        where s is the mean of e under p.
        """
        growth = change.expm1()
        if not self.problem.is_softmax:
            known = targets >= 0
            shares = logits.sigmoid()
            losses = (shares * growth).log1p() - change * (targets > 0)
            spread = shares * logits.neg_().sigmoid_()
            return spread * growth / (1 + shares * growth) * known, (losses * known).sum(dtype=torch.float64)
        shares = logits.softmax(dim=0)
        mean = (shares * growth).sum(dim=0, keepdim=True)
        losses = mean.log1p() - change.gather(0, targets[None])
        return growth.sub_(mean).mul_(shares).div_(1 + mean), losses.sum(dtype=torch.float64)

    def _buffer(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        key = (name, rows, columns, dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(rows, columns, dtype=dtype, device=self.problem.features.device)
        return self._buffers[key]
