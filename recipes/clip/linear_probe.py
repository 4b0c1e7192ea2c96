"""Train a linear classifier on features of a frozen model as CLIP's authors do (CLIP, appendix A.3).

Logistic regression by full-batch L-BFGS on the features before CLIP's projection; the strength of its regularisation is
searched on validation images alone, then the probe is fitted again with them and tested once:

    python recipes/clip/linear_probe.py recipes/clip/configs/linear_probe_fashion.yaml --checkpoint emoji-clip

Features are kept in the folder cache of `output_dir`: another metric or split of the same images takes no model. On several
devices put `accelerate launch` in the place of `python`. MAE's linear probe, which trains by LARS on augmented images, is
recipes/mae/linear_probe.py.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from hf_vitfm.cards.figures import draw_confusion
from hf_vitfm.cards.grid_figure import draw_grid
from hf_vitfm.cards.markdown import as_percent
from hf_vitfm.cards.target_figures import draw_class_accuracy
from hf_vitfm.data.datasets import label_names
from hf_vitfm.evaluation.linear_probe import VALIDATION_SHARE, LinearProbeResult, linear_probe
from hf_vitfm.evaluation.metrics import confusion_matrix
from hf_vitfm.training.feature_arguments import FeatureArguments, FeatureModel, write_result
from hf_vitfm.training.recipe import SMOKE_HOLDOUT, DataArguments, parse_recipe


@dataclass
class ProbeArguments:
    """The probe and the search for its regularisation."""

    pooling: str | None = field(
        default=None,
        metadata={"help": "cls, mean, pooler, pre_projection or projected; by default what suits the model"},
    )
    C: float | None = field(
        default=None, metadata={"help": "1 / lambda, as scikit-learn defines it; searched if not given"}
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "split to search on, which joins the training images of the last fit"}
    )
    validation: float = field(
        default=VALIDATION_SHARE, metadata={"help": "without one, the share of the training images to search on"}
    )
    metric: str = field(
        default="accuracy", metadata={"help": "accuracy, mean_per_class, map11, roc_auc or mean_top1_top5"}
    )
    seed: int = field(default=0, metadata={"help": "of the shares that are held out"})
    max_iterations: int = field(default=1000, metadata={"help": "of L-BFGS, for every fit"})


def predict(result: LinearProbeResult, features: torch.Tensor) -> torch.Tensor:
    """The class ids (rows,) of features (rows, dim)."""
    weights, biases = result.coefficients.cpu(), result.intercept.cpu()
    return torch.tensor(result.classes)[(features.double() @ weights.T + biases).argmax(dim=1)]


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe; returns what linear_probe.json holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    data, probe, args = parse_recipe((DataArguments, ProbeArguments, FeatureArguments), argv, __doc__)
    if data.streaming:
        raise ValueError("A stream has no features that could be kept in their order; leave `streaming` out.")

    # 1. Images, and features of all of them
    train_rows, test_rows, split = data.load(probe.seed)
    model = FeatureModel.load(args, data.smoke)
    train, test = (model.features(rows, probe.pooling) for rows in (train_rows, test_rows))
    validation = None if probe.C is not None else SMOKE_HOLDOUT if data.smoke else probe.validation
    if probe.validation_split is not None and not data.smoke:
        _, rows, _ = replace(data, eval_split=probe.validation_split, holdout=None).load(probe.seed)
        validation = tuple(part.to(model.device) for part in model.features(rows, probe.pooling))
    if not model.is_main:
        return {}
    # 2. Search, fit, test
    result = linear_probe(
        *(part.to(model.device) for part in (*train, *test)),
        C=probe.C,
        validation=validation,
        metric=probe.metric,
        seed=probe.seed,
        max_iterations=probe.max_iterations,
    )
    # 3. Numbers and pictures
    record = write_result(
        "recipes/clip/linear_probe.py",
        argv,
        args.output_dir,
        {
            "metric": probe.metric,
            "score": result.score,
            "accuracy": result.accuracy,
            "C": result.C,
            "searched_on": (probe.validation_split or validation) if result.searched else None,
            "searched": [{"C": C, "score": score} for C, score in result.searched.items()],
            "gradient": result.solution.gradient,
            "is_converged": result.solution.is_converged,
            "features": model.describe_features(probe.pooling, train[0]),
            "dataset": data.describe() | {"train_rows": len(train[1]), "eval_split": split, "eval_rows": len(test[1])},
            "model": model.describe(),
        },
    )
    directory = Path(args.output_dir)
    if result.searched:
        draw_grid(result.searched, result.C, directory / "search.png", ("C = 1 / lambda", probe.metric))
    if test[1].ndim == 1:
        names = label_names(train_rows)
        confusion = confusion_matrix(predict(result, test[0]), test[1], len(names))
        draw_confusion(confusion, names, directory / "confusion.png")
        draw_class_accuracy(confusion, names, directory / "per_class.png")
    print(
        f"{probe.metric} {as_percent(result.score)} of {len(test[1])} images of {split}, C = {result.C:.3g}: "
        f"{directory / 'linear_probe.json'}"
    )
    return record


if __name__ == "__main__":
    main()
