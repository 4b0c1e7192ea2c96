"""A Trainer whose runs can be killed at any moment and go on to the same weights."""

import json
import logging
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from ..data.order import mix_seed
from . import checkpoints


logger = logging.getLogger(__name__)

_REMEDY = "Lower the learning rate, lengthen the warm-up, clip gradients (`max_grad_norm=1.0`), or use bf16 in place of fp16."


class TrainingStopped(RuntimeError):
    """A run ended early because it was asked to (SIGTERM), after a checkpoint."""


class _StopWhenAsked(TrainerCallback):
    def __init__(self, trainer: "ResumableTrainer"):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer._stops_early:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # who asks a run to end does not wait for long

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer._stops_early:
            control.should_evaluate = False


class ResumableTrainer(Trainer):
    """transformers' Trainer with checkpoints that are whole or absent, and with endings that say where to go on.

    - A checkpoint is written beside its place, synced and renamed; `resume_from_checkpoint=True` takes the last whole one.
    - A resume checks that the number of rows, seed and global batch are those of the checkpoint, on any number of
      processes.
    - Weights are read by `from_pretrained`, so that models whose files have other names (transformers' own) get them.
    - SIGTERM ends the run after the running step, with a checkpoint and `TrainingStopped`.
    - A loss that is not finite ends the run on all processes, and weights that are not are never saved.
    - However a run ends early, the log names the last good checkpoint.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.must_stop = False  # the same in all processes
        self._was_asked = False  # this process got the signal
        self.resumed_at_step = 0  # by the last `train()`; 0 = it began
        self.add_callback(_StopWhenAsked(self))

    # Resuming

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train as Trainer does.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the last whole one in `args.output_dir`.
            *args: as Trainer has them.
            **kwargs: as Trainer has them.

        Raises:
            ValueError: if there is no such checkpoint, or it does not fit this run.
            FileExistsError: if a run that begins finds checkpoints of an earlier one in `args.output_dir`.
            TrainingStopped: after SIGTERM.
            FloatingPointError: if the loss, or a weight that is to be kept, is not finite.
        """
        resume_from_checkpoint = self._find_checkpoint(resume_from_checkpoint or None)
        self.resumed_at_step = checkpoints.read_step(resume_from_checkpoint) if resume_from_checkpoint else 0
        self.must_stop = self._was_asked = False
        with self._listening():
            try:
                result = super().train(resume_from_checkpoint, *args, **kwargs)
            except BaseException as error:
                step, name = self.state.global_step, type(error).__name__
                logger.error(f"Training ended at step {step} with {name}. {self._where_to_go_on()}")
                raise
        if self._stops_early:
            raise TrainingStopped(f"SIGTERM at step {self.state.global_step}. {self._where_to_go_on()}")
        if self._was_asked:  # too late for a checkpoint: the signal takes its usual course
            signal.raise_signal(signal.SIGTERM)
        self._on_all_processes(self._check_weights)
        return result

    @property
    def _stops_early(self) -> bool:
        return self.must_stop and self.state.global_step < self.state.max_steps

    def _find_checkpoint(self, given: str | bool | None) -> str | None:
        output_dir = self.args.output_dir
        if self.args.should_save:
            checkpoints.remove_leftovers(output_dir)
        if given is None:
            self._refuse_other_checkpoints()
            return None
        found = checkpoints.last_checkpoint(output_dir) if given is True else Path(given)
        if found is None:
            raise ValueError(
                f"{output_dir} holds no checkpoint that is whole. Start without `resume_from_checkpoint`."
            )
        missing = checkpoints.what_is_missing(found)
        if missing:
            raise ValueError(
                f"A run cannot go on from {found}: {missing}. The last whole checkpoint of {output_dir} is "
                f"{checkpoints.last_checkpoint(output_dir) or 'not there'}."
            )
        self._compare_run_state(found)
        return str(found)

    def _refuse_other_checkpoints(self) -> None:
        """Two runs in one folder would delete each other's checkpoints and go on from them."""
        found = checkpoints.numbered_checkpoints(self.args.output_dir)
        if found:
            raise FileExistsError(
                f"{self.args.output_dir} holds checkpoints of an earlier run ({', '.join(path.name for path in found)}). "
                "Go on with it by `resume_from_checkpoint=True`, choose another `output_dir`, or delete them."
            )

    def _where_to_go_on(self) -> str:
        checkpoint = checkpoints.last_checkpoint(self.args.output_dir)
        if checkpoint is None:
            return f"There is no checkpoint in {self.args.output_dir} yet."
        return f"The last good checkpoint is {checkpoint}; go on with `resume_from_checkpoint=True`."

    def _run_state(self) -> dict:
        """What has to be the same for a run to go on with the same samples, and the number of processes."""
        args = self.args
        return {
            "global_batch_size": args.global_batch_size,
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "train_rows": len(self.train_dataset),
            "dataloader_drop_last": args.dataloader_drop_last,
            "processes": args.world_size,
        }

    def _compare_run_state(self, checkpoint: Path) -> None:
        file = checkpoint / checkpoints.RUN_FILE
        if not file.is_file() or self.args.ignore_data_skip:
            return
        then, now = json.loads(file.read_text(encoding="utf-8")), self._run_state()
        processes = then.pop("processes"), now.pop("processes")
        differing = [f"{name} was {then[name]} and is {now.get(name)}" for name in then if then[name] != now.get(name)]
        if differing:
            raise ValueError(
                f"A run cannot go on from {checkpoint}, because other samples would follow: {'; '.join(differing)}. "
                "Keep the global batch with `gradient_accumulation_steps`, or set `ignore_data_skip=True` to go on "
                "with the weights alone."
            )
        if processes[0] != processes[1]:
            logger.warning(
                f"Going on with {processes[1]} processes a run of {processes[0]}: the order of samples stays the same; "
                "dropout and drop path are drawn anew."
            )

    def _run_epoch(self, *args, **kwargs):
        # Trainer would take one step more where a finished run is resumed.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one step, and the number of their label elements."""
        with self._random_numbers_apart():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def evaluation_loop(self, *args, **kwargs):
        """Evaluate or predict."""
        with self._random_numbers_apart():
            return super().evaluation_loop(*args, **kwargs)

    @contextmanager
    def _random_numbers_apart(self) -> Iterator[None]:
        """Let loaders draw their seeds without a trace: when they do so differs between a run and its resume."""
        generator = torch.random.default_generator
        state = generator.get_state()
        generator.manual_seed(mix_seed(self.args.seed, self.state.global_step))
        try:
            yield
        finally:
            generator.set_state(state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        file = Path(checkpoint) / checkpoints.RUN_FILE if checkpoint else None
        if file is None or not file.is_file():
            return super()._load_rng_state(checkpoint)
        if json.loads(file.read_text(encoding="utf-8"))["processes"] == self.args.world_size:
            return super()._load_rng_state(checkpoint)
        seed = mix_seed(self.args.seed, self.state.global_step, self.args.process_index)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Trainer's own way puts the file's names into the model, whose own names may be others; what does not fit is
        # left at random with no more than a warning.
        if self.is_fsdp_enabled or not isinstance(self.model, PreTrainedModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or not isinstance(self.model, PreTrainedModel):
            return super()._load_best_model()
        logger.info(f"Best model: {self.state.best_model_checkpoint}, {self.state.best_metric}.")
        self._load_weights(self.state.best_model_checkpoint)

    def _load_weights(self, checkpoint: str) -> None:
        saved, info = type(self.model).from_pretrained(checkpoint, dtype=self.model.dtype, output_loading_info=True)
        if info["missing_keys"] or info["mismatched_keys"]:
            raise ValueError(
                f"{checkpoint} does not hold the weights of this {type(self.model).__name__}: "
                f"{', '.join(sorted(map(str, [*info['missing_keys'], *info['mismatched_keys']]))[:5])}."
            )
        self.model.load_state_dict(saved.state_dict())

    # Saving

    def _save_checkpoint(self, model, trial) -> None:
        self._on_all_processes(self._check_weights)
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        run_dir = self._get_output_dir(trial=trial)
        checkpoint = checkpoints.checkpoint_path(run_dir, self.state.global_step)
        staging = checkpoints.staging_path(checkpoint)
        self._note_best_checkpoint(run_dir)
        try:
            self._on_all_processes(lambda: self.args.should_save and shutil.rmtree(staging, ignore_errors=True))
            self._on_all_processes(lambda: self._save_states(staging))
            self._on_all_processes(lambda: self.args.should_save and checkpoints.commit(checkpoint))
            # Machines without a common disk: each gives the states of its own processes their name.
            is_first_here = self.args.local_process_index == 0
            self._on_all_processes(lambda: is_first_here and staging.exists() and checkpoints.commit(checkpoint))
        except Exception as error:
            shutil.rmtree(staging, ignore_errors=True)
            step = self.state.global_step
            raise OSError(
                f"The checkpoint of step {step} could not be written: {error} {self._where_to_go_on()}"
            ) from error
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            checkpoints.rotate(run_dir, self.args.save_total_limit, [checkpoint, *([Path(best)] if best else [])])

    def _save_states(self, directory: Path) -> None:
        """Write everything that a checkpoint holds; every process calls it."""
        directory.mkdir(parents=True, exist_ok=True)
        self.save_model(str(directory), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(directory))
            self._save_scaler(str(directory))
            self._save_rng_state(str(directory))
        if self.args.should_save:
            for part in [*self.callback_handler.callbacks, self.control]:
                if isinstance(part, ExportableState):
                    states = self.state.stateful_callbacks.get(type(part).__name__)
                    if isinstance(states, list):
                        states.append(part.state())
                    else:
                        self.state.stateful_callbacks[type(part).__name__] = part.state()
            self.state.save_to_json(str(directory / "trainer_state.json"))
            (directory / checkpoints.RUN_FILE).write_text(json.dumps(self._run_state()) + "\n")

    @torch.no_grad()
    def _check_weights(self) -> None:
        """Refuse weights that are not finite, which a finite loss does not show before the next step."""
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight.to_local() if isinstance(weight, DTensor) else weight).all():
                raise FloatingPointError(
                    f"{name} is not finite after step {self.state.global_step}, and nothing was saved. "
                    f"{self._where_to_go_on()} {_REMEDY}"
                )

    def _finalize_training(self, *args, **kwargs):
        if not self._stops_early:
            return super()._finalize_training(*args, **kwargs)
        # Trainer would load the best weights and delete the checkpoint that was just written for the resume.
        limit, best = self.args.save_total_limit, self.args.load_best_model_at_end
        self.args.save_total_limit, self.args.load_best_model_at_end = None, False
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit, self.args.load_best_model_at_end = limit, best

    def _note_best_checkpoint(self, run_dir: str) -> None:
        if self.state.best_global_step:
            best = checkpoints.checkpoint_path(run_dir, self.state.best_global_step)
            if best.exists() or self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(best)

    # Stopping

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Note SIGTERM, which a cluster sends some seconds before it kills; other handlers come back afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_):
            self._was_asked = True

        previous = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous if previous is not None else signal.SIG_DFL)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One forward and backward pass; all processes stop together if any loss is not finite."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        flags = torch.stack([~torch.isfinite(loss), torch.tensor(self._was_asked, device=loss.device)]).float()
        if self.args.world_size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        is_broken, self.must_stop = flags.bool().tolist()
        if is_broken:
            where = "not finite on another process" if torch.isfinite(loss) else loss.item()
            raise FloatingPointError(
                f"The loss is {where} at step {self.state.global_step + 1}. {self._where_to_go_on()} {_REMEDY}"
            )
        return loss

    def _on_all_processes(self, action: Callable[[], object]) -> None:
        """Run an action, and fail on all processes if it fails on one, so that none waits for the others for ever."""
        error = None
        try:
            action()
        except Exception as caught:  # a full disk is an OSError, a RuntimeError or a SafetensorError
            error = caught
        failed = torch.tensor(float(error is not None), device=self.args.device)
        if self.args.world_size > 1:
            dist.all_reduce(failed, op=dist.ReduceOp.MAX)
        if failed:
            raise error or RuntimeError("another process failed.")
