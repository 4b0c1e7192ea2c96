"""Keeping tokens and passwords out of what is shown."""

import os
import re


_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST = 8  # characters of a token; shorter values would take ordinary words with them
_PATTERNS = (
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),  # name and password in a URL
    (re.compile(r"(token=)[^&\s'\"]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"hf_[A-Za-z0-9]{16,}"), "***"),
)


def hide_tokens(text: str, token=None) -> str:
    """A text with *** in the place of tokens and passwords.

    Args:
        text: a message, or a part of one.
        token: the token of this call; those of the environment and what looks like one are replaced too.
    """
    for secret in (token, *map(os.environ.get, _VARIABLES)):
        if not isinstance(secret, str) or len(secret.strip()) < _SHORTEST:
            continue
        for written in (secret.strip(), repr(secret.strip())[1:-1]):  # as it is, and as an error quotes it
            text = text.replace(written, "***")
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
