"""One process: what is optimised, stopped, saved, resumed and loaded back."""

import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from hf_vitfm import ImageClassificationTrainer, ViTForImageClassification
from tests.training.runs import make_args, make_model, make_rows


def make_trainer(tmp_path, model=None, rows=None, eval_rows=None, **options) -> ImageClassificationTrainer:
    return ImageClassificationTrainer(
        model=model or make_model(),
        args=make_args(tmp_path, **options),
        train_dataset=make_rows() if rows is None else rows,
        eval_dataset=eval_rows,
    )


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_sgd_has_the_momentum_of_the_paper_and_no_clipping(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=0.0)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in trainer.optimizer.param_groups} == {0.9}
    assert trainer.args.max_grad_norm == 0


def test_clipping_bounds_the_first_update(tmp_path):
    updates = {}
    for norm in (0.0, 0.01):
        model = make_model()
        before = weights(model)
        make_trainer(tmp_path, model, max_steps=1, max_grad_norm=norm, lr_scheduler_type="constant").train()
        after = weights(model)
        updates[norm] = sum((after[name] - before[name]).square().sum() for name in before).sqrt().item()
    assert updates[0.01] == pytest.approx(0.1 * 0.01, rel=1e-3)  # learning rate x norm
    assert updates[0.0] > 2 * updates[0.01]


@pytest.mark.parametrize("kind", ["swin", "bit", "resnet", "vit"])
def test_other_classifiers_train_too_with_an_exact_loss_under_accumulation(tmp_path, kind):
    torch.manual_seed(0)
    model = {
        "swin": lambda: transformers.SwinForImageClassification(
            transformers.SwinConfig(
                image_size=8,
                patch_size=2,
                embed_dim=8,
                depths=[1, 1],
                num_heads=[2, 2],
                window_size=2,
                drop_path_rate=0.0,
                num_labels=3,
            )
        ),
        "bit": lambda: transformers.BitForImageClassification(
            transformers.BitConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=4, num_labels=3)
        ),
        "resnet": lambda: transformers.ResNetForImageClassification(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
        ),
        "vit": lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                image_size=8,
                patch_size=4,
                num_labels=3,
            )
        ),
    }[kind]()
    trainer = make_trainer(
        tmp_path,
        model,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        optim="adamw_torch",
        layer_decay=0.9,
        eval_rows=make_rows(6),
    )
    result = trainer.train()
    # about ln 3 for an untrained model with three classes; transformers' own loss would be twice that here
    assert 0.5 < result.training_loss < 2.0
    assert set(trainer.evaluate()) >= {"eval_loss", "eval_top1", "eval_mean_per_class"}


def test_saved_resumed_and_best_models_have_equal_weights(tmp_path):
    options = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
    }
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "whole" / "checkpoint-4")
    assert_same(weights(loaded), weights(whole.model))

    resumed = make_trainer(tmp_path / "whole", make_model(initializer_range=0.5), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(weights(resumed.model), weights(whole.model))

    # a model that came from a file goes through the same: save, resume, best model
    best = make_trainer(
        tmp_path / "best",
        loaded,
        eval_rows=make_rows(9, seed=1),
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
        **options,
    )
    best.train()
    saved = ViTForImageClassification.from_pretrained(best.state.best_model_checkpoint)
    assert_same(weights(saved), weights(best.model))


def test_a_model_from_transformers_format_resumes_with_equal_weights(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "theirs")
    model = ViTForImageClassification.from_pretrained(tmp_path / "theirs")
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path / "run", model, **options)
    whole.train()
    again = make_trainer(tmp_path / "run", ViTForImageClassification.from_pretrained(tmp_path / "theirs"), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert_same(weights(again.model), weights(whole.model))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2, logging_steps=100)
    compute_loss, calls = trainer.compute_loss, []

    def broken(*args, **kwargs):
        calls.append(1)
        return compute_loss(*args, **kwargs) * (float("inf") if len(calls) == 3 else 1)

    trainer.compute_loss = broken
    with pytest.raises(FloatingPointError, match=r"inf at step 3.*checkpoint-2"):
        trainer.train()


def test_a_wrong_number_of_classes_is_an_error_before_training(tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"image": [PILImage.new("RGB", (8, 8))], "label": [0]}, features=features)
    with pytest.raises(ValueError, match="2 classes, the model 3 outputs.*num_labels=2"):
        make_trainer(tmp_path, rows=rows)


