"""Models compared on a folder of images: against each classifier alone, scikit-learn, scipy, and interrupted runs."""

import logging

import numpy as np
import pytest
import torch
import transformers
from scipy import stats
from sklearn.neighbors import KNeighborsClassifier

from hf_vitfm import few_shot, linear_probe
from hf_vitfm.evaluation import compare, features
from hf_vitfm.evaluation.compare import CompareOptions, compare_models
from hf_vitfm.evaluation.compare_data import comparison_prompts, open_comparison
from hf_vitfm.evaluation.compare_report import comparison_notes
from hf_vitfm.evaluation.compare_tasks import TOLERANCE, Answers, EncodedImages, classify, usable_shots
from hf_vitfm.evaluation.features import extract_features
from hf_vitfm.evaluation.suite_models import load_suite_model
from hf_vitfm.evaluation.suite_tasks import FeatureOptions
from hf_vitfm.evaluation.zero_shot import ZeroShotClassifier, evaluate_zero_shot
from tests.evaluation.compared import save_folder, save_resnet, save_vit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("images"), train=12, test=10)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return ["emoji-clip", save_vit(place / "tiny_vit"), save_resnet(place / "tiny_resnet")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def found(folder, models, cache):
    options = CompareOptions(seeds=(0, 1, 2), features=FeatureOptions(cache_dir=cache))
    return compare_models(models, open_comparison(folder), options)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Speeds are measured in a moment: what they are is of no interest here."""
    monkeypatch.setattr("hf_vitfm.evaluation.encoder_cost._SECONDS", 0.0)


def features_of(source, data, pooling):
    loaded = load_suite_model(source)
    return loaded, [
        part
        for rows in (data.train, data.test)
        for part in extract_features(loaded.model, rows, loaded.transform, 8, pooling)
    ]


def test_scores_are_those_of_each_classifier_alone(found, folder, models):
    data = open_comparison(folder)
    by_name = {model.name: model for model in found.models}
    assert set(by_name) == {"emoji-clip", "tiny_vit", "tiny_resnet"} and not found.failures and not found.skipped
    for source, name, pooling in zip(
        models, ("emoji-clip", "tiny_vit", "tiny_resnet"), ("pre_projection", "cls", "mean"), strict=True
    ):
        scores, (loaded, features) = by_name[name].scores, features_of(source, data, pooling)
        assert by_name[name].pooling == pooling
        probe = linear_probe(*features, validation=0.2, tol=TOLERANCE)
        assert scores["linear_probe"].accuracy == pytest.approx(probe.accuracy)
        for shots, accuracies in few_shot(*features, shots=(1, 5, 10), seeds=(0, 1, 2)).items():
            assert scores[f"few_shot_{shots}"].accuracy == pytest.approx(np.mean(accuracies))
        assert scores["few_shot"] == scores["few_shot_10"] and "few_shot_25" not in scores
        train, labels, test, test_labels = (part.numpy() for part in features)
        weigh = lambda distances: np.exp((1 - distances) / 0.07)  # noqa: E731
        theirs = KNeighborsClassifier(20, metric="cosine", weights=weigh).fit(train, labels)
        assert scores["knn"].accuracy == pytest.approx(theirs.score(test, test_labels))
        if loaded.has_texts:
            prompts = comparison_prompts(data)
            classifier = ZeroShotClassifier.build(loaded.model, loaded.tokenizer, prompts.names, prompts.templates)
            expected = evaluate_zero_shot(loaded.model, data.test, classifier, loaded.transform)["top1"]
            assert scores["zero_shot"].accuracy == pytest.approx(expected)
    assert "zero_shot" not in by_name["tiny_vit"].scores


def test_the_best_comes_first_and_differences_are_to_it(found):
    accuracies = [model.scores["linear_probe"].accuracy for model in found.models]
    assert accuracies == sorted(accuracies, reverse=True) and found.winner is found.models[0]
    for task in ("linear_probe", "few_shot", "knn"):
        best = max(model.scores[task].accuracy for model in found.models)
        for model in found.models:
            score = model.scores[task]
            assert score.difference == pytest.approx(score.accuracy - best)
            assert score.low <= score.accuracy <= score.high
        assert [model.scores[task].standing for model in found.models].count("best") == 1


def test_intervals_of_differences_tell_what_is_not_distinguishable():
    generator = np.random.default_rng(0)
    best = generator.random((1, 400)) < 0.8
    near = best.copy()
    for was_right, count in ((True, 18), (False, 15)):
        near[0, np.flatnonzero(best[0] == was_right)[:count]] ^= True
    far = best & (generator.random((1, 400)) < 0.9)
    scores = compare._score([{"knn": Answers(rows, {})} for rows in (far, best, near)])
    assert [own["knn"].standing for own in scores] == ["below", "best", "close"]
    for own, rows in zip(scores, (far, best, near), strict=True):
        pair = (rows[0].astype(float) - best[0],)
        if rows is not best:
            expected = stats.bootstrap(pair, np.mean, method="percentile", n_resamples=9999, random_state=0)
            ends = (own["knn"].difference_low, own["knn"].difference_high)
            assert ends == pytest.approx(tuple(expected.confidence_interval), abs=0.006)


def test_a_second_run_reads_the_features(found, folder, models, cache, monkeypatch):
    monkeypatch.setattr(features, "pool_images", lambda *args, **kwargs: pytest.fail("features are computed again"))
    options = CompareOptions(seeds=(0, 1, 2), features=FeatureOptions(cache_dir=cache))
    again = compare_models(models, open_comparison(folder), options)
    assert [model.scores for model in again.models] == [model.scores for model in found.models]


def test_an_interrupted_run_goes_on(folder, models, tmp_path, monkeypatch):
    options = CompareOptions(seeds=(0,), features=FeatureOptions(cache_dir=tmp_path))
    extract, computed = compare.extract_features, []

    def stop_at_the_resnet(model, *args, **kwargs):
        if "ResNet" in type(model).__name__:
            raise KeyboardInterrupt
        return extract(model, *args, **kwargs)

    monkeypatch.setattr(compare, "extract_features", stop_at_the_resnet)
    with pytest.raises(KeyboardInterrupt):
        compare_models(models[1:], open_comparison(folder), options)
    monkeypatch.setattr(compare, "extract_features", extract)
    pool = features.pool_images
    monkeypatch.setattr(
        features,
        "pool_images",
        lambda base, *args, **kwargs: computed.append(type(base).__name__) or pool(base, *args, **kwargs),
    )
    assert len(compare_models(models[1:], open_comparison(folder), options).models) == 2
    assert set(computed) == {"ResNetModel"}


def test_a_model_that_fails_is_named_and_the_others_go_on(folder, models, tmp_path):
    (tmp_path / "empty").mkdir()
    sources = [str(tmp_path / "empty"), models[1], str(tmp_path / "none.safetensors")]
    lines = []
    found = compare_models(sources, open_comparison(folder), CompareOptions(seeds=(0,)), lines.append)
    assert [model.name for model in found.models] == ["tiny_vit"]
    assert "does not exist" in found.failures[str(tmp_path / "none.safetensors")] and found.failures["empty"]
    assert sum("failed" in line for line in lines) == 2
    with pytest.raises(ValueError, match="No model could be compared. empty: "):
        compare_models(sources[:1], open_comparison(folder), CompareOptions())


def test_a_model_that_gives_no_numbers_fails_alone(folder, models, tmp_path):
    broken = transformers.ViTModel.from_pretrained(models[1])
    broken.layernorm.bias.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "broken")
    found = compare_models([str(tmp_path / "broken"), models[1]], open_comparison(folder), CompareOptions(seeds=(0,)))
    assert [model.name for model in found.models] == ["tiny_vit"] and "NaN" in found.failures["broken"]


def test_bad_images_are_left_out_for_all_and_named(models, tmp_path, caplog):
    folder = save_folder(tmp_path, train=8, test=5)
    clean = compare_models(models[1:], open_comparison(folder), CompareOptions(seeds=(0, 1)))
    (folder / "train" / "Bag" / "0.png").write_bytes(b"no image")
    (folder / "test" / "Sneaker" / "0.png").write_bytes(b"")
    with caplog.at_level(logging.ERROR):
        found = compare_models(models[1:], open_comparison(folder), CompareOptions(seeds=(0, 1)))
    assert {part: len(names) for part, names in found.skipped.items()} == {"train": 1, "test": 1}
    assert "test/Sneaker/0.png" in found.skipped["test"][0].replace("\\", "/")
    for one, other in zip(clean.models, found.models, strict=True):
        assert {task: score.accuracy for task, score in one.scores.items()} == {
            task: score.accuracy for task, score in other.scores.items()
        }


def test_a_class_without_training_images_is_named(models, tmp_path):
    folder = save_folder(tmp_path, train=6, test=5)
    for image in (folder / "train" / "Bag").iterdir():
        image.unlink()
    found = compare_models(models[1:2], open_comparison(folder), CompareOptions(seeds=(0,)))
    assert found.unlearnt == ["Bag"]
    assert found.winner.scores["linear_probe"].accuracy <= 2 / 3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_of_each_class_are_enough(count):
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(4, 6, generator=generator)
    labels = torch.arange(4).repeat_interleave(count)
    train = centres[labels] + torch.randn(4 * count, 6, generator=generator)
    test_labels = torch.arange(4).repeat(25)
    test = centres[test_labels] + torch.randn(100, 6, generator=generator)
    shots = usable_shots(labels)
    assert shots == [1]
    answers = classify(EncodedImages((train, labels), (test, test_labels)), shots, (0, 1))
    assert {task: own.correct.shape for task, own in answers.items()} == {
        "linear_probe": (1, 100),
        "knn": (1, 100),
        "few_shot_1": (2, 100),
        "few_shot": (2, 100),
    }
    assert all(own.correct.mean() > 0.8 for own in answers.values())


def test_the_probe_is_never_fitted_to_test_rows():
    generator = torch.Generator().manual_seed(0)
    train, labels = torch.randn(60, 5, generator=generator), torch.arange(60) % 3
    test, test_labels = torch.randn(40, 5, generator=generator), torch.arange(40) % 3
    answers = classify(EncodedImages((train, labels), (test, test_labels)), [1], [0])["linear_probe"]
    moved = classify(EncodedImages((train, labels), (test, (test_labels + 1) % 3)), [1], [0])["linear_probe"]
    assert answers.settings == moved.settings  # the same C, whatever the test labels say
    assert not (answers.correct & moved.correct).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "size"}, "`by` must be one of linear_probe.*'size'"),
        ({"seeds": ()}, "`seeds`.*at least one"),
        ({"shots": (0, 1)}, "`shots`.*at least 1"),
        ({"by": "zero_shot"}, "No model has a score for zero-shot"),
    ],
)
def test_options_outside_their_range_are_refused(options, message, folder, models):
    with pytest.raises(ValueError, match=message):
        compare_models(models[1:2], open_comparison(folder), CompareOptions(**options))


def test_a_model_is_compared_once(folder, models):
    with pytest.raises(ValueError, match="each once"):
        compare_models(models[:1] * 2, open_comparison(folder), CompareOptions())


def test_a_model_whose_features_no_solver_copes_with_fails_alone(folder, models, monkeypatch):
    calls = []

    def fail_once(*args):
        calls.append(args)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("eigh did not converge")
        return classify(*args)

    monkeypatch.setattr(compare, "classify", fail_once)
    found = compare_models(models[1:], open_comparison(folder), CompareOptions(seeds=(0,)))
    assert [model.name for model in found.models] == ["tiny_resnet"]
    assert found.failures == {"tiny_vit": "eigh did not converge"}


def test_test_images_that_were_learnt_from_are_counted(models, tmp_path):
    folder = save_folder(tmp_path, train=4, test=3)
    assert compare_models(models[1:2], open_comparison(folder), CompareOptions(seeds=(0,))).repeated == 0
    image = next((folder / "train" / "Bag").iterdir())
    (folder / "test" / "Bag" / "other_name.png").write_bytes(image.read_bytes())
    found = compare_models(models[1:2], open_comparison(folder), CompareOptions(seeds=(0,)))
    assert found.repeated == 1
    assert any(
        note.startswith("1 of 10 test images are among those to learn from") for note in comparison_notes(found)
    )
