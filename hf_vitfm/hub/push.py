"""Publishing a model with all that others need to use and to judge it, in one commit."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, get_token
from huggingface_hub.utils import validate_repo_id

from .checks import check_folder, check_tree
from .commit import owned, publish
from .staging import check_formats, stage


MAX_FILE_SIZE = 5 * 10**9


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
            (`RefusedFilesError`). Nothing was sent.
        PushError: an OSError, if the Hub did not take it. It says whether anything was published.
    """
    validate_repo_id(repo_id)
    check_formats(formats, remote_code)
    private = private is not False  # transformers' own `push_to_hub` passes None for "not told"
    if not dry_run:
        repo_id = owned(repo_id, token)
    with tempfile.TemporaryDirectory(prefix="push-") as folder:
        staged = stage(
            model_or_directory,
            folder,
            processing_class=processing_class,
            formats=formats,
            remote_code=remote_code,
            repo_id=repo_id,
        )
        tokens = [secret for secret in (token, get_token()) if isinstance(secret, str)]
        if staged.source is not None:
            check_folder(staged.source, tokens)
        check_tree(staged.directory, max_file_size, tokens)
        if dry_run:
            card = Path(folder, "README.md").read_text(encoding="utf-8")
            return PushPlan(repo_id, private, staged.files, staged.left_out, card)
        message = commit_message or "Upload model"
        return publish(staged.directory, repo_id, private=private, revision=revision, message=message, token=token)
