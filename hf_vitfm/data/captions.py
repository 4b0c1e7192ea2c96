"""What a caption is: text that says something, one or several per image."""

import reprlib
from typing import Any


def is_text(value: Any) -> bool:
    """Whether a value is a string that can be stored: JSON can hold halves of characters, which are none."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_captions(value: Any) -> list[str]:
    """The captions of an image.

    Args:
        value: a string, or a list of strings.

    Returns:
        At least one caption.

    Raises:
        ValueError: if there is none, or one of them is empty or no text; the message gives the reason.
    """
    captions = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
    if not captions:
        raise ValueError(f"there is none, got {value!r}")
    for caption in captions:
        if not is_text(caption):
            raise ValueError(f"it must be text, got {reprlib.repr(caption)} ({type(caption).__name__})")
        if not caption.strip():
            raise ValueError(f"it is empty, got {reprlib.repr(caption)}")
    return captions
