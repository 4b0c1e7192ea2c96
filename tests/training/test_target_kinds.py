"""Several labels, numbers and unequal classes: what is trained, what is reported, what is left out."""

import datasets
import numpy as np
import pytest
import torch
import transformers
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score
from sklearn.utils.class_weight import compute_class_weight

from hf_vitfm import ImageClassificationTrainer
from hf_vitfm.training.class_weights import balanced_class_weights, read_labels
from hf_vitfm.training.targets import MULTI, REGRESSION, SINGLE, TargetScale, as_numbers, hold_out, read_targets
from tests.training.runs import make_args, make_model, make_rows, train


NAN = float("nan")


def make_trainer(tmp_path, kind, labels, train_labels=None, num_labels=3, **options):
    def rows(values):
        return [{**row, "label": label} for row, label in zip(make_rows(len(values)), values, strict=True)]

    return ImageClassificationTrainer(
        model=make_model(problem_type=kind, num_labels=num_labels),
        args=make_args(tmp_path, **options),
        train_dataset=rows(labels if train_labels is None else train_labels),
        eval_dataset=rows(labels),
    )


def multi_hot(count=13):
    return [[float(i % 2), float(i % 3 == 0), float(i % 5 != 0)] for i in range(count)]


def test_several_labels_are_measured_as_scikit_learn_does(tmp_path):
    labels = multi_hot()
    trainer = make_trainer(tmp_path, MULTI, labels, per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    logits = trainer.predict(trainer.eval_dataset).predictions
    assert metrics["eval_mean_average_precision"] == pytest.approx(average_precision_score(labels, logits))
    assert metrics["eval_micro_f1"] == pytest.approx(f1_score(labels, logits > 0, average="micro"))
    assert metrics["eval_macro_f1"] == pytest.approx(f1_score(labels, logits > 0, average="macro", zero_division=0))
    assert "eval_top1" not in metrics and "eval_per_class" not in metrics


@pytest.mark.parametrize("outputs", [1, 2])
def test_numbers_are_measured_as_scikit_learn_does(tmp_path, outputs):
    targets = np.random.default_rng(0).normal(5, 2, (13, outputs)).astype(np.float32)
    labels = targets[:, 0].tolist() if outputs == 1 else targets.tolist()
    trainer = make_trainer(tmp_path, REGRESSION, labels, num_labels=outputs, per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    numbers = trainer.predict(trainer.eval_dataset).predictions
    assert metrics["eval_mae"] == pytest.approx(mean_absolute_error(targets, numbers), rel=1e-5)
    assert metrics["eval_r2"] == pytest.approx(r2_score(targets, numbers), rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(np.square(targets - numbers).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "label", "unknown"),
    [(MULTI, [1.0, 0.0, 1.0], [NAN, 0.0, 0.0]), (REGRESSION, [0.5, -100.0, 2.0], [0.0, 1.0, NAN])],
)
def test_rows_with_nan_count_neither_in_evaluation_nor_in_training(tmp_path, kind, label, unknown):
    known = [[value + 0.0 * i for value in label] for i in range(8)]
    for i in range(0, 8, 2):
        known[i] = [1.0 - value if kind == MULTI else value + i for value in label]
    mixed = [row for pair in zip(known, [unknown] * 8, strict=True) for row in pair]
    # Batches of 5 put unlike counts of known rows together: the evaluation's loss is no mean of batch means.
    whole, partly = (make_trainer(tmp_path, kind, labels, per_device_eval_batch_size=5) for labels in (known, mixed))
    partly.eval_dataset = [
        *({**row, "label": label} for row, label in zip(whole.eval_dataset, known, strict=True)),
        *({**row, "label": unknown} for row in make_rows(6, seed=5)),
    ]
    expected, found = whole.evaluate(), partly.evaluate()
    names = [name for name in expected if not name.endswith(("runtime", "second", "time"))]
    assert {name: found[name] for name in names} == pytest.approx({name: expected[name] for name in names}, rel=1e-5)
    batch = partly.data_collator(partly.train_dataset)
    assert partly._get_num_items_in_batch([batch], torch.device("cpu")) == 8 * 3
    assert np.isfinite(partly.train().training_loss)


def test_balanced_weights_are_scikit_learns():
    labels = np.array([0] * 50 + [3] * 5 + [1] * 20)
    weights = balanced_class_weights(torch.from_numpy(labels), 5)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert weights[[2, 4]].tolist() == [0, 0]
    assert weights[labels].mean().item() == pytest.approx(1)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels), 5).float()
    torch.testing.assert_close(balanced_class_weights(one_hot, 5), weights)
    with_ignored = torch.cat([torch.from_numpy(labels), torch.tensor([-100, -100])])
    torch.testing.assert_close(balanced_class_weights(with_ignored, 5), weights)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), "0 to 2; got 0 to 3"),
        (torch.tensor([0.5, 1.0]), "probabilities"),
        (torch.tensor([-100]), "at least one row"),
    ],
)
def test_labels_without_weights_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        balanced_class_weights(labels, 3)


