"""Read a checkpoint of any format and write it in another: configuration, weights and preprocessing.

  hf-vitfm convert timm/vit_base_patch16_224.augreg_in21k outputs/for_transformers --to transformers --verify
  hf-vitfm convert google/vit-base-patch16-224 outputs/for_timm --to timm --set layer_norm_eps=1e-6

What the target cannot hold is refused by the name of the field, and nothing is written. With --verify the target's own
library opens what was written; the exit code is 1 if the two differ by more than rounding.
"""

import argparse
import sys
from pathlib import Path

from .options import add_source, parse_fields


SUMMARY = "write a checkpoint in another library's format"
_TOLERANCE = 1e-4  # of the largest output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_source(
        parser, "a field of the configuration to change, or that the weights do not tell (num_attention_heads=6)"
    )
    parser.add_argument("directory", help="folder to write")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="hf_vitfm, transformers, dinov2, timm, open_clip, openai, mae or jax",
    )
    parser.add_argument("--verify", action="store_true", help="compare both libraries on the same random images")


def run(arguments: argparse.Namespace) -> int:
    """Convert; returns 1 if `--verify` finds a difference, else 0."""
    from ..conversion.describe import describe
    from ..conversion.export import find_writers, written_formats
    from ..conversion.formats import OURS
    from ..conversion.publish import check_directory
    from ..conversion.verify import verify
    from ..models.modeling_clip import CLIPModel
    from ..models.modeling_clip_towers import CLIPTextPreTrainedModel
    from ..models.modeling_vit import ViTForImageClassification, ViTModel

    # What can be known to go wrong is said before anything is fetched, and then before the weights are read.
    if arguments.to not in (OURS, *written_formats()):
        known = ", ".join([*written_formats(), OURS])
        raise ValueError(f"`--to` must be one of {known}; got {arguments.to!r}.")
    check_directory(arguments.directory)
    where = {"revision": arguments.revision, "subfolder": arguments.subfolder}
    fields = parse_fields(arguments.fields)
    description = describe(arguments.source, arguments.source_format, fields, **where)
    own = {"source_format": arguments.source_format} if arguments.source_format else {}
    model_class = type(description.model)
    if arguments.to != OURS:
        find_writers(arguments.to, model_class.config_class.model_type, model_class.__name__)
    if model_class is ViTForImageClassification and not description.model.config.num_labels:
        model_class = ViTModel  # what a classifier without classes gives differs between libraries
    model = model_class.from_pretrained(arguments.source, **own, **fields, **where)
    parts = _preprocessing(arguments, where, isinstance(model, CLIPModel | CLIPTextPreTrainedModel))
    before = _files(arguments.directory)
    _write(model, parts, arguments)
    print(f"{type(model).__name__} of {description.found.format.name} -> {arguments.to} in {arguments.directory}")
    for path, stamp in _files(arguments.directory).items():
        if before.get(path) != stamp:
            print(f"  {path} ({path.stat().st_size:,} bytes)")
    if not arguments.verify:
        return 0
    found = verify(model, arguments.directory, arguments.to)
    print(f"largest difference to {found.library}: {found.largest:.2e} (outputs up to {found.scale:.3g})")
    return 1 if not found.largest <= _TOLERANCE * found.scale else 0


def _write(model, parts: list, arguments: argparse.Namespace) -> None:
    from ..conversion.export import export_checkpoint, warn_of_no_numbers
    from ..conversion.formats import OURS
    from ..conversion.publish import staged

    if arguments.to != OURS:
        export_checkpoint(model, arguments.directory, arguments.to, _processor(parts))
        return
    warn_of_no_numbers(model)
    with staged(arguments.directory) as folder:
        for part in (model, *parts):
            part.save_pretrained(folder)


def _files(directory: str) -> dict[Path, tuple]:
    """The files of a folder, each with what changes when it is written anew."""
    paths = sorted(path for path in Path(directory).rglob("*") if path.is_file())
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def _preprocessing(arguments: argparse.Namespace, where: dict, has_text: bool) -> list:
    """The image processor and the tokenizer, those of them that there are; says which are not."""
    from ..conversion import load_image_processor, load_tokenizer

    parts = []
    loaders = {"image processor": load_image_processor, **({"tokenizer": load_tokenizer} if has_text else {})}
    for name, load in loaders.items():
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
