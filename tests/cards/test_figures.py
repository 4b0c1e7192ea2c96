import ast
import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitfm.cards import figures
from hf_vitfm.cards.canvas import whole_percent
from hf_vitfm.cards.figures import _most_confused, draw_confusion, draw_curves, draw_examples, has_curves


LONG_NAMES = ["a rather long name of a class, with $x_1$ and more $ signs", "W" * 60]


def history(num_steps=20, evaluate=True):
    log = []
    for step in range(1, num_steps + 1):
        log.append(
            {"loss": 2.0 / step, "learning_rate": 1e-3 / step, "grad_norm": 1.0, "step": step, "epoch": step / 5}
        )
        if evaluate and step % 5 == 0:
            accuracies = {"eval_top1": 0.5, "eval_top5": 0.9, "eval_mean_per_class": 0.4}
            log.append({"eval_loss": 1.5 / step, **accuracies, "eval_runtime": 1.0, "step": step, "epoch": step / 5})
    log.append({"train_runtime": 1.0, "train_loss": 0.5, "step": num_steps, "epoch": num_steps / 5})
    return log


def picture_size(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def test_curves_get_a_panel_for_what_was_logged(tmp_path):
    full = picture_size(draw_curves(history(), tmp_path / "new" / "full.png"))
    bare = picture_size(draw_curves(history(evaluate=False), tmp_path / "bare.png"))
    assert 1700 < full[0] < 2300 and 450 < full[1] < 750
    assert 1100 < bare[0] < 1500


@pytest.mark.parametrize(
    "log",
    [
        history(200),
        [{"loss": 2.0, "step": 1}],
        [{"loss": float("nan"), "learning_rate": 0.0, "step": 1, "epoch": 1.0}],
        [{"eval_loss": 1.0, "eval_accuracy": 0.5, "step": 0, "epoch": 0}],
        [{"eval_twitter_loss": 1.0, "eval_twitter_top1": 0.5, "eval_google_top1": 0.6, "step": 3, "epoch": 1.0}],
    ],
    ids=["many", "one", "nan", "before training", "two sets"],
)
def test_curves_of_unusual_histories_are_drawn(tmp_path, log):
    assert has_curves(log)
    assert min(picture_size(draw_curves(log, tmp_path / "curves.png"))) > 400


def test_of_zero_shot_accuracies_the_first_is_drawn():
    metrics = {f"eval_zero_shot_{name}": 0.5 for name in ("top1", "top5", "mean_per_class")}
    _, scores = figures._evaluation_series([{**metrics, "eval_top5": 0.7, "step": 1}])
    assert set(scores) == {("zero_shot_top1", ""), ("top5", "")}


@pytest.mark.parametrize("log", [[], [{"train_runtime": 1.0, "step": 3}]])
def test_curves_of_nothing_are_an_error(tmp_path, log):
    assert not has_curves(log)
    with pytest.raises(ValueError, match=f"`log_history` has {len(log)} entries"):
        draw_curves(log, tmp_path / "curves.png")


@pytest.mark.parametrize("num_classes", [1, 2, 10, 25, 26, 300])
def test_confusion_of_any_number_of_classes_fits_a_page(tmp_path, num_classes):
    generator = np.random.default_rng(0)
    counts = generator.poisson(0.1, (num_classes, num_classes)) + 10 * np.eye(num_classes, dtype=int)
    counts[0] = counts[0] * (num_classes > 2)
    if num_classes <= 2:
        counts += 1
    names = [f"{LONG_NAMES[index % 2]} {index}" for index in range(num_classes)]
    width, height = picture_size(draw_confusion(counts, names, tmp_path / "confusion.png"))
    assert 300 < width < 2300 and 300 < height < 2300


def test_most_confused_classes_are_those_of_the_worst_pairs():
    counts = 10 * np.eye(40, dtype=int)
    counts[3, 30], counts[30, 3], counts[7, 5], counts[1, 2] = 4, 4, 6, 5
    assert _most_confused(counts, 4) == [3, 5, 7, 30]
    assert _most_confused(counts, 3) == [3, 5, 30] or _most_confused(counts, 3) == [3, 7, 30]
    assert len(_most_confused(10 * np.eye(40, dtype=int), 20)) == 20


@pytest.mark.parametrize(
    ("counts", "names", "message"),
    [
        (np.zeros((2, 3)), ["a", "b"], r"square with one name per class; got the shape \(2, 3\) and 2 names"),
        (np.eye(2), ["a"], "1 names"),
        (np.zeros((2, 2)), ["a", "b"], "at least one above 0"),
        (np.zeros((0, 0)), [], "at least one above 0"),
        (np.array([[2, -1], [0, 1]]), ["a", "b"], "minimum of -1"),
    ],
)
def test_impossible_confusion_is_an_error(tmp_path, counts, names, message):
    with pytest.raises(ValueError, match=message):
        draw_confusion(counts, names, tmp_path / "confusion.png")


def test_examples_accept_every_kind_of_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 60), dtype=np.uint8)
    images = [
        Image.fromarray(pixels[0]),
        Image.fromarray(pixels[0]).convert("P"),
        Image.fromarray(pixels.transpose(1, 2, 0)).convert("CMYK"),
        Image.new("RGBA", (5, 9), (0, 0, 0, 0)),
        Image.new("I;16", (8, 8), 40000),
        pixels,
        pixels.transpose(1, 2, 0),
        pixels[0],
        pixels[:1],
        torch.from_numpy(pixels),
        torch.from_numpy(pixels[:1]),
        np.zeros((2000, 30), dtype=np.uint8),
        {"image": Image.new("L", (3, 3)), "label": 0},
    ]
    labels = [index % 2 for index in range(len(images))]
    predictions = torch.tensor([0] * len(images))
    probabilities = torch.linspace(0, 1, len(images))
    path = draw_examples(images, labels, predictions, probabilities, LONG_NAMES, tmp_path / "examples.png", count=6)
    width, height = picture_size(path)
    assert 1200 < width < 1600 and 1400 < height < 2000


