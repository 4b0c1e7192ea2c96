"""Suites are run to the end: every row on a small data set in its own layout, from where an earlier run stopped."""

import json

import pytest
import torch

from hf_vitfm import ZeroShotClassifier, build_transform, load_image_processor, load_tokenizer, sample_checkpoint
from hf_vitfm.evaluation import suite_runner, suite_tasks
from hf_vitfm.evaluation.suite_models import SuiteModel, load_suite_model, name_models
from hf_vitfm.evaluation.suite_runner import SuiteOptions, run_suite
from hf_vitfm.evaluation.suites import SUITE_NAMES, load_suite
from hf_vitfm.models.modeling_clip import CLIPModel
from tests.evaluation.suite_fixtures import NAMES, write_fixture


@pytest.fixture(scope="module")
def small_model() -> SuiteModel:
    return load_suite_model("emoji-clip")


@pytest.fixture
def loaded(monkeypatch, small_model):
    """Every model is the small one; the names of those that were asked for."""
    asked = []

    def load(source, name, dtype, device):
        asked.append(source)
        if source == "broken":
            raise OSError("its files\nare not whole")
        return small_model

    monkeypatch.setattr(suite_runner, "load_suite_model", load)
    # Two draws instead of fifteen: what they find is tested elsewhere.
    monkeypatch.setattr(suite_tasks, "SHOTS", (1, 2))
    monkeypatch.setattr(suite_tasks, "SEEDS", (0,))
    return asked


def give(suite, folder, names=None):
    return {
        row.name: str(write_fixture(row, folder / row.name))
        for row in suite.select(names or suite.names)
        if row.layout != "sample"
    }


@pytest.mark.parametrize("name", [name for name in SUITE_NAMES if name != "sample"])
def test_every_row_is_run_on_a_fixture_in_its_layout(name, tmp_path, loaded):
    suite = load_suite(name)
    # Hateful Memes has no names for its classes, and the labels of ReaL may be any of the 1,000.
    classnames = {"hateful_memes": ["meme", "hateful meme"], "imagenet-real": [f"thing {i}" for i in range(1000)]}
    classnames = {row: names for row, names in classnames.items() if row in suite.names}
    for row, names in classnames.items():
        (tmp_path / f"{row}.txt").write_text("\n".join(names))
    (tmp_path / "templates.txt").write_text("a photo of a {}.\n")
    options = SuiteOptions(
        tasks=("zero_shot", "linear_probe", "knn") if name == "clip27" else ("zero_shot", "knn"),
        data=give(suite, tmp_path / "data"),
        classnames={row: str(tmp_path / f"{row}.txt") for row in classnames},
        templates=dict.fromkeys(classnames, str(tmp_path / "templates.txt")),
    )
    run = run_suite(suite, suite.rows, ["model"], tmp_path / "output", options)
    assert (run.missing, run.failures) == ({}, {})
    rows = {row.name: row for row in suite.rows}
    for result in run.results:
        row = rows[result["dataset"]]
        if result["status"] == "skipped":
            is_several = row.task == "multi_label" and result["task"] == "knn"
            assert is_several or not row.train_size, result
            continue
        assert result["status"] == "done", result
        assert 0 <= result["score"] <= 1
        assert result["metric"] == ("accuracy" if result["task"] == "knn" else row.metric)
        assert result["tested"] == row.tested is True
    # The pictures have the colours of their classes, which even this model sees.
    scores = [result["score"] for result in run.results if result["task"] == "knn" and result["status"] == "done"]
    assert scores and min(scores) >= 2 / 3
    assert {result["dataset"] for result in run.results if result["status"] == "done"} == set(suite.names)


def test_the_score_is_that_of_the_functions_by_hand(tmp_path, loaded):
    suite = load_suite("clip27")
    options = SuiteOptions(tasks=("zero_shot",), data=give(suite, tmp_path / "data", ["pets"]))
    (result,) = run_suite(suite, suite.select(["pets"]), ["model"], tmp_path / "output", options).results
    source = sample_checkpoint("emoji-clip")
    model, transform = CLIPModel.from_pretrained(source).eval(), build_transform(load_image_processor(source))
    templates = ("a photo of a {}.", "many {}s")
    classifier = ZeroShotClassifier.build(model, load_tokenizer(source), NAMES, templates)
    rows = suite_runner.open_row(suite.select(["pets"])[0], options.data["pets"]).splits["test"]
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image in rows["image"]])
        predicted = classifier(model.get_image_features(pixel_values=pixels).pooler_output).argmax(dim=1)
    right = (predicted == torch.tensor(rows["label"])).double()
    assert result["metrics"]["top1"] == pytest.approx(right.mean().item())
    assert result["prompts"]["templates"] == 2 and result["prompts"]["source"].startswith("classnames.txt of")


