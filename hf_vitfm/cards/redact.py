"""Take private paths and secrets out of the values that a card shows."""

import re
import shlex
from typing import Any


HIDDEN = "***"

# An absolute path, or one from a home folder or from "..". Nothing that belongs to a word, a relative path or a URL may
# stand before it; a colon may ("data:/mnt/x"), unless two slashes follow.
_ROOT = r"(?:~[\w.-]*|\.\.|\$\{?HOME\}?)?/(?!/)"
_WINDOWS_ROOT = r"(?:[A-Za-z]:[\\/](?!/)|\\\\|%\w+%[\\/])"
_REST = r"(?:\\.|[^\s'\"`,;()\[\]{}<>|\\]|\\)+"
_PATHS = re.compile(rf"(?<!\w){_WINDOWS_ROOT}{_REST}|(?<![\w./~-]){_ROOT}{_REST}|(?<![\w./~:-])/{{2,}}{_REST}")
_WHOLE_PATH = re.compile(rf"(?:{_WINDOWS_ROOT}|{_ROOT}|//).+", re.DOTALL)
_SECRET_NAME = re.compile(r"(?:^|_)(?:token|password|passwd|secret|api_?key|access_key|credentials?)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")


def redact(value: Any) -> Any:
    """Copy a JSON value with its strings made fit for publication.

    An absolute path, or one from a home folder or from "..", is reduced to its last component; Hub tokens and the login
    of a URL are hidden; entries of dictionaries that are named like a secret and hold text are left out.

    Args:
        value: a string, number, None, or a list or dictionary of such.

    Returns:
        A value of the same structure.
    """
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items() if not (_is_secret(key) and isinstance(item, str))}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return _redact_text(value) if isinstance(value, str) else value


def redact_command(command: str) -> str:
    """Redact a shell command word by word, so that a quoted path may hold spaces.

    Args:
        command: as typed in a POSIX shell. One that cannot be split into words is redacted as plain text.

    Returns:
        The command with short paths and without secrets, on one line.
    """
    try:
        words = shlex.split(command) if "\\" not in command else None
    except ValueError:
        words = None
    if words is None:
        return _redact_text(command)
    result, hide_next = [], False
    for word in words:
        option, equals, text = word.partition("=") if "=" in word else ("", "", word)
        name = option or word
        if hide_next or (equals and _is_secret(name)):
            text = HIDDEN
        hide_next = not equals and word.startswith("-") and _is_secret(word)
        result.append(option + equals + _redact_text(text))
    return " ".join(word if re.fullmatch(r"[\w@%+=:,./*-]+", word) else shlex.quote(word) for word in result)


def _is_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(str(name).lstrip("-").replace("-", "_")))


def _redact_text(text: str) -> str:
    text = _URL_LOGIN.sub("", _SECRET_VALUE.sub(HIDDEN, text)).replace("file://", "")
    if _WHOLE_PATH.fullmatch(text.strip()):
        return _last_component(text)
    return _PATHS.sub(lambda match: _last_component(match[0]), text)


def _last_component(path: str) -> str:
    parts = [part.strip() for part in re.split(r"[\\/]+", path) if part.strip()]
    return parts[-1] if parts else "/"
