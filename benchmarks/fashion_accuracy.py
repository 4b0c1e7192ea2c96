"""Accuracy of the small runs on Fashion-MNIST over seeds, on all 10,000 test images.

The recipes themselves evaluate on the 1,000 test images that ship with the package. This script runs each with three
seeds and evaluates the models on the whole test set, read from the idx files of Debian's package
`dataset-fashion-mnist`. Results of configurations that are not run again stay in the file:

    python benchmarks/fashion_accuracy.py
    python benchmarks/fashion_accuracy.py --configs recipes/mae/configs/quickstart.yaml
"""

import argparse
import gzip
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from hf_vitfm import (
    ImageClassificationTrainer,
    VisionTrainingArguments,
    ViTForImageClassification,
    load_image_processor,
)


RECIPES = {
    "recipes/mae/configs/quickstart.yaml": "recipes/mae/finetune.py",
    "recipes/vit/configs/fashion_scratch.yaml": "recipes/vit/finetune.py",
    "recipes/mae/configs/few_labels.yaml": "recipes/mae/finetune.py",
    "recipes/mae/configs/few_labels_scratch.yaml": "recipes/mae/finetune.py",
}
RESULTS = Path("benchmarks/results/fashion_accuracy.json")


def read_test_set(folder: Path) -> list[dict]:
    """Rows of the whole test set, from gzipped idx files."""
    images = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    classes = np.frombuffer(labels, np.uint8, offset=8)
    return [{"image": Image.fromarray(image), "label": int(i)} for image, i in zip(pixels, classes, strict=True)]


def evaluate(directory: str, rows: list[dict]) -> float:
    """Top-1 accuracy of a finished run."""
    trainer = ImageClassificationTrainer(
        model=ViTForImageClassification.from_pretrained(directory),
        args=VisionTrainingArguments(directory, use_cpu=True, report_to="none", per_device_eval_batch_size=250),
        eval_dataset=rows,
        processing_class=load_image_processor(directory),
    )
    return trainer.evaluate()["eval_top1"]


def measure(config: str, seeds: list[int], rows: list[dict]) -> dict:
    """Run a configuration with several seeds; accuracies, and what they were measured with."""
    runs = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, RECIPES[config], config, "--seed", str(seed), "--output_dir", directory]
            subprocess.run(command, check=True)
            results = json.loads((Path(directory) / "all_results.json").read_text())
            runs.append(
                {
                    "seed": seed,
                    "top1_embedded_1000": results["eval_top1"],
                    "top1_all_10000": evaluate(directory, rows),
                    "train_seconds": results["train_runtime"],
                }
            )
            print(config, runs[-1], flush=True)
    accuracies = [run["top1_all_10000"] for run in runs]
    return {
        "mean_top1_all_10000": statistics.mean(accuracies),
        "standard_deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "mean_train_seconds": statistics.mean(run["train_seconds"] for run in runs),
        "runs": runs,
        "command": f"python benchmarks/fashion_accuracy.py --configs {config}",
        "date": date.today().isoformat(),
        "hardware": f"CPU, {torch.get_num_threads()} threads",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--configs", nargs="+", choices=list(RECIPES), default=list(RECIPES), metavar="CONFIG")
    args = parser.parse_args()
    rows = read_test_set(args.folder)
    for config in args.configs:
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        found[config] = measure(config, args.seeds, rows)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
        print(json.dumps(found[config], indent=2))


if __name__ == "__main__":
    main()
