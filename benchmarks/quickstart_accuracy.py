"""Accuracy of the quickstart over seeds, on all 10,000 test images of Fashion-MNIST.

The quickstart itself evaluates on the 1,000 test images that ship with the package. This script trains it with three
seeds on the same 4,000 training images and evaluates each model on the whole test set, read from the idx files of
Debian's package `dataset-fashion-mnist`:

    python benchmarks/quickstart_accuracy.py
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


RECIPE, CONFIG = "recipes/vit/finetune.py", "recipes/vit/configs/quickstart.yaml"
RESULTS = Path("benchmarks/results/quickstart_accuracy.json")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    rows, runs = read_test_set(args.folder), []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, RECIPE, CONFIG, "--seed", str(seed), "--output_dir", directory]
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
            print(runs[-1])
    accuracies = [run["top1_all_10000"] for run in runs]
    summary = {
        "command": "python benchmarks/quickstart_accuracy.py",
        "config": CONFIG,
        "date": date.today().isoformat(),
        "hardware": f"CPU, {torch.get_num_threads()} threads",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "runs": runs,
        "mean_top1_all_10000": statistics.mean(accuracies),
        "standard_deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "mean_train_seconds": statistics.mean(run["train_seconds"] for run in runs),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
