"""Every configuration of MAE's pre-training trains as the paper's code does, as far as the file says it."""

from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from hf_vitfm import MAETrainer, build_transform
from hf_vitfm.training.arguments import VisionTrainingArguments
from hf_vitfm.training.recipe import DataArguments, parse_recipe
from recipes.mae import pretrain
from tests.recipes.test_configs import CONFIGS, IMAGENET_ROWS, NO_PAPER, OFF, PRETRAINING


BATCH = 4096
UPDATES = 312  # of an epoch: IMAGENET_ROWS // BATCH
WARM_UP = 40 * UPDATES
RATES = {  # (update counted from 1, learning rate); a cosine has half its height left in its middle
    800: [(1, 2.4e-3 / WARM_UP), (WARM_UP, 2.4e-3), (420 * UPDATES, 1.2e-3), (800 * UPDATES, 0.0)],
    1600: [(1, 2.4e-3 / WARM_UP), (WARM_UP, 2.4e-3), (820 * UPDATES, 1.2e-3), (1600 * UPDATES, 0.0)],
}
DECODER = {
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
}


@dataclass
class Row:
    """What a source says; parameters are those that models_mae.py builds, counted there."""

    source: str
    epochs: int
    norm_pix_loss: bool
    trained: int  # parameters
    fixed: int  # the two tables of positions
    visible: int  # patches


PRETRAIN = "facebookresearch/mae PRETRAIN.md:5-24, defaults of main_pretrain.py, sizes of models_mae.py; "
TABLE = {
    "mae/pretrain_b16_in1k": Row(PRETRAIN + "--model mae_vit_base_patch16", 1600, True, 111_655_680, 252_160, 49),
    "mae/pretrain_l16_in1k": Row(PRETRAIN + "epochs: paper, Table 3", 1600, True, 329_239_296, 302_592, 49),
    "mae/pretrain_l16_in1k_800": Row(
        "MAE paper, Table 8 and the baseline of Table 1", 800, False, 329_239_296, 302_592, 49
    ),
    "mae/pretrain_h14_in1k": Row(PRETRAIN + "--model mae_vit_huge_patch14", 1600, True, 656_613_964, 460_544, 64),
}


def test_no_configuration_is_forgotten():
    assert set(TABLE) == PRETRAINING
    assert {name for name in CONFIGS if "/pretrain_" in name} - NO_PAPER == PRETRAINING


def parse(name: str, *argv: str):
    classes = (pretrain.ModelArguments, DataArguments, pretrain.LabelledArguments, VisionTrainingArguments)
    options = ["--use_cpu", "--bf16", "false", "--eval_strategy", "no", *argv]
    model_args, _, _, args = parse_recipe(classes, [str(CONFIGS[name]), *options])
    return model_args, args


@pytest.mark.parametrize("name", TABLE)
def test_optimizer_and_schedule(name):
    row, (model_args, args) = TABLE[name], parse(name)
    model, _ = pretrain.build(model_args, smoke=True)
    trainer = MAETrainer(model=model, args=args)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    assert {key: optimizer.defaults[key] for key in ("betas", "eps")} == {"betas": (0.9, 0.95), "eps": 1e-8}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.05, 0.0}
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2.4e-3, 2.4e-3])
    assert (args.max_grad_norm, args.ema_decay) == (0.0, None)
    assert args.max_steps <= 0 and args.num_train_epochs == row.epochs
    assert IMAGENET_ROWS // BATCH == UPDATES
    factor = trainer.create_scheduler(row.epochs * UPDATES, optimizer).lr_lambdas[0]
    for update, rate in RATES[row.epochs]:
        assert args.learning_rate * factor(update - 1) == pytest.approx(rate, rel=1e-5, abs=1e-12), update


@pytest.mark.parametrize("name", TABLE)
def test_batch_and_augmentation(name):
    model_args, args = parse(name)
    assert args.global_batch_size == BATCH
    assert args.gradient_accumulation_steps * args.per_device_train_batch_size == BATCH
    assert all(BATCH % (devices * args.per_device_train_batch_size) == 0 for devices in (1, 2, 4, 8, 16, 32))
    expected = {**OFF, "crop_scale": [0.2, 1.0], "horizontal_flip": 0.5}
    assert {key: getattr(args, key) for key in expected} == expected
    assert model_args.image_processor == {
        "size": {"shortest_edge": 256},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


@pytest.mark.parametrize("name", TABLE)
def test_model_and_masking(name):
    row, (model_args, _) = TABLE[name], parse(name)
    with torch.device("meta"):
        model, processor = pretrain.build(model_args, smoke=False)
    config = model.config
    assert {key: getattr(config, key) for key in DECODER} == DECODER
    assert (config.mask_ratio, config.masking, config.norm_pix_loss) == (0.75, "random", row.norm_pix_loss)
    assert (config.image_size, config.layer_norm_eps, config.drop_path_rate) == (224, 1e-6, 0.0)
    assert config.position_embedding_type == "sincos" and config.num_register_tokens == 0
    counts = {trained: 0 for trained in (True, False)}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    assert counts == {True: row.trained, False: row.fixed}
    patches = model.decoder.position_embeddings.shape[1] - 1
    mask = model.vit.choose_patches(torch.empty(1, 3, 224, 224), torch.rand(1, patches))[1]
    assert patches - mask.sum().item() == row.visible
    for options in ({}, {"train": True, "crop_scale": (0.2, 1.0)}):
        assert build_transform(processor, **options)(Image.new("RGB", (300, 260))).shape == (3, 224, 224)
