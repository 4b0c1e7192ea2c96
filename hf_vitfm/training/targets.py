"""What the labels of a data set are: classes, several labels, or numbers; and the names of the outputs they need."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from ..data.datasets import label_names, split_off


if TYPE_CHECKING:
    from datasets import Dataset

# First components of the names of heads, in the classifiers of transformers and here.
HEADS = ("classifier", "distillation_classifier", "cls_classifier", "head")
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@dataclass(frozen=True)
class Targets:
    """What a model has to predict.

    Args:
        problem_type: as transformers' configurations name it.
        names: of the outputs, in order.
    """

    problem_type: str
    names: list[str]

    @property
    def config_fields(self) -> dict:
        """Fields of a model's configuration."""
        return {
            "problem_type": self.problem_type,
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: i for i, name in enumerate(self.names)},
        }


def read_targets(dataset: "Dataset", problem_type: str | None = None, column: str | None = None) -> Targets:
    """Tell from the column `label` what there is to predict.

    Args:
        dataset: rows as `load_images` gives them.
        problem_type: one of single_label_classification, multi_label_classification, regression. None: class ids are one
            class per image, vectors of 0 and 1 several labels, other vectors and single numbers regression.
        column: what outputs are called of which the data set does not hold the names, such as the name that the column
            had in its file: "price" for one output, "price 0", "price 1", ... for several. None: "output 0", ...

    Raises:
        ValueError: if the problem type is unknown or does not fit the labels.
    """
    if problem_type not in (None, SINGLE, MULTI, REGRESSION):
        raise ValueError(f"`problem_type` must be one of {SINGLE}, {MULTI}, {REGRESSION}; got {problem_type!r}.")
    if "label" not in dataset.features or (problem_type == REGRESSION and not hasattr(dataset, "add_column")):
        raise ValueError(
            "A stream is for class ids whose names are known. Parquet files of `datasets` hold them; for others, such "
            "as tars, give `class_names`. Load other labels without `streaming`."
        )
    names = getattr(dataset.features["label"], "names", None)
    if names is not None and problem_type in (None, SINGLE):
        return Targets(SINGLE, names)
    values = _numbers(dataset)
    is_multi_hot = values.ndim == 2 and bool(np.isin(values[~np.isnan(values)], (0, 1)).all())
    kind = problem_type or (MULTI if is_multi_hot else REGRESSION)
    if kind == MULTI and not is_multi_hot:
        raise ValueError(
            f"{MULTI} needs one vector of 0 and 1 per image; the labels are numbers of the shape {values.shape[1:]} "
            f"from {np.nanmin(values):g} to {np.nanmax(values):g}. Leave `problem_type` out, or correct the labels."
        )
    if kind == SINGLE:
        raise ValueError(
            f"{SINGLE} needs one class per image here; the labels are {dataset.features['label']}. "
            "`ImageClassificationTrainer` takes rows of probabilities."
        )
    names = label_names(dataset)
    count = 1 if values.ndim == 1 else values.shape[1]
    if names is None or len(names) != count:
        is_one = column is not None and values.ndim == 1
        names = [column] if is_one else [f"{column or 'output'} {i}" for i in range(count)]
    return Targets(kind, names)


def as_numbers(dataset: "Dataset") -> "Dataset":
    """Turn classes whose names are numbers ("3", "17.5": folders named by age, say) into these numbers.

    Raises:
        ValueError: if a class has another name.
    """
    import datasets

    names = getattr(dataset.features.get("label"), "names", None)
    if names is None or not hasattr(dataset, "add_column"):  # numbers already, or a stream
        return dataset
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        raise ValueError(
            f"{REGRESSION} needs numbers as labels; got classes: {', '.join(names[:5])}. Leave `problem_type` out to "
            "predict classes, or name a column of numbers as `label_column`."
        ) from None
    labels = [numbers[label] for label in dataset["label"]]
    return dataset.remove_columns("label").add_column("label", labels, feature=datasets.Value("float32"))


