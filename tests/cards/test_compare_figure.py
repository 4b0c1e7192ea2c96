"""The picture of a comparison: every point and name is there, and no name covers another."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_vitfm.cards import compare_figure
from hf_vitfm.cards.compare_figure import ComparedModel, draw_comparison


def model(name: str, accuracy: float, speed: float, standing: str = "below") -> ComparedModel:
    return ComparedModel(name, accuracy, accuracy - 0.02, min(1, accuracy + 0.015), speed, standing)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures as they are when they are saved."""
    figures, save = [], compare_figure.save_figure

    def keep(figure, path):
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(compare_figure, "save_figure", keep)
    return figures


def crowd(count: int) -> list[ComparedModel]:
    generator = np.random.default_rng(0)
    return [
        model(f"organisation/model_{i}_patch16", 0.9 + 0.02 * generator.random(), 100 * (1 + generator.random()))
        for i in range(count)
    ]


CASES = {
    "one": [model("only", 0.9, 12.0, "best")],
    "same place": [model(f"model {i}", 0.9, 50.0, "close" if i else "best") for i in range(5)],
    "at the edges": [model("very long name " * 9, 0.1, 0.02), model("$fast$_one", 1.0, 30_000, "best")],
    "crowd": crowd(14),
}


@pytest.mark.parametrize("case", CASES)
def test_no_name_covers_another_or_a_point(case, tmp_path, drawn):
    models = CASES[case]
    path = draw_comparison(models, tmp_path / "new" / "compare.png", title="Linear probe", note="two\nlines")
    assert path.stat().st_size > 8_000
    (figure,) = drawn
    axes, *listed = figure.axes
    renderer = figure.canvas.get_renderer()
    assert len(axes.texts) == len(models)
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    for one, other in combinations(boxes, 2):
        assert compare_figure._shared_area(one, other) < 1
    for point in models:
        x, y = axes.transData.transform((point.images_per_second, 100 * point.accuracy))
        assert not any(box.contains(x, y) for box in boxes), point
    frame = axes.get_window_extent()
    assert all(box.x0 >= frame.x0 - 1 and box.x1 <= frame.x1 + 1 for box in boxes)
    assert bool(listed) == (case == "crowd")


def test_a_crowd_is_numbered_from_the_best(tmp_path, drawn):
    draw_comparison(CASES["crowd"], tmp_path / "a.png", title="t")
    axes, column = drawn[0].axes
    assert [text.get_text() for text in axes.texts] == [str(number) for number in range(1, 15)]
    ranked = sorted(CASES["crowd"], key=lambda model: -model.accuracy)
    assert [text.get_text() for text in column.texts] == [f"{i}  {model.name}" for i, model in enumerate(ranked, 1)]
    renderer = drawn[0].canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in column.texts]
    assert all(compare_figure._shared_area(one, other) < 1 for one, other in combinations(boxes, 2))


def test_points_bars_and_colours_are_those_of_the_models(tmp_path, drawn):
    models = [model("a", 0.95, 10, "best"), model("b", 0.94, 200, "close"), model("c", 0.5, 50)]
    draw_comparison(models, tmp_path / "a.png", title="t", speed_label="images per second, 1 GPU")
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "images per second, 1 GPU"
    found = {}
    for (points, _, (bars,)), label in zip(axes.containers, axes.get_legend_handles_labels()[1], strict=True):
        ((lower, upper),) = bars.get_segments()
        found[label] = (points.get_xdata()[0], points.get_ydata()[0], lower[1], upper[1], points.get_color())
    expected = {
        "best": (10, 95, 93, 96.5, compare_figure.ORANGE),
        "not distinguishable from it (1)": (200, 94, 92, 95.5, compare_figure.BLUE),
        "below it (1)": (50, 50, 48, 51.5, compare_figure.GREY),
    }
    for label, values in expected.items():
        assert found[label][:4] == pytest.approx(values[:4]) and found[label][4] == values[4]


def test_equal_data_gives_equal_files(tmp_path):
    first, second = (draw_comparison(CASES["crowd"], tmp_path / name, title="t") for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.width > 900


def test_there_is_something_to_draw(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        draw_comparison([], tmp_path / "a.png", title="t")
    with pytest.raises(ValueError, match="speed of a must be above 0.*0"):
        draw_comparison([model("a", 0.5, 0)], tmp_path / "a.png", title="t")