@pytest.mark.parametrize("prediction", [0, 1])
def test_a_group_without_examples_stays_small(tmp_path, prediction):
    images = [np.zeros((4, 4), dtype=np.uint8)]
    path = draw_examples(images, [0], [prediction], [0.9], ["a", "b"], tmp_path / "examples.png")
    assert picture_size(path)[1] < 800


def test_only_the_images_that_are_drawn_are_read(tmp_path):
    class Images:
        def __init__(self):
            self.read = []

        def __len__(self):
            return 100

        def __getitem__(self, index):
            self.read.append(int(index))
            return Image.new("L", (8, 8))

    images = Images()
    labels = [index // 50 for index in range(100)]
    predictions = [1 - label if index % 10 == 0 else label for index, label in enumerate(labels)]
    probabilities = [index / 100 for index in range(100)]
    draw_examples(images, labels, predictions, probabilities, ["a", "b"], tmp_path / "examples.png", count=2)
    assert images.read == [1, 51, 90, 80]


def test_bad_examples_are_errors(tmp_path):
    path = tmp_path / "examples.png"
    image = np.zeros((4, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"lengths \(1, 2, 1, 1\)"):
        draw_examples([image], [0, 1], [0], [0.5], ["a", "b"], path)
    with pytest.raises(ValueError, match="`count` 0"):
        draw_examples([image], [0], [0], [0.5], ["a", "b"], path, count=0)
    with pytest.raises(TypeError, match="Image 0 must be a PIL image or a uint8 array.*float32"):
        draw_examples([torch.zeros(3, 4, 4)], [0], [0], [0.5], ["a", "b"], path)
    with pytest.raises(TypeError, match=r"1, 3 or 4 channels.*\(5, 4, 7\)"):
        draw_examples([np.zeros((5, 4, 7), dtype=np.uint8)], [0], [0], [0.5], ["a", "b"], path)


def test_percent_never_rounds_to_a_false_zero_or_hundred():
    assert [whole_percent(share) for share in (0, 0.004, 0.5, 0.996, 1)] == ["0", "<1", "50", ">99", "100"]


def test_equal_data_gives_equal_files(tmp_path):
    first, second = (draw_curves(history(), tmp_path / name) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()


def test_matplotlib_is_loaded_only_to_draw_and_pyplot_never():
    tree = ast.parse(inspect.getsource(figures))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not any("pyplot" in name for name in names)
            assert node not in tree.body or not any(name.startswith(("matplotlib", "PIL")) for name in names)
