"""The pictures of several labels and of numbers, whatever is measured."""

import ast
import inspect

import numpy as np
import pytest
from PIL import Image

from hf_vitfm.cards import canvas, figures, target_figures
from hf_vitfm.cards.target_figures import draw_average_precision, draw_class_accuracy, draw_scatter


def size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def shade(path, colour: tuple[int, int, int]) -> int:
    """Number of pixels of a colour."""
    with Image.open(path) as image:
        return int((np.abs(np.asarray(image.convert("RGB")).astype(int) - colour).sum(axis=-1) < 12).sum())


BLUE = (0, 0x72, 0xB2)


@pytest.mark.parametrize("count", [1, 12, 30, 200])
def test_bars_of_any_number_of_classes_fit_a_page(tmp_path, count):
    values = np.linspace(0, 1, count)
    per_class = {f"{'W' * 40} $x_{i}$": float(value) for i, value in enumerate(values)} | {"none": None}
    width, height = size(draw_average_precision(per_class, [0.1] * (count + 1), tmp_path / "new" / "bars.png"))
    assert width < 1300 and 200 < height < 1600


def test_bars_are_as_long_as_the_values(tmp_path):
    areas = [
        shade(draw_average_precision({"a": value, "b": value}, [0.0, 0.0], tmp_path / "bars.png"), BLUE)
        for value in (0.25, 0.5, 1.0)
    ]
    assert areas[1] / areas[0] == pytest.approx(2, rel=0.05) and areas[2] / areas[0] == pytest.approx(4, rel=0.05)


def test_bars_of_nothing_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one average precision"):
        draw_average_precision({"a": None}, [0.0], tmp_path / "bars.png")
    with pytest.raises(ValueError):
        draw_average_precision({"a": 0.5}, [], tmp_path / "bars.png")
    assert list(tmp_path.iterdir()) == []


def test_bars_of_a_confusion_matrix_are_the_shares_that_are_right(tmp_path):
    areas = [
        shade(draw_class_accuracy([[right, 4 - right], [4 - right, right]], ["a", "b"], tmp_path / "bars.png"), BLUE)
        for right in (1, 2, 4)
    ]
    assert areas[1] / areas[0] == pytest.approx(2, rel=0.1) and areas[2] / areas[0] == pytest.approx(4, rel=0.1)
    never = draw_class_accuracy(np.array([[0, 3, 0], [0, 2, 0], [0, 0, 0]]), ["a", "b", "c"], tmp_path / "never.png")
    assert shade(never, BLUE) > 0
    for confusion, names in ((np.zeros((2, 2)), ["a", "b"]), (np.eye(2), ["a"]), (np.ones((1, 2)), ["a"])):
        with pytest.raises(ValueError, match="square with one name per class"):
            draw_class_accuracy(confusion, names, tmp_path / "none.png")


@pytest.mark.parametrize("outputs", [1, 4, 9])
def test_points_of_any_number_of_outputs_fit_a_page(tmp_path, outputs):
    generator = np.random.default_rng(0)
    targets = generator.normal(size=(600, outputs)) * 10.0 ** np.arange(outputs)
    per_output = {f"${i}": {"rmse": 1.0, "r2": None} for i in range(outputs)}
    width, height = size(draw_scatter(targets + 0.1, targets, per_output, tmp_path / "points.png"))
    assert 500 < width < 1700 and 500 < height < 1300


def test_points_on_the_line_lie_on_it(tmp_path):
    targets = np.linspace(0, 1, 400)[:, None]
    measures = {"x": {"rmse": 0.0, "r2": 1.0}}
    near = shade(draw_scatter(targets, targets, measures, tmp_path / "near.png"), BLUE)
    far = shade(draw_scatter(np.roll(targets, 199), targets, measures, tmp_path / "far.png"), BLUE)
    assert near > 500 and far > 500
    with Image.open(tmp_path / "near.png") as image:
        rows, columns = np.nonzero(np.abs(np.asarray(image.convert("RGB")).astype(int) - BLUE).sum(axis=-1) < 12)
    assert np.corrcoef(rows, columns)[0, 1] < -0.99  # rows count downwards


@pytest.mark.parametrize(("predictions", "targets"), [([[np.nan]], [[1.0]]), ([[2.0], [2.0]], [[2.0], [2.0]])])
def test_degenerate_points_are_drawn(tmp_path, predictions, targets):
    assert min(size(draw_scatter(predictions, targets, {"x": {"rmse": 0.0, "r2": None}}, tmp_path / "p.png"))) > 400


def test_points_that_do_not_fit_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"\(rows, 1\).*\(3, 2\)"):
        draw_scatter(np.zeros((3, 2)), np.zeros((3, 2)), {"x": {}}, tmp_path / "points.png")
    with pytest.raises(ValueError, match="at least one row"):
        draw_scatter(np.zeros((0, 1)), np.zeros((0, 1)), {"x": {}}, tmp_path / "points.png")


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"eval_top1": 0.5}, ["nats per image", "Accuracy on the evaluation set", "top-1: 50.0 %"]),
        ({"eval_mean_average_precision": 0.5}, ["nats per image and class", "mean average precision: 50.0 %"]),
        ({"eval_rmse": 2.0, "eval_r2": -0.25}, ["mean squared error", "R²: -0.250"]),
        ({"eval_a_rmse": 2.0, "eval_a_pearson": 0.5}, ["mean squared error", "Pearson correlation a: 0.500"]),
    ],
)
def test_curves_name_the_units_of_the_task(tmp_path, monkeypatch, metrics, words):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    figures.draw_curves([{"eval_loss": 1.0, **metrics, "step": 1, "epoch": 1.0}], tmp_path / "curves.png")
    axes = drawn[0].axes
    shown = [text for panel in axes for text in (panel.get_ylabel(), panel.get_title(loc="left"))]
    shown += [text.get_text() for panel in axes for text in panel.get_legend().get_texts()]
    for word in words:
        assert word in shown, shown


@pytest.mark.parametrize("module", [canvas, target_figures], ids=lambda module: module.__name__)
def test_matplotlib_is_loaded_only_to_draw_and_pyplot_never(module):
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not any("pyplot" in name for name in names)
            assert node not in tree.body or not any(name.startswith(("matplotlib", "PIL")) for name in names)
