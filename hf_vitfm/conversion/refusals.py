"""What a foreign format cannot hold is refused by the name of the field, before anything is written."""

from collections.abc import Mapping

from ..models.configuration_base import as_pair


# Fields whose default depends on others -> the property that has it filled in.
_FILLED_IN = {"final_norm": "norm_place"}


def refuse_other(config, required: Mapping, owner: str, advice: str) -> None:
    """Refuse values that a format cannot hold.

    Args:
        config: our configuration.
        required: the only value of each field that the format can hold.
        owner: whose format it is: "transformers' DeiT".
        advice: what to do instead.

    Raises:
        ValueError: naming the first such field.
    """
    for name, value in required.items():
        found = getattr(config, _FILLED_IN.get(name, name))
        if found != value:
            raise ValueError(f"{owner} cannot hold `{name}={found!r}` (only {value!r}). {advice}")


def refuse_oblong(config, owner: str, advice: str) -> None:
    """Refuse images and patches that are not square.

    Raises:
        ValueError: naming the field.
    """
    for name in ("image_size", "patch_size"):
        height, width = as_pair(getattr(config, name))
        if height != width:
            raise ValueError(f"{owner} cannot hold `{name}={(height, width)!r}` (only squares). {advice}")
