"""Retrieval against a formula on the full matrix, in pieces of any size."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_vitfm import evaluate_retrieval
from hf_vitfm.evaluation import retrieval


def naive(image: np.ndarray, text: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    """Sort the whole matrix of cosines row by row and column by column."""
    image = image / np.linalg.norm(image, axis=1, keepdims=True)
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    similarities = image @ text.T
    of_images, of_texts = [], []
    for i, row in enumerate(similarities):
        best = max(row[owners == i])
        others = sorted(row[owners != i], reverse=True)
        of_images.append(1 + sum(other > best for other in others))
    for t, column in enumerate(similarities.T):
        of_texts.append(1 + list(np.argsort(-column)).index(owners[t]))
    found = {}
    for direction, ranks in (("image_to_text", np.array(of_images)), ("text_to_image", np.array(of_texts))):
        found |= {f"{direction}_recall@{k}": np.mean(ranks <= k) for k in (1, 5, 10)}
        found |= {f"{direction}_mean_rank": ranks.mean(), f"{direction}_median_rank": np.median(ranks)}
    return found


def make_embeddings(images: int, texts_per_image: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    image = generator.normal(size=(images, 6))
    owners = generator.permutation(np.repeat(np.arange(images), texts_per_image))
    text = image[owners] + 1.5 * generator.normal(size=(len(owners), 6))
    return image, text, owners


@pytest.mark.parametrize("chunk", [1, 100, 1 << 24], ids=["row by row", "some rows", "at once"])
@pytest.mark.parametrize("texts_per_image", [1, 3])
def test_ranks_are_those_of_the_full_matrix(monkeypatch, chunk, texts_per_image):
    monkeypatch.setattr(retrieval, "_CHUNK", chunk)
    image, text, owners = make_embeddings(40, texts_per_image)
    found = evaluate_retrieval(*map(torch.from_numpy, (image, text, owners)))
    expected = naive(image, text, owners)
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0.05 < found["image_to_text_recall@1"] < found["image_to_text_recall@5"] < found["image_to_text_recall@10"]
    assert all(isinstance(value, float) for value in found.values())


def test_images_may_have_different_numbers_of_texts():
    image, text, _ = make_embeddings(5, 2)
    owners = np.array([4, 0, 0, 1, 2, 2, 2, 3, 3, 1])
    found = evaluate_retrieval(*map(torch.from_numpy, (image, text, owners)))
    assert found == pytest.approx(naive(image, text, owners), abs=1e-12)


def test_without_owners_row_belongs_to_row():
    image, text, _ = make_embeddings(30, 1)
    found = evaluate_retrieval(torch.from_numpy(image), torch.from_numpy(text))
    assert found == pytest.approx(naive(image, text, np.arange(30)), abs=1e-12)


def test_length_plays_no_part_and_bfloat16_is_ranked_in_float32():
    image, text, _ = (torch.from_numpy(part) for part in make_embeddings(30, 1))
    lengths = torch.rand(30, 1) + 0.1
    assert evaluate_retrieval(image * lengths, text) == evaluate_retrieval(image, text * lengths)
    half = image.bfloat16(), text.bfloat16()
    assert evaluate_retrieval(*half) == evaluate_retrieval(*(part.float() for part in half))


def test_equal_embeddings_find_nothing():
    same = torch.ones(20, 4)
    found = evaluate_retrieval(same, same)
    assert found["image_to_text_recall@10"] == found["text_to_image_recall@10"] == 0
    assert found["image_to_text_mean_rank"] == found["text_to_image_median_rank"] == 20


def pessimistic(image: torch.Tensor, text: torch.Tensor, owners: np.ndarray) -> dict[str, float]:
    """In float64, row by row; what is as similar, but for rounding, stands before."""
    image, text = (part.double().numpy() for part in (image, text))
    image = image / np.linalg.norm(image, axis=1, keepdims=True)
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    similarities = (image[:, None, :] * text[None]).sum(-1)
    of_images = [
        1 + sum(value >= max(row[owners == i]) - 1e-12 for value in row[owners != i])
        for i, row in enumerate(similarities)
    ]
    of_texts = [
        1 + sum(column[i] >= column[owners[t]] - 1e-12 for i in range(len(column)) if i != owners[t])
        for t, column in enumerate(similarities.T)
    ]
    return {"image_to_text_mean_rank": np.mean(of_images), "text_to_image_mean_rank": np.mean(of_texts)} | {
        f"{direction}_recall@{k}": np.mean(np.array(ranks) <= k)
        for direction, ranks in (("image_to_text", of_images), ("text_to_image", of_texts))
        for k in (1, 5, 10)
    }


@pytest.mark.parametrize("seed", range(40))
def test_equal_embeddings_tie_exactly_in_every_shape(monkeypatch, seed):
    generator = torch.Generator().manual_seed(seed)
    images, dim, more = (
        torch.randint(low, high, (), generator=generator) for low, high in ((2, 60), (2, 130), (0, 90))
    )
    # Captions that other images have too, and images that are there twice.
    owners = torch.cat([torch.arange(images), torch.randint(images, (int(more),), generator=generator)])
    image = torch.randn(int(images), int(dim), generator=generator)
    image[images // 2 :] = image[torch.randint(int(images), (int(images - images // 2),), generator=generator)]
    captions = torch.randn(max(2, len(owners) // 3), int(dim), generator=generator)
    text = captions[torch.randint(len(captions), (len(owners),), generator=generator)]
    expected = pessimistic(image, text, owners.numpy())
    for chunk in (1, 300, 1 << 24):
        monkeypatch.setattr(retrieval, "_CHUNK", chunk)
        found = evaluate_retrieval(image, text, owners)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_equal_embeddings_tie_whatever_their_length_and_memory_order():
    image, text, owners = (torch.from_numpy(part) for part in make_embeddings(9, 2))
    image, text = image.float(), text[owners.argsort()].float()
    owners = torch.arange(9).repeat_interleave(2)
    text[1::2] = 4 * text[::2].roll(1, 0)  # every caption is there twice, the second time for the next image
    expected = evaluate_retrieval(image, text, owners)
    assert expected["image_to_text_recall@1"] < 1
    assert evaluate_retrieval(image, text.T.contiguous().T, owners) == expected
    assert {k: expected[k] for k in pessimistic(image, text, owners.numpy())} == pytest.approx(
        pessimistic(image, text, owners.numpy()), abs=1e-12
    )


@pytest.mark.parametrize("texts_per_image", [1, 2, 5])
def test_recall_is_whether_any_caption_is_among_the_first(texts_per_image):
    # As CLIP_benchmark counts it: the k best of the matrix, and whether one of them belongs.
    image, text, owners = (torch.from_numpy(part) for part in make_embeddings(30, texts_per_image, seed=3))
    scores = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    found = evaluate_retrieval(image, text, owners)
    for k in (1, 5, 10):
        texts, images = scores.topk(k, dim=1).indices, scores.topk(k, dim=0).indices
        by_image = (owners[texts] == torch.arange(30)[:, None]).any(dim=1).double().mean()
        by_text = (images == owners).any(dim=0).double().mean()
        assert found[f"image_to_text_recall@{k}"] == pytest.approx(by_image.item(), abs=1e-12)
        assert found[f"text_to_image_recall@{k}"] == pytest.approx(by_text.item(), abs=1e-12)


class Allocations(torch.utils._python_dispatch.TorchDispatchMode):
    """The most elements of any tensor that an operation returned."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.most = max(self.most, result.numel())
        return result


