"""What a foreign format cannot hold is refused by the name of the field, before anything is written."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..models.configuration_base import as_pair


OWN_FORMAT = "Save the model with `save_pretrained`, in this library's own format."
OPEN_CLIP = 'open_clip\'s format can hold it in a whole `CLIPModel` (`format="open_clip"`).'
# Fields whose default depends on others -> the property that has it filled in.
_FILLED_IN = {"final_norm": "norm_place"}


def refuse_other(
    config: Any, required: Mapping[str, Any], owner: str, advice: str | Mapping[str, str] = OWN_FORMAT, place: str = ""
) -> None:
    """Refuse values that a format cannot hold.

    Args:
        config: one of our configurations.
        required: the only value of each field that the format can hold.
        owner: whose format it is: "transformers' DeiT".
        advice: what to do instead; by the field's name where that differs, else to save in our own format.
        place: the part of the whole configuration, such as "vision_config"; "" for the whole.

    Raises:
        ValueError: naming the first such field.
    """
    place = f" in `{place}`" if place else ""
    for name, value in required.items():
        filled_in = _FILLED_IN.get(name, name)
        found = getattr(config, filled_in if hasattr(config, filled_in) else name)
        if found != value:
            instead = advice if isinstance(advice, str) else advice.get(name, OWN_FORMAT)
            raise ValueError(f"{owner} cannot hold `{name}={found!r}`{place} (only {value!r}). {instead}")


def open_clip_holds(fields: Iterable[str]) -> dict[str, str]:
    """The advice for fields that open_clip's format can hold."""
    return dict.fromkeys(fields, OPEN_CLIP)


def refuse_oblong(config: Any, owner: str, advice: str) -> None:
    """Refuse images and patches that are not square.

    Raises:
        ValueError: naming the field.
    """
    for name in ("image_size", "patch_size"):
        height, width = as_pair(getattr(config, name))
        if height != width:
            raise ValueError(f"{owner} cannot hold `{name}={(height, width)!r}` (only squares). {advice}")


def refuse_foreign_tower(config: Any, expected: type, owner: str, place: str) -> None:
    """Refuse a tower of another library.

    Raises:
        ValueError: if the configuration is not of the expected class.
    """
    if not isinstance(config, expected):
        raise ValueError(f"{owner} cannot hold a {type(config).__name__} as `{place}`. {OWN_FORMAT}")
