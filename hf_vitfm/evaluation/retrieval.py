"""Retrieval of texts by images and of images by texts, as image-text models are compared on MS COCO and Flickr30k.

The matrix of all similarities never exists: it is computed some rows at a time.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


CUTOFFS = (1, 5, 10)
_CHUNK = 1 << 24  # similarities held at a time


@torch.no_grad()
def evaluate_retrieval(
    image_embeds: Tensor, text_embeds: Tensor, text_to_image: Tensor | None = None
) -> dict[str, float]:
    """Rank all texts for every image, and all images for every text, by cosine.

    The rank of an image is that of the first of its own texts, the others of its own left out; the rank of a text is
    that of its image. What is exactly as similar counts as more similar, so that equal embeddings find nothing; equal
    ones are exactly as similar, whatever the shapes.

    Args:
        image_embeds: (images, dim); their length plays no part.
        text_embeds: (texts, dim), on the same device.
        text_to_image: (texts,) the row of each text's image; every image has at least one text. None: text i belongs to
            image i.

    Returns:
        `image_to_text_recall@1`, `@5`, `@10`: share of the images with a rank of at most that, in 0..1;
        `image_to_text_mean_rank` and `image_to_text_median_rank`, from 1; the same for `text_to_image`.

    Raises:
        ValueError: if shapes do not fit, an embedding is not finite, or `text_to_image` names no image or leaves one out.
    """
    by_image, by_text = retrieval_ranks(image_embeds, text_embeds, text_to_image)
    return {**_summarize("image_to_text", by_image), **_summarize("text_to_image", by_text)}


@torch.no_grad()
def retrieval_ranks(
    image_embeds: Tensor, text_embeds: Tensor, text_to_image: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The ranks, from 1, of images (images,) and of texts (texts,); arguments and errors as of `evaluate_retrieval`."""
    image_embeds, text_embeds = _check_embeddings(image_embeds, text_embeds)
    owners = _check_owners(text_to_image, len(image_embeds), len(text_embeds)).to(image_embeds.device)
    return _ranks_of_images(image_embeds, text_embeds, owners), _ranks_of_texts(image_embeds, text_embeds, owners)


def _check_embeddings(image_embeds: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
    image_embeds, text_embeds = torch.as_tensor(image_embeds), torch.as_tensor(text_embeds)
    shapes = image_embeds.shape, text_embeds.shape
    if any(len(shape) != 2 or not shape[0] for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            "`image_embeds` must be (images, dim) and `text_embeds` (texts, dim), at least one of each; got "
            f"{tuple(shapes[0])} and {tuple(shapes[1])}."
        )
    for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        if not embeds.isfinite().all():
            raise ValueError(f"`{name}` hold NaN or infinity. Check the model and the dtype it ran in.")
    dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
    image_embeds, text_embeds = (
        F.normalize(embeds.to(dtype).contiguous(), dim=1) for embeds in (image_embeds, text_embeds)
    )
    return image_embeds, text_embeds


def _check_owners(text_to_image: Tensor | None, images: int, texts: int) -> Tensor:
    if text_to_image is None:
        if images != texts:
            raise ValueError(
                f"Without `text_to_image` there must be one text per image; got {images} images and {texts} texts."
            )
        return torch.arange(images)
    owners = torch.as_tensor(text_to_image)
    if owners.shape != (texts,) or owners.is_floating_point() or owners.min() < 0 or owners.max() >= images:
        raise ValueError(
            f"`text_to_image` must hold for each of the {texts} texts the row of its image, 0 to {images - 1}; got shape "
            f"{tuple(owners.shape)} of {owners.dtype}."
        )
    without = (torch.bincount(owners, minlength=images) == 0).nonzero().flatten().tolist()
    if without:
        raise ValueError(f"{len(without)} images have no text, the first in row {without[0]}. Leave them out.")
    return owners


class _Found:
    """Embeddings (rows, dim) that are searched, each different one once.

    A product of matrices rounds equal columns differently, by their place and the shape; so equal embeddings would tie or
    not by chance. Here they share one column.
    """

    def __init__(self, embeds: Tensor):
        different, places = torch.unique(embeds, dim=0, return_inverse=True)
        self.embeds, self.places = (embeds, None) if len(different) == len(embeds) else (different, places)

    def similarities(self, queries: Tensor) -> Tensor:
        """Cosines (queries, rows)."""
        found = queries @ self.embeds.T
        return found if self.places is None else found[:, self.places]


def _ranks_of_images(image_embeds: Tensor, text_embeds: Tensor, owners: Tensor) -> Tensor:
    """(images,) place of an image's best text among all others, from 1."""
    ranks, texts = [], _Found(text_embeds)
    rows = torch.arange(len(image_embeds), device=owners.device)
    size = max(1, _CHUNK // len(text_embeds))
    for chunk, numbers in zip(image_embeds.split(size), rows.split(size), strict=True):
        similarities, is_own = texts.similarities(chunk), owners == numbers[:, None]
        best = similarities.masked_fill(~is_own, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(1 + ((similarities >= best) & ~is_own).sum(dim=1))
    return torch.cat(ranks)


def _ranks_of_texts(image_embeds: Tensor, text_embeds: Tensor, owners: Tensor) -> Tensor:
    """(texts,) place of a text's image among all images, from 1."""
    ranks, images = [], _Found(image_embeds)
    size = max(1, _CHUNK // len(image_embeds))
    for chunk, own in zip(text_embeds.split(size), owners.split(size), strict=True):
        similarities = images.similarities(chunk)
        ranks.append((similarities >= similarities.gather(1, own[:, None])).sum(dim=1))  # its own is one of them
    return torch.cat(ranks)


def _summarize(direction: str, ranks: Tensor) -> dict[str, float]:
    ranks = ranks.double()
    recalls = {f"{direction}_recall@{k}": (ranks <= k).double().mean().item() for k in CUTOFFS}
    ordered = ranks.sort().values
    middle = (ordered[(len(ranks) - 1) // 2] + ordered[len(ranks) // 2]) / 2
    return {**recalls, f"{direction}_mean_rank": ranks.mean().item(), f"{direction}_median_rank": middle.item()}
