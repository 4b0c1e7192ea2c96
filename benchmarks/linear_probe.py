"""Speed and exactness of logistic regression on features, next to scikit-learn's `LogisticRegression`.

All fit the same float32 features at the same C, in one process, taking turns; scikit-learn also as float64, for in float32
rounding makes its line search stop early. See benchmarks/README.md on how to read it.
"""

import argparse
import json
import platform
import re
import warnings
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch.nn import functional as F
from tqdm import tqdm
from vit_speed import measure

import hf_vitfm
from hf_vitfm.evaluation.logistic import LogisticProblem


TOLERANCE, MAX_ITERATIONS = 1e-6, 1000
KINDS = ("as they come", "centred")
PEERS = {"scikit-learn": torch.float32, "scikit-learn, float64": torch.float64}


def make_features(rows: int, dim: int, classes: int, kind: str, decay: float = 1.0, separation: float = 0.12):
    """Clouds whose variance falls as the features of networks do, as a power of the direction's rank, off the origin.

    Of the kind "centred" they lie around it at a mean distance of 1, which is easier.
    """
    generator = torch.Generator().manual_seed(0)
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    spread = torch.arange(1, dim + 1, dtype=torch.float64) ** (-decay / 2)
    spread *= (dim / spread.square().sum()).sqrt()
    turn = torch.linalg.qr(randn(dim, dim)).Q
    labels = torch.randint(classes, (2 * rows,), generator=generator)
    centres = separation * spread * randn(classes, dim)
    features = (((centres[labels] + spread * randn(2 * rows, dim)) @ turn.T) + randn(dim)).float()
    if kind == "centred":
        features -= features[:rows].mean(dim=0)
        features /= features[:rows].norm(dim=1).mean()
    return features[:rows], labels[:rows], features[rows:], labels[rows:]


def fit_ours(features, labels, C: float, found: dict) -> None:
    solution = LogisticProblem(features, labels).solve(C, tol=TOLERANCE, max_iterations=MAX_ITERATIONS)
    found["hf_vitfm"] = solution.coefficients, solution.intercept, solution.iterations


def fit_theirs(name: str, features, labels, C: float, found: dict) -> None:
    features = features.to(PEERS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the table has the gradient
        model = LogisticRegression(C=C, tol=TOLERANCE, max_iter=MAX_ITERATIONS).fit(features.numpy(), labels.numpy())
    weights, intercept = (torch.from_numpy(values).double() for values in (model.coef_, model.intercept_))
    found[name] = weights, intercept, int(model.n_iter_[0])


def largest_gradient(features, labels, weights, intercept, C: float) -> float:
    """Of the mean loss with its penalty, in float64 by autograd."""
    weights, intercept = (values.clone().requires_grad_() for values in (weights, intercept))
    loss = F.cross_entropy(features.double() @ weights.T + intercept, labels)
    (loss + weights.square().sum() / (2 * C * len(features))).backward()
    return max(weights.grad.abs().max().item(), intercept.grad.abs().max().item())


def compare(kind: str, data: tuple, C: float, rounds: int, progress: tqdm) -> dict:
    """Times, exactness and predictions of both at one C."""
    features, labels, test_features, test_labels = data
    found = {}
    steps = {name: partial(fit_theirs, name, features, labels, C, found) for name in PEERS}
    steps["hf_vitfm"] = partial(fit_ours, features, labels, C, found)
    seconds = measure(steps, rounds, "cpu", progress)
    optimum = LogisticProblem(features.double(), labels).solve(C, tol=1e-9, max_iterations=5000)
    found["optimum"] = optimum.coefficients, optimum.intercept, optimum.iterations
    wanted = centred(optimum.coefficients)
    best = (test_features.double() @ optimum.coefficients.T + optimum.intercept).argmax(1)
    case = {"features": kind, "C": C}
    for name, (weights, intercept, iterations) in found.items():
        predicted = (test_features.double() @ weights.T + intercept).argmax(1)
        case[name] = {
            "seconds": seconds.get(name),
            "median": float(np.median(seconds[name])) if name in seconds else None,
            # In each round.
            "times_ours": float(np.median(np.divide(seconds[name], seconds["hf_vitfm"]))) if name in seconds else None,
            "iterations": iterations,
            "gradient": largest_gradient(features, labels, weights, intercept, C),
            "distance": ((centred(weights) - wanted).norm() / wanted.norm()).item(),
            "agreement": (predicted == best).double().mean().item(),
            "accuracy": (predicted == test_labels).double().mean().item(),
        }
    return case


def centred(weights: torch.Tensor) -> torch.Tensor:
    """Without the part that all classes share, which changes no probability."""
    return weights - weights.mean(dim=0)


def render(report: dict) -> str:
    """The report as a Markdown table."""
    header = [
        "features",
        "C",
        "fitted by",
        "seconds",
        "times ours",
        "iterations",
        "gradient",
        "distance",
        "same predictions",
    ]
    rows = [header, ["---", "---:", "---", *["---:"] * 6]]
    for case in report["cases"]:
        for name in ("hf_vitfm", *PEERS):
            found = case[name]
            rows.append(
                [
                    case["features"],
                    f"{case['C']:g}",
                    name,
                    f"{found['median']:.2f}",
                    f"{found['times_ours']:.1f}",
                    str(found["iterations"]),
                ]
                + [f"{found['gradient']:.1e}", f"{found['distance']:.1e}", f"{100 * found['agreement']:.2f} %"]
            )
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    title = f"{report['rows']:,} x {report['dim']}, {report['classes']} classes, {report['rounds']} rounds"
    title += f"; {report['hardware']}; {versions}; {report['date']}."
    return title + "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"rows": 10_000, "dim": 512, "classes": 10, "rounds": 3, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--C", type=float, nargs="+", default=[0.01, 1.0, 100.0], help="default: %(default)s")
    default = Path(__file__).parent / "results" / "linear_probe_cpu.json"
    parser.add_argument(
        "--output", type=Path, default=default, help="default: benchmarks/results/linear_probe_cpu.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = (re.findall(r"model name\s*: (.*)", cpuinfo) or [platform.machine()])[0]
    report = {
        "date": date.today().isoformat(),
        "hardware": f"{cpu}, {args.threads} threads",
        "versions": {module.__name__: module.__version__ for module in (hf_vitfm, torch, sklearn)},
        **{name: getattr(args, name) for name in ("rows", "dim", "classes", "rounds")},
        "cases": [],
    }
    with (
        threadpool_limits(args.threads),
        tqdm(total=3 * (args.rounds + 1) * len(args.C) * len(KINDS), unit="fit") as progress,
    ):
        for kind in KINDS:
            data = make_features(args.rows, args.dim, args.classes, kind)
            for C in args.C:
                report["cases"].append(compare(kind, data, C, args.rounds, progress))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(render(report))


if __name__ == "__main__":
    main()
