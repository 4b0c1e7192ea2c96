"""The base of all trainers here: order of samples, parameter groups, schedules, averaged weights."""

from contextlib import nullcontext
from functools import partial

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from ..data.order import EpochOrder, ImageView
from ..data.streams import StreamOrder, StreamRows
from ..data.transforms import build_transform
from ..models.modeling_base import VitfmPreTrainedModel
from .arguments import VisionTrainingArguments
from .bad_images import warn_of_bad_images
from .ema import WeightAverage
from .lars import LARS
from .loader_worker import start_worker
from .optimization import NO_DECAY_NAMES, parameter_groups
from .schedules import DECAYS, DEFAULT_TIMESCALE, warmup_decay
from .sharing import SharingTrainer
from .throughput import LoaderClock


class _FollowTraining(TrainerCallback):
    """Tells the order of samples which epoch begins, also after a resume, and the average that weights have changed."""

    def __init__(self, trainer: "VisionTrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.trainer.train_order is not None:
            self.trainer.train_order.set_epoch(int(state.epoch))

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.ema is not None and not self.trainer.accelerator.optimizer_step_was_skipped:
            self.trainer.ema.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.loader_clock.stop()
        self.trainer.num_skipped_images = warn_of_bad_images(self.trainer.train_view, "training", args)


class VisionTrainer(SharingTrainer):
    """transformers' Trainer with reproducible data order, layer-wise decay, averaged weights and the papers' schedules.

    N processes see the same samples in the same global batches as one process does, whatever the accumulation.
    With `args.ema_decay`, evaluation and `save_model()` use the averaged weights, and after `train()` the model holds
    them; a checkpoint holds both, the raw weights as the model.

    Args:
        model: any image model.
        args: `VisionTrainingArguments`.
        train_dataset: any sequence of rows with `image`, or with `pixel_values`.
        eval_dataset: the same.
        processing_class: the image processor; transforms follow it, and it is saved with the model.
        train_transform: image -> tensor in training; by default `build_transform` with the options of `args`.
        eval_transform: image -> tensor in evaluation; by default what the image processor does.
        **kwargs: everything else that Trainer takes.
    """

    no_decay_names = NO_DECAY_NAMES
    reads_captions = False  # whether rows are pairs, with a `caption`

    def __init__(
        self,
        model=None,
        args: VisionTrainingArguments | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        train_transform=None,
        eval_transform=None,
        **kwargs,
    ):
        if not isinstance(args, VisionTrainingArguments):
            raise TypeError(f"`args` must be VisionTrainingArguments; got {type(args).__name__}.")
        self.train_order: EpochOrder | StreamOrder | None = None
        self.train_view: ImageView | None = None
        self.num_skipped_images = 0  # of the training set, with `args.on_bad_image="skip"`; known after `train()`
        self.loader_clock = LoaderClock()
        self.ema: WeightAverage | None = None  # during `train()`, with `args.ema_decay`
        if processing_class is not None:
            options = args.train_transform_options
            train_transform = train_transform or build_transform(processing_class, train=True, **options)
            eval_transform = eval_transform or build_transform(processing_class)
        self.train_transform, self.eval_transform = train_transform, eval_transform
        if args.ddp_find_unused_parameters is None and isinstance(model, VitfmPreTrainedModel):
            args.ddp_find_unused_parameters = False  # ours use all, and the search costs time in every step
        if args.base_learning_rate is not None:
            args.learning_rate, args.base_learning_rate = args.peak_learning_rate, None
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.add_callback(_FollowTraining(self))

    def get_train_dataloader(self):
        """Batches of (seed, epoch, sample)-addressed views of the training rows."""
        if self.train_dataset is None:
            raise ValueError("Training needs a `train_dataset`.")
        if self.args.world_size > 1 and not self.args.dataloader_drop_last:
            raise ValueError(
                "On several processes the incomplete last global batch would be filled up with rows of the first one. "
                "Set `dataloader_drop_last=True`."
            )
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.train_order = self._stream_order(seed) if self._reads_stream else self._epoch_order(seed)
        self.train_view = ImageView(
            self.train_dataset, self.train_transform, seed, self.args.on_bad_image, self.reads_captions
        )
        return self._get_dataloader(
            dataset=self.train_view,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=lambda dataset: self.train_order,
            is_training=True,
        )

    def _epoch_order(self, seed: int) -> EpochOrder:
        args = self.args
        return EpochOrder(
            len(self.train_dataset),
            seed,
            args.global_batch_size,
            args.dataloader_drop_last,
            args.repeated_augmentation,
        )

    @property
    def _reads_stream(self) -> bool:
        return isinstance(self.train_dataset, StreamRows)

    def _stream_order(self, seed: int) -> StreamOrder:
        args = self.args
        if not args.dataloader_drop_last or args.repeated_augmentation > 1:
            raise ValueError(
                "A stream is read in whole global batches, each row once. Set `dataloader_drop_last=True` and "
                "`repeated_augmentation=1`."
            )
        return StreamOrder(
            self.train_dataset,
            seed,
            micro_batch=self._train_batch_size,
            global_batch=args.global_batch_size,
            processes=args.world_size,
            workers=args.dataloader_num_workers,
        )

    def _run_state(self) -> dict:
        if not self._reads_stream:
            return {**super()._run_state(), "repeated_augmentation": self.args.repeated_augmentation}
        workers = max(self.args.dataloader_num_workers, 1)  # the order of a stream depends on who reads it
        readers = f"{self.args.world_size} x {workers}"
        return {**super()._run_state(), "readers (processes x workers)": readers, "window": self.train_dataset.window}

    def _get_dataloader(self, *args, is_training=False, **kwargs):
        # `dataloader_drop_last` is for training: transformers would drop rows of the evaluation too.
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            loader = super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last
        inner = getattr(loader, "base_dataloader", loader)  # accelerate's own is only a shell around it
        inner.worker_init_fn = partial(start_worker, inner.worker_init_fn)
        return loader

    def get_eval_dataloader(self, eval_dataset=None):
        """Every row once; processes share the rows exactly."""
        self.loader_clock.stop()
        return super().get_eval_dataloader(self._eval_view(eval_dataset))

    def get_test_dataloader(self, test_dataset):
        """Every row once; processes share the rows exactly."""
        return super().get_test_dataloader(self._eval_view(test_dataset))

    def _eval_view(self, dataset):
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        dataset = self.eval_dataset if dataset is None else dataset
        if dataset is None:
            raise ValueError("Evaluation needs an `eval_dataset`.")
        if len(dataset) == 0:
            raise ValueError("The evaluation set is empty.")
        return ImageView(
            dataset,
            self.eval_transform,
            on_bad_image=self.args.on_bad_image,
            captions=self.reads_captions,
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one step, and the number of their label elements; the wait for them is timed."""
        return super().get_batch_samples(self.loader_clock.watch(epoch_iterator), num_batches, device)

    def log(self, logs, start_time=None):
        """Trainer's log, with images per second and the share of time spent waiting for them in training logs."""
        if "loss" in logs:
            logs |= self.loader_clock.read(self.args)
        super().log(logs, start_time)

    def create_optimizer(self, model=None):
        """The optimizer that `args.optim` names, on groups by layer and decay; SGD and LARS get `args.momentum`."""
        if self.optimizer is None:
            model = self.model if model is None else model
            args = self.args
            optimizer_class, options = self._choose_optimizer(model)
            own_groups = {"params", "model", "optimizer_dict"} & set(options)
            if own_groups or not isinstance(optimizer_class, type) or not issubclass(optimizer_class, Optimizer):
                if args.layer_decay != 1.0:
                    raise ValueError(
                        f"`layer_decay` cannot be used with `optim={args.optim}`, which makes groups itself."
                    )
                return super().create_optimizer(model)
            groups = parameter_groups(
                model,
                options.get("lr", args.learning_rate),
                args.weight_decay,
                args.layer_decay,
                self.no_decay_names,
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _choose_optimizer(self, model) -> tuple[type, dict]:
        args = self.args
        if self.optimizer_cls_and_kwargs is None and args.optim == "lars":
            return LARS, {"lr": args.learning_rate, "momentum": args.momentum}
        optimizer_class, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(args, model)
        if isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.SGD):
            options.setdefault("momentum", args.momentum)
        return optimizer_class, options

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Warm-up and a decay as the papers have it; transformers' other names as transformers does them."""
        args = self.args
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        decay, options = name.removesuffix("_with_warmup"), dict(args.lr_scheduler_kwargs or {})
        timescale = options.pop("timescale", DEFAULT_TIMESCALE) if decay == "inverse_sqrt" else DEFAULT_TIMESCALE
        if decay not in DECAYS or options:
            if args.min_learning_rate or args.cooldown_steps:
                raise ValueError(
                    f"`min_learning_rate` and `cooldown_steps` go with the schedules {', '.join(DECAYS)} (without "
                    f"`lr_scheduler_kwargs`); got {name!r}."
                )
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            factor = warmup_decay(
                decay,
                args.get_warmup_steps(num_training_steps),
                num_training_steps,
                args.min_learning_rate / args.learning_rate if args.learning_rate else 0.0,
                args.cooldown_steps,
                timescale,
            )
            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.args.ema_decay is not None:  # now that the weights are loaded, and sharded
            self.ema = WeightAverage(self.model, self.args.ema_decay)
            if resume_from_checkpoint is not None:
                self.ema.load(resume_from_checkpoint)
        return prepared

    def train(self, *args, **kwargs):
        """Train as Trainer does; afterwards the model holds the averaged weights, if there are any."""
        try:
            result = super().train(*args, **kwargs)
            if self.ema is not None:
                self.ema.copy_to_model()
            return result
        finally:
            self.ema = None

    def _save_states(self, directory) -> None:
        super()._save_states(directory)
        if self.ema is not None:
            self.ema.save(directory, is_writer=self.args.should_save)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.ema is not None:
            self.ema.load(self.state.best_model_checkpoint)

    def _averaged(self):
        return nullcontext() if self.ema is None else self.ema.applied()

    def evaluation_loop(self, dataloader, *args, **kwargs):
        """Evaluate or predict, with the averaged weights if there are any; images that were left out are reported."""
        with self._averaged():
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        if isinstance(getattr(dataloader, "dataset", None), ImageView):
            warn_of_bad_images(dataloader.dataset, "evaluation", self.args)
        return output

    def save_model(self, output_dir=None, _internal_call: bool = False, publish: bool = True) -> None:
        """Save the model: the averaged weights if there are any; in a checkpoint the raw ones.

        With `args.push_to_hub` it is published too, unless `publish` is False.
        """
        with nullcontext() if _internal_call else self._averaged():
            super().save_model(output_dir, _internal_call, publish)
