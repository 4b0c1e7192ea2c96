"""Images in a plane, laid out by the pairwise margin loss (Hadsell, Chopra and LeCun 2006, section 3).

A vision transformer learns two coordinates per image: pairs of one class are pulled together, pairs of two classes pushed
apart until they lie a margin apart. Test images, which it has never seen, are drawn where it puts them:

    python recipes/clip/margin_embedding.py recipes/clip/configs/margin_embedding.yaml
"""

import json
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from hf_vitfm import build_transform, load_image_processor
from hf_vitfm.cards.embedding_figure import draw_embedding
from hf_vitfm.cards.markdown import as_percent
from hf_vitfm.cards.redact import redact, redact_command
from hf_vitfm.data.decode import decode_image
from hf_vitfm.data.order import ImageView
from hf_vitfm.data.samples import find_checkpoint
from hf_vitfm.models.modeling_contrastive import pairwise_margin_loss
from hf_vitfm.training.recipe import DataArguments, load_for_fine_tuning, parse_recipe
from hf_vitfm.training.targets import read_targets


NEIGHBOURS = 20
EVALUATION_BATCH = 250


@dataclass
class MarginArguments:
    """The model and its training."""

    output_dir: str = field(metadata={"help": "folder for the model, the numbers and the picture"})
    checkpoint: str = field(
        metadata={"help": "Hub id or folder (or fashion-mae, which ships) of a ViT, or of a masked autoencoder"}
    )
    model: dict = field(default_factory=dict, metadata={"help": "fields of the encoder's configuration to change"})
    margin: float = field(default=1.0, metadata={"help": "distance from which pairs of two classes are left alone"})
    max_steps: int = field(default=900, metadata={"help": "updates"})
    warmup_steps: int = field(
        default=90, metadata={"help": "updates until the learning rate has risen to its full value"}
    )
    images_per_step: int = field(default=64, metadata={"help": "images of an update, which pairs are made of"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of AdamW; falls to 0 along a half cosine"})
    weight_decay: float = field(default=0.05, metadata={"help": "of AdamW"})
    seed: int = field(default=0, metadata={"help": "of everything random"})


def balanced_pairs(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of one class among rows with these labels (rows,), and as many of two classes, chosen at random.

    Returns:
        The rows of both partners and whether they are of two classes, the paper's Y, each (pairs,).
    """
    first, second = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
    dissimilar = labels[first] != labels[second]
    near, far = (~dissimilar).nonzero()[:, 0], dissimilar.nonzero()[:, 0]
    chosen = torch.cat([near, far[torch.randperm(len(far), device=far.device)[: len(near)]]])
    return first[chosen], second[chosen], dissimilar[chosen]


def train(model, images: Tensor, labels: Tensor, args: MarginArguments) -> None:
    """Train the model on images (rows, channels, height, width) of these classes, flipped at random."""
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, weight_decay=args.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.warmup_steps, args.max_steps)
    model.train()
    for step in range(1, args.max_steps + 1):
        rows = torch.randperm(len(images), device=images.device)[: args.images_per_step]
        flipped = torch.rand(len(rows), 1, 1, 1, device=images.device) < 0.5
        points = model(torch.where(flipped, images[rows].flip(-1), images[rows])).logits
        first, second, dissimilar = balanced_pairs(labels[rows])
        loss = pairwise_margin_loss(points[first], points[second], dissimilar, args.margin)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == args.max_steps:
            print(f"step {step} of {args.max_steps}: loss {loss.item():.4f}")


@torch.no_grad()
def embed(model, images: Tensor) -> Tensor:
    """Points (rows, 2) on the CPU."""
    model.eval()
    return torch.cat([model(part).logits for part in images.split(EVALUATION_BATCH)]).float().cpu()


def plane_accuracy(known: Tensor, known_labels: Tensor, points: Tensor, labels: Tensor, k: int = NEIGHBOURS) -> float:
    """Share of points whose class most of their k nearest known points have, by Euclidean distance (not by angle)."""
    nearest = torch.cdist(points, known).topk(min(k, len(known)), largest=False).indices
    return (known_labels[nearest].mode(dim=1).values == labels).double().mean().item()


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe; returns what margin_embedding.json holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    data, args = parse_recipe((DataArguments, MarginArguments), argv, description=__doc__)
    if data.streaming:
        raise ValueError("All images are held in memory here; leave `streaming` out.")
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    # 1. Images
    source = find_checkpoint(args.checkpoint)
    transform = build_transform(load_image_processor(source))
    *splits, eval_name = data.load(args.seed)
    class_names = read_targets(splits[0], "single_label_classification").names
    images = [torch.stack([row["pixel_values"] for row in ImageView(rows, transform)]).to(device) for rows in splits]
    labels = [torch.tensor(rows["label"][:]) for rows in splits]

    # 2. Model: a classifier's head is the map into the plane
    model = load_for_fine_tuning(source, id2label={0: "x", 1: "y"}, label2id={"x": 0, "y": 1}, **args.model)
    model.classifier.reset_parameters()  # where all points are one, the loss does not say where to go
    model.to(device)

    # 3. Training
    start = time.perf_counter()
    train(model, images[0], labels[0].to(device), args)
    seconds = time.perf_counter() - start

    # 4. Number, picture, files
    known, points = (embed(model, pixels) for pixels in images)
    accuracy = plane_accuracy(known, labels[0], points, labels[1])
    record = {
        "recipe": "recipes/clip/margin_embedding.py",
        "config": argv[0],
        "command": redact_command(shlex.join(["python", "recipes/clip/margin_embedding.py", *argv])),
        "dataset": {**data.describe(), "train_rows": len(known), "eval_split": eval_name, "eval_rows": len(points)},
        "knn_accuracy": accuracy,
        "k": NEIGHBOURS,
        "train_seconds": round(seconds, 1),
    }
    directory = Path(args.output_dir)
    model.save_pretrained(directory)
    (directory / "margin_embedding.json").write_text(json.dumps(redact(record), indent=2) + "\n", encoding="utf-8")
    picture = directory / "margin_embedding.png"
    pictures = [decode_image(row["image"]) for row in splits[1]]
    draw_embedding(points, labels[1], class_names, pictures, picture, scale=("margin", args.margin))
    print(
        f"{as_percent(accuracy)} of {len(points)} images of {eval_name} are of the class of their neighbours: {picture}"
    )
    return record


if __name__ == "__main__":
    main()
