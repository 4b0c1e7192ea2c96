"""A Trainer that publishes what `hf_vitfm.push_to_hub` does: the same files and card, private unless told otherwise."""

import importlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..conversion.hide_tokens import hide_tokens
from ..models.modeling_base import VitfmPreTrainedModel
from .checkpoints import read_step
from .resumable import ResumableTrainer


logger = logging.getLogger(__name__)

_NEVER_SENT = "training_args.bin"  # it holds the token and paths of this machine, and no resume reads it


class SharingTrainer(ResumableTrainer):
    """transformers' Trainer whose pushes give the card and the files that `hf_vitfm.push_to_hub` gives.

    - A repository that is made is private, unless `args.hub_private_repo` is False.
    - A push is one commit of the model, its preprocessing, card, figures and results; states of the training stay here.
    - `args.hub_strategy`: "every_save" publishes the model of each checkpoint, in the background; "checkpoint" and
      "all_checkpoints" also the checkpoint itself, from which a run can go on, in a folder of its own. If one of these
      fails, it is logged and the training goes on.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, private unless told otherwise; one that exists stays as it is."""
        private = self.args.hub_private_repo if private is None else private
        super().init_hf_repo(token, private is not False)

    def create_model_card(self, *args, **kwargs) -> None:
        """Nothing: the card is written from the results files, after the final evaluation (`cards.create_model_card`)."""

    def save_model(self, output_dir=None, _internal_call: bool = False, publish: bool = True) -> None:
        """Save the model, and with `args.push_to_hub` publish it unless `publish` is False."""
        super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and publish and not _internal_call:
            self.publish("Model save", output_dir)

    def push_to_hub(self, commit_message: str = "End of training", blocking: bool = True, **options):
        """Save the model into `args.output_dir`, and publish what belongs to it in one commit.

        Args:
            commit_message: of the commit.
            blocking: whether to wait for it.
            **options: `token`, `revision` and `private`, by default as `args` have them; `formats`, `remote_code`, ...
                as `hf_vitfm.push_to_hub` has them.

        Returns:
            The commit, or its future; None in processes other than the first.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(options.get("token"), options.get("private"))
        self.save_model(publish=False)
        self._finish_current_push()
        if not blocking and self.is_world_process_zero():
            return HfApi().run_as_future(self.publish, commit_message, **options)
        return self.publish(commit_message, **options)

    def publish(self, commit_message: str, directory: str | Path | None = None, **options):
        """Publish a folder as it is, by default `args.output_dir`; the first process does, others return None."""
        if not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        return self._push(directory or self.args.output_dir, commit_message, **options)

    def _push(self, directory: str | Path, commit_message: str, **options):
        args, given = self.args, {name: value for name, value in options.items() if value is not None}
        own = isinstance(self.accelerator.unwrap_model(self.model), VitfmPreTrainedModel)
        defaults = {
            "private": args.hub_private_repo is not False,
            "revision": args.hub_revision,
            "token": args.hub_token,
            "formats": ("hf_vitfm",) if own else ("transformers",),
        }
        # The layer above, which builds on this one: found when it is needed, as the models find the conversion.
        hub = importlib.import_module("hf_vitfm.hub.push")
        return hub.push_to_hub(directory, self.hub_model_id, commit_message=commit_message, **{**defaults, **given})

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # A checkpoint may be deleted while it is on its way: links keep its files.
        copy = Path(tempfile.mkdtemp(prefix=".push-", dir=self.args.output_dir))
        _link(Path(checkpoint_folder), copy)
        job = HfApi().run_as_future(self._send_checkpoint, copy, Path(checkpoint_folder).name)
        if is_busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _send_checkpoint(self, copy: Path, name: str) -> None:
        args = self.args
        try:
            message = f"Training in progress, step {read_step(copy)}"
            self._push(copy, message)
            if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                HfApi(token=args.hub_token).upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=copy,
                    path_in_repo="last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else name,
                    commit_message=f"{message}, checkpoint",
                    revision=args.hub_revision,
                )
        except Exception as error:  # a run of days does not end because the Hub does not answer
            logger.warning(f"{name} was not published: {hide_tokens(str(error), args.hub_token)}")
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _link(checkpoint: Path, copy: Path) -> None:
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != _NEVER_SENT):
        target = copy / path.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "trainer_state.json":
            state = json.loads(path.read_text(encoding="utf-8"))
            if state.get("best_model_checkpoint"):  # a path of this machine
                state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
            target.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            continue
        try:
            os.link(path, target)
        except OSError:  # a disk that knows no links
            shutil.copyfile(path, target)