def test_the_full_matrix_never_exists(monkeypatch):
    monkeypatch.setattr(retrieval, "_CHUNK", 1000)
    image, text, owners = (torch.from_numpy(part) for part in make_embeddings(100, 2))
    with Allocations() as allocations:
        evaluate_retrieval(image, text, owners)
    assert allocations.most <= text.numel() == 1200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_embeds": torch.ones(4, 3)}, r"got \(4, 2\) and \(4, 3\)"),
        ({"image_embeds": torch.ones(0, 2)}, "at least one of each"),
        ({"image_embeds": torch.ones(3, 2)}, "got 3 images and 4 texts"),
        ({"text_embeds": torch.full((4, 2), float("nan"))}, "`text_embeds` hold NaN"),
        ({"text_to_image": torch.tensor([0, 1, 2, 4])}, "0 to 3"),
        ({"text_to_image": torch.tensor([0, 1, 2, -1])}, "0 to 3"),
        ({"text_to_image": torch.tensor([0.0, 1, 2, 3])}, "of torch.float32"),
        ({"text_to_image": torch.tensor([0, 1, 2])}, "each of the 4 texts"),
        ({"text_to_image": torch.tensor([0, 1, 1, 3])}, "1 images have no text, the first in row 2"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"image_embeds": torch.ones(4, 2), "text_embeds": torch.ones(4, 2), **change}
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(**arguments)
