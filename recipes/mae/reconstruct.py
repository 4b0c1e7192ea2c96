"""Pictures of what a masked autoencoder makes of images that are mostly masked (MAE, Fig. 2 to 4).

Any images and any checkpoint, this library's or transformers' ViTMAE, at several masking ratios, as one PNG file:

    python recipes/mae/reconstruct.py --checkpoint facebook/vit-mae-base --norm_pix_loss true --images cat.jpg holidays/

What is visible at a high ratio is visible at the lower ones too. Equal seeds give equal masks.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoConfig, HfArgumentParser

from hf_vitfm import load_image_processor, load_sample
from hf_vitfm.conversion.transformers_mae import MODEL_TYPE as TRANSFORMERS_MAE
from hf_vitfm.data.decode import decode_image
from hf_vitfm.data.samples import SAMPLE_NAMES, find_checkpoint
from hf_vitfm.evaluation.predict import evaluation_transform, find_images
from hf_vitfm.evaluation.reconstruction import load_autoencoder, picture_reconstructions


@dataclass
class ReconstructionArguments:
    """What is drawn, by which model."""

    checkpoint: str = field(
        metadata={"help": "Hub id or folder (or fashion-mae, which ships) of a masked autoencoder with its decoder"}
    )
    images: list[str] = field(
        metadata={"help": f"image files, folders of them, or an embedded sample: {', '.join(SAMPLE_NAMES)}"}
    )
    output: str = field(default="outputs/reconstructions.png", metadata={"help": "PNG file to write"})
    mask_ratios: list[float] = field(
        default_factory=list,
        metadata={"help": "shares of patches to mask, in [0, 1); 0.75, 0.85, 0.95 where these leave a patch visible"},
    )
    count: int = field(default=8, metadata={"help": "draw so many images at most, chosen at random by the seed"})
    seed: int = field(default=0, metadata={"help": "of the masks and of the choice of images"})
    image_size: int | None = field(
        default=None, metadata={"help": "pixels a side; by default what the checkpoint was trained with"}
    )
    norm_pix_loss: bool | None = field(
        default=None,
        metadata={
            "help": "whether the model predicts normalised pixels, where its configuration is wrong: those of "
            "facebook/vit-mae-* say false, and the weights were trained with true"
        },
    )

    def __post_init__(self):
        if not all(0 <= ratio < 1 for ratio in self.mask_ratios):
            raise ValueError(f"`mask_ratios` must be in [0, 1), such as 0.75; got {self.mask_ratios}.")
        if self.count < 1:
            raise ValueError(f"`count` must be at least 1; got {self.count}.")
        if Path(self.output).suffix.lower() != ".png":
            raise ValueError(f"`output` must be a PNG file, such as reconstructions.png; got {self.output!r}.")


def choose(total: int, count: int, seed: int) -> list[int]:
    """Indices of the images to draw, in their order."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:count].tolist())


def read_images(args: ReconstructionArguments) -> list[Image.Image]:
    """Decode the images that are to be drawn; one that cannot be decoded is an error that names it."""
    if len(args.images) == 1 and args.images[0] in SAMPLE_NAMES:
        splits = load_sample(args.images[0])
        rows = splits["test" if "test" in splits else next(iter(splits))]
        return [rows[index]["image"] for index in choose(len(rows), args.count, args.seed)]
    files = find_images(args.images)
    return [decode_image(files[index]) for index in choose(len(files), args.count, args.seed)]


def main(argv: list[str] | None = None) -> Path:
    """Run the recipe; returns the path of the picture."""
    parser = HfArgumentParser(
        ReconstructionArguments,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    (args,) = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)

    # 1. Images
    images = read_images(args)

    # 2. Model
    fields = {"image_size": args.image_size, "norm_pix_loss": args.norm_pix_loss}
    source = find_checkpoint(args.checkpoint)
    model = load_autoencoder(source, **{name: value for name, value in fields.items() if value is not None})
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    processor = load_image_processor(source, image_size=args.image_size)
    if args.norm_pix_loss is None and not model.config.norm_pix_loss:
        if AutoConfig.from_pretrained(source).model_type == TRANSFORMERS_MAE:
            print(
                "The configuration says that this model predicts plain pixels. If it is one of facebook/vit-mae-*, it "
                "was trained on normalised ones: give --norm_pix_loss true."
            )

    # 3. Picture
    transform = evaluation_transform(processor)
    pixel_values = torch.stack([transform(image) for image in images])
    path = picture_reconstructions(model, pixel_values, processor, args.output, args.mask_ratios or None, args.seed)
    print(f"{len(images)} images in {path}")
    return path


if __name__ == "__main__":
    main()