def test_a_second_run_computes_nothing_and_a_changed_one_does(tmp_path, loaded, monkeypatch, small_model):
    suite, output = load_suite("clip27"), tmp_path / "output"
    rows, data = suite.select(["pets"]), give(suite, tmp_path / "data", ["pets"])
    options = SuiteOptions(tasks=("zero_shot", "few_shot", "knn"), data=data)

    def run(**changes):
        results = run_suite(suite, rows, ["model"], output, SuiteOptions(**{**vars(options), **changes})).results
        assert [result["status"] for result in results] == ["done"] * len(results), results
        return {result["task"]: result for result in results}

    first = run()
    assert not any(result["resumed"] for result in first.values())
    with monkeypatch.context() as broken:
        broken.setattr(suite_tasks, "extract_features", None)
        second = run()
        assert all(result["resumed"] for result in second.values())
        assert [r["score"] for r in second.values()] == [r["score"] for r in first.values()]
    assert not any(result["resumed"] for result in run(overwrite=True).values())

    (tmp_path / "data" / "pets" / "zeroshot_classification_templates.txt").write_text("{c}\n")
    assert {task: result["resumed"] for task, result in run().items()} == {
        "zero_shot": False,
        "few_shot": True,
        "knn": True,
    }
    (file,) = output.glob("runs/*/pets.knn.json")
    file.write_text(file.read_text()[:-20])  # as a crash may leave it
    assert {task: result["resumed"] for task, result in run().items()}["knn"] is False
    assert json.loads(file.read_text())["score"] == first["knn"]["score"]
    other = SuiteModel(**{**vars(small_model), "fingerprint": "f" * 64})
    monkeypatch.setattr(suite_runner, "load_suite_model", lambda *_: other)
    assert not any(result["resumed"] for result in run().values())


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path, loaded, monkeypatch):
    suite, lines = load_suite("clip27"), []
    data = give(suite, tmp_path / "data", ["pets", "dtd"])
    (tmp_path / "data" / "dtd" / "test" / "0.tar").write_bytes(b"no tar")

    def fail(bench):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(suite_runner, "TASKS", {**suite_runner.TASKS, "few_shot": fail})
    options = SuiteOptions(tasks=("few_shot", "knn"), data=data)
    rows = suite.select(["pets", "dtd", "mnist", "ucf101"])
    run = run_suite(suite, rows, ["broken", "model"], tmp_path / "output", options, lines.append)
    assert loaded == ["broken", "model"]
    assert list(run.missing) == ["mnist", "ucf101"] and "needs the network" in run.missing["mnist"]
    assert list(run.failures) == ["dtd", "broken"] and run.failures["broken"] == "its files are not whole"
    assert [(r["task"], r["status"], r.get("reason")) for r in run.results] == [
        ("few_shot", "failed", "out of memory"),
        ("knn", "done", None),
    ]
    assert not run.is_whole
    assert any("mnist: needs the network" in line for line in lines)


def test_classes_without_names_need_files(tmp_path, loaded):
    suite = load_suite("clip27")
    options = SuiteOptions(tasks=("zero_shot",), data=give(suite, tmp_path / "data", ["hateful_memes"]))
    (result,) = run_suite(suite, suite.select(["hateful_memes"]), ["model"], tmp_path, options).results
    assert result["status"] == "failed" and "--classnames hateful_memes=FILE" in result["reason"]


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path, loaded, monkeypatch):
    import datasets

    asked = []

    def unreachable(name, *_, **__):
        asked.append(name)
        raise ConnectionError("no route\nto it")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    suite = load_suite("clip27")
    run = run_suite(suite, suite.rows, ["model"], tmp_path, SuiteOptions())
    assert asked == ["clip-benchmark/wds_food101"]
    assert run.missing["food101"].endswith("(--data food101=PATH): no route") and len(run.missing) == 27
    assert loaded == [] and run.is_whole


def test_what_does_not_apply_is_no_failure(tmp_path, loaded):
    suite = load_suite("clip27")
    options = SuiteOptions(tasks=("few_shot", "knn"), data=give(suite, tmp_path / "data", ["voc2007"]))
    run = run_suite(suite, suite.select(["voc2007"]), ["model"], tmp_path / "output", options)
    assert [(result["status"], result["reason"]) for result in run.results] == [
        ("skipped", "several labels per image")
    ] * 2
    assert run.is_whole


def test_wrong_requests_are_errors_before_anything_is_loaded(tmp_path, loaded):
    suite = load_suite("clip27")
    for options, complaint in (
        ({"data": {"pest": str(tmp_path)}}, "no data set 'pest'. Did you mean 'pets'"),
        ({"data": {"pets": str(tmp_path / "nowhere")}}, "pets=.*nothing at this path"),
        ({"tasks": ("zeroshot",)}, "no task 'zeroshot'. Did you mean 'zero_shot'"),
        ({"classnames": {"": str(tmp_path / "nowhere")}}, "nothing at this path"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=complaint):
            run_suite(suite, suite.rows, ["model"], tmp_path, SuiteOptions(**options))
    assert loaded == []


def test_models_without_texts_and_of_transformers_are_loaded(tmp_path):
    from transformers import ResNetConfig, ResNetModel, ViTImageProcessor

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "resnet")
    resnet, mae = load_suite_model(tmp_path / "resnet"), load_suite_model("fashion-mae")
    assert not resnet.has_texts and not mae.has_texts
    assert suite_tasks.probe_pooling(resnet.model) == "mean" and suite_tasks.probe_pooling(mae.model) == "cls"
    assert resnet.name == "resnet"
    assert load_suite_model(tmp_path / "resnet").fingerprint == resnet.fingerprint != mae.fingerprint


def test_a_model_without_its_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lacking"
    load_suite_model("fashion-mae").model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "qkv" in name)]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of MAE.*random"):
        load_suite_model(folder)


def test_models_of_one_name_are_told_apart(tmp_path):
    for folder in ("a/model", "b/model"):
        (tmp_path / folder).mkdir(parents=True)
    names = name_models([tmp_path / "a/model", tmp_path / "b/model", "google/vit-base"])
    assert names == ["model", "model (2)", "google/vit-base"]
