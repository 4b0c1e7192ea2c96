"""Options that several commands have."""

import argparse
import json
import os


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def count(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)


def add_source(parser: argparse.ArgumentParser, fields_help: str) -> None:
    """Add the options that say what to read: the checkpoint, its place, its format and what its files leave open.

    Args:
        parser: to add to.
        fields_help: what `--set` is for.
    """
    parser.add_argument("source", help="Hub id, folder or weight file")
    parser.add_argument("--source-format", help="the format to read, where the source has several")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="fields", help=fields_help)
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--subfolder", default="", help="folder inside the source")


def parse_fields(texts: list[str]) -> dict[str, object]:
    """The values of `--set FIELD=VALUE`, by field; what is no JSON is text.

    Raises:
        ValueError: for one without an equals sign.
    """
    return dict(map(_field, texts))


def _field(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"`--set` takes FIELD=VALUE, such as layer_norm_eps=1e-6; got {text!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def find_device(name: str):
    """The device of `--device`; auto takes what is fastest.

    Raises:
        ValueError: if it cannot be used.
    """
    import torch

    if name != "auto":
        try:
            probe = torch.zeros(1, device=name)
            probe.cpu()  # "meta" holds no values
            return probe.device
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"`--device` {name!r} cannot be used ({reason}); give auto, cpu, cuda or mps.") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def count_workers(given: int | None, num_files: int, batch_size: int) -> int:
    """Processes that pay: one batch is decoded here."""
    batches = -(-num_files // batch_size)
    if given is not None:
        return min(given, batches)
    return min(4, os.cpu_count() or 1, batches) if batches > 1 else 0
