"""Predict images with any image classifier (ours or transformers') and write a table.

  one class per image   file, label, score, label_2, score_2, ... (softmax, best first), error
  several labels        file, label, score (the best), one column of sigmoid scores per class, error
  regression            file, one column per output, error

A file that cannot be read gets its reason in the last column, and the exit code is 1.
"""

import argparse
import contextlib
import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from .options import count, count_workers, find_device, positive


SUMMARY = "write what an image classifier says of image files to a CSV table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("model", help="Hub id or folder of an image classifier")
    parser.add_argument("images", nargs="+", help="image files, and folders in which they are searched")
    parser.add_argument("--output", default="predictions.csv", help="CSV file, - for standard output (%(default)s)")
    parser.add_argument("--top-k", type=positive, default=5, help="classes per image, of one class (%(default)s)")
    parser.add_argument("--batch-size", type=positive, default=32, help="images per forward pass (%(default)s)")
    parser.add_argument(
        "--workers", type=count, default=None, help="processes that decode (as many as there are CPUs, 4 at most)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ... (%(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the model (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Predict all images; returns 1 if any of them failed, else 0."""
    import torch
    from tqdm import tqdm

    from ..conversion import load_image_processor
    from ..evaluation.predict import evaluation_transform, find_images, load_classifier, predict_images

    files, failures = find_images(arguments.images), 0
    with _open_output(arguments.output) as output:
        transform = evaluation_transform(load_image_processor(arguments.model))
        model = load_classifier(arguments.model, dtype=getattr(torch, arguments.dtype)).to(
            find_device(arguments.device)
        )
        predictions = predict_images(
            model,
            files,
            transform,
            batch_size=arguments.batch_size,
            num_workers=count_workers(arguments.workers, len(files), arguments.batch_size),
        )
        table = _Table(model.config, arguments.top_k)
        writer = csv.writer(output, lineterminator="\n")
        writer.writerow(table.header)
        for prediction in tqdm(predictions, total=len(files), unit="image", disable=None):
            writer.writerow(table.row(prediction))
            if prediction.error is not None:
                failures += 1
                tqdm.write(f"{prediction.file}: {prediction.error}", file=sys.stderr)
    if failures:
        print(f"{failures} of {len(files)} images could not be predicted", file=sys.stderr)
    return 1 if failures else 0


class _Table:
    """The columns that a model's answers fill."""

    def __init__(self, config, top_k: int):
        from ..evaluation.metrics import unique_names
        from ..evaluation.predict import problem_type

        self.kind = problem_type(config)
        self.names = [str(config.id2label[i]) for i in range(config.num_labels)]
        self.top_k = min(top_k, len(self.names)) if self.kind == "single_label_classification" else 1
        best = ["label", "score"]
        for rank in range(2, self.top_k + 1):
            best += [f"label_{rank}", f"score_{rank}"]
        columns = {
            "single_label_classification": best,
            "multi_label_classification": [*best, *unique_names(self.names)],
            "regression": unique_names(self.names),
        }
        self.header = ["file", *columns[self.kind], "error"]

    def row(self, prediction) -> list:
        if prediction.error is not None:
            return [prediction.file, *[""] * (len(self.header) - 2), prediction.error]
        scores = [f"{score:.6g}" for score in prediction.scores.tolist()]
        values = []
        if self.kind != "regression":
            # As in the metrics, the first of equal classes comes first.
            for i in prediction.scores.argsort(descending=True, stable=True)[: self.top_k].tolist():
                values += [self.names[i], scores[i]]
        if self.kind != "single_label_classification":
            values += scores
        return [prediction.file, *values, ""]


@contextlib.contextmanager
def _open_output(target: str) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name only when it is whole."""
    if target == "-":
        if hasattr(sys.stdout, "reconfigure"):
            # Names of files need not be valid UTF-8; the table is.
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="")
        yield sys.stdout
        sys.stdout.flush()
        return
    path = Path(target)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"`--output` must be a file in a folder that exists, or -; got {target!r}.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", errors="backslashreplace", newline="") as output:
            yield output
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
