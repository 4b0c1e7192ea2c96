"""Describe a checkpoint of any format that can be read: a Hub id, a folder or a weight file.

Reads its configuration and the shapes of its weights, not the weights. FLOPs count matrix products of one image or text
(a multiply-add as two).
"""

import argparse

from .options import add_source, parse_fields


SUMMARY = "say what a checkpoint holds, in which format, and how it is used"
_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_source(parser, "a number that the weights do not tell (num_attention_heads=6)")


def run(arguments: argparse.Namespace) -> int:
    """Print the description; returns 1 if weights are missing or have wrong shapes, else 0."""
    from ..conversion.describe import describe
    from ..conversion.read import UNTOLD
    from ..evaluation.flops import count_flops

    given = parse_fields(arguments.fields)
    if not set(given) <= set(UNTOLD):
        raise ValueError(
            f"`--set` takes {' and '.join(UNTOLD)} here; got {', '.join(sorted(set(given) - set(UNTOLD)))}."
        )
    where = {"revision": arguments.revision, "subfolder": arguments.subfolder}
    found = describe(arguments.source, arguments.source_format, given, **where)
    rows = [
        ("format", _format(found)),
        *_architecture(found.model),
        ("parameters", f"{sum(parameter.numel() for parameter in found.model.parameters()):,}"),
    ]
    for name, cost in count_flops(found.model).items():
        rows.append(
            (
                f"FLOPs, {name}",
                f"{cost.flops / 1e9:.3g} G ({cost.tokens} tokens, {cost.per_token / 1e6:.3g} M per token)",
            )
        )
    rows += [
        ("preprocessing", _preprocessing(arguments, where)),
        ("licence", found.licence or "not stated"),
        ("missing weights", _names(found.missing)),
        ("unused weights", _names(found.unused)),
    ]
    if found.mismatched:
        shapes = [f"{name} {saved}, not {built}" for name, saved, built in found.mismatched]
        rows.append(("wrong shapes", _names(shapes, separator="; ")))
    rows += [("note", note) for note in found.notes]
    if "auto_map" in found.found.candidate.config and found.found.format.name != "hf_vitfm":
        rows.append(("note", "its configuration names code of its own (`auto_map`), which is never run"))
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:<{width}}  {value}")
    return 1 if found.missing or found.mismatched else 0


def _format(description) -> str:
    candidate = description.found.candidate
    files = [file.replace("\\", "/").rpartition("/")[2] for file in candidate.weights().files]
    return f"{description.found.format.name} ({', '.join([candidate.config_file or 'no configuration', *files[:_SHOWN]])})"


def _architecture(model) -> list[tuple[str, str]]:
    """Rows on the class, and on each of its encoders."""
    config, rows = model.config, [("model", type(model).__name__)]
    parts = {
        name: getattr(config, f"{name}_config") for name in ("vision", "text") if hasattr(config, f"{name}_config")
    }
    for name, part in (parts or {"": config}).items():
        label = f"{name} layers".strip()
        rows.append((label, _sizes(part)))
        if hasattr(part, "image_size"):
            rows.append(("image size", f"{part.image_size} pixels, patches of {part.patch_size}"))
    if hasattr(config, "decoder_num_hidden_layers"):
        rows.append(("decoder layers", _sizes(config, "decoder_")))
    if type(model).__name__ == "ViTForImageClassification":
        rows.append(("classes", str(config.num_labels)))
    return rows


def _sizes(config, prefix: str = "") -> str:
    layers, width, heads, mlp = (
        getattr(config, prefix + name, "?")
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    )
    return f"{layers}, width {width}, {heads} heads, MLP {mlp}"


def _preprocessing(arguments: argparse.Namespace, where: dict) -> str:
    from ..cards.architecture import RESAMPLING
    from ..conversion import load_image_processor

    try:
        fields = load_image_processor(arguments.source, source_format=arguments.source_format, **where).to_dict()
    except (ImportError, OSError, ValueError) as error:
        return f"none ({str(error).partition('. ')[0]})"
    parts = []
    if fields.get("do_resize"):
        parts.append(
            f"resize to {_size(fields['size'])} ({RESAMPLING.get(fields.get('resample'), 'as its class does')})"
        )
    if fields.get("do_center_crop"):
        parts.append(f"centre crop of {_size(fields['crop_size'])}")
    if fields.get("do_normalize"):
        parts.append(f"mean {_numbers(fields['image_mean'])}, standard deviation {_numbers(fields['image_std'])}")
    return "; ".join(parts)


def _size(size) -> str:
    size = {name: value for name, value in dict(size).items() if value is not None}
    return f"{size['height']}x{size['width']}" if "height" in size else f"{next(iter(size.values()))} (short side)"


def _numbers(values) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _names(names: list[str], separator: str = ", ") -> str:
    if not names:
        return "none"
    more = f"{separator}... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more