def test_labels_are_read_without_decoding_an_image():
    class Undecodable(dict):
        def __getitem__(self, name):
            if name == "image":
                raise AssertionError("an image was decoded")
            return super().__getitem__(name)

    assert read_labels([Undecodable(image=None, label=i) for i in (2, 0)]).tolist() == [2, 0]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"image": [{"bytes": b"no image"}] * 2, "label": [1, 0]}, features=features)
    assert read_labels(table).tolist() == [1, 0]
    with pytest.raises(ValueError, match="`label`; got image"):
        read_labels(table.remove_columns("label"))


def test_class_weights_change_the_training_loss_alone(tmp_path):
    labels = [0] * 5 + [1] * 2 + [2]
    options = {"max_steps": 1, "lr_scheduler_type": "constant"}
    plain, weighted = (
        make_trainer(tmp_path, None, labels, class_weights=weights, **options) for weights in (None, "balanced")
    )
    assert plain.evaluate()["eval_loss"] == weighted.evaluate()["eval_loss"]
    batch = weighted.data_collator(weighted.eval_dataset)
    losses = [trainer.compute_loss(trainer.model.eval(), dict(batch)).item() for trainer in (plain, weighted)]
    assert losses[0] == losses[1]
    pixels = torch.stack([row["pixel_values"] for row in weighted.train_dataset])
    with torch.no_grad():
        logits = weighted.model(pixels).logits
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=labels), dtype=torch.float32)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), weight=weights, reduction="sum") / 8
    assert weighted.train().training_loss == pytest.approx(expected.item(), rel=1e-5)
    assert plain.train().training_loss != pytest.approx(expected.item(), rel=1e-2)


def test_accumulation_equals_one_batch_with_class_weights(tmp_path):
    options = {"imbalanced": True, "class_weights": "balanced"}
    reference = train(tmp_path, **options)
    run = train(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    np.testing.assert_allclose(run["losses"], reference["losses"], rtol=1e-10)
    for name, expected in reference["weights"].items():
        np.testing.assert_allclose(run["weights"][name], expected, rtol=0, atol=1e-10)
    unweighted = train(tmp_path, imbalanced=True)
    assert np.abs(unweighted["losses"] - reference["losses"]).max() > 1e-3


def test_class_weights_need_classes(tmp_path):
    with pytest.raises(ValueError, match="one class per image; got the problem type 'multi_label_classification'"):
        make_trainer(tmp_path, MULTI, multi_hot(), class_weights="balanced")
    with pytest.raises(ValueError, match='must be "balanced" or None'):
        make_args(tmp_path, class_weights="inverse")


def table(labels, feature=None) -> datasets.Dataset:
    dataset = datasets.Dataset.from_dict({"row": list(range(len(labels))), "label": labels})
    return dataset if feature is None else dataset.cast_column("label", feature)


CLASSES = datasets.ClassLabel(names=["10", "2.5"])
NAMED = datasets.List(datasets.Value("float32", id='["sky", "sea"]'))  # as `load_images` names the places of a vector


@pytest.mark.parametrize(
    ("labels", "feature", "given", "kind", "names"),
    [
        ([0, 1], CLASSES, None, SINGLE, ["10", "2.5"]),
        ([[1, 0, 0], [0, 1, 1]], None, None, MULTI, ["output 0", "output 1", "output 2"]),
        ([[1.0, NAN], [0.0, 1.0]], None, None, MULTI, ["output 0", "output 1"]),
        ([[1.0, 0.0], [0.0, 1.0]], NAMED, None, MULTI, ["sky", "sea"]),
        ([[1.0, 0.0], [0.0, 1.0]], None, REGRESSION, REGRESSION, ["output 0", "output 1"]),
        ([[0.5, 2.0], [0.0, 1.0]], None, None, REGRESSION, ["output 0", "output 1"]),
        ([0.5, None], None, None, REGRESSION, ["output 0"]),
    ],
)
def test_targets_are_told_from_the_labels(labels, feature, given, kind, names):
    targets = read_targets(table(labels, feature), given)
    assert (targets.problem_type, targets.names) == (kind, names)
    assert targets.config_fields["id2label"] == dict(enumerate(names))


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        ([0.5, 1.0], "several", "must be one of single_label_classification"),
        ([[0.5, 2.0]], MULTI, "vector of 0 and 1"),
        ([0.0, 1.0], MULTI, "vector of 0 and 1"),
        ([[0.5, 0.5]], SINGLE, "rows of probabilities"),
        ([[0.5], [0.5, 1.0]], None, "vectors of one length"),
    ],
)
def test_labels_of_another_kind_are_named(labels, given, message):
    with pytest.raises(ValueError, match=message):
        read_targets(table(labels), given)


def test_classes_named_by_numbers_become_these_numbers():
    dataset = as_numbers(table([1, 0, 1], CLASSES))
    assert dataset["label"][:] == [2.5, 10.0, 2.5]
    assert read_targets(dataset).problem_type == REGRESSION
    with pytest.raises(ValueError, match="got classes: cat, dog"):
        as_numbers(table([0, 1], datasets.ClassLabel(names=["cat", "dog"])))


