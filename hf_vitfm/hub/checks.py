"""What is never published: secrets, paths of somebody's machine, files that are too large.

The words of a refusal name the file and the line, never the secret.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from .contents import VOCABULARIES, walk


_SECRET_FILES = re.compile(
    r"\.env(\..+)?|.+\.env|.*\.(pem|key|p12|pfx|ppk|jks|keystore)|id_(rsa|dsa|ecdsa|ed25519).*|\.netrc|\.npmrc|\.pypirc"
    r"|\.git-credentials|\.htpasswd|credentials(\..+)?|secrets?(\..+)?|token",
    re.IGNORECASE,
)
_SECRETS = {
    "a Hub token": re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{16,}"),
    "an AWS access key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "an AWS secret key": re.compile(r"aws_secret_access_key\W{1,6}[A-Za-z0-9/+]{30,}", re.IGNORECASE),
    "a private key": re.compile(r"-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY"),
    "a GitHub token": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "a Google key": re.compile(r"\bAIza[\w-]{35}"),
    "a Slack token": re.compile(r"\bxox[abeprs]-[\w-]{10,}"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a password in an address": re.compile(r"\w://[^/\s:@'\"]+:[^/\s@'\"]+@"),
}
_HOMES = (
    "home|Users|root|mnt|media|tmp|var|opt|srv|scratch|data|work|workspace|gpfs|lustre|nfs|private|Volumes|content"
)
_PATHS = (
    re.compile(rf"(?<![\w./~-])/({_HOMES})/[\w.@+-]+"),
    re.compile(r"file://\S+"),
    re.compile(r"(?<![\w./~<:(\\-])(/[\w.@+-]+){4,}"),  # three may be a name: Places365 has "/a/arena/rodeo"
)
_WINDOWS_PATH, _WINDOWS_PATH_IN_JSON = re.compile(r"\b[A-Za-z]:\\\w"), re.compile(r"\b[A-Za-z]:\\\\\w")
_TEXTS_WITH_PATHS = (".json", ".md", ".txt", ".cff")
_UNREAD = (".safetensors", ".png", ".jpg", ".jpeg", ".webp")
_SHORTEST_TOKEN = 8


class RefusedFilesError(ValueError):
    """A folder holds what must not be published."""


def check_folder(folder: Path, tokens: Sequence[str] = ()) -> None:
    """Refuse a folder with secrets anywhere in it, in files that would be left out too.

    Args:
        folder: what somebody wants to publish.
        tokens: secrets that are known, and looked for letter by letter.

    Raises:
        RefusedFilesError: naming each file and line.
    """
    problems = []
    for path, _ in walk(folder):
        if path.endswith("/"):
            continue
        if _SECRET_FILES.fullmatch(PurePosixPath(path).name):
            problems.append(f"{path} is a file of secrets by its name")
        else:
            problems += _secrets(folder / path, path, tokens)
    _refuse(problems, "Move them out of the folder, and revoke what was in them if others have seen it.")


def check_tree(folder: Path, max_file_size: int, tokens: Sequence[str] = ()) -> None:
    """Refuse what is about to be published if any of it should not be.

    Args:
        folder: exactly what would be published.
        max_file_size: bytes of the largest file that is allowed.
        tokens: secrets that are known, and looked for letter by letter.

    Raises:
        RefusedFilesError: for secrets, absolute paths in JSON and texts, and large files; naming each file and line.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    secrets, paths, large = [], [], []
    for file in files:
        name = file.relative_to(folder).as_posix()
        secrets += _secrets(file, name, tokens)
        paths += _absolute_paths(file, name)
        if file.stat().st_size > max_file_size:
            large.append(f"{name} has {file.stat().st_size:,} bytes, more than `max_file_size` ({max_file_size:,})")
    _refuse(secrets, "Remove them from these files, and revoke them if others have seen them.")
    _refuse(paths, "Write names or relative paths there; others can do nothing with a path of this machine.")
    _refuse(large, "Save the model in shards, or raise `max_file_size`.")


def _refuse(problems: list[str], remedy: str) -> None:
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise RefusedFilesError(f"Not fit to be published: {'; '.join(problems[:10])}{more}. {remedy}")


def _secrets(file: Path, name: str, tokens: Sequence[str]) -> Iterator[str]:
    known = [token for token in tokens if len(token) >= _SHORTEST_TOKEN]
    for number, line in _lines(file):
        if any(token in line for token in known):
            yield f"{name}, line {number}, holds your token"
        else:
            kinds = [kind for kind, pattern in _SECRETS.items() if pattern.search(line)]
            yield from (f"{name}, line {number}, holds what looks like {kind}" for kind in kinds[:1])


def _absolute_paths(file: Path, name: str) -> Iterator[str]:
    if file.suffix not in _TEXTS_WITH_PATHS or VOCABULARIES.fullmatch(file.name):
        return
    patterns = (*_PATHS, _WINDOWS_PATH_IN_JSON if file.suffix == ".json" else _WINDOWS_PATH)
    for number, line in _lines(file):
        found = next((match for pattern in patterns if (match := pattern.search(line))), None)
        if found:
            yield f"{name}, line {number}, holds an absolute path, {found[0]}..."


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text; the header of a weight file, which is JSON, as one line; nothing of other binaries."""
    if file.suffix == ".safetensors":
        yield 1, _header(file)
        return
    if file.suffix.lower() in _UNREAD:
        return
    with open(file, "rb") as stream:
        if b"\0" in stream.read(8192):
            return
        stream.seek(0)
        for number, line in enumerate(stream, 1):
            yield number, line.decode("utf-8", errors="replace")


def _header(file: Path) -> str:
    """What a safetensors file says of itself; its names and shapes are no secrets."""
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(size)) if size <= 10**8 else {}
        except ValueError:
            header = {}
    return json.dumps(header.get("__metadata__", {}) if isinstance(header, dict) else {})
