"""Every configuration of CLIP's training from scratch trains as its source says, as far as the file says it."""

from dataclasses import dataclass

import pytest
import torch

from hf_vitfm import CLIPConfig, CLIPModel, CLIPTrainer, CLIPTrainingArguments
from hf_vitfm.data.tokenizers import train_tokenizer
from hf_vitfm.training.clip_start import CLIPModelArguments, build_clip
from hf_vitfm.training.pair_arguments import PairArguments, ZeroShotArguments
from hf_vitfm.training.recipe import parse_recipe
from tests.recipes.test_configs import CONFIGS, CONTRASTIVE, OFF
from tests.training.clip_runs import collate, make_model


BATCH, UPDATES = 32_768, 12_207  # of an epoch of 400 million pairs
STEPS = 32 * UPDATES


@dataclass
class Row:
    """What a source says; parameters are those of the published model."""

    source: str
    learning_rate: float
    parameters: int


PAPER = "CLIP paper, appendix F, Tables 18 and 20; sizes: openai/CLIP's released models, counted there"
TABLE = {
    "clip/train_b32": Row(PAPER, 5e-4, 151_277_313),
    "clip/train_b16": Row(PAPER, 5e-4, 149_620_737),
    "clip/train_l14": Row(PAPER, 4e-4, 427_616_513),
    "clip/train_laion": Row("open_clip docs/PRETRAINED.md, LAION-400M; defaults of its params.py", 5e-4, 151_277_313),
}


def test_no_configuration_is_forgotten():
    assert set(TABLE) == CONTRASTIVE


def parse(name: str, *argv: str):
    classes = (CLIPModelArguments, PairArguments, ZeroShotArguments, CLIPTrainingArguments)
    options = ["--use_cpu", "--bf16", "false", "--eval_strategy", "no", *argv]
    model_args, data, _, args = parse_recipe(classes, [str(CONFIGS[name]), *options])
    return model_args, data, args


@pytest.mark.parametrize("name", TABLE)
def test_optimizer_schedule_and_batch(name):
    row, (_, data, args) = TABLE[name], parse(name)
    trainer = CLIPTrainer(model=make_model(torch.float32), args=args, data_collator=collate)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    assert {key: optimizer.defaults[key] for key in ("betas", "eps")} == {"betas": (0.9, 0.98), "eps": 1e-6}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2, 0.0}
    factor = trainer.create_scheduler(STEPS, optimizer).lr_lambdas[0]
    middle = 2_000 + (STEPS - 2_000) // 2
    for update, share in ((1, 1 / 2_000), (2_000, 1.0), (middle, 0.5), (STEPS, 0.0)):
        assert args.learning_rate * factor(update - 1) == pytest.approx(row.learning_rate * share, rel=1e-3, abs=1e-8)
    assert (args.num_train_epochs, args.max_grad_norm, args.ema_decay) == (32, 0.0, None)
    assert args.global_batch_size == BATCH
    assert args.per_device_train_batch_size == args.grad_cache_chunk_size
    assert all(BATCH % (devices * args.grad_cache_chunk_size) == 0 for devices in (1, 2, 4, 8, 16, 32, 64))
    expected = {**OFF, "crop_scale": [0.9, 1.0], "horizontal_flip": 0.0}
    assert {key: getattr(args, key) for key in expected} == expected
    assert data.streaming and args.on_bad_image == "skip"


@pytest.mark.parametrize("name", TABLE)
def test_model_is_the_published_one(name, monkeypatch):
    model_args, _, _ = parse(name)
    tokenizer = train_tokenizer(["a few words"], 300, 77)
    monkeypatch.setattr("hf_vitfm.training.clip_start.load_tokenizer", lambda source: tokenizer)
    assert model_args.tokenizer == "openai/clip-vit-base-patch32"
    model_args.text_config = {**model_args.text_config, "vocab_size": 49_408}  # of that tokenizer, which is not here
    with torch.device("meta"):
        model, processor = build_clip(model_args, list, smoke=False)
    assert isinstance(model, CLIPModel) and isinstance(model.config, CLIPConfig)
    assert sum(parameter.numel() for parameter in model.parameters()) == TABLE[name].parameters
    assert model.config.logit_scale_init_value == pytest.approx(2.6592600)  # ln(1 / 0.07)
    assert model.config.text_config.hidden_act == model.config.vision_config.hidden_act == "quick_gelu"
    images = processor.image_processor
    assert dict(images.size) == {"shortest_edge": 224} and images.crop_size["height"] == 224 and images.resample == 3
    assert list(images.image_mean) == [0.48145466, 0.4578275, 0.40821073]
    assert list(images.image_std) == [0.26862954, 0.26130258, 0.27577711]
