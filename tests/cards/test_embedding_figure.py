"""The picture of an embedding in the plane: dots in their places, images that do not crowd, a bar as long as it says."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from scipy.spatial.distance import pdist

from hf_vitfm.cards.embedding_figure import draw_embedding, spread


NAMES = ["$T-shirt$", "bag"]
COLOURS = [tuple(round(255 * value) for value in colormaps["tab10"](i)[:3]) for i in range(2)]
GREY = (0x55, 0x55, 0x55)
GREEN = (0, 255, 0)


def places(path, colour) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of a colour."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return (np.abs(np.asarray(image.convert("RGB")).astype(int) - colour).sum(axis=-1) < 12).nonzero()


def two_clouds(rows=40):
    points = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0)) * 0.1
    labels = torch.arange(rows) % 2
    points[labels == 1] += torch.tensor([4.0, 2.0])
    return points, labels


def test_classes_are_where_their_points_are(tmp_path):
    points, labels = two_clouds()
    images = [Image.new("RGB", (5, 3), GREEN)] * len(points)
    path = draw_embedding(points, labels, NAMES, images, tmp_path / "new" / "points.png", scale=("margin", 1.0))
    (low_rows, low_columns), (high_rows, high_columns) = (places(path, colour) for colour in COLOURS)
    # The second class is right of the first and above it (the legend's dots count little).
    assert np.median(low_columns) + 300 < np.median(high_columns)
    assert np.median(high_rows) + 100 < np.median(low_rows)
    rows, _ = places(path, GREY)
    bar, unit = np.bincount(rows).max(), (np.median(high_columns) - np.median(low_columns)) / 4
    assert bar == pytest.approx(unit, rel=0.15)
    assert len(places(path, GREEN)[0]) > 500  # thumbnails


def test_images_keep_their_distance_and_leave_no_room_for_one_more():
    points = np.random.default_rng(0).random((300, 2))
    chosen = spread(points, 0.1)
    assert chosen[0] == 0 and chosen == sorted(chosen)
    assert pdist(points[chosen]).min() >= 0.1
    assert np.linalg.norm(points[:, None] - points[chosen], axis=-1).min(axis=1).max() < 0.1


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_any_image_and_a_single_point_are_drawn(tmp_path, mode):
    path = draw_embedding(torch.ones(1, 2), torch.zeros(1), NAMES, [Image.new(mode, (300, 2))], tmp_path / "one.png")
    assert path.stat().st_size > 1_000


@pytest.mark.parametrize(
    ("points", "labels", "count", "message"),
    [
        (torch.zeros(3, 3), torch.zeros(3), 3, r"\(rows, 2\)"),
        (torch.zeros(0, 2), torch.zeros(0), 0, r"\(rows, 2\)"),
        (torch.tensor([[0.0, torch.nan]]), torch.zeros(1), 1, "NaN"),
        (torch.zeros(3, 2), torch.zeros(2), 3, "one label"),
        (torch.zeros(3, 2), torch.zeros(3), 2, "2 images"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, points, labels, count, message):
    with pytest.raises(ValueError, match=message):
        draw_embedding(points, labels, NAMES, [Image.new("L", (2, 2))] * count, tmp_path / "points.png")
