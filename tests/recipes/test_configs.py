"""Every configuration trains as its source says: optimizer, groups, batch, schedule and augmentation, from the file."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml

from hf_vitfm import ImageClassificationTrainer, ViTConfig, ViTForImageClassification
from hf_vitfm.training.arguments import VisionTrainingArguments
from hf_vitfm.training.fine_tuning import ModelArguments
from hf_vitfm.training.linear_probe import LinearProbeForImageClassification
from hf_vitfm.training.recipe import SMOKE_MODEL, DataArguments, parse_recipe
from hf_vitfm.training.sweep import SweepArguments


CONFIGS = {f"{path.parts[1]}/{path.stem}": path for path in Path("recipes").glob("*/configs/*.yaml")}
NO_PAPER = {
    "clip/margin_embedding",
    "vit/fashion_scratch",
    "vit/folder",
    "mae/quickstart",
    "mae/mask_ratio",
    "mae/few_labels",
    "mae/few_labels_scratch",
    "mae/pretrain_fashion",
    "mae/pretrain_folder",
    "clip/emoji",
    "clip/finetune_b32",
    "clip/locked_image",
}  # settings of ours, which no source fixes
CONTRASTIVE = {"clip/train_b32", "clip/train_b16", "clip/train_l14", "clip/train_laion"}  # test_clip_configs.py
EVALUATION = {  # test_evaluation_recipes.py
    "clip/zero_shot_imagenet",
    "clip/zero_shot_emoji",
    "clip/linear_probe_imagenet",
    "clip/linear_probe_food101",
    "clip/linear_probe_fashion",
    "clip/few_shot_imagenet",
    "clip/few_shot_emoji",
}
PRETRAINING = {  # test_mae_configs.py has their tables
    "mae/pretrain_b16_in1k",
    "mae/pretrain_l16_in1k",
    "mae/pretrain_l16_in1k_800",
    "mae/pretrain_h14_in1k",
}
IMAGENET_ROWS = 1_281_167
TINY = {**SMOKE_MODEL, "num_labels": 3}
PLAIN_CROP = {"crop_scale": [0.05, 1.0], "crop_antialias": False, "horizontal_flip": 0.5}
OFF = {
    "crop_padding": None,
    "crop_antialias": True,
    "auto_augment": None,
    "color_jitter": None,
    "random_erasing": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "repeated_augmentation": 1,
    "label_smoothing_factor": 0.0,
    "ema_decay": None,
}
SGD = ("SGD", {"momentum": 0.9, "nesterov": False, "dampening": 0}, 0.0)


@dataclass
class Row:
    """What a source says; `rates` are (update counted from 1, learning rate)."""

    source: str
    steps: int
    rates: list[tuple[int, float]]
    batch: int = 512
    optimizer: tuple = SGD  # class, options, weight decay
    layer_decay: float = 1.0
    clip: float = 1.0
    augmentation: dict | None = None
    model: dict | None = None
    sweep: tuple | None = None  # learning rates, held out, seeds
    model_class: type = ViTForImageClassification


PAPER = "ViT paper, Table 4 and B.1.1; warm-up and crop: vit_jax configs/common.py:68, input_pipeline.py:197-214; "
SMALL_GRID, SEEDS = [0.001, 0.003, 0.01, 0.03], [0, 1, 2]
HEAD = {"pooling": "cls", "head_init": "zeros"}
IN1K = [(1, 6e-5), (500, 0.03), (10_250, 0.015), (20_000, 0.0)]
STRONG = {  # DeiT's, and with it MAE's fine-tuning
    "crop_scale": [0.08, 1.0],
    "horizontal_flip": 0.5,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "mix_probability": 1.0,
    "mix_switch_probability": 0.5,
    "label_smoothing_factor": 0.1,
}
MAE_HEAD = {"pooling": "mean", "head_init": "trunc_normal", "image_size": 224}
MAE_B = Row(
    "MAE FINETUNE.md:39-47; the rest: defaults of main_finetune.py, warm-up of 5 epochs",
    100 * 1_251,
    # After a third of the cosine three quarters are left: 1e-6 + .75 x (2e-3 - 1e-6).
    [(1, 2e-3 / 6_255), (6_255, 2e-3), (45_870, 1.50025e-3), (125_100, 1e-6)],
    batch=1024,
    optimizer=("AdamW", {"betas": (0.9, 0.999), "eps": 1e-8}, 0.05),
    layer_decay=0.65,
    clip=0.0,
    augmentation=STRONG,
    model={**MAE_HEAD, "drop_path_rate": 0.1, "layer_norm_eps": 1e-6},
)
MAE_L = replace(
    MAE_B,
    source="MAE FINETUNE.md:54-64",
    steps=50 * 1_251,
    rates=[(1, 4e-3 / 6_255), (6_255, 4e-3), (25_020, 3.00025e-3), (62_550, 1e-6)],
    layer_decay=0.75,
    model={**MAE_B.model, "drop_path_rate": 0.2},
)
PROBE_B = Row(
    "MAE FINETUNE.md:103-117, main_linprobe.py, util/lars.py",
    90 * 78,
    [(1, 6.4 / 780), (780, 6.4), (3_900, 3.2), (7_020, 0.0)],
    batch=16_384,
    optimizer=("LARS", {"momentum": 0.9, "trust_coefficient": 0.001}, 0.0),
    clip=0.0,
    augmentation={"crop_scale": [0.08, 1.0], "horizontal_flip": 0.5},
    model={"pooling": "cls", "layer_norm_eps": 1e-6, "image_size": 224},
    model_class=LinearProbeForImageClassification,
)
PROBE_L = replace(
    PROBE_B,
    source="MAE FINETUNE.md:124: 50 epochs are sufficient for L and H",
    steps=50 * 78,
    rates=[(1, 6.4 / 780), (780, 6.4), (2_340, 3.2), (3_900, 0.0)],
)
TABLE = {
    "mae/finetune_b16_in1k": MAE_B,
    "mae/finetune_l16_in1k": MAE_L,
    "mae/finetune_h14_in1k": replace(
        MAE_L, source="MAE FINETUNE.md:69-79", model={**MAE_L.model, "drop_path_rate": 0.3}
    ),
    "mae/linear_probe_b16_in1k": PROBE_B,
    "mae/linear_probe_l16_in1k": PROBE_L,
    "mae/linear_probe_h14_in1k": PROBE_L,
    "mae/scratch_l16_in1k": Row(
        "MAE Table 11 as quoted in facebookresearch/mae#41 and mmpretrain's vit-base-p16_pt-32xb128-mae_in1k-224.py",
        200 * 312,
        [(1, 1.6e-3 / 6_240), (6_240, 1.6e-3), (34_320, 8e-4), (62_400, 0.0)],
        batch=4096,
        optimizer=("AdamW", {"betas": (0.9, 0.95), "eps": 1e-8}, 0.3),
        clip=0.0,
        augmentation={**STRONG, "random_erasing": 0.0, "ema_decay": 0.9999},
        model={**MAE_HEAD, "drop_path_rate": 0.2},
    ),
    "mae/scratch_l16_in1k_vit": Row(
        "ViT paper, Table 3; crop: vit_jax input_pipeline.py:197-214",
        300 * 312,
        [(1, 3e-7), (10_000, 3e-3), (51_800, 1.5e-3), (93_600, 0.0)],
        batch=4096,
        optimizer=("AdamW", {"betas": (0.9, 0.999), "eps": 1e-8}, 0.3),
        model={
            **HEAD,
            "representation_size": 1024,
            "weight_init": "jax",
            "hidden_dropout_prob": 0.1,
            "image_size": 224,
        },
    ),
    "vit/finetune_b16_in1k": Row(PAPER + "one rate of the grid", 20_000, IN1K, model={**HEAD, "image_size": 384}),
    "vit/finetune_l16_in1k_512": Row(
        PAPER + "Polyak factor and resolution: section 4.1",
        20_000,
        IN1K,
        augmentation={**PLAIN_CROP, "ema_decay": 0.9999},
        model={**HEAD, "image_size": 512},
    ),
    "vit/finetune_h14_in1k_518": Row(
        PAPER + "Polyak factor and resolution: section 4.1",
        20_000,
        IN1K,
        augmentation={**PLAIN_CROP, "ema_decay": 0.9999},
        model={**HEAD, "image_size": 518},
    ),
    "vit/transfer_in1k": Row(
        PAPER + "rate: big_vision configs/transfer.py:22",
        20_000,
        IN1K,
        model={**HEAD, "image_size": 384},
        sweep=([0.003, 0.01, 0.03, 0.06], 0.01, SEEDS),
    ),
    "vit/transfer_cifar10": Row(
        PAPER + "rate: big_vision configs/transfer.py:23",
        10_000,
        [(1, 6e-6), (500, 0.003), (5_250, 0.0015), (10_000, 0.0)],
        model={**HEAD, "image_size": 384},
        sweep=(SMALL_GRID, 0.02, SEEDS),
    ),
    "vit/transfer_cifar100": Row(
        PAPER + "rate: big_vision configs/transfer.py:24",
        10_000,
        [(1, 2e-5), (500, 0.01), (5_250, 0.005), (10_000, 0.0)],
        model={**HEAD, "image_size": 384},
        sweep=(SMALL_GRID, 0.02, SEEDS),
    ),
    "vit/transfer_pets": Row(
        PAPER + "rate and warm-up: big_vision configs/transfer.py:25, 75",
        500,
        [(1, 3e-5), (100, 0.003), (300, 0.0015), (500, 0.0)],
        model={**HEAD, "image_size": 384},
        sweep=(SMALL_GRID, 0.1, SEEDS),
    ),
    "vit/transfer_flowers": Row(
        PAPER + "rate and warm-up: big_vision configs/transfer.py:26, 77",
        500,
        [(1, 3e-5), (100, 0.003), (300, 0.0015), (500, 0.0)],
        model={**HEAD, "image_size": 384},
        sweep=(SMALL_GRID, 0.1, SEEDS),
    ),
    "vit/transfer_vtab": Row(
        PAPER + "images squashed: task_adaptation data_loader.py; 800 + 200 images: VTAB-1k",
        2_500,
        [(1, 2e-5), (500, 0.01), (1_500, 0.005), (2_500, 0.0)],
        augmentation={"crop_padding": 0, "horizontal_flip": 0.0},
        model={**HEAD, "image_size": 384},
        sweep=([0.01], 200, SEEDS),
    ),
    "vit/plain_s16_in1k": Row(
        "Better plain ViT: big_vision configs/vit_s16_i1k.py; decay 1e-4 / 1e-3: optax.py:143-149",
        90 * (IMAGENET_ROWS // 1024),
        [(1, 1e-7), (10_000, 1e-3), (61_295, 5e-4), (112_590, 0.0)],
        batch=1024,
        optimizer=("AdamW", {"betas": (0.9, 0.999), "eps": 1e-8}, 0.1),
        augmentation={**PLAIN_CROP, "auto_augment": "rand-m10-n2", "mixup_alpha": 0.2, "mix_probability": 1.0},
        model={
            "pooling": "mean",
            "use_class_token": False,
            "position_embedding_type": "sincos",
            "representation_size": 384,
            "hidden_act": "gelu_pytorch_tanh",
            "weight_init": "jax",
            "image_size": 224,
        },
    ),
    "vit/deit_s16_in1k": Row(
        "DeiT main.py: defaults, batch 8 x 128",
        300 * (IMAGENET_ROWS // 1024),
        # The middle of the cosine is between two updates: 1e-5 + (1e-3 - 1e-5) / 2.
        [(1, 1e-3 / 6_255), (6_255, 1e-3), (190_777, 5.05e-4), (375_300, 1e-5)],
        batch=1024,
        optimizer=("AdamW", {"betas": (0.9, 0.999), "eps": 1e-8}, 0.05),
        clip=0.0,
        augmentation={**STRONG, "repeated_augmentation": 3},
        model={"drop_path_rate": 0.1, "image_size": 224},
    ),
}


def test_no_configuration_is_forgotten():
    assert set(CONFIGS) - NO_PAPER - PRETRAINING - CONTRASTIVE - EVALUATION == set(TABLE)


def parse(name: str, *argv: str):
    settings = yaml.safe_load(CONFIGS[name].read_text())
    dataset = [] if "dataset" in settings else ["--dataset", "fashion-mnist"]
    classes = (ModelArguments, DataArguments, VisionTrainingArguments)
    return parse_recipe(classes, [str(CONFIGS[name]), *dataset, "--use_cpu", "--bf16", "false", *argv])


def make_trainer(name: str) -> ImageClassificationTrainer:
    model_args, _, args = parse(name, "--eval_strategy", "no")
    model = TABLE[name].model_class(ViTConfig(**{**model_args.model, **TINY}))
    return ImageClassificationTrainer(model=model, args=args)


@pytest.mark.parametrize("name", TABLE)
def test_the_optimizer_and_its_groups(name):
    row, trainer = TABLE[name], make_trainer(name)
    optimizer = trainer.create_optimizer()
    kind, options, weight_decay = row.optimizer
    assert type(optimizer).__name__ == kind
    assert {key: optimizer.defaults[key] for key in options} == options
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decay = {
        names[id(weight)]: group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]
    }
    is_kernel = {
        name: bool(re.search(r"(projection|qkv|proj|fc1|fc2|dense|classifier|pre_logits)\.weight$", name))
        for name in decay
    }
    assert decay == {name: weight_decay if kernel else 0.0 for name, kernel in is_kernel.items()}
    peak, layers = max(rate for _, rate in row.rates), TINY["num_hidden_layers"] + 2
    rates = {peak * row.layer_decay**depth for depth in range(layers)}
    assert sorted({group["lr"] for group in optimizer.param_groups}, reverse=True) == pytest.approx(
        sorted(rates, reverse=True)
    )
    assert trainer.args.max_grad_norm == row.clip


@pytest.mark.parametrize("name", TABLE)
def test_the_schedule(name):
    row, trainer = TABLE[name], make_trainer(name)
    args = trainer.args
    steps = args.max_steps if args.max_steps > 0 else round(args.num_train_epochs * (IMAGENET_ROWS // row.batch))
    assert steps == row.steps
    factor = trainer.create_scheduler(steps, torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)).lr_lambdas[0]
    for update, rate in row.rates:
        assert args.learning_rate * factor(update - 1) == pytest.approx(rate, rel=1e-5, abs=1e-12), update


@pytest.mark.parametrize("name", TABLE)
def test_the_batch_on_one_to_eight_devices(name):
    _, _, args = parse(name)
    assert args.global_batch_size == TABLE[name].batch
    assert args.gradient_accumulation_steps * args.per_device_train_batch_size == args.global_batch_size
    assert all(args.global_batch_size % (devices * args.per_device_train_batch_size) == 0 for devices in (1, 2, 4, 8))


@pytest.mark.parametrize("name", TABLE)
def test_augmentation_and_regularisation(name):
    row = TABLE[name]
    model_args, _, args = parse(name)
    expected = {**OFF, **(row.augmentation or PLAIN_CROP)}
    assert {key: getattr(args, key) for key in expected} == expected
    config = {"image_size": model_args.image_size, **ViTConfig(**{**model_args.model, "num_labels": 3}).to_dict()}
    model = {"drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, **(row.model or {})}
    model_size = model.pop("image_size")
    assert model_args.image_size == model_size
    assert {key: config[key] for key in model} == model


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.sweep])
def test_the_search(name):
    settings = yaml.safe_load(CONFIGS[name].read_text())
    sweep = SweepArguments(**{key: settings[key] for key in ("learning_rates", "grid_holdout", "seeds")})
    assert (sweep.learning_rates, sweep.grid_holdout, sweep.seeds) == TABLE[name].sweep
    assert settings["learning_rate"] in sweep.learning_rates
