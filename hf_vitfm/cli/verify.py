"""Measure a published model again, and say whether the numbers on its card hold.

SOURCE is a folder, a Hub id, or a checkpoint that ships (emoji-clip, fashion-mae, fashion-vit). Compared with its run.json
are the weight files, the evaluation data, the card, all_results.json, and every number by a new evaluation. No code of
the repository is run. The exit code is 0 if all matches, 1 if something differs, 2 if something could not be checked.
"""

import argparse
from collections.abc import Iterable


SUMMARY = "measure a published model again: matches, differs, or cannot and why"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("source", help="folder, Hub id or emoji-clip, fashion-mae, fashion-vit")
    parser.add_argument("--data", metavar="PATH", help="the evaluation data, where run.json names none to fetch")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; returns 0 for matches, 1 for differs, 2 for cannot."""
    from ..hub.verify import CANNOT, DIFFERS, MATCHES, verify

    found = verify(arguments.source, arguments.data, arguments.revision)
    width = max((len(check.name) for check in found.metrics), default=0)
    lines = [
        *(f"ok       {line}" for line in found.confirmed),
        *(f"note     {line}" for line in found.notes),
        *(f"differs  {line}" for line in found.differences),
        *(f"cannot   {line}" for line in found.unchecked),
        *(_line(check, width) for check in found.metrics),
        f"{found.source}: {found.verdict}",
    ]
    print("\n".join(_printable(lines)))
    return {MATCHES: 0, DIFFERS: 1, CANNOT: 2}[found.verdict]


def _printable(lines: Iterable[str]) -> list[str]:
    """Lines without control characters, which a repository's files may hold."""
    return ["".join(letter if letter.isprintable() else "?" for letter in line) for line in lines]


def _line(check, width: int) -> str:
    value = "none" if check.found is None else f"{check.found:.6g}"
    return f"  {check.name:<{width}}  recorded {check.recorded:.6g}, found {value}, within {check.tolerance:.2g}"
