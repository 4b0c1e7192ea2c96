"""Values as a model card shows them."""

import json
import re
from typing import Any


def as_text(value: Any) -> str:
    """One line of Markdown that shows the value as it is, in a table too."""
    # An underscore inside a word is no markup.
    return re.sub(r"([\\`*\[\]<>|]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(value).split()))


def as_code(value: Any) -> str:
    """One line of Markdown in the style of code."""
    text = " ".join(str(value).split()).replace("`", "'")
    return f"`{text}`".replace("|", r"\|")


def as_table(header: tuple, rows: list[tuple]) -> str:
    """A Markdown table; every row has as many entries as the header."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def as_percent(share: float) -> str:
    """A fraction in percent."""
    return f"{100 * share:.1f} %"


def as_number(value: Any) -> str:
    """A number or JSON value, floats without needless digits."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value) if not isinstance(value, str) else value


def as_count(number: int) -> str:
    """A count of things, millions in words."""
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,}"


def as_pair(size: Any) -> tuple[int, int]:
    """(height, width) of a size that may be one number."""
    return (size, size) if isinstance(size, int) else tuple(size)


def as_size(value: Any) -> str:
    """Sizes as configurations and image processors write them: 32, [32, 48], {"height": 32}, {"shortest_edge": 256}."""
    if isinstance(value, dict):
        if {"height", "width"} <= value.keys():
            value = [value["height"], value["width"]]
        else:
            return ", ".join(f"{key.replace('_', ' ')} {edge}" for key, edge in value.items())
    return "x".join(map(str, as_pair(value)))


def as_duration(seconds: float) -> str:
    """Hours, minutes and seconds in words."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (seconds, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "under 1 s"
