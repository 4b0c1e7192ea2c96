"""Small training runs for tests; importable in worker processes."""

import multiprocessing
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_vitfm import ImageClassificationTrainer, VisionTrainingArguments, ViTConfig, ViTForImageClassification


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 3,
}
ARGUMENTS = {
    "max_steps": 3,
    "per_device_train_batch_size": 8,
    "learning_rate": 0.1,
    "optim": "sgd",
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def make_rows(
    count: int = 27, soft: bool = False, dtype=torch.float32, seed: int = 0, imbalanced: bool = False
) -> list[dict]:
    """Rows with random pixels; `soft` gives rows of probabilities instead of class ids, `imbalanced` mostly class 0."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        pixels = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
        label = torch.rand(3, generator=generator, dtype=torch.float64).softmax(0) if soft else i % 3
        if imbalanced and not soft:
            label = (0, 0, 0, 1, 0, 2)[i % 6]
        rows.append({"pixel_values": pixels + (0.0 if soft else i % 3), "label": label})
    return rows


def make_images(count: int = 26) -> list[dict]:
    """Rows with random pictures, for transforms."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        pixels = torch.randint(0, 256, (20, 24, 3), generator=generator, dtype=torch.uint8)
        rows.append({"image": Image.fromarray(pixels.numpy()), "label": i % 3})
    return rows


def make_model(dtype=torch.float32, problem_type: str | None = None, **fields) -> ViTForImageClassification:
    """A tiny ViT with a head that is not zero, the same in every process."""
    torch.manual_seed(0)
    config = ViTConfig(**{**TINY, **fields}, problem_type=problem_type)
    model = ViTForImageClassification(config).to(dtype)
    torch.nn.init.normal_(model.classifier.weight, std=0.1)
    return model


def make_args(output_dir, **options) -> VisionTrainingArguments:
    """Quiet CPU arguments: SGD, 3 steps of 8 rows."""
    return VisionTrainingArguments(output_dir=str(output_dir), **{**ARGUMENTS, **options})


def train(
    output_dir, soft: bool = False, double: bool = True, eval_rows: int = 0, imbalanced: bool = False, **options
) -> dict:
    """Train and return losses, gradient of the first step, weights and metrics as plain numbers."""
    dtype = torch.float64 if double else torch.float32
    model = make_model(dtype, "single_label_classification" if soft else None)
    trainer = ImageClassificationTrainer(
        model=model,
        args=make_args(output_dir, **options),
        train_dataset=make_rows(soft=soft, dtype=dtype, imbalanced=imbalanced),
        eval_dataset=make_rows(eval_rows, dtype=dtype, seed=1) if eval_rows else None,
    )
    metrics = None
    if eval_rows:
        metrics = trainer.evaluate()
        metrics = {key: metrics[key] for key in ("eval_loss", "eval_top1", "eval_mean_per_class")}
        metrics["predictions"] = trainer.predict(trainer.eval_dataset).predictions
    losses = []
    training_step = trainer.training_step

    def record(*args, **kwargs):  # Trainer's log adds the losses up in float32
        losses.append(training_step(*args, **kwargs).item())
        return torch.tensor(losses[-1])

    trainer.training_step = record
    trainer.train()
    return {
        "losses": np.array(losses).reshape(trainer.state.global_step, -1).sum(axis=1),
        "weights": {name: tensor.numpy().copy() for name, tensor in trainer.model.state_dict().items()},
        "metrics": metrics,
        "steps": trainer.state.global_step,
    }


def fresh_processes():
    """A multiprocessing context whose processes have everything imported already, but have computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.runs"])  # counts for the first process of a session
    return context


def run_process(target, *args, **kwargs) -> int:
    """Call a function in a fresh process; its exit code."""
    process = fresh_processes().Process(target=target, args=args, kwargs=kwargs)
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        raise TimeoutError("a training process hangs")
    return process.exitcode


def read_checkpoint(directory) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, their average, the optimizer's state; and the next learning rates."""
    directory = Path(directory)
    tensors = {}
    for file in ("model.safetensors", "ema.safetensors"):
        if (directory / file).exists():
            tensors |= {f"{file}: {name}": tensor for name, tensor in load_file(directory / file).items()}
    optimizer = torch.load(directory / "optimizer.pt", weights_only=True)
    for index, state in optimizer["state"].items():
        tensors |= {f"optimizer: {index}, {name}": torch.as_tensor(value) for name, value in state.items()}
    rates = torch.load(directory / "scheduler.pt", weights_only=True)["_last_lr"]
    tensors["learning rates"] = torch.tensor(rates, dtype=torch.float64)
    return tensors
