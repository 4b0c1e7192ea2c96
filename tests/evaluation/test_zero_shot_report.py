"""What is said of zero-shot classes one by one, and classifiers that are kept: in files, and in a cache."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import confusion_matrix, recall_score
from torch.nn import functional as F
from transformers import CLIPConfig as TheirCLIPConfig
from transformers import CLIPModel as TheirCLIPModel
from transformers import SiglipConfig, SiglipModel

from hf_vitfm import CLIPModel, ZeroShotClassifier, evaluate_zero_shot
from hf_vitfm.evaluation.features import extract_features
from hf_vitfm.evaluation.zero_shot import zero_shot_metrics, zero_shot_report
from tests.data.images import encode, noise
from tests.data.test_pair_collator import clip_tokenizer
from tests.evaluation.test_zero_shot import build_transform_for
from tests.evaluation.test_zero_shot_processes import CLASSES, SPECIAL, TEMPLATES, Counting, make_model
from tests.tiny import TEXT_FIELDS, VISION_FIELDS, random_images, randomize


def some_classifier(width: int = 6, names=tuple(CLASSES)) -> ZeroShotClassifier:
    weights = torch.randn(width, len(names), generator=torch.Generator().manual_seed(3))
    return ZeroShotClassifier(F.normalize(weights, dim=0), tuple(names), ("{}",))


def some_images(count: int = 60, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings and labels; the third class has none, and some images have no label."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.tensor([0, 1, 3, 4, 5, 6, -100])[torch.randint(7, (count,), generator=generator)]
    return torch.randn(count, width, generator=generator), labels


def build(model=None, cache_dir=None, classnames=CLASSES, templates=TEMPLATES, **options) -> ZeroShotClassifier:
    model = make_model() if model is None else model
    return ZeroShotClassifier.build(model, clip_tokenizer(), classnames, templates, cache_dir=cache_dir, **options)


# Class by class


def test_classes_and_confusion_are_those_of_scikit_learn():
    classifier, (embeds, labels) = some_classifier(), some_images()
    report = zero_shot_report(classifier, embeds, labels)
    known = labels != -100
    true, predicted = labels[known].numpy(), classifier(embeds[known]).argmax(1).numpy()
    np.testing.assert_array_equal(report.confusion, confusion_matrix(true, predicted, labels=range(7)))
    assert report.confusion.dtype == np.int64 and report.confusion.sum() == known.sum() < 60
    shares = recall_score(true, predicted, labels=range(7), average=None, zero_division=np.nan)
    expected = {
        name: None if np.isnan(share) else pytest.approx(share) for name, share in zip(CLASSES, shares, strict=True)
    }
    assert report.per_class == expected and report.per_class[CLASSES[2]] is None
    assert report.metrics == zero_shot_metrics(classifier, embeds, labels)
    assert all(isinstance(value, float) for value in report.metrics.values())
    assert report.metrics["top1"] == pytest.approx(np.trace(report.confusion) / known.sum().item())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(59).long(), "got 59 labels for 60 images"),
        (torch.zeros(61).long(), "got 61 labels for 60 images"),
        (torch.full((60,), 7), r"class ids in 0..6, since there are 7 class names; got 7 to 7"),
        (torch.full((60,), -1), "got -1 to -1"),
        (torch.zeros(60, 1).long(), r"got torch.int64 of shape \(60, 1\)"),
        (torch.full((60,), -100), "No image has a label"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, message):
    for measure in (zero_shot_metrics, zero_shot_report):
        with pytest.raises(ValueError, match=message):
            measure(some_classifier(), some_images()[0], labels)


def their_models() -> list:
    text = {**TEXT_FIELDS, **SPECIAL}
    clip = {
        "text_config": {**text, "projection_dim": 24},
        "vision_config": {**VISION_FIELDS, "projection_dim": 24},
        "projection_dim": 24,
    }
    siglip = {"text_config": {**text, "projection_size": 32}, "vision_config": VISION_FIELDS}
    return [randomize(TheirCLIPModel(TheirCLIPConfig(**clip))), randomize(SiglipModel(SiglipConfig(**siglip)))]


@pytest.mark.parametrize("number", [0, 1], ids=["clip", "siglip"])
def test_ours_and_transformers_model_give_one_report(number, tmp_path):
    theirs = their_models()[number]
    theirs.save_pretrained(tmp_path)
    rows = [{"pixel_values": image, "label": i % 7} for i, image in enumerate(random_images(20))]
    reports = []
    for model in (theirs, CLIPModel.from_pretrained(tmp_path)):
        embeds, labels = extract_features(model, rows, pooling="projected")
        classifier = build(model)
        reports.append(zero_shot_report(classifier, embeds, labels))
        assert evaluate_zero_shot(model, rows, classifier, cache_dir=tmp_path / "cache") == reports[-1].metrics
    np.testing.assert_array_equal(reports[0].confusion, reports[1].confusion)
    assert reports[0].metrics == reports[1].metrics
    assert np.count_nonzero(reports[0].confusion.sum(0)) > 1


def test_images_that_cannot_be_decoded_are_not_counted(caplog):
    transform, model = build_transform_for(32), make_model()
    good = [{"image": encode(noise(32, 32, seed=i)), "label": i % 7} for i in range(9)]
    rows = [*good[:4], {"image": b"no image", "label": 1}, *good[4:]]
    classifier = build(model)
    expected = evaluate_zero_shot(model, good, classifier, transform)
    assert evaluate_zero_shot(model, rows, classifier, transform, on_bad_image="skip") == expected
    assert "1 of 10 images were skipped: row 4" in caplog.text


def test_half_precision_is_taken_for_the_images():
    model, rows = make_model().float(), [{"pixel_values": image, "label": 0} for image in random_images(9)]
    classifier = build(model)
    towards = extract_features(model, rows, pooling="projected", dtype=torch.bfloat16)[0]
    expected = zero_shot_metrics(classifier, towards, torch.zeros(9).long())
    assert evaluate_zero_shot(model, rows, classifier, dtype=torch.bfloat16) == expected


# In files


def test_a_classifier_comes_back_with_where_it_is_from(tmp_path):
    names = [*CLASSES[:-1], 'crane, "mâchine"\n']
    model = make_model()
    model.config.name_or_path, tokenizer = "someone/some-clip", clip_tokenizer()
    classifier = ZeroShotClassifier.build(
        model, tokenizer, names, TEMPLATES, source="the data set's own classnames.txt"
    )
    path = classifier.save(tmp_path / "new" / "emoji.safetensors")
    loaded = ZeroShotClassifier.load(path)
    assert torch.equal(loaded.weights, classifier.weights) and loaded.weights.dtype == torch.float64
    assert (loaded.classnames, loaded.templates) == (tuple(names), tuple(TEMPLATES))
    assert loaded.provenance == classifier.provenance
    assert loaded.provenance["source"] == "the data set's own classnames.txt"
    assert (
        loaded.provenance["model"] == "CLIPModel someone/some-clip"
        and loaded.provenance["tokenizer"] == "CLIPTokenizer"
    )
    embeds, labels = some_images(width=24)
    assert zero_shot_metrics(loaded, embeds, labels) == zero_shot_metrics(classifier, embeds, labels)
    assert [file.name for file in path.parent.iterdir()] == ["emoji.safetensors"]
    some_classifier().save(path)
    assert ZeroShotClassifier.load(str(path)).provenance == {}


def test_a_model_is_known_by_its_weights_and_never_by_its_path(tmp_path):
    model = make_model()
    assert "model_fingerprint" not in build(model).provenance  # which training does without
    first = build(model, source="here").provenance
    model.save_pretrained(tmp_path / "private")
    loaded = CLIPModel.from_pretrained(tmp_path / "private").double()
    assert build(loaded, source="here").provenance == first and "private" not in str(first)
    model.visual_projection.weight.data.zero_()
    assert build(model, source="here").provenance == first
    model.text_projection.weight.data[0, 0] += 1
    assert build(model, source="here").provenance["model_fingerprint"] != first["model_fingerprint"]
    assert (
        build(model, source="here", templates=["{}"]).provenance["tokens_fingerprint"] != first["tokens_fingerprint"]
    )


def test_files_that_are_no_classifiers_are_refused(tmp_path):
    path = tmp_path / "file.safetensors"
    with pytest.raises(FileNotFoundError):
        ZeroShotClassifier.load(path)
    some_classifier().save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(ValueError, match="is no zero-shot classifier, or damaged"):
        ZeroShotClassifier.load(path)
    save_file({"weights": torch.eye(3)}, path)
    with pytest.raises(ValueError, match="is no zero-shot classifier, or damaged"):
        ZeroShotClassifier.load(path)
    notes = {"classnames": ["a"], "templates": ["{}"], "provenance": {}}
    save_file({"weights": torch.eye(3)}, path, {"zero_shot_classifier": json.dumps(notes)})
    with pytest.raises(ValueError, match=r"weights of \(3, 3\) for 1 classes"):
        ZeroShotClassifier.load(path)


# In a cache


def test_a_second_build_reads_what_the_first_one_computed(tmp_path):
    model = Counting(make_model())
    expected = build(make_model())
    for _ in range(2):
        classifier = build(model, tmp_path, source="anywhere")
        assert torch.equal(classifier.weights, expected.weights) and classifier.weights.dtype == torch.float64
        assert (classifier.classnames, classifier.templates) == (tuple(CLASSES), tuple(TEMPLATES))
        assert classifier.provenance["source"] == "anywhere"
        calls = len(model.shapes)
    build(model, tmp_path, batch_size=2)
    assert len(model.shapes) == calls > 0


def test_every_other_classifier_is_built(tmp_path):
    def changed() -> CLIPModel:
        model = make_model()
        model.text_model.final_layer_norm.bias.data[0] += 0.1
        return model

    requests = [
        {},
        {"classnames": CLASSES[::-1]},
        {"classnames": CLASSES[:6]},
        {"classnames": [*CLASSES[:6], "hens"]},
        {"templates": TEMPLATES[:3]},
        {"templates": TEMPLATES[::-1]},  # makes the same classifier, but of the prompts in another order
        {"model": changed()},
        {"model": make_model().float()},
        {"model": make_model().bfloat16()},
    ]
    for number, request in enumerate(requests):
        expected = build(**request)
        assert len(list(tmp_path.glob("*"))) == number
        for _ in range(2):
            assert torch.equal(build(cache_dir=tmp_path, **request).weights, expected.weights)
    with torch.autocast("cpu", torch.bfloat16):
        build(make_model().float(), tmp_path)
    assert len(list(tmp_path.glob("*"))) == len(requests) + 1


def test_a_damaged_classifier_is_built_again(tmp_path, caplog):
    expected = build(cache_dir=tmp_path).weights
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    assert torch.equal(build(cache_dir=tmp_path).weights, expected) and "is damaged" in caplog.text
