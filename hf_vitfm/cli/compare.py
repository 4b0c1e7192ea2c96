"""Compare checkpoints on images of one's own: which one suits them?

Each model's features are computed once (and kept in --cache-dir), then classified: linear probe, few-shot, k-NN, and
zero-shot where the model embeds texts. Every accuracy has a 95 % interval, and its paired difference to the best model.
Written are compare.json, compare.csv, compare.md, compare.png (accuracy against images per second), and finetune.yaml,
with which recipes/vit/finetune.py trains the winner.

  hf-vitfm compare emoji-clip fashion-mae facebook/dinov2-small microsoft/resnet-50 --data path/to/folder

The folder has one subfolder per class, inside train, val and test folders or not; any other data that load_images opens
will do. A model that cannot be compared is named with its reason, the others go on, and the exit code is 1.
"""

import argparse
import sys

from .options import count, find_device, positive


SUMMARY = "say which of several checkpoints suits your images"
_TASKS = ("linear_probe", "few_shot", "knn", "zero_shot")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="Hub id, folder, weight file, or emoji-clip, fashion-mae, which ship",
    )
    parser.add_argument(
        "--data", required=True, help="folder with a subfolder per class, or anything load_images opens"
    )
    parser.add_argument("--label-column", help="column of the classes, where it is not clear")
    parser.add_argument(
        "--splits", nargs=2, metavar=("TRAIN", "TEST"), help="to learn from and to test on (found by their names)"
    )
    parser.add_argument("--by", choices=_TASKS, default=_TASKS[0], help="what decides (%(default)s)")
    parser.add_argument(
        "--shots", type=positive, nargs="+", help="images per class (of 1 5 10 25 what the data allows)"
    )
    parser.add_argument("--seeds", type=positive, default=5, help="draws of the few shots (%(default)s)")
    parser.add_argument("--templates", nargs="+", help='zero-shot prompts, "{}" for the class ("a photo of a {}.")')
    parser.add_argument("--output", default="outputs/compare", help="folder for results (%(default)s)")
    parser.add_argument("--cache-dir", help="folder that keeps features (cache below --output)")
    parser.add_argument("--batch-size", type=positive, default=64, help="images per forward pass (%(default)s)")
    parser.add_argument("--num-workers", type=count, default=0, help="processes that decode (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ... (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Compare; returns 1 if a model failed, else 0."""
    from ..evaluation.compare import CompareOptions, compare_models
    from ..evaluation.compare_data import open_comparison
    from ..evaluation.compare_report import comparison_notes, comparison_table, write_comparison
    from ..evaluation.suite_tasks import FeatureOptions
    from ..training.fine_tuning_config import write_fine_tuning_config

    data = open_comparison(arguments.data, arguments.splits, arguments.label_column)
    cache = arguments.cache_dir or f"{arguments.output}/cache"
    options = CompareOptions(
        by=arguments.by,
        shots=arguments.shots,
        seeds=tuple(range(arguments.seeds)),
        templates=arguments.templates,
        features=FeatureOptions(arguments.batch_size, arguments.num_workers, cache),
        device=find_device(arguments.device),
    )
    found = compare_models(list(dict.fromkeys(arguments.models)), data, options, _say)
    files = write_comparison(found, arguments.output)
    config = write_fine_tuning_config(found, f"{arguments.output}/finetune.yaml", f"{arguments.output}/finetune")
    print(comparison_table(found), *comparison_notes(found), sep="\n", end="\n\n")
    print(*files, sep="\n")
    if config is None:
        print("no fine-tuning configuration: recipes/vit/finetune.py trains none of these models")
    else:
        for name, reason in config.passed_over.items():
            print(f"{name} cannot be fine-tuned by the recipe: {reason}")
        print(f"{arguments.output}/finetune.yaml  (fine-tunes {config.model.name})")
    return 1 if found.failures else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
