"""A folder of images, models of several libraries saved beside it, and what comes of comparing them."""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import ViTImageProcessor

from hf_vitfm.data.samples import load_sample
from hf_vitfm.evaluation.compare import ComparedModel, Comparison, Score
from hf_vitfm.evaluation.compare_data import ComparisonData, comparison_prompts
from hf_vitfm.evaluation.encoder_cost import EncoderCost


CLASSES = ("Bag", "Sneaker", "T-shirt")
_SIZES = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_folder(folder: Path, **rows_of: int) -> Path:
    """Images of Fashion-MNIST, so many of each class in each split; one split, "", lies in no split folder."""
    rows = load_sample("fashion-mnist")["test"]
    names, labels = rows.features["label"].names, np.array(rows["label"])
    first = 0
    for split, count in rows_of.items():
        for name in CLASSES:
            ids = np.flatnonzero(labels == next(i for i, full in enumerate(names) if full.startswith(name)))
            target = folder / ("" if split == "alone" else split) / name
            target.mkdir(parents=True, exist_ok=True)
            for index in ids[first : first + count]:
                rows[int(index)]["image"].save(target / f"{index}.png")
        first += count
    return folder


def save_vit(folder: Path, seed: int = 0) -> str:
    """A tiny ViT of transformers with random weights."""
    torch.manual_seed(seed)
    return _save(transformers.ViTModel(transformers.ViTConfig(**_SIZES, intermediate_size=32)), folder)


def save_resnet(folder: Path) -> str:
    """A tiny ResNet of transformers with random weights."""
    torch.manual_seed(0)
    fields = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return _save(transformers.ResNetModel(transformers.ResNetConfig(**fields)), folder)


def _save(model: torch.nn.Module, folder: Path) -> str:
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def a_cost(**fields) -> EncoderCost:
    values = {
        "parameters": 1_500_000,
        "flops": 2_000_000_000,
        "images_per_second": 40.0,
        "batch_size": 16,
        "device": "CPU, 1 threads",
        "peak_memory": 3 << 20,
    }
    return EncoderCost(**{**values, **fields})


def a_score(accuracy: float, standing: str = "best", difference: float = 0.0, **settings) -> Score:
    ends = (
        (0.0, 0.0) if standing == "best" else (difference - 0.02, 0.01 if standing == "close" else difference + 0.01)
    )
    return Score(accuracy, accuracy - 0.05, accuracy + 0.04, difference, *ends, standing, settings)


def a_model(name: str, scores: dict[str, Score], source: str | None = None, **cost) -> ComparedModel:
    return ComparedModel(name, source or name, (32, 32), "cls", a_cost(**cost), scores, 1.0)


def a_comparison(data: ComparisonData, models: list[ComparedModel], **fields) -> Comparison:
    values = {"by": "linear_probe", "failures": {}, "skipped": {}, "prompts": comparison_prompts(data), "unlearnt": []}
    return Comparison(data, models=models, **{**values, **fields})
