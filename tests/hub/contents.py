"""What the local Hub holds, in memory: users, and model repositories whose commits are snapshots of all files."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import cached_property
from pathlib import PurePosixPath

import yaml


LARGE_BYTES = 10 * 2**20  # from here on a file of any kind goes to the storage of large files
LARGE_SUFFIXES = ("bin", "h5", "msgpack", "npz", "onnx", "pt", "pth", "safetensors", "zip")
GIT_ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)


class HubError(Exception):
    """A request that is refused, in the words and headers that the client looks for."""

    def __init__(self, status: int, message: str, code: str | None = None, **body):
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **body}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass(frozen=True)
class File:
    """One file of a commit; a large one is stored as git LFS stores it, under its sha256."""

    content: bytes
    is_large: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        ).encode()

    @cached_property
    def oid(self) -> str:
        """The sha1 that git gives to what it stores."""
        stored = self.pointer if self.is_large else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored, usedforsecurity=False).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.oid

    def large_info(self, name_of_sha: str) -> dict:
        """What is said of a large file; the API has two names for its sha256."""
        if not self.is_large:
            return {}
        return {"lfs": {name_of_sha: self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}}


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: "Commit | None"
    title: str
    description: str
    author: str
    date: str
    files: dict[str, File]

    def file(self, path: str) -> File:
        if path not in self.files:
            error = HubError(404, "Entry not found", "EntryNotFound")
            error.headers["X-Repo-Commit"] = self.sha  # without it the client does not remember that there is no file
            raise error
        return self.files[path]

    def is_large(self, path: str, size: int, sample: bytes) -> bool:
        """Whether a new file belongs to the storage of large files."""
        attributes = self.files.get(".gitattributes", File(b"")).content.decode().splitlines()
        patterns = [line.split()[0] for line in attributes if "filter=lfs" in line]
        return size >= LARGE_BYTES or b"\0" in sample or any(fnmatch(PurePosixPath(path).name, p) for p in patterns)

    def card_data(self) -> dict:
        """The metadata at the top of the model card."""
        return card_data(self.files.get("README.md", File(b"")).content.decode())


def card_data(card: str) -> dict:
    """The metadata of a model card, {} if it has none.

    Raises:
        yaml.YAMLError: if they are no YAML.
    """
    if not card.startswith("---\n") or "\n---" not in card[3:]:
        return {}
    return yaml.safe_load(card[4 : card.index("\n---", 3)]) or {}


@dataclass
class Repository:
    """A model repository; `name` is owner/name, `readers` are the users who may read it where it is gated."""

    name: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.name.partition("/")[0]

    @property
    def files(self) -> dict[str, bytes]:
        """What main holds now."""
        return {path: file.content for path, file in self.branches["main"].files.items()}

    def find(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a full sha."""
        for known in (self.branches, self.tags, self.commits):
            if revision in known:
                return known[revision]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(self, files: dict[str, File], title: str, description: str = "", branch: str = "main") -> Commit:
        """Put a snapshot on a branch: from one moment to the next, all of it."""
        parent = self.branches.get(branch)
        listing = "\n".join(f"{path} {file.oid}" for path, file in sorted(files.items()))
        text = f"{self.name} {len(self.commits)} {parent and parent.sha} {title}\n{listing}"
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        commit = Commit(sha, parent, title, description, self.owner, date, files)
        self.commits[sha] = self.branches[branch] = commit
        return commit


@dataclass
class Contents:
    """All that the Hub knows.

    Attributes:
        users: names by token.
        repositories: by name.
        moved: new names of repositories by their old ones.
        large: contents of large files by sha256.
        part_bytes: large files that are longer are uploaded in parts of this size.
    """

    users: dict[str, str] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    part_bytes: int = 2**20

    def create(self, name: str, private: bool = False, gated: bool = False) -> Repository:
        """A new repository, with the one file that the Hub puts into it."""
        repository = self.repositories[name] = Repository(name, private, gated)
        repository.commit({".gitattributes": File(GIT_ATTRIBUTES.encode())}, "initial commit")
        return repository

    def move(self, name: str, new_name: str) -> None:
        repository = self.repositories[new_name] = self.repositories.pop(name)
        repository.name = new_name
        self.moved[name] = new_name