@dataclass(frozen=True)
class TargetScale:
    """Mean and standard deviation of the numbers to predict, over the training set.

    A head learns numbers around 0 of size 1; for others, such as years or prices, its bias and weights would take longer
    than the whole run to get there. So a model is trained on standardised numbers, and its head then made to answer in
    the unit of the data.

    Args:
        mean: one number per output.
        deviation: one number above 0 per output.
    """

    mean: list[float]
    deviation: list[float]

    @classmethod
    def of(cls, dataset: "Dataset") -> "TargetScale":
        """Measure the column `label`; rows with a NaN are left out, and a constant has the deviation 1."""
        values = _numbers(dataset).reshape(len(dataset), -1)
        values = values[~np.isnan(values).any(axis=1)]
        if not len(values):
            raise ValueError("No training row has a number in its column `label` that is not NaN.")
        deviation = values.std(axis=0)
        return cls(values.mean(axis=0).tolist(), np.where(deviation > 0, deviation, 1.0).tolist())

    def standardize(self, dataset: "Dataset") -> "Dataset":
        """The rows with (label - mean) / deviation as their label."""
        import datasets

        values = _numbers(dataset)
        shape = values.shape
        values = ((values.reshape(len(dataset), -1) - self.mean) / self.deviation).reshape(shape)
        number = datasets.Value("float32")
        feature = number if values.ndim == 1 else datasets.List(number)
        return dataset.remove_columns("label").add_column("label", values.tolist(), feature=feature)

    def heads(self, model: torch.nn.Module) -> list[torch.nn.Linear]:
        """The layers that give a model's numbers.

        Raises:
            ValueError: if the model has no linear head of this many outputs.
        """
        heads = [
            module
            for name, module in model.named_modules()
            if name.startswith(HEADS) and isinstance(module, torch.nn.Linear) and module.out_features == len(self.mean)
        ]
        if not heads or any(head.bias is None for head in heads):
            raise ValueError(f"{type(model).__name__} has no linear head of {len(self.mean)} outputs with a bias.")
        return heads

    @torch.no_grad()
    def restore(self, model: torch.nn.Module) -> None:
        """Make a model that was trained on standardised numbers answer in the unit of the data.

        On sharded parameters all processes have to call it.
        """
        mean, deviation = torch.tensor(self.mean), torch.tensor(self.deviation)
        for head in self.heads(model):
            head.weight.mul_(_as(deviation[:, None], head.weight))
            head.bias.mul_(_as(deviation, head.bias)).add_(_as(mean, head.bias))


def hold_out(dataset: "Dataset", share: float, seed: int) -> tuple["Dataset", "Dataset"]:
    """Hold rows out of a data set: the same share of every class, or any rows where labels are no classes.

    Args:
        dataset: rows as `load_images` gives them.
        share: share of rows to hold out, in (0, 1).
        seed: chooses the rows.

    Returns:
        The rows that stay and the rows held out, both in their old order.

    Raises:
        ValueError: if the share is outside (0, 1) or leaves one side empty.
    """
    if getattr(dataset.features.get("label"), "names", None) is not None:
        return split_off(dataset, share, seed)
    total = round(share * len(dataset))
    if not 0 < share < 1 or not 0 < total < len(dataset):
        raise ValueError(f"The share to hold out of {len(dataset)} rows must leave rows on both sides; got {share}.")
    order = np.random.default_rng(seed).permutation(len(dataset))
    return dataset.select(np.sort(order[total:])), dataset.select(np.sort(order[:total]))


def _numbers(dataset: "Dataset") -> np.ndarray:
    """(rows,) or (rows, outputs) float64; a missing number is NaN."""
    labels = dataset.select_columns("label")["label"]
    try:
        return np.array([_as_floats(label) for label in labels], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            "The column `label` must hold class ids, numbers, or vectors of one length; it holds "
            f"{dataset.features['label']}. A missing number is written as NaN."
        ) from None


def _as_floats(label) -> float | list[float]:
    if isinstance(label, list):
        return [math.nan if value is None else value for value in label]
    return math.nan if label is None else label


def _as(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Values in the shape, dtype and place of a weight, sharded if it is."""
    values = values.to(weight.device, weight.dtype).expand(weight.shape)
    if isinstance(weight, DTensor):
        return distribute_tensor(values.contiguous(), weight.device_mesh, weight.placements)
    return values
