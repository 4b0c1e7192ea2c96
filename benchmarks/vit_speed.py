"""Speed of a Vision Transformer next to transformers and timm: inference and training steps, float32 and bfloat16.

All models have the same weights, live in one process and take turns, so that what else the machine does meets all of
them alike. See benchmarks/README.md for how to read the numbers.
"""

import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
import transformers
from torch.nn import functional as F
from tqdm import tqdm

from hf_vitfm import ViTConfig, ViTForImageClassification
from hf_vitfm.conversion import export_checkpoint


FOLDER = Path(__file__).parent
TIMM_SIZES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large"}
TIMM_NAMES = {  # ours -> timm's, applied in this order
    "vit.": "",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "encoder.layers": "blocks",
    "attention.": "attn.",
    "layernorm": "norm",
    "classifier": "head",
}
AUTOCAST, WEIGHTS = "bfloat16 autocast", "bfloat16 weights"
PRECISIONS = ("float32", AUTOCAST, WEIGHTS)
MODES = ("inference", "training")


def build_models(variant: str) -> dict[str, torch.nn.Module]:
    """Ours, transformers' and timm's model with the same random weights."""
    ours = ViTForImageClassification(ViTConfig.from_variant(variant, num_labels=1000, head_init="trunc_normal"))
    with tempfile.TemporaryDirectory() as folder:
        theirs = transformers.ViTForImageClassification.from_pretrained(export_checkpoint(ours, folder))
    size, patch = variant.split("/")
    peer = timm.create_model(f"vit_{TIMM_SIZES[size]}_patch{patch}_224")
    state_dict = ours.state_dict()
    for our_name, timm_name in TIMM_NAMES.items():
        state_dict = {name.replace(our_name, timm_name): tensor for name, tensor in state_dict.items()}
    peer.load_state_dict(state_dict)
    return {"hf_vitfm": ours, "transformers": theirs, "timm": peer}


def check_equal(models: dict[str, torch.nn.Module], pixels: torch.Tensor) -> None:
    """Stop unless all models give the same logits: then they do the same work."""
    with torch.no_grad():
        logits = {name: as_logits(model.eval()(pixels[:1])) for name, model in models.items()}
    for name, values in logits.items():
        error = (values - logits["hf_vitfm"]).norm() / values.norm()
        if error > 1e-2:  # transformers' GPU default of TF32 stays below; a wrong weight does not
            raise RuntimeError(f"The logits of {name} differ from ours by {error:.1e} of their norm.")


def as_logits(output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits


def make_step(model: torch.nn.Module, mode: str, autocast, pixels: torch.Tensor, labels: torch.Tensor):
    """One inference or training step (forward, loss, backward; no optimizer) as a function without arguments."""

    def infer():
        with torch.no_grad(), autocast():
            as_logits(model(pixels))

    def train():
        model.zero_grad(set_to_none=True)
        with autocast():
            if isinstance(model, transformers.PreTrainedModel):
                loss = model(pixels, labels=labels).loss
            else:
                loss = F.cross_entropy(model(pixels), labels)
        loss.backward()

    model.train(mode == "training")
    return train if mode == "training" else infer


def make_products(config: ViTConfig, batch: int, mode: str, dtype: torch.dtype, device: str):
    """The model's matrix products alone, as a function: every layer has weights of its own, outputs are allocated once.

    In training each forward product has two for the gradients, but the patch projection one: pixels need no gradient.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    patches = (config.image_size // config.patch_size) ** 2
    rows, per_head = batch * (patches + 1), (batch * heads, patches + 1, width // heads)
    buffers, calls = {}, []

    def buffer(role, *shape):
        if (role, shape) not in buffers:
            buffers[role, shape] = torch.randn(shape, dtype=dtype, device=device)
        return buffers[role, shape]

    def product(x, w, role, first=False):  # y = x @ w, and the gradients y @ w^T and x^T @ y
        multiply, y_shape = torch.bmm if x.ndim == 3 else torch.mm, (*x.shape[:-1], w.shape[-1])
        y = buffer("y", *y_shape)
        calls.append((multiply, x, w, buffer("out", *y_shape)))
        if mode == "training":
            if not first:
                calls.append((multiply, y, w.mT, buffer("out", *x.shape)))
            # a Linear holds its weight, and makes its gradient, in the transposed layout
            grad = (multiply, x.mT, y) if w.is_contiguous() else (multiply, y.mT, x)
            calls.append((*grad, buffer(f"grad {role}", *(w.shape if w.is_contiguous() else w.mT.shape))))

    patch_values = config.num_channels * config.patch_size**2
    product(buffer("x", batch * patches, patch_values), buffer("w", width, patch_values).mT, "patch", first=True)
    for layer in range(config.num_hidden_layers):
        hidden = config.intermediate_size
        for inputs, outputs in ((width, 3 * width), (width, width), (width, hidden), (hidden, width)):
            product(buffer("x", rows, inputs), buffer(layer, outputs, inputs).mT, layer)
        product(buffer("query", *per_head), buffer("key", *per_head).mT, "scores")
        product(buffer("x", batch * heads, patches + 1, patches + 1), buffer("value", *per_head), "attended")

    def multiply_all():
        for multiply, left, right, out in calls:
            multiply(left, right, out=out)

    return multiply_all


def timed(step, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(steps: dict, rounds: int, device: str, progress: tqdm) -> dict[str, list[float]]:
    """Seconds of every step in every round; the order turns by one place per round, the first round is warm-up."""
    names, seconds = list(steps), {name: [] for name in steps}
    for i in range(rounds + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            duration = timed(steps[name], device)
            if i > 0:
                seconds[name].append(duration)
            progress.update()
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}