def test_classes_in_another_order_are_an_error_before_training(tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["c", "b", "a"])})
    rows = Dataset.from_dict({"image": [PILImage.new("RGB", (8, 8))], "label": [0]}, features=features)
    model = make_model(id2label={0: "a", 1: "b", 2: "c"})
    with pytest.raises(ValueError, match="numbers the classes otherwise"):
        make_trainer(tmp_path, model, rows=rows)


def test_rows_without_a_class_count_nowhere(tmp_path):
    rows = make_rows(9, seed=1)
    ignored = [*rows, *({**row, "label": -100} for row in make_rows(5, seed=2))]
    whole, partly = (make_trainer(tmp_path, eval_rows=chosen).evaluate() for chosen in (rows, ignored))
    for name in ("eval_loss", "eval_top1", "eval_mean_per_class"):
        assert partly[name] == pytest.approx(whole[name], rel=1e-6)


def test_an_empty_evaluation_set_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        make_trainer(tmp_path, eval_rows=[]).evaluate()


def test_an_optimizer_that_is_given_is_used(tmp_path):
    trainer = ImageClassificationTrainer(
        model=make_model(),
        args=make_args(tmp_path),
        train_dataset=make_rows(),
        optimizer_cls_and_kwargs=(torch.optim.RMSprop, {"lr": 0.5}),
    )
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.RMSprop) and optimizer.param_groups[0]["lr"] == 0.5


def test_only_our_models_skip_the_search_for_unused_parameters(tmp_path):
    assert make_trainer(tmp_path).args.ddp_find_unused_parameters is False
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    theirs = transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**sizes, num_labels=3))
    assert make_trainer(tmp_path, theirs).args.ddp_find_unused_parameters is None


def test_arguments_of_the_wrong_class_are_an_error(tmp_path):
    with pytest.raises(TypeError, match="VisionTrainingArguments"):
        ImageClassificationTrainer(model=make_model(), args=transformers.TrainingArguments(str(tmp_path)))


def test_images_are_transformed_as_the_processor_says(tmp_path):
    rows = [{"image": PILImage.new("L", (12, 10), 255 * (i % 2)), "label": i % 2} for i in range(16)]
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    trainer = ImageClassificationTrainer(
        model=make_model(),
        args=make_args(tmp_path, dataloader_num_workers=1),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=processor,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (8, 3, 8, 8)
    first = next(iter(trainer.get_eval_dataloader()))["pixel_values"][1]
    assert torch.allclose(
        first, processor(images=rows[1]["image"].convert("RGB"), return_tensors="pt").pixel_values[0]
    )
    trainer.train()
    trainer.save_model(tmp_path / "out")
    assert (tmp_path / "out" / "preprocessor_config.json").exists()


def test_prediction_gives_logits_in_order_and_the_same_metrics(tmp_path):
    rows = make_rows(7, seed=3)
    trainer = make_trainer(tmp_path, eval_rows=rows)
    prediction = trainer.predict(rows, metric_key_prefix="eval")
    with torch.no_grad():
        logits = trainer.model.eval()(torch.stack([row["pixel_values"] for row in rows])).logits
    torch.testing.assert_close(torch.as_tensor(prediction.predictions), logits)
    metrics = trainer.evaluate()
    for name in ("eval_loss", "eval_top1", "eval_mean_per_class"):
        assert prediction.metrics[name] == pytest.approx(metrics[name], rel=1e-6)


def test_label_smoothing_is_for_training_alone(tmp_path):
    rows = make_rows(6, seed=1)
    plain = make_trainer(tmp_path, eval_rows=rows).evaluate()["eval_loss"]
    assert make_trainer(tmp_path, eval_rows=rows, label_smoothing_factor=0.3).evaluate()["eval_loss"] == plain


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_several_labels_and_numbers_train_and_evaluate(tmp_path, problem_type):
    rows = [{**row, "label": [float(i % 2), 1.0, 0.0]} for i, row in enumerate(make_rows(16))]
    model = make_model(problem_type=problem_type)
    trainer = make_trainer(tmp_path, model, rows=rows, eval_rows=rows, learning_rate=0.01)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    logits, labels = torch.as_tensor(trainer.predict(rows).predictions), torch.tensor([row["label"] for row in rows])
    loss = {
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
        "regression": torch.nn.functional.mse_loss,
    }[problem_type]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss(logits, labels).item(), rel=1e-5)
