"""Publishing a model with all that others need to use and to judge it, in one commit."""

import errno
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .checks import check_tree
from .commit import owned, publish
from .staging import Staged, check_formats, stage
from .weights import note_other_weights


MAX_FILE_SIZE = 5 * 10**9
# Arguments of transformers' `push_to_hub` of a model, and what does the same.
_ELSEWHERE = {
    "create_pr": "Push to a branch (`revision`), and open the request on the Hub.",
    "tags": "Write them in the metadata of the card, README.md.",
    "max_shard_size": "Save the model with `save_pretrained(folder, max_shard_size=...)`, and push the folder.",
    "commit_description": "Put it into `commit_message`.",
}


@dataclass(frozen=True)
class PushPlan:
    """What a push would do.

    Attributes:
        repo_id: where to.
        private: whether a repository that is made is private.
        files: bytes by path in the repository.
        left_out: files and folders of the source that stay behind, each with the reason.
        card: the text of README.md.
    """

    repo_id: str
    private: bool
    files: dict[str, int]
    left_out: dict[str, str]
    card: str

    def __str__(self) -> str:
        visibility = "private" if self.private else "public"
        lines = [f"{self.repo_id} (if it is new: {visibility}) would get {len(self.files)} files in one commit:"]
        lines += [f"  {path} ({size:,} bytes)" for path, size in self.files.items()]
        if self.left_out:
            lines += ["left out:", *(f"  {path} ({reason})" for path, reason in self.left_out.items())]
        return "\n".join([*lines, "the card, README.md:", "", self.card.rstrip("\n")])


def push_to_hub(  # noqa: PLR0913
    model_or_directory,
    repo_id: str,
    processing_class=None,
    private: bool | None = True,
    formats: Sequence[str] = ("hf_vitfm",),
    remote_code: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
    *,
    dry_run: bool = False,
    max_file_size: int = MAX_FILE_SIZE,
) -> CommitInfo | PushPlan:
    """Publish a model with its preprocessing, card, figures and results, all in one commit.

    All is written and checked on this machine before anything is sent. Published are the files of a model, its card and
    its results; what else a run leaves (checkpoints, states of the optimizer, `training_args.bin`) stays here, and so do
    files that belong to no model. Secrets anywhere in the folder, absolute paths in JSON and texts, and files over a
    limit are refused by file and line. A card that somebody wrote or edited is published as it is; otherwise it is
    rendered from the files of the run, or says what the model tells.

    Args:
        model_or_directory: a model, or the folder of a finished run or of a saved model. A model that is as it was
            loaded from a folder is published with all that this folder holds.
        repo_id: owner and name; without an owner the one of the token. It is made if need be.
        processing_class: image processor, tokenizer, or processor of both. Default: what the folder has.
        private: whether a repository that is made is private; one that exists stays as it is.
        formats: "hf_vitfm", or what `export_checkpoint` writes. The first is at the root, where `from_pretrained` and
            `pipeline` look; the others lie in folders of their names.
        remote_code: publish the modelling files too, for receivers without this library.
        revision: the branch to write to, made if need be. Default: "main".
        commit_message: default "Upload model".
        token: default: the one that this machine is logged in with.
        dry_run: say what would be published, and send nothing; needs no token.
        max_file_size: bytes of the largest file that may be published.

    Returns:
        The commit; with `dry_run` a `PushPlan`, whose text lists the files, their sizes and the card.

    Raises:
        ValueError: if a format cannot hold the model (naming the field), or something must not be published
            (`RefusedFilesError`), or weights are damaged, lack something or hold NaN. Nothing was sent.
        PushError: an OSError, if the Hub did not take it. It says whether anything was published.
    """
    _check_names(repo_id, token)
    check_formats(formats, remote_code)
    private = private is not False  # transformers' own `push_to_hub` passes None for "not told"
    if not dry_run:
        repo_id = owned(repo_id, token)
    tokens = [secret for secret in (token, get_token()) if isinstance(secret, str)]
    with tempfile.TemporaryDirectory(prefix="push-") as folder:
        staged = _staged(
            model_or_directory,
            folder,
            processing_class=processing_class,
            formats=formats,
            remote_code=remote_code,
            repo_id=repo_id,
            tokens=tokens,
        )
        check_tree(staged.directory, max_file_size, tokens)
        if staged.source is not None:
            note_other_weights(staged.source)
        if dry_run:
            card = Path(folder, "README.md").read_text(encoding="utf-8")
            return PushPlan(repo_id, private, staged.files, staged.left_out, card)
        message = commit_message or "Upload model"
        return publish(staged.directory, repo_id, private=private, revision=revision, message=message, token=token)


def push_model(model, repo_id: str, **options) -> CommitInfo | PushPlan:
    """`push_to_hub` in the place of transformers' method of a model, of which some arguments have no place here.

    Args:
        model: to publish.
        repo_id: owner and name.
        **options: of `push_to_hub`; those that only transformers' method has, where they are as by default.

    Raises:
        TypeError: for one that asks for something, naming the way to it.
    """
    for name, remedy in _ELSEWHERE.items():
        value = options.pop(name, None)
        if value and (name, value) != ("max_shard_size", "50GB"):
            raise TypeError(f"`{name}` of transformers' `push_to_hub` is not taken here; got {value!r}. {remedy}")
    return push_to_hub(model, repo_id, **options)


def _check_names(repo_id: str, token) -> None:
    """Refuse a name that no repository has, and a token that no header takes, without showing it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(
            f"`repo_id` must be a repo id of the Hub, owner/name: at most 96 letters, digits, '-', '_' and '.', neither "
            f"'-' nor '.' at the start, at the end or doubled; got {repo_id!r}."
        ) from None
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        raise ValueError(
            f"`token` must be letters, digits and signs without spaces and line breaks; got {len(token)} characters that "
            "are not all of these. Pass it as the Hub shows it (`.strip()` what was read from a file)."
        )


def _staged(source, directory: str, **options) -> Staged:
    try:
        return stage(source, directory, **options)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            f"No space left in {tempfile.gettempdir()} for the files to publish; nothing was sent. Make room there, or set "
            "TMPDIR to a folder on another disk",
        ) from error
