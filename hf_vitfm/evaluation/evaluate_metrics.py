"""The same metrics as `evaluate.Metric` classes, for code that expects that interface.

Construct them directly, `TopKAccuracy().compute(predictions=..., references=...)`: nothing is downloaded, which
`evaluate.load("accuracy")` would do. Only this module imports `evaluate`.
"""

import numpy as np
import torch

from .metrics import classification_metrics, summarize_logits, top_k_accuracy


try:
    import datasets
    import evaluate
except ImportError as error:
    raise ImportError(
        "`evaluate` and `datasets` are needed for these classes; `pip install evaluate datasets`. The functions in "
        "`hf_vitfm.evaluation.metrics` compute the same numbers without them."
    ) from error


_INPUTS = """
Args:
    predictions: (rows, classes) logits or probabilities.
    references: (rows,) integer class indices.
"""


class _LogitsMetric(evaluate.Metric):
    description = ""

    def _info(self):
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )


class TopKAccuracy(_LogitsMetric):
    """Share of rows whose true class is among the k largest predictions: `{"top<k>": fraction}`."""

    description = "Share of rows whose true class is among the k largest predictions, in 0..1."

    def _compute(self, predictions, references, k: int = 1) -> dict[str, float]:
        return {f"top{k}": top_k_accuracy(*_tensors(predictions, references), k)}


class MeanPerClassAccuracy(_LogitsMetric):
    """Mean of the accuracies of the classes that occur (balanced accuracy): `{"mean_per_class": fraction}`."""

    description = "Mean over the classes that occur of the share of their rows that were predicted right, in 0..1."

    def _compute(self, predictions, references) -> dict[str, float]:
        return _select("mean_per_class", predictions, references)


class CalibrationError(_LogitsMetric):
    """Expected calibration error of the top-1 probability in 15 bins: `{"calibration_error": fraction}`; takes logits."""

    description = "Mean distance of the predicted class's probability and the accuracy at that probability, in 0..1."

    def _compute(self, predictions, references) -> dict[str, float]:
        return _select("calibration_error", predictions, references)


def _select(name: str, predictions, references) -> dict[str, float]:
    logits, labels = _tensors(predictions, references)
    names = [str(index) for index in range(logits.shape[1])]
    return {name: classification_metrics(summarize_logits(logits, labels), labels, names)[name]}


def _tensors(predictions, references):
    return torch.from_numpy(np.stack(predictions).astype(np.float32)), torch.from_numpy(np.array(references))
