"""Options that several commands have."""

import argparse
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


def find_device(name: str):
    """The device of `--device`; auto takes what is fastest.

    Raises:
        ValueError: if it cannot be used.
    """
    import torch

    if name != "auto":
        try:
            return torch.zeros(0, device=name).device
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