def test_rows_are_held_out_by_class_or_at_random():
    rest, held_out = hold_out(table([0, 1] * 10, CLASSES), 0.2, seed=0)
    assert sorted(held_out["label"]) == [0, 0, 1, 1] and len(rest) == 16
    rest, held_out = hold_out(table([float(i) for i in range(20)]), 0.2, seed=0)
    assert sorted([*rest["row"], *held_out["row"]]) == list(range(20)) and len(held_out) == 4
    assert held_out["row"][:] == sorted(held_out["row"])
    assert held_out["row"][:] == hold_out(table([0.5] * 20), 0.2, seed=0)[1]["row"][:]
    assert held_out["row"][:] != hold_out(table([0.5] * 20), 0.2, seed=1)[1]["row"][:]
    with pytest.raises(ValueError, match="both sides"):
        hold_out(table([0.5] * 20), 0.01, seed=0)


@pytest.mark.parametrize("labels", [[1950.0, 2000.0, NAN, 1980.0], [[3e5, 0.001], [1e5, 0.002], [2e5, NAN]]])
def test_a_head_for_standardised_numbers_answers_in_the_unit_of_the_data(labels):
    dataset = table(labels)
    scale = TargetScale.of(dataset)
    values = np.array(labels).reshape(len(labels), -1)
    known = values[~np.isnan(values).any(axis=1)]
    standard = np.array(scale.standardize(dataset)["label"][:], dtype=float).reshape(values.shape)
    kept = standard[~np.isnan(values).any(axis=1)]
    assert np.abs(kept.mean(axis=0)).max() < 1e-6 and np.abs(kept.std(axis=0) - 1).max() < 1e-6
    assert np.isnan(standard[np.isnan(values)]).all()

    model = make_model(problem_type=REGRESSION, num_labels=values.shape[1]).eval()
    pixels = torch.stack([row["pixel_values"] for row in make_rows(5)])
    with torch.no_grad():
        before = model(pixels).logits.double().numpy()
        scale.restore(model)
        after = model(pixels).logits.double().numpy()
    np.testing.assert_allclose(after, before * known.std(axis=0) + known.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("kind", ["two heads", "resnet"])
def test_heads_of_other_models_are_found(kind):
    scale = TargetScale([10.0], [4.0])
    if kind == "two heads":
        model = make_model(problem_type=REGRESSION, num_labels=1, use_distillation_token=True)
        torch.nn.init.normal_(model.distillation_classifier.weight)
        pixels = torch.randn(2, 3, 8, 8)
    else:
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=1)
        model, pixels = transformers.ResNetForImageClassification(config), torch.randn(2, 3, 32, 32)
    model.eval()
    with torch.no_grad():
        before = model(pixels).logits
        scale.restore(model)
        torch.testing.assert_close(model(pixels).logits, 4 * before + 10)
    with pytest.raises(ValueError, match="no linear head of 2 outputs"):
        TargetScale([0.0, 0.0], [1.0, 1.0]).heads(model)


def test_constant_and_unknown_numbers_have_a_scale_or_an_error():
    assert TargetScale.of(table([5.0, 5.0, None])) == TargetScale([5.0], [1.0])
    with pytest.raises(ValueError, match="No training row"):
        TargetScale.of(table([NAN, NAN]))


def test_ignored_rows_have_no_loss_where_images_are_mixed_and_labels_smoothed(tmp_path):
    labels = [0, 1, -100, 2, 1, 1]
    trainer = make_trainer(tmp_path, None, labels, mixup_alpha=0.8, label_smoothing_factor=0.3)
    trainer.train_dataset = trainer.eval_dataset
    batch = trainer.data_collator(trainer.train_dataset)
    pixels, targets = trainer.mixing(batch["pixel_values"], batch["labels"], 3, 0)
    assert not torch.equal(targets[0], torch.eye(3)[0])  # it does mix
    known = torch.tensor(labels) >= 0
    model = trainer.model.train()
    logits = model(pixels[known]).logits
    expected = torch.nn.functional.cross_entropy(logits, targets[known], label_smoothing=0.3, reduction="sum") / 5
    items = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=items)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_the_loss_of_soft_targets_is_that_of_the_known_rows_however_they_are_cut(tmp_path, batch):
    rows = make_rows(9, soft=True)
    for row in rows[2:5]:
        row["label"] = torch.full((3,), torch.nan)
    trainer = ImageClassificationTrainer(
        model=make_model(problem_type=SINGLE),
        args=make_args(tmp_path, per_device_eval_batch_size=batch),
        train_dataset=rows,
        eval_dataset=rows,
    )
    known = rows[:2] + rows[5:]
    with torch.no_grad():
        logits = trainer.model.eval()(torch.stack([row["pixel_values"] for row in known])).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.stack([row["label"] for row in known]))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)
