"""The picture of zero-shot scores less those of a probe."""

import math

import pytest
from PIL import Image

from hf_vitfm.cards import suite_figure
from hf_vitfm.cards.canvas import BLUE, ORANGE
from hf_vitfm.cards.suite_figure import draw_deltas


def drawn(monkeypatch, tmp_path, deltas):
    figures = []
    monkeypatch.setattr(suite_figure, "save_figure", lambda figure, path: figures.append(figure) or path)
    draw_deltas(deltas, tmp_path / "figure.png", "model", "baseline")
    return figures[0]


def test_bars_are_sorted_and_coloured_by_sign_with_their_numbers(monkeypatch, tmp_path):
    from matplotlib.colors import to_hex

    figure = drawn(monkeypatch, tmp_path, {"A": 0.12, "B": -0.3456, "C": 0.0, "D": 0.2})
    (axes,) = figure.axes
    bars = [(round(bar.get_width(), 2), to_hex(bar.get_facecolor()).upper()) for bar in axes.patches]
    assert bars == [(-34.56, ORANGE), (0.0, ORANGE), (12.0, BLUE), (20.0, BLUE)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["B", "C", "A", "D"]
    assert [text.get_text() for text in axes.texts] == ["−34.6", "+0.0", "+12.0", "+20.0"]
    assert figure.get_suptitle() == "Zero-shot wins 2 of 4"  # a tie is no win
    assert axes.get_title() == "zero-shot model\nless a linear probe on the features of baseline"


def test_the_same_numbers_give_the_same_file(tmp_path):
    deltas = {f"set {number}": number / 40 - 0.3 for number in range(27)}
    files = [draw_deltas(deltas, tmp_path / str(run) / "figure.png", "m" * 200, "$b_1$") for run in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as image:
        assert image.height > image.width > 900


@pytest.mark.parametrize("deltas", [{}, {"a": math.nan}])
def test_nothing_to_draw_is_an_error(deltas, tmp_path):
    with pytest.raises(ValueError, match="finite differences"):
        draw_deltas(deltas, tmp_path / "figure.png", "model", "baseline")
