"""Whether the numbers on a card are those of the results files beside it."""

import re
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard

from ..cards.model_card import MARKER, create_model_card


_RESULTS = "Results"  # the section with the numbers; tables elsewhere may be somebody's own
_FILES = ("config.json", "preprocessor_config.json", "all_results.json", "run.json")


def compare_card(directory: Path) -> tuple[list[str], list[str], list[str]]:
    """Compare README.md with the card that its files make: its tables, row by row, and the metadata's results.

    Text may differ, as between two versions of this library.

    Args:
        directory: with README.md and the files that `create_model_card` reads.

    Returns:
        Differences; results on the card that the files do not give, so that nothing says whether they hold; and remarks.

    Raises:
        Exception: of any kind, if the files make no card, or README.md has none to compare.
    """
    text = (directory / "README.md").read_text(encoding="utf-8", errors="replace")
    with tempfile.TemporaryDirectory() as folder:
        for name in _FILES:
            if (directory / name).is_file():
                shutil.copyfile(directory / name, Path(folder) / name)
        expected = create_model_card(folder).read_text(encoding="utf-8")
    differences, unknown, missing = [], [], 0
    for what, found, wanted in (
        ("table", _tables(text), _tables(expected)),
        ("metadata", _results(text), _results(expected)),
    ):
        missing += len(wanted.keys() - found.keys())
        differences += [
            f"README.md, {what}: {' / '.join(filter(None, key))} is {found[key]}; the files say {wanted[key]}"
            for key in wanted.keys() & found.keys()
            if found[key] != wanted[key]
        ]
        unknown += [
            f"README.md, {what}: {' / '.join(filter(None, key))} is {found[key]}; the files give no such number"
            for key in found.keys() - wanted.keys()
            if what == "metadata" or (key[0] == _RESULTS and any(character.isdigit() for character in found[key]))
        ]
    remarks = [f"README.md lacks {missing} numbers of the results files"] if missing else []
    if MARKER not in text:
        remarks.append("README.md was edited by hand")
    return sorted(differences), sorted(unknown), remarks


def _tables(text: str) -> dict[tuple[str, ...], str]:
    """The other cells of each row of a table, by section and first cell."""
    rows, section = {}, ""
    for line in text.splitlines():
        if line.startswith("#"):
            section = line.strip("# ")
        elif line.startswith("| ") and not line.startswith("| ---"):
            first, *others = (cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|")))
            rows.setdefault((section, first), " | ".join(others))
    return rows


def _results(text: str) -> dict[tuple[str, ...], float]:
    """The values of the metadata's results, by task, data set and metric."""
    if not text.startswith("---"):
        return {}
    results = ModelCard(text, ignore_metadata_errors=True).data.eval_results or []
    return {(each.task_type, each.dataset_name, each.metric_type): each.metric_value for each in results}
