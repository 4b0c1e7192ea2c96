"""`hf-vitfm predict`: its table against transformers' pipeline, and what becomes of files that are no images."""

import configparser
import csv
import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import ViTImageProcessor, pipeline

from hf_vitfm import ViTForImageClassification, ViTModel
from hf_vitfm.cli.main import main
from hf_vitfm.evaluation import predict
from tests.tiny import randomize, tiny_config


NAMES = ["cat", "dog, wet", 'the "bird"', "fish", "dog, wet"]


def save_model(folder: Path, **fields) -> str:
    names = fields.pop("names", NAMES)
    config = tiny_config(num_labels=len(names), id2label=dict(enumerate(names)), **fields)
    randomize(ViTForImageClassification(config)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), problem_type="single_label_classification")


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Seven pictures of several sizes and modes, some in a subfolder."""
    folder = tmp_path / "pictures"
    generator = np.random.default_rng(0)
    names = ["b.png", "a.jpg", "deep/er/c.PNG", "deep/d.webp", "deep/e,f.png", "zwei\nzeilen.png", "grün.bmp"]
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (20 + 5 * i, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels if i % 3 else pixels[..., 0]).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden").mkdir()
    Image.new("RGB", (9, 9)).save(folder / ".hidden" / "x.png")
    return folder


def run(tmp_path, *argv) -> tuple[int, list[dict]]:
    output = tmp_path / "out.csv"
    code = main(["predict", *map(str, argv), "--output", str(output), "--device", "cpu", "--workers", "0"])
    with open(output, encoding="utf-8", newline="") as file:
        return code, list(csv.DictReader(file))


def test_table_has_the_answers_of_the_pipeline(tmp_path, model, pictures):
    code, rows = run(tmp_path, model, pictures, "--top-k", "3", "--batch-size", "3")
    assert code == 0
    files = [str(path) for path in pictures.rglob("*") if path.is_file() and ".hidden" not in path.parts]
    assert [row["file"] for row in rows] == sorted(file for file in files if not file.endswith(".txt"))
    assert list(rows[0]) == ["file", "label", "score", "label_2", "score_2", "label_3", "score_3", "error"]
    classify = pipeline("image-classification", model=model, device="cpu")
    for row in rows:
        expected = classify(Image.open(row["file"]).convert("RGB"), top_k=3)
        assert [row["label"], row["label_2"], row["label_3"]] == [answer["label"] for answer in expected]
        scores = [float(row[name]) for name in ("score", "score_2", "score_3")]
        assert scores == pytest.approx([answer["score"] for answer in expected], abs=2e-5)
        assert row["error"] == ""
    assert len({row["score"] for row in rows}) == 7


def test_several_labels_and_numbers_have_a_column_each(tmp_path, pictures):
    several = save_model(tmp_path / "several", problem_type="multi_label_classification")
    _, rows = run(tmp_path, several, pictures)
    columns = ["cat", "dog, wet (1)", 'the "bird"', "fish", "dog, wet (4)"]
    assert list(rows[0]) == ["file", "label", "score", *columns, "error"]
    image = Image.open(rows[0]["file"]).convert("RGB")
    raw = pipeline("image-classification", model=several, device="cpu", function_to_apply="none")(image)
    expected = torch.tensor(sorted(answer["score"] for answer in raw)).sigmoid().tolist()
    assert sorted(float(rows[0][name]) for name in columns) == pytest.approx(expected, abs=2e-5)
    assert float(rows[0]["score"]) == max(float(rows[0][name]) for name in columns)

    numbers = save_model(tmp_path / "numbers", names=["age", "height"], problem_type="regression")
    _, rows = run(tmp_path, numbers, pictures)
    assert list(rows[0]) == ["file", "age", "height", "error"]
    raw = pipeline("image-classification", model=numbers, device="cpu", function_to_apply="none")(image)
    expected = {answer["label"]: answer["score"] for answer in raw}
    assert {name: float(rows[0][name]) for name in expected} == pytest.approx(expected, abs=2e-5)


def test_one_output_without_a_problem_type_is_a_number(tmp_path, pictures):
    number = save_model(tmp_path / "number", names=["age"])
    assert json.loads((tmp_path / "number" / "config.json").read_text()).get("problem_type") is None
    _, rows = run(tmp_path, number, pictures)
    assert list(rows[0]) == ["file", "age", "error"]


def test_bad_files_are_rows_and_harm_no_others(tmp_path, model, pictures, capsys):
    _, expected = run(tmp_path, model, pictures)
    (pictures / "empty.png").touch()
    (pictures / "text.jpg").write_text("no picture")
    whole = (pictures / "b.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(pictures / "floats.tiff")
    code, rows = run(tmp_path, model, pictures)
    bad = {Path(row["file"]).name: row for row in rows if row["error"]}
    assert code == 1 and sorted(bad) == ["cut.png", "empty.png", "floats.tiff", "text.jpg"]
    assert [row for row in rows if not row["error"]] == expected
    assert all(row["label"] == row["score"] == "" for row in bad.values())
    assert "empty" in bad["empty.png"]["error"]
    shown = capsys.readouterr().err
    assert all(shown.count(name) == 1 for name in bad) and "4 of 11 images could not be predicted" in shown


def test_scores_that_are_not_finite_are_an_error(tmp_path, pictures):
    broken = randomize(ViTForImageClassification(tiny_config()))
    broken.classifier.weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "broken")
    code, rows = run(tmp_path, tmp_path / "broken", pictures)
    assert code == 1 and {row["error"] for row in rows} == {"its scores are not finite"}


def test_pictures_are_turned_as_their_camera_says(tmp_path, model):
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    upright = Image.fromarray(pixels)
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # show turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "untagged.png")
    _, rows = run(tmp_path, model, *(tmp_path / f"{name}.png" for name in ("upright", "turned", "untagged")))
    first, second, third = ([row["label"], row["score"]] for row in rows)
    assert first == second != third


def test_models_of_transformers_and_their_processors_are_taken(tmp_path, pictures):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    randomize(transformers.ResNetForImageClassification(config)).save_pretrained(tmp_path / "resnet")
    # It rounds sizes as `build_transform` does not, so it is called itself, and images keep their proportions.
    processor = transformers.BridgeTowerImageProcessor(size={"shortest_edge": 32}, size_divisor=8, do_pad=False)
    processor.save_pretrained(tmp_path / "resnet")
    _, rows = run(tmp_path, tmp_path / "resnet", pictures, "--top-k", "1")
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "resnet").eval()
    for row in rows:
        image = Image.open(row["file"]).convert("RGB")
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = loaded(pixels).logits.softmax(-1)[0]
        assert float(row["score"]) == pytest.approx(expected.max().item(), abs=1e-4)


def test_worker_processes_change_nothing(tmp_path, model, pictures):
    (pictures / "empty.png").touch()
    loaded, transform = (
        predict.load_classifier(model),
        predict.evaluation_transform(ViTImageProcessor.from_pretrained(model)),
    )
    files = predict.find_images([pictures])
    alone, helped = (
        list(predict.predict_images(loaded, files, transform, batch_size=3, num_workers=n)) for n in (0, 2)
    )
    assert [answer.file for answer in helped] == [answer.file for answer in alone] == files
    for ours, theirs in zip(alone, helped, strict=True):
        assert ours.error == theirs.error
        assert ours.scores is theirs.scores is None or torch.equal(ours.scores, theirs.scores)


def test_bfloat16_is_near_float32(tmp_path, model, pictures):
    _, exact = run(tmp_path, model, pictures, "--top-k", "5")
    _, rough = run(tmp_path, model, pictures, "--top-k", "5", "--dtype", "bfloat16")
    scores = [np.array([[float(row["score"])] for row in rows]) for rows in (exact, rough)]
    assert 0 < np.abs(scores[0] - scores[1]).max() < 0.1


def test_standard_output_takes_the_table(tmp_path, model, pictures, capsys):
    assert main(["predict", model, str(pictures), "--output", "-", "--device", "cpu"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    assert len(rows) == 7 and {row["label"] for row in rows} <= set(NAMES)


def test_files_are_listed_once_and_links_in_circles_end(pictures):
    (pictures / "deep" / "loop").symlink_to(pictures, target_is_directory=True)
    found = predict.find_images([pictures, pictures / "b.png", pictures / "notes.txt"])
    assert len(found) == len(set(found)) == 8  # a file that is named is taken whatever its suffix
    assert found[:7] == predict.find_images([str(pictures)])


def test_an_interrupted_run_leaves_the_old_table(tmp_path, model, pictures, monkeypatch):
    output = tmp_path / "out.csv"
    output.write_text("old")

    def interrupted(*args, **kwargs):
        yield predict.Prediction("x.png", torch.ones(5) / 5)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "predict_images", interrupted)
    assert main(["predict", model, str(pictures), "--output", str(output), "--device", "cpu"]) == 130
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "pictures"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{model}", "{empty}"], "No images in"),
        (["{model}", "{empty}/missing.png"], "does not exist"),
        (["{model}", "{pictures}", "--device", "abacus"], "`--device` 'abacus' cannot be used"),
        (["{model}", "{pictures}", "--device", "meta"], "`--device` 'meta' cannot be used"),
        (["{model}", "{pictures}", "--output", "{empty}"], "`--output` must be a file"),
        (["{headless}", "{pictures}"], "lacks 2 weights of ViTForImageClassification: classifier.bias"),
        (["{empty}", "{pictures}"], "preprocessor_config.json"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(tmp_path, model, pictures, capsys, argv, message):
    headless, empty = tmp_path / "headless", tmp_path / "empty"
    empty.mkdir()
    randomize(ViTModel(tiny_config())).save_pretrained(headless)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(headless)
    places = {"model": model, "pictures": pictures, "headless": headless, "empty": empty}
    argv = [word.format(**places) for word in argv]
    if "--output" not in argv:
        argv += ["--output", str(empty / "out.csv")]
    assert main(["predict", *argv]) == 2
    shown = capsys.readouterr()
    assert f"hf-vitfm predict: error: {message}" in shown.err or message in shown.err
    assert shown.out == "" and list(empty.iterdir()) == []


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["predict", "model"], ["predict", "m", "i", "--top-k", "0"]])
def test_wrong_command_lines_say_how_it_goes(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2 and "usage: hf-vitfm" in capsys.readouterr().err


def test_the_package_installs_the_command():
    settings = configparser.ConfigParser()
    settings.read("setup.cfg")
    name, _, target = settings["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = target.partition(":")
    assert name == "hf-vitfm" and getattr(importlib.import_module(module), function) is main
