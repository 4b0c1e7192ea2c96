"""Defaults and derived values of the training arguments."""

import pytest
from transformers import ViTImageProcessor

from hf_vitfm import VisionTrainingArguments, build_transform
from hf_vitfm.data.mixing import Mixing


def make(**options) -> VisionTrainingArguments:
    return VisionTrainingArguments(use_cpu=True, report_to="none", **options)


def test_nothing_slips_in_where_a_paper_has_none():
    args = make()
    assert args.max_grad_norm == 0
    assert args.weight_decay == 0
    assert args.dataloader_drop_last
    assert not args.remove_unused_columns
    assert not args.logging_nan_inf_filter
    assert args.momentum == 0.9


def test_the_base_learning_rate_scales_with_the_global_batch():
    # MAE fine-tuning: 5e-4 per 256 images at batch 1024
    args = make(base_learning_rate=5e-4, per_device_train_batch_size=64, gradient_accumulation_steps=16)
    assert args.global_batch_size == 1024
    assert args.peak_learning_rate == pytest.approx(2e-3)
    assert make(learning_rate=0.3).peak_learning_rate == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_learning_rate": 1e-3, "learning_rate": 1e-3}, "not both"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"layer_decay": 1.5}, "layer_decay"),
        ({"label_smoothing_factor": 1.0}, "label_smoothing_factor"),
        ({"crop_scale": 0.5}, "crop_scale"),
        ({"min_learning_rate": 1.0}, "min_learning_rate"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"fsdp": "full_shard"}, "FSDP needs GPUs"),
        ({"global_batch_size": 100, "per_device_train_batch_size": 8}, "divides 100"),
        ({"global_batch_size": 4, "per_device_train_batch_size": 8}, "divides 4"),
        (
            {"global_batch_size": 64, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
            "leave `gradient_accumulation_steps` out",
        ),
        ({"horizontal_flip": 2.0}, "horizontal_flip"),
        ({"auto_augment": "v0"}, "auto_augment.*got 'v0'"),
        ({"auto_augment": "rand-m9", "color_jitter": 0.4}, "not both"),
        ({"random_erasing": 1.5}, "random_erasing"),
        ({"mixup_alpha": -0.1}, "mixup_alpha"),
        ({"cutmix_alpha": 1.0, "mix_probability": 2.0}, "probability"),
        ({"mixup_alpha": 0.8, "per_device_train_batch_size": 3}, "must be even.*got 3"),
        ({"mixup_alpha": 0.8, "dataloader_drop_last": False}, "dataloader_drop_last"),
        ({"repeated_augmentation": 0}, "repeated_augmentation"),
    ],
)
def test_bad_values_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_warmup_that_never_ends_is_warned_of(caplog):
    make(max_steps=10, warmup_steps=9)
    make(max_steps=10, warmup_steps=0.5)  # a share
    make(num_train_epochs=1, warmup_steps=500)
    assert "warmup_steps" not in caplog.text
    make(max_steps=10, warmup_steps=10)
    assert "`warmup_steps` 10 is not less than `max_steps` 10" in caplog.text


def test_padding_replaces_the_resized_crop():
    assert make(crop_padding=2).train_transform_options == {"horizontal_flip": 0.5, "crop_padding": 2}
    assert make().train_transform_options == {"horizontal_flip": 0.5, "crop_scale": (0.08, 1.0)}


def test_the_global_batch_says_how_often_to_accumulate():
    assert make(global_batch_size=64, per_device_train_batch_size=8).gradient_accumulation_steps == 8
    args = make(global_batch_size=512, per_device_train_batch_size=64, base_learning_rate=0.1)
    assert args.peak_learning_rate == pytest.approx(0.2)
    assert make(per_device_train_batch_size=8, gradient_accumulation_steps=3).global_batch_size == 24


def test_an_fsdp_launch_on_a_cpu_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP needs GPUs"):
        make()


def accumulation_of_32() -> int:
    args = make(output_dir="unused", global_batch_size=32, per_device_train_batch_size=4)
    return args.gradient_accumulation_steps


def test_more_processes_accumulate_less(two_processes):
    assert accumulation_of_32() == 8
    assert two_processes.run(accumulation_of_32) == [4, 4]


def test_what_is_off_is_not_among_the_transforms_options():
    options = {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25, "crop_antialias": False}
    assert make(**options).train_transform_options == {"horizontal_flip": 0.5, "crop_scale": (0.08, 1.0), **options}
    assert make(color_jitter=0.4).train_transform_options["color_jitter"] == 0.4
    transform = build_transform(ViTImageProcessor(), train=True, **make(**options).train_transform_options)
    assert "RandAugment(magnitude=9" in repr(transform) and "RandomErasing(probability=0.25)" in repr(transform)


def test_mixing_goes_by_the_seed_of_the_data():
    assert make().mixing is None
    args = make(mixup_alpha=0.8, cutmix_alpha=1.0, mix_switch_probability=0.3, seed=7)
    assert args.mixing == Mixing(0.8, 1.0, probability=1.0, switch_probability=0.3, seed=7)
    assert make(cutmix_alpha=1.0, seed=7, data_seed=3).mixing == Mixing(cutmix_alpha=1.0, seed=3)
