"""Names as the Hub's metadata wants them."""

import re
from typing import Any


def is_hub_id(value: Any) -> bool:
    """Whether this is an owner, a slash and a name."""
    return isinstance(value, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", value) is not None


def as_slug(name: str) -> str:
    """A name in lower case, with dashes for what is no letter, digit or dot."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "unnamed"


def license_fields(name: str | None) -> dict:
    """The metadata of a licence; one that cannot be an identifier of the Hub's is "other" with a name."""
    if not name:
        return {}
    if re.fullmatch(r"[a-z0-9.-]+", name.lower()):
        return {"license": name.lower()}
    return {"license": "other", "license_name": as_slug(name)}
