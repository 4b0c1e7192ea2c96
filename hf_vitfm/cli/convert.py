"""Read a checkpoint of any format and write it in another: configuration, weights and preprocessing.

  hf-vitfm convert google/vit-base-patch16-224 outputs/vit --to hf_vitfm
  hf-vitfm convert outputs/vit outputs/for_timm --to timm --verify

What the target cannot hold is refused by the name of the field, and nothing is written. With --verify the target's own
library opens what was written; the exit code is 1 if the two differ by more than rounding.
"""

import argparse
import sys


SUMMARY = "write a checkpoint in another library's format"
_TOLERANCE = 1e-4  # of the largest output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("source", help="Hub id, folder or weight file")
    parser.add_argument("directory", help="folder to write")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="hf_vitfm, transformers, timm, open_clip, ...")
    parser.add_argument("--verify", action="store_true", help="compare both libraries on the same random images")
    parser.add_argument("--source-format", help="the format to read, where the source has several")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--subfolder", default="", help="folder inside the source")


def run(arguments: argparse.Namespace) -> int:
    """Convert; returns 1 if `--verify` finds a difference, else 0."""
    from ..conversion import export_checkpoint
    from ..conversion.describe import describe
    from ..conversion.formats import OURS
    from ..conversion.verify import verify

    where = {"revision": arguments.revision, "subfolder": arguments.subfolder}
    description = describe(arguments.source, arguments.source_format, **where)
    own = {"source_format": arguments.source_format} if arguments.source_format else {}
    model = type(description.model).from_pretrained(arguments.source, **own, **where)
    parts = _preprocessing(arguments, where)
    if arguments.to == OURS:
        model.save_pretrained(arguments.directory)
        for part in parts:
            part.save_pretrained(arguments.directory)
    else:
        export_checkpoint(model, arguments.directory, arguments.to, _processor(parts))
    print(f"{type(model).__name__} of {description.found.format.name} -> {arguments.to} in {arguments.directory}")
    if not arguments.verify:
        return 0
    found = verify(model, arguments.directory, arguments.to)
    print(f"largest difference to {found.library}: {found.largest:.2e} (outputs up to {found.scale:.3g})")
    return 1 if not found.largest <= _TOLERANCE * found.scale else 0


def _preprocessing(arguments: argparse.Namespace, where: dict) -> list:
    """The image processor and the tokenizer, those of them that there are; says which are not."""
    from ..conversion import load_image_processor, load_tokenizer

    parts = []
    for name, load in (("image processor", load_image_processor), ("tokenizer", load_tokenizer)):
        try:
            parts.append(load(arguments.source, source_format=arguments.source_format, **where))
        except (OSError, ValueError) as error:
            print(f"no {name}: {str(error).partition('. ')[0]}", file=sys.stderr)
    return parts


def _processor(parts: list):
    """What `export_checkpoint` takes: both as one processor, or the only one."""
    from transformers import CLIPProcessor

    if len(parts) == 2:
        return CLIPProcessor(image_processor=parts[0], tokenizer=parts[1])
    return parts[0] if parts else None
