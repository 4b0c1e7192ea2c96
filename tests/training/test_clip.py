"""CLIP's trainer: one step per global batch, the temperature, what is decayed, evaluation, and what it refuses."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, CLIPImageProcessor, CLIPProcessor

from hf_vitfm import (
    CLIPModel,
    CLIPTrainer,
    CLIPTrainingArguments,
    VisionTrainingArguments,
    evaluate_retrieval,
    load_sample,
)
from hf_vitfm.data.tokenizers import train_tokenizer
from hf_vitfm.training.clip import _pair_collator
from hf_vitfm.training.optimization import parameter_groups
from hf_vitfm.training.scalars import flatten_scalars
from tests.tiny import relative_error
from tests.training.clip_runs import (
    RANDOM,
    collate,
    make_args,
    make_model,
    make_pairs,
    make_trainer,
    naive_loss,
    train,
)


def assert_same_run(found, expected, tolerance=1e-10):
    assert relative_error(found["losses"], expected["losses"]) < tolerance
    for name, weight in expected["weights"].items():
        assert relative_error(found["weights"][name], weight) < tolerance, name


CACHED = {"per_device_train_batch_size": 8, "grad_cache_chunk_size": 2}


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_cached_training_is_that_of_the_big_batch(tmp_path, objective):
    options = {"model_fields": {"objective": objective}, "max_grad_norm": 0.5, "warmup_steps": 2, "max_steps": 5}
    expected = train(tmp_path, **options)
    found = train(tmp_path, **options, **CACHED)
    assert_same_run(found, expected)
    start = make_model(objective=objective)
    assert relative_error(start.visual_projection.weight, expected["weights"]["visual_projection.weight"]) > 1e-2
    # Logged once per step, as often as the learning rate moves.
    torch.testing.assert_close(found["logged"], expected["losses"], rtol=1e-4, atol=0)
    assert found["rates"] == expected["rates"] and len(found["rates"]) == 5


def test_first_loss_is_the_formula_on_the_global_batch(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, **CACHED)
    rows = [trainer.train_dataset[index] for _, index in list(trainer._epoch_order(trainer.args.seed))[:8]]
    model = make_model()
    outputs = model(**collate(rows))
    expected = naive_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale, None, "softmax")
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_accumulation_alone_has_the_negatives_of_a_micro_batch_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        split = train(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    messages = [record.message for record in caplog.records if "grad_cache_chunk_size" in record.message]
    assert messages == [
        "Each pair is told apart from those of its micro-batch, 2 on all devices, not from the 8 of the step. For all "
        "of them, set `grad_cache_chunk_size=2`."
    ]
    caplog.clear()
    whole = train(tmp_path)
    assert "grad_cache_chunk_size" not in caplog.text
    assert relative_error(split["losses"], whole["losses"]) > 0.1


def test_cached_training_works_with_bfloat16_and_random_towers(tmp_path):
    model = make_model(torch.float32, **RANDOM)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = make_trainer(tmp_path, model, make_pairs(dtype=torch.float32), bf16=True, **CACHED)
    dtypes = []
    model.visual_projection.register_forward_hook(lambda module, arguments, output: dtypes.append(output.dtype))
    trainer.train()
    assert set(dtypes) == {torch.bfloat16} and len(dtypes) == 3 * 4 * 2
    assert all(weight.grad is None or weight.dtype == torch.float32 for weight in model.parameters())
    unmoved = [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])]
    assert unmoved == []


def bfloat16_gradients(directory, **options) -> dict[str, torch.Tensor]:
    """What plain SGD with a rate of 1 subtracts in one step."""
    model = make_model(torch.float32)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    options |= {"bf16": True, "max_steps": 1, "learning_rate": 1.0, "momentum": 0.0, "lr_scheduler_type": "constant"}
    make_trainer(directory, model, make_pairs(dtype=torch.float32), **options).train()
    return {name: before[name] - weight.detach() for name, weight in model.named_parameters()}


def test_cached_gradients_in_bfloat16_are_those_of_the_big_batch(tmp_path):
    whole, chunked = bfloat16_gradients(tmp_path), bfloat16_gradients(tmp_path, **CACHED)
    for name in ("visual_projection.weight", "text_projection.weight", "logit_scale"):
        assert relative_error(chunked[name], whole[name]) < 0.03, name


@pytest.mark.parametrize("options", [{}, CACHED], ids=["at once", "cached"])
def test_the_temperature_is_limited_after_every_step(tmp_path, options):
    model, limit = make_model(), math.log(100)
    model.logit_scale.data.fill_(limit - 0.01)
    trainer = make_trainer(tmp_path, model, learning_rate=5.0, ema_decay=0.5, lr_scheduler_type="constant", **options)
    model.logit_scale.register_hook(lambda gradient: torch.tensor(-1.0, dtype=torch.float64))  # always upwards
    seen = []
    trainer.create_optimizer().register_step_post_hook(lambda *_: seen.append(model.logit_scale.item()))
    trainer.train()
    assert seen == [pytest.approx(limit, rel=1e-12)] * 3
    assert limit - 0.01 < model.logit_scale.item() < limit  # the average, which has seen the limited ones only


def test_a_frozen_temperature_stays_beyond_the_limit(tmp_path):
    model = make_model()
    model.logit_scale.data.fill_(5.0)
    model.logit_scale.requires_grad_(False)
    make_trainer(tmp_path, model, learning_rate=1e-6).train()
    assert model.logit_scale.item() == 5.0


BERT = BertConfig(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    vocab_size=20,
    max_position_embeddings=6,
).to_dict()


@pytest.mark.parametrize("text", [None, BERT], ids=["own", "bert"])
def test_norms_biases_embeddings_and_the_temperature_are_not_decayed(tmp_path, text):
    fields = {"objective": "sigmoid"}
    if text is not None:
        fields |= {"text": {**BERT, "model_type": "bert"}, "text_pooling": "mean"}
    model = make_model(**fields)
    trainer = make_trainer(tmp_path, model, weight_decay=0.1)
    decayed, undecayed = (
        {
            id(weight)
            for group in trainer.create_optimizer().param_groups
            if group["weight_decay"] == wd
            for weight in group["params"]
        }
        for wd in (0.1, 0.0)
    )
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert decayed | undecayed == names.keys() and not decayed & undecayed
    kinds = ("norm", "LayerNorm", "bias", "embedding.weight", "embeddings.weight", "position_embeddings", "cls_token")
    expected = {name for name in names.values() if any(kind in name for kind in kinds)} | {"logit_scale", "logit_bias"}
    assert {names[key] for key in undecayed} == expected
    tables = (
        ("token_embedding", "position_embedding") if text is None else ("word_embeddings", "token_type_embeddings")
    )
    assert all(any(table in name for name in expected) for table in tables)


def test_other_trainers_name_parameters_by_their_last_component():
    model = make_model()
    groups = parameter_groups(model, 0.1, 0.1, no_decay_names=("text_projection.weight", "cls_token"))
    kept = {id(weight) for group in groups if not group["weight_decay"] for weight in group["params"]}
    assert id(model.text_projection.weight) in kept and id(model.visual_projection.weight) not in kept
    assert id(model.vision_model.embeddings.cls_token) in kept


def test_only_trained_towers_are_given_to_the_optimizer(tmp_path):
    model = make_model()
    model.lock_towers(vision=True)
    before = {name: weight.clone() for name, weight in model.vision_model.named_parameters()}
    trainer = make_trainer(tmp_path, model, weight_decay=0.1, **CACHED)
    trainer.train()
    for name, weight in model.vision_model.named_parameters():
        assert torch.equal(weight, before[name]) and weight.grad is None, name


@pytest.mark.parametrize("name", ["logit_scale", "logit_bias"])
def test_a_temperature_that_is_not_finite_is_an_error(tmp_path, name):
    model = make_model(objective="sigmoid")
    getattr(model, name).data.fill_(float("nan"))
    with pytest.raises(ValueError, match=f"`{name}` of the model is nan"):
        make_trainer(tmp_path, model)


@pytest.mark.parametrize("options", [{}, CACHED], ids=["at once", "cached"])
def test_a_temperature_that_breaks_ends_the_run(tmp_path, options):
    model = make_model()
    trainer = make_trainer(tmp_path, model, **options)
    model.logit_scale.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="The loss is nan at step 2"):
        trainer.train()


def test_files_hold_a_scalar_where_sharding_needs_a_vector(tmp_path):
    model = make_model(objective="sigmoid")
    trainer = make_trainer(tmp_path, model)
    trainer._flattened = flatten_scalars(model)
    assert sorted(trainer._flattened) == ["logit_bias", "logit_scale"] and model.logit_scale.shape == (1,)
    trainer.train()
    trainer._save(str(tmp_path), state_dict=model.state_dict())
    loaded = CLIPModel.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.logit_scale.shape == () and loaded.logit_scale.item() == model.logit_scale.item()
    assert loaded.logit_bias.item() == model.logit_bias.item() != make_model(objective="sigmoid").logit_bias.item()


def test_other_models_and_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match="must be a CLIPModel; got Linear"):
        make_trainer(tmp_path, torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="must be CLIPTrainingArguments; got VisionTrainingArguments"):
        CLIPTrainer(
            model=make_model(), args=VisionTrainingArguments(str(tmp_path), report_to="none"), data_collator=collate
        )


@pytest.mark.parametrize(
    ("options", "chunk", "steps", "batch"),
    [
        ({"per_device_train_batch_size": 32}, 4, 8, 32),
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}, 8, 4, 32),
        ({"global_batch_size": 64}, 16, 4, 64),
        ({"per_device_train_batch_size": 8}, 8, 1, 8),
    ],
)
def test_chunks_make_up_the_global_batch(tmp_path, options, chunk, steps, batch):
    args = make_args(tmp_path, **{**options, "grad_cache_chunk_size": chunk})
    found = (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.global_batch_size)
    assert found == (chunk, steps, batch)
    args.__post_init__()
    assert found == (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.global_batch_size)


@pytest.mark.parametrize("chunk", [0, 3, -2, 16, 2.0])
def test_chunks_that_do_not_fit_are_refused(tmp_path, chunk):
    with pytest.raises(ValueError, match=f"`grad_cache_chunk_size` .* got {chunk} for 8 pairs on 1 devices"):
        make_args(tmp_path, grad_cache_chunk_size=chunk)


@pytest.mark.parametrize("options", [{"mixup_alpha": 0.2}, {"label_smoothing_factor": 0.1}])
def test_settings_for_labels_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} mix or weigh labels"):
        make_args(tmp_path, **options)


def test_repeated_augmentation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`repeated_augmentation`.* got 3"):
        make_args(tmp_path, repeated_augmentation=3)


def test_captions_that_name_a_side_are_not_flipped(tmp_path):
    assert CLIPTrainingArguments(str(tmp_path), report_to="none").train_transform_options == {
        "horizontal_flip": 0.0,
        "crop_scale": (0.9, 1.0),
    }


# Evaluation


def collate_several(rows) -> dict[str, torch.Tensor]:
    """Row i of a batch with captions (1 + its number of words % 3) times, each with other words; row "bad" without one."""
    texts, owners = [], []
    for i, row in enumerate(rows):
        is_bad = bool(row.get("bad"))
        for shift in range(1 if is_bad else 1 + int(row["input_ids"][1]) % 3):
            ids = row["input_ids"].clone()
            ids[1] = (ids[1] + shift) % 18
            texts.append(ids)
            owners.append(-1 if is_bad else i)
    pixels = torch.stack([row["pixel_values"] for row in rows])
    return {"pixel_values": pixels, "input_ids": torch.stack(texts), "text_to_image": torch.tensor(owners)}


def evaluate(directory, rows, collator=collate, **options) -> dict[str, float]:
    trainer = CLIPTrainer(
        model=make_model(),
        args=make_args(directory, per_device_eval_batch_size=4, **options),
        eval_dataset=rows,
        data_collator=collator,
    )
    metrics = trainer.evaluate()
    return {k.removeprefix("eval_"): v for k, v in metrics.items() if "recall" in k or "rank" in k or "loss" in k}


@torch.no_grad()
def expected_metrics(rows, collator) -> dict[str, float]:
    rows = [row for row in rows if not row.get("bad")]
    model, batch = make_model().eval(), collator(rows)
    owners = batch.pop("text_to_image", torch.arange(len(rows)))
    outputs = model(**batch)
    metrics = evaluate_retrieval(outputs.image_embeds, outputs.text_embeds, owners)
    first = torch.stack([outputs.text_embeds[owners == i][0] for i in range(len(rows))])
    loss = sum(
        naive_loss(image, text, model.logit_scale, None, "softmax") * len(image)
        for image, text in zip(outputs.image_embeds.split(4), first.split(4), strict=True)
    )
    return metrics | {"loss": loss.item() / len(rows)}


@pytest.mark.parametrize("collator", [collate, collate_several], ids=["one caption", "several captions"])
def test_evaluation_reports_loss_and_retrieval_on_any_number_of_processes(two_processes, tmp_path, collator):
    rows = make_pairs(13)
    expected = expected_metrics(rows, collator)
    assert expected["loss"] > 0.1 and len(expected) == 11
    assert evaluate(tmp_path, rows, collator) == pytest.approx(expected, rel=1e-10)
    for found in two_processes.run(evaluate, str(tmp_path), rows, collator):
        assert found == pytest.approx(expected, rel=1e-10)


def test_rows_without_a_caption_are_left_out(tmp_path):
    rows = make_pairs(9)
    rows[2] = {**rows[2], "bad": True}
    assert evaluate(tmp_path, rows, collate_several) == pytest.approx(expected_metrics(rows, collate_several))
    with pytest.raises(ValueError, match="No row of the evaluation set has a caption"):
        evaluate(tmp_path, [{**row, "bad": True} for row in rows], collate_several)


def test_the_best_checkpoint_can_be_chosen_by_recall(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_dataset=make_pairs(9, seed=1),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        metric_for_best_model="text_to_image_recall@1",
        load_best_model_at_end=True,
        greater_is_better=True,
        **CACHED,
    )
    trainer.train()
    found = [log["eval_text_to_image_recall@1"] for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.state.best_metric == max(found) and len(found) == 3


def test_evaluation_on_the_way_is_that_of_the_averaged_temperature(tmp_path):
    model, options = make_model(), {"eval_strategy": "steps", "eval_steps": 3, "ema_decay": 0.5}
    trainer = make_trainer(tmp_path, model, eval_dataset=make_pairs(8, seed=1), **options)
    seen = []
    model.logit_scale.register_hook(lambda gradient: torch.tensor(-1.0, dtype=torch.float64))
    trainer.create_optimizer().register_step_post_hook(lambda *_: seen.append(model.logit_scale.item()))
    trainer.train()
    (found,) = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert model.logit_scale.item() < seen[-1] - 0.01  # the average, which the finished model holds
    assert found == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-10)


def test_pairs_of_images_and_captions_train_and_are_evaluated(tmp_path):
    rows = load_sample("emoji")["google"].select(range(24))
    tokenizer = train_tokenizer(rows["caption"], vocab_size=300, context_length=12)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 12, "eos_token_id": tokenizer.eos_token_id}
    model = make_model(torch.float32, text=text, vision={"image_size": 32, "patch_size": 16})
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    trainer = CLIPTrainer(
        model=model,
        args=make_args(tmp_path, max_steps=2, learning_rate=0.01),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=CLIPProcessor(images, tokenizer),
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"]) and 0 <= metrics["eval_image_to_text_recall@10"] <= 1


def test_captions_are_cut_where_tower_or_tokenizer_end_the_first():
    tokenizer = train_tokenizer(["a cat sat on the mat"], vocab_size=300, context_length=6)
    processor = SimpleNamespace(tokenizer=tokenizer)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    fields = {**BERT, **ids, "model_type": "roberta", "vocab_size": len(tokenizer), "pad_token_id": 1}
    model = make_model(torch.float32, text_pooling="mean", text={**fields, "max_position_embeddings": 8})
    batch = _pair_collator(model, processor).tokenize(["a cat sat on the mat, and it was a fat cat"])
    assert batch["input_ids"].shape == (1, 6)
    assert model.get_text_features(**batch).pooler_output.isfinite().all()
    tokenizer.model_max_length = 10**30
    model = make_model(text={"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id})
    assert _pair_collator(model, processor).context_length == 6  # the tower's


def test_captions_need_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="tokenizer"):
        CLIPTrainer(model=make_model(), args=make_args(tmp_path), train_dataset=make_pairs())
