"""Sending a folder to a repository in one commit, or not at all."""

import logging
import re
import time
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..conversion.hide_tokens import hide_tokens
from .contents import is_outdated


logger = logging.getLogger(__name__)

TRIES = 4
_LONGEST_WAIT_SECONDS = 60
_PASSING = {408, 409, 412, 429, 500, 502, 503, 504}
_REMEDIES = {
    401: "Log in with `hf auth login`, or give a `token` that may write.",
    403: "The token may not write there: take one of the repository's owner with the right to write.",
}


class PushError(OSError):
    """Nothing was published, or it is not known; the message says which, and what to do."""


class _Commit:
    """One push: what is the same in all its tries, and what the last one saw."""

    def __init__(self, directory: Path, repo_id: str, private: bool, revision: str | None, message: str, token):
        self.directory, self.repo_id, self.private = directory, repo_id, private
        self.revision, self.message, self.token = revision, message, token
        self.api = HfApi(token=token)
        self.head: str | None = None  # the commit that the last try built on

    def try_once(self) -> CommitInfo:
        info = self._repository()
        if self.private and not info.private and self.head is None:
            logger.warning(f"{self.repo_id} is public, and stays so: `private` is for a repository that is made anew.")
        self.head = info.sha
        files = sorted(path for path in self.directory.rglob("*") if path.is_file())
        new = {path.relative_to(self.directory).as_posix(): path for path in files}
        there = [sibling.rfilename for sibling in info.siblings or []]
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in new.items()]
        operations += [CommitOperationDelete(path_in_repo=name) for name in there if is_outdated(name, set(new))]
        # Large files go to the Hub's storage first, where a second try finds them; only then is the commit made.
        return self.api.create_commit(
            self.repo_id, operations, commit_message=self.message, revision=self.revision, parent_commit=self.head
        )

    def _repository(self):
        try:
            return self.api.model_info(self.repo_id, revision=self.revision)
        except RevisionNotFoundError:
            self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
        except RepositoryNotFoundError:
            self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            if self.revision not in (None, "main"):
                self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
        return self.api.model_info(self.repo_id, revision=self.revision)

    def outcome(self, error: Exception) -> str:
        """What is known of the repository after a failure."""
        branch = self.revision or "main"
        if self.head is None or "/commit/" not in _address(error):
            return f"Nothing was published in {self.repo_id}."
        try:
            is_same = self.api.model_info(self.repo_id, revision=self.revision).sha == self.head
        except (HTTPError, OSError):
            return f"Whether {self.repo_id} has the commit could not be asked: look at its branch {branch!r}."
        if is_same:
            return f"Nothing was published in {self.repo_id}."
        return f"{self.repo_id} has a commit since, by this push or by somebody else: look at its branch {branch!r}."


def publish(
    directory: Path, repo_id: str, *, private: bool, revision: str | None, message: str, token=None
) -> CommitInfo:
    """Bring a folder's files into a model repository, which is made if need be, by a single commit.

    Files of a model that was there before are removed where the new one has none of their name; all others stay. A
    passing failure (429, 5xx, a lost connection) is tried again, and so is a commit that somebody else came before: on
    theirs. What was uploaded is never sent twice.

    Args:
        directory: what to publish.
        repo_id: owner and name.
        private: of a repository that is made.
        revision: a branch, made if need be; None for "main".
        message: of the commit.
        token: None for the one of this machine.

    Returns:
        The commit; the last one there is if the repository held all of this already.

    Raises:
        PushError: if it could not be done.
    """
    commit = _Commit(directory, repo_id, private, revision, message, token)
    for attempt in range(1, TRIES + 1):
        try:
            return commit.try_once()
        except (HTTPError, OSError, RuntimeError, ValueError) as failure:
            error = _unwrapped(failure)
            if attempt < TRIES and _may_pass(error):
                seconds = _wait_seconds(error, attempt)
                logger.warning(f"{_words(error, token)} Trying again in {seconds} s.")
                time.sleep(seconds)
                continue
            # Without its cause, whose text may hold signed addresses.
            raise PushError(_explain(error, commit)) from None
    raise AssertionError("unreachable")


def owned(repo_id: str, token=None) -> str:
    """The name with its owner, who is asked for where it has none.

    Raises:
        PushError: if the Hub does not say.
    """
    if "/" in repo_id:
        return repo_id
    try:
        return f"{HfApi(token=token).whoami()['name']}/{repo_id}"
    except (HTTPError, OSError, ValueError) as error:
        remedy = "Log in with `hf auth login`, give a `token`, or name the owner: 'owner/name'."
        raise PushError(f"Whose {repo_id!r} is, is not known: {_words(error, token)} {remedy}") from None


def _unwrapped(error: Exception) -> Exception:
    """What went wrong: of an upload, the client's own error says no more than the name of the file."""
    return error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    return isinstance(error, HTTPError | ConnectionError | TimeoutError)


def _wait_seconds(error: Exception, attempt: int) -> int:
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return min(int(asked) if asked.isdecimal() else 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS)


def _explain(error: Exception, commit: _Commit) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError):
        status = 401
    if status in (409, 412):
        remedy = "Somebody else changes it at the same time. Push again when they are done."
    elif _may_pass(error):
        remedy = "Push again later: what was uploaded is not sent again."
    elif isinstance(error, RevisionNotFoundError):
        remedy = "`revision` must be a branch; a tag or a commit cannot be written to."
    else:
        remedy = _REMEDIES.get(status, "")
    return " ".join(part for part in (commit.outcome(error), _words(error, commit.token), remedy) if part)


def _words(error: Exception, token=None) -> str:
    """An error's text in one line, without secrets and without the signatures of addresses."""
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", " ".join(str(error).split()))
    text = hide_tokens(text, token).rstrip(".") or "no more is known"
    return f"{type(error).__name__}: {text}."


def _address(error: Exception) -> str:
    request = getattr(error, "_request", None) or getattr(getattr(error, "response", None), "_request", None)
    return str(request.url) if request is not None else "/commit/"
