"""The picture of few-shot probes: every method, zero-shot and the marks in it."""

import itertools
import warnings

import numpy as np
import pytest
from PIL import Image

from hf_vitfm.cards import few_shot_figure
from hf_vitfm.cards.canvas import BLUE, GREEN, ORANGE, PINK
from hf_vitfm.cards.few_shot_figure import draw_few_shot


CURVE = {1: [0.3, 0.4], 2: [0.42, 0.45], 4: [0.5, 0.56], 16: [0.7, 0.71]}
LOWER = {shots: [value - 0.1 for value in values] for shots, values in CURVE.items()}


def pixels_of(path, colour: str) -> int:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return int((pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).sum())


def test_methods_zero_shot_and_marks_are_drawn(tmp_path):
    plain = draw_few_shot({"ridge": CURVE}, tmp_path / "new" / "a.png")
    assert pixels_of(plain, BLUE) > 500 and not any(pixels_of(plain, colour) for colour in (ORANGE, GREEN, PINK))
    two = draw_few_shot({"costs $5": CURVE, "knn": LOWER}, tmp_path / "b.png", zero_shot=0.5)
    assert min(pixels_of(two, colour) for colour in (BLUE, ORANGE, PINK)) > 500 and not pixels_of(two, GREEN)
    marked = draw_few_shot(
        {"costs $5": CURVE, "knn": LOWER}, tmp_path / "c.png", zero_shot=0.5, equivalent={"knn": 7.4}
    )
    assert pixels_of(marked, ORANGE) > pixels_of(two, ORANGE) + 20


@pytest.mark.parametrize("places", [(2.0, 2.1, 2.2), (1.0, 2.0, 2.1), (1.5, 4.0, 12.0)])
def test_numbers_of_near_marks_do_not_overlap(tmp_path, monkeypatch, places):
    drawn = []
    monkeypatch.setattr(few_shot_figure, "save_figure", lambda figure, path: drawn.append(figure))
    curves = {name: CURVE for name in ("a", "b", "c")}
    draw_few_shot(curves, tmp_path, zero_shot=0.5, equivalent=dict(zip(curves, places, strict=True)))
    drawn[0].canvas.draw()
    boxes = [text.get_window_extent() for text in drawn[0].axes[0].texts]
    assert len(boxes) == 3
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_equal_data_gives_equal_files_without_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = [draw_few_shot({"one": {8: [0.5]}}, tmp_path / f"{i}.png", zero_shot=0.5) for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("accuracies", "options", "message"),
    [
        ({}, {}, "1 to 4 methods"),
        ({str(i): CURVE for i in range(5)}, {}, "1 to 4 methods"),
        ({"ridge": {}}, {}, "at least one accuracy"),
        ({"ridge": {1: []}}, {}, "at least one accuracy"),
        ({"ridge": CURVE}, {"equivalent": {"ridge": 2.0}}, "needs `zero_shot`"),
        ({"ridge": CURVE}, {"equivalent": {"knn": 2.0}, "zero_shot": 0.5}, "names of methods, ridge"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path, accuracies, options, message):
    with pytest.raises(ValueError, match=message):
        draw_few_shot(accuracies, tmp_path / "a.png", **options)
