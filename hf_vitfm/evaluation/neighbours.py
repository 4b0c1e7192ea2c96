"""Classification by weighted cosine neighbours (Wu et al. 2018, section 3.4; as DINO evaluates features).

Each of the k most similar training images votes for its class with exp(similarity / temperature).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .features import check_labelled, check_width


_CHUNK = 1 << 24  # similarities held at a time


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of test images whose class their neighbours name, in 0..1.

    Args:
        train_features: (rows, dim); their length plays no part.
        train_labels: (rows,) class ids.
        test_features: (test rows, dim).
        test_labels: (test rows,) class ids.
        k: neighbours that vote.
        temperature: of the votes, above 0: the lower, the more the nearest count.

    Raises:
        ValueError: if features and labels do not fit each other, `k` is not in 1..rows, or `temperature` not above 0.
    """
    train_features, train_labels = check_labelled(train_features, train_labels, "train")
    test_features, test_labels = check_labelled(test_features, test_labels, "test")
    check_width(test_features, train_features, "test")
    predicted = knn_predict(train_features, train_labels, test_features, k, temperature)
    return (predicted == test_labels).double().mean().item()


def knn_predict(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """The class ids (test rows,) that the neighbours name; arguments and errors as of `knn_accuracy`."""
    if not 1 <= k <= len(train_features):
        raise ValueError(f"`k` must be from 1 to the {len(train_features)} training rows; got {k!r}.")
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0; got {temperature!r}.")
    classes, targets = train_labels.unique(return_inverse=True)
    train = F.normalize(train_features.float(), dim=1)
    predicted = []
    for chunk in test_features.split(max(1, _CHUNK // len(train))):
        similarities, nearest = (F.normalize(chunk.float(), dim=1) @ train.T).topk(k, dim=1)
        # Scaled by the best one's vote, so that no temperature overflows.
        votes = ((similarities - similarities[:, :1]) / temperature).exp()
        totals = votes.new_zeros(len(chunk), len(classes)).scatter_add_(1, targets[nearest], votes)
        predicted.append(classes[totals.argmax(dim=1)])
    return torch.cat(predicted)
