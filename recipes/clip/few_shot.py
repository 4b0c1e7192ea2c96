"""Learn classes from a few labelled images each, on features of a frozen model, and compare with zero-shot classification.

Ridge regression is the ViT paper's few-shot evaluation (section 4.1), logistic regression that of CLIP (section 3.1.5, Fig.
6), where zero-shot classification is as good as a probe of some number of images per class; that number is interpolated:

    python recipes/clip/few_shot.py recipes/clip/configs/few_shot_emoji.yaml

Features are kept in the folder cache of `output_dir`: more methods, shots or seeds take no model. On several devices put
`accelerate launch` in the place of `python`.
"""

import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hf_vitfm.cards.few_shot_figure import draw_few_shot
from hf_vitfm.cards.markdown import as_percent
from hf_vitfm.evaluation.few_shot import equivalent_shots, few_shot
from hf_vitfm.evaluation.zero_shot import zero_shot_metrics
from hf_vitfm.training.feature_arguments import FeatureArguments, FeatureModel, PromptArguments, write_result
from hf_vitfm.training.recipe import DataArguments, parse_recipe


TITLES = {
    "ridge": "ridge regression",
    "logistic": "logistic regression",
    "nearest_mean": "nearest class mean",
    "knn": "nearest neighbours",
}


@dataclass
class FewShotArguments:
    """The methods and their few images."""

    pooling: str | None = field(
        default=None,
        metadata={"help": "cls, mean, pooler, pre_projection or projected; by default what suits the model"},
    )
    methods: list[str] = field(
        default_factory=lambda: ["ridge"], metadata={"help": "ridge, logistic, nearest_mean, knn; one or several"}
    )
    shots: list[int] = field(default_factory=lambda: [1, 5, 10, 25], metadata={"help": "images per class"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of the draws of the few"})
    l2: float = field(default=1024.0, metadata={"help": "of the ridge regression"})
    C: float = field(default=0.316, metadata={"help": "of the logistic regression, 1 / lambda"})

    def __post_init__(self):
        if not self.methods or not set(self.methods) <= set(TITLES):
            raise ValueError(f"`methods` must be one or more of {', '.join(TITLES)}; got {self.methods!r}.")


def compare(accuracies: dict[str, dict[int, list[float]]], zero_shot: float | None) -> dict:
    """By method: accuracies of all draws by shots, their means, and how many shots equal zero-shot, if that is known."""
    compared = {}
    for method, by_shots in accuracies.items():
        compared[method] = {
            "accuracy": {str(shots): values for shots, values in by_shots.items()},
            "mean": {str(shots): statistics.fmean(values) for shots, values in by_shots.items()},
        }
        if zero_shot is not None:
            compared[method]["shots_equal_to_zero_shot"] = str(equivalent_shots(by_shots, zero_shot))
    return compared


def draw(accuracies: dict[str, dict[int, list[float]]], zero_shot: float | None, title: str, path: Path) -> None:
    """CLIP's Fig. 6 of these accuracies by method and shots."""
    equal = (
        {} if zero_shot is None else {name: equivalent_shots(curve, zero_shot) for name, curve in accuracies.items()}
    )
    draw_few_shot(
        {TITLES[method]: by_shots for method, by_shots in accuracies.items()},
        path,
        zero_shot=zero_shot,
        equivalent={TITLES[method]: number.shots for method, number in equal.items() if not number.bound},
        title=title,
    )


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe; returns what few_shot.json holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    classes = (DataArguments, PromptArguments, FewShotArguments, FeatureArguments)
    data, prompts, few, args = parse_recipe(classes, argv, __doc__)
    if data.streaming:
        raise ValueError("A stream has no features that could be kept in their order; leave `streaming` out.")

    # 1. Images, and features of all of them
    train_rows, test_rows, split = data.load(seed=0)
    names = prompts.read(test_rows, data.smoke)
    model = FeatureModel.load(args, data.smoke)
    train, test = (model.features(rows, few.pooling) for rows in (train_rows, test_rows))
    # 2. Zero-shot, where classes have names
    zero_shot = None
    if names is not None:
        zero_shot = zero_shot_metrics(model.build_classifier(names), *model.features(test_rows, "projected"))["top1"]
    if not model.is_main:
        return {}
    # 3. The few
    accuracies = {
        method: few_shot(*train, *test, few.shots, few.seeds, method, few.l2, C=few.C) for method in few.methods
    }
    # 4. Numbers and picture
    record = write_result(
        "recipes/clip/few_shot.py",
        argv,
        args.output_dir,
        {
            "zero_shot": zero_shot,
            "prompts": names and {"source": names.source, "templates": list(names.templates)},
            "methods": compare(accuracies, zero_shot),
            "seeds": few.seeds,
            "features": model.describe_features(few.pooling, train[0]),
            "dataset": data.describe() | {"train_rows": len(train[1]), "eval_split": split, "eval_rows": len(test[1])},
            "model": model.describe(),
        },
    )
    directory = Path(args.output_dir)
    draw(
        accuracies,
        zero_shot,
        f"{data.describe()['name']}, features of {model.loaded.name}",
        directory / "few_shot.png",
    )
    most = str(max(few.shots))
    best = max(few.methods, key=lambda method: record["methods"][method]["mean"][most])
    told = f"{TITLES[best]} {as_percent(record['methods'][best]['mean'][most])} at {most} images per class"
    if zero_shot is not None:
        equal = record["methods"][best]["shots_equal_to_zero_shot"]
        told += f"; zero-shot {as_percent(zero_shot)}, as good as {equal} images per class"
    print(f"{told}: {directory / 'few_shot.json'}")
    return record


if __name__ == "__main__":
    main()
