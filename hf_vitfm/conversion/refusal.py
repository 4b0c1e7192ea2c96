"""Refusing to write what a foreign format cannot hold."""

from collections.abc import Iterable, Mapping
from typing import Any


OWN_FORMAT = "Save the model with `save_pretrained`, in this library's own format."
HELD = 'open_clip\'s format can hold it in a whole `CLIPModel` (`format="open_clip"`).'


def refuse(config: Any, required: Mapping[str, Any], library: str, place: str = "", held: Iterable[str] = ()) -> None:
    """Refuse a configuration that differs from what a format can hold.

    Args:
        config: one of our configurations.
        required: the one value that the format holds, by the field's name.
        library: whose format it is, for the message, such as "transformers' CLIP".
        place: the part of the whole configuration, such as "vision_config"; "" for the whole.
        held: fields that open_clip's format can hold instead.

    Raises:
        ValueError: at the first field that differs; names it, and a format that can hold it.
    """
    place = f" in `{place}`" if place else ""
    for name, value in required.items():
        found = getattr(config, name)
        if found != value:
            advice = HELD if name in held else OWN_FORMAT
            raise ValueError(f"{library} cannot hold `{name}={found!r}`{place} (only {value!r}). {advice}")


def refuse_foreign_tower(config: Any, expected: type, library: str, place: str) -> None:
    """Refuse a tower of another library.

    Raises:
        ValueError: if the configuration is not of the expected class.
    """
    if not isinstance(config, expected):
        raise ValueError(f"{library} cannot hold a {type(config).__name__} as `{place}`. {OWN_FORMAT}")
