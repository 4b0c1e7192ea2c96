"""What is never published: secrets, paths of somebody's machine, files from elsewhere, files that are too large.

The words of a refusal name the file and the line, never the secret.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from .contents import VOCABULARIES, WEIGHTS, walk


_SECRET_FILES = re.compile(
    r"\.env(\..+)?|.+\.env|.*\.(pem|key|p12|pfx|ppk|jks|keystore)|id_(rsa|dsa|ecdsa|ed25519).*|\.netrc|\.npmrc|\.pypirc"
    r"|\.git-credentials|\.htpasswd|credentials(\..+)?|secrets?(\..+)?|token",
    re.IGNORECASE,
)
_VALUE = r"(?=[A-Za-z0-9_+/=-]*\d)(?=[A-Za-z0-9_+/=-]*[A-Za-z])[A-Za-z0-9_+/=-]{16,}"
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
    # Of any service: a long value with digits and letters after a name that says what it is.
    "a password or key": re.compile(
        r"(api|access|secret|private|auth)[_-]?(key|token)\b[\"']?\s{0,2}[:=\s]\s{0,2}[\"']?"
        + _VALUE
        + r"|passw(or)?d\b[\"']?\s{0,2}[:=\s]\s{0,2}[\"']?"
        + _VALUE,
        re.IGNORECASE,
    ),
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
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # which may carry texts
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_SHORTEST_TOKEN = 8


class RefusedFilesError(ValueError):
    """A folder holds what must not be published."""


def check_folder(folder: Path, tokens: Sequence[str] = ()) -> None:
    """Refuse a folder with secrets anywhere in it, in files that would be left out too, and with links out of it.

    A link may lead to weights anywhere, and from a snapshot of the Hub's cache to the files that it consists of.

    Args:
        folder: what somebody wants to publish.
        tokens: secrets that are known, and looked for letter by letter.

    Raises:
        RefusedFilesError: naming each file and line.
    """
    problems, links = [], []
    for path, reason in walk(folder):
        if path.endswith("/") or not (folder / path).is_file():
            if reason is None:
                links.append(f"{path} is no file, or a link to none")
            continue
        if reason is None and not WEIGHTS.fullmatch(path) and _leads_out(folder / path, folder):
            links.append(f"{path} is a link to a file outside of the folder")
        if _SECRET_FILES.fullmatch(PurePosixPath(path).name):
            problems.append(f"{path} is a file of secrets by its name")
        else:
            problems += _secrets(folder / path, path, tokens)
    _refuse(links, "Remove them, or put the files themselves in their place.")
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


def _leads_out(file: Path, folder: Path) -> bool:
    inside = folder.resolve()
    if inside.parent.name == "snapshots":
        inside = inside.parent.parent
    return not file.resolve().is_relative_to(inside)


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
    """Numbered lines of a text, and of the texts inside a binary file; the header of a weight file, which is JSON, as one.

    In binary files, where texts have no lines, those are counted that are long enough to hold a secret.
    """
    if file.suffix == ".safetensors":
        yield 1, _header(file)
        return
    with open(file, "rb") as stream:
        start = stream.read(8192)
        stream.seek(0)
        encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")
        if encoding == "utf-16":
            yield from enumerate(stream.read().decode(encoding, errors="replace").splitlines(), 1)
        elif b"\0" not in start:
            for number, line in enumerate(stream, 1):
                yield number, line.decode(encoding, errors="replace")
        elif file.suffix.lower() in _PICTURES:
            texts = re.findall(rb"[\x20-\x7e]{12,}", stream.read())
            yield from enumerate((text.decode("ascii") for text in texts), 1)


def _header(file: Path) -> str:
    """What a safetensors file says of itself; its names and shapes are no secrets."""
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(size)) if size <= 10**8 else {}
        except ValueError:
            header = {}
    return json.dumps(header.get("__metadata__", {}) if isinstance(header, dict) else {})
