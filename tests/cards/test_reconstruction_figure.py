"""The picture grid of a masked autoencoder: every tile in its place, pixel for pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitfm.cards.reconstruction_figure import draw_reconstructions


COLOURS = {"red": (1.0, 0.0, 0.0), "lime": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


def plain(colour: str, rows: int, height: int, width: int) -> torch.Tensor:
    return torch.tensor(COLOURS[colour]).view(1, 3, 1, 1).expand(rows, 3, height, width)


def boxes(path) -> dict[str, tuple[int, int, int, int]]:
    """(left, top, width, height) of what each colour covers in the file, and that it covers all of it."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    found = {}
    for name, colour in COLOURS.items():
        rows, columns = np.nonzero((pixels == np.array(colour) * 255).all(-1))
        top, left = rows.min(), columns.min()
        found[name] = (int(left), int(top), int(columns.max() + 1 - left), int(rows.max() + 1 - top))
    return found


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((28, 28), (252, 252)), ((224, 224), (224, 224)), ((16, 32), (128, 256)), ((600, 512), (256, 218))],
)
def test_original_masked_and_reconstruction_stand_side_by_side_at_a_whole_scale(tmp_path, size, drawn):
    images, masked, reconstruction = (plain(colour, 1, *size) for colour in COLOURS)
    found = boxes(draw_reconstructions(images, {0.75: (masked, reconstruction)}, tmp_path / "new" / "grid.png"))
    for colour in COLOURS:
        assert found[colour][2:] == pytest.approx(drawn[::-1], abs=1)
    assert found["red"][0] < found["lime"][0] < found["blue"][0]
    assert len({box[1] for box in found.values()}) == 1


def test_small_images_are_not_blurred(tmp_path):
    board = (torch.arange(28)[:, None] + torch.arange(28)) % 2
    images = torch.stack([board, 1 - board, torch.zeros(28, 28)]).float()[None]
    with Image.open(draw_reconstructions(images, {0.5: (images, images)}, tmp_path / "grid.png")) as image:
        colours = dict((colour, count) for count, colour in image.convert("RGB").getcolors(1 << 20))
    half = 3 * 252 * 252 / 2
    assert colours[255, 0, 0] == pytest.approx(half, rel=0.01)
    assert colours[0, 255, 0] == pytest.approx(half, rel=0.01)


def test_grey_images_are_drawn_grey_and_values_outside_are_clipped(tmp_path):
    levels = torch.tensor([-1.0, 0.25, 0.6, 2.0]).view(4, 1, 1, 1).expand(4, 1, 28, 28)
    with Image.open(draw_reconstructions(levels, {0.5: (levels, levels)}, tmp_path / "grid.png")) as image:
        colours = dict((colour, count) for count, colour in image.convert("RGB").getcolors(1 << 20))
    for level in (0, 64, 153):
        assert colours[level, level, level] >= 3 * 250 * 250


def test_a_row_per_image_and_two_columns_per_ratio(tmp_path):
    sizes = {}
    for rows, ratios in ((1, 1), (3, 1), (1, 3)):
        images = torch.rand(rows, 1, 28, 28)
        path = draw_reconstructions(
            images, dict.fromkeys([0.75, 0.85, 0.95][:ratios], (images, images)), tmp_path / "a.png"
        )
        with Image.open(path) as image:
            sizes[rows, ratios] = image.size
    assert sizes[3, 1][1] - sizes[1, 1][1] == pytest.approx(2 * 260, abs=2)
    assert sizes[3, 1][0] == sizes[1, 1][0]
    assert sizes[1, 3][0] - sizes[1, 1][0] == pytest.approx(2 * (2 * 252 + 8 + 24), abs=2)


@pytest.mark.parametrize(
    ("images", "pairs", "message"),
    [
        (torch.rand(28, 28), {0.5: (torch.rand(28, 28),) * 2}, "rows, 1 or 3 channels"),
        (torch.rand(0, 1, 28, 28), {0.5: (torch.rand(0, 1, 28, 28),) * 2}, "at least one row"),
        (torch.rand(1, 1, 28, 28), {}, "at least one masking ratio"),
        (torch.rand(2, 1, 28, 28), {0.5: (torch.rand(2, 1, 28, 28), torch.rand(1, 1, 28, 28))}, "ratio 0.5"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_and_leaves_no_file(tmp_path, images, pairs, message):
    with pytest.raises(ValueError, match=message):
        draw_reconstructions(images, pairs, tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []
