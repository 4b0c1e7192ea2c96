"""Classify labelled images by the names of their classes, without training (CLIP, section 3.1).

The prompts decide as much as the model does: where names and templates come from stands in the result.

    python recipes/clip/zero_shot.py recipes/clip/configs/zero_shot_imagenet.yaml --checkpoint openai/clip-vit-large-patch14

Features and classifier are kept in the folder cache of `output_dir`: the same command takes seconds the second time. On
several devices put `accelerate launch` in the place of `python`. `--smoke` runs any configuration in seconds.
"""

import sys
from pathlib import Path

from hf_vitfm.cards.figures import draw_confusion
from hf_vitfm.cards.markdown import as_percent
from hf_vitfm.cards.target_figures import draw_class_accuracy
from hf_vitfm.evaluation.zero_shot import zero_shot_report
from hf_vitfm.training.feature_arguments import (
    EvaluationArguments,
    FeatureArguments,
    FeatureModel,
    PromptArguments,
    write_result,
)
from hf_vitfm.training.recipe import parse_recipe


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe; returns the metrics."""
    argv = sys.argv[1:] if argv is None else list(argv)
    data, prompts, args = parse_recipe((EvaluationArguments, PromptArguments, FeatureArguments), argv, __doc__)

    # 1. Images, and what their classes are called
    rows, split = data.load()
    names = prompts.read(rows, data.smoke)
    if names is None:
        raise ValueError(
            "Give `prompts`, the source of names and templates: imagenet, labels, ... (--help lists them)."
        )
    # 2. Model, classifier, features
    model = FeatureModel.load(args, data.smoke)
    classifier = model.build_classifier(names)
    embeds, labels = model.features(rows, "projected")
    report = zero_shot_report(classifier, embeds, labels)
    if not model.is_main:
        return report.metrics
    # 3. Numbers and pictures
    counts = report.confusion.sum(axis=1).tolist()
    record = {
        **report.metrics,
        "rows": len(labels),
        "largest_class": max(counts) / len(labels),
        "dataset": {**data.describe(), "split": split},
        "model": model.describe(),
        "prompts": {"source": names.source, "classes": len(names.names), "templates": list(names.templates)},
        "provenance": dict(classifier.provenance),
        "per_class": {
            name: {"accuracy": accuracy, "images": count}
            for (name, accuracy), count in zip(report.per_class.items(), counts, strict=True)
        },
    }
    directory = Path(args.output_dir)
    write_result("recipes/clip/zero_shot.py", argv, args.output_dir, record)
    draw_confusion(report.confusion, names.names, directory / "confusion.png")
    draw_class_accuracy(report.confusion, names.names, directory / "per_class.png")
    top1, top5, mean = (as_percent(report.metrics[name]) for name in ("top1", "top5", "mean_per_class"))
    print(
        f"top-1 {top1}, top-5 {top5}, mean per class {mean} of {len(labels)} images of {split}, by {names.source}: "
        f"{directory / 'zero_shot.json'}"
    )
    return report.metrics


if __name__ == "__main__":
    main()
