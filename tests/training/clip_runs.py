"""Small CLIP trainings for tests; importable in worker processes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_vitfm import CLIPConfig, CLIPModel, CLIPTrainer, CLIPTrainingArguments
from tests.tiny import randomize
from tests.training.runs import ARGUMENTS


TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**TOWER, "vocab_size": 20, "max_position_embeddings": 6, "bos_token_id": 18, "eos_token_id": 19}
VISION = {**TOWER, "image_size": 8, "patch_size": 4}
RANDOM = {
    "text": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2},
    "vision": {"patch_dropout": 0.5, "hidden_dropout_prob": 0.1, "drop_path_rate": 0.2},
}


def make_model(dtype=torch.float64, text: dict | None = None, vision: dict | None = None, **fields) -> CLIPModel:
    """Tiny towers with random weights, the same in every process, in training mode."""
    towers = {"text_config": {**TEXT, **(text or {})}, "vision_config": {**VISION, **(vision or {})}}
    model = randomize(CLIPModel(CLIPConfig(**towers, projection_dim=8, **fields)))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
    return model.to(dtype).train()


def make_pairs(count: int = 27, dtype=torch.float64, seed: int = 0) -> list[dict]:
    """Rows with random pixels and a text of two to four tokens between 18 and 19, padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        pixels = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
        words = torch.randint(1, 18, (2 + i % 3,), generator=generator).tolist()
        rows.append({"pixel_values": pixels, "input_ids": torch.tensor([18, *words, 19, 0, 0, 0][:6])})
    return rows


def collate(rows: list[dict]) -> dict[str, Tensor]:
    """Stack pixels and texts."""
    return {name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "input_ids")}


def naive_loss(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor | None, objective: str) -> Tensor:
    """The formulas of the papers on the whole matrix."""
    logits = log_scale.exp() * image @ text.t()
    pairs = torch.eye(len(logits), dtype=logits.dtype)
    if objective == "sigmoid":
        return -F.logsigmoid((2 * pairs - 1) * (logits + bias)).sum() / len(logits)
    return -(pairs * (logits.log_softmax(0) + logits.log_softmax(1))).sum() / (2 * len(logits))


def make_args(output_dir, **options) -> CLIPTrainingArguments:
    """Quiet CPU arguments: SGD, 3 steps of 8 pairs."""
    return CLIPTrainingArguments(output_dir=str(output_dir), **{**ARGUMENTS, **options})


def make_trainer(output_dir, model=None, rows=None, eval_dataset=None, **options) -> CLIPTrainer:
    """A trainer of the tiny model."""
    return CLIPTrainer(
        model=model or make_model(),
        args=make_args(output_dir, **options),
        train_dataset=make_pairs() if rows is None else rows,
        eval_dataset=eval_dataset,
        data_collator=collate,
    )


def train(output_dir, model_fields: dict | None = None, **options) -> dict:
    """Train in float64; the loss of every step, as the trainer adds it up, and the weights."""
    trainer = make_trainer(output_dir, make_model(**(model_fields or {})), **options)
    losses, training_step = [], trainer.training_step

    def record(*args, **kwargs):
        while len(losses) <= trainer.state.global_step:
            losses.append(0.0)
        loss = training_step(*args, **kwargs)
        losses[trainer.state.global_step] += loss.item()
        return loss

    trainer.training_step = record
    trainer.train()
    logged = [log for log in trainer.state.log_history if "loss" in log]
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "logged": torch.tensor([log["loss"] for log in logged], dtype=torch.float64),
        "rates": [log["learning_rate"] for log in logged],
        "weights": {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()},
    }
