"""The base of all trainers here: order of samples, parameter groups, schedules, and a stop on a loss that is not finite."""

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from ..data.order import EpochOrder, ImageView
from ..data.streams import StreamOrder, StreamRows
from ..data.transforms import build_transform
from ..models.modeling_base import VitfmPreTrainedModel
from .arguments import VisionTrainingArguments
from .bad_images import warn_of_bad_images
from .optimization import parameter_groups
from .schedules import DECAYS, warmup_decay
from .throughput import LoaderClock


class _FollowEpoch(TrainerCallback):
    """Tells the order of samples which epoch begins, also in the middle of one after a resume."""

    def __init__(self, trainer: "VisionTrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.trainer.train_order is not None:
            self.trainer.train_order.set_epoch(int(state.epoch))

    def on_train_end(self, args, state, control, **kwargs):
        warn_of_bad_images(self.trainer.train_view, "training", args)


class VisionTrainer(Trainer):
    """transformers' Trainer with reproducible data order, layer-wise decay and the papers' schedules.

    N processes see the same samples in the same global batches as one process does, whatever the accumulation.

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
        self.loader_clock = LoaderClock()
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
        self.add_callback(_FollowEpoch(self))

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
        if isinstance(self.train_dataset, StreamRows):
            self.train_order = self._stream_order(seed)
        else:
            self.train_order = EpochOrder(
                len(self.train_dataset), seed, self.args.global_batch_size, self.args.dataloader_drop_last
            )
        self.train_view = ImageView(self.train_dataset, self.train_transform, seed, self.args.on_bad_image)
        return self._get_dataloader(
            dataset=self.train_view,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=lambda dataset: self.train_order,
            is_training=True,
        )

    def _stream_order(self, seed: int) -> StreamOrder:
        args = self.args
        if not args.dataloader_drop_last:
            raise ValueError("A stream is read in whole global batches. Set `dataloader_drop_last=True`.")
        return StreamOrder(
            self.train_dataset,
            seed,
            micro_batch=self._train_batch_size,
            global_batch=args.global_batch_size,
            processes=args.world_size,
            workers=args.dataloader_num_workers,
        )

    def _get_dataloader(self, *args, is_training=False, **kwargs):
        # `dataloader_drop_last` is for training: transformers would drop rows of the evaluation too.
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

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
        return ImageView(dataset, self.eval_transform, on_bad_image=self.args.on_bad_image)

    def evaluation_loop(self, dataloader, *args, **kwargs):
        """Predictions of a whole loader; the images that were left out are reported."""
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        if isinstance(dataloader.dataset, ImageView):
            warn_of_bad_images(dataloader.dataset, "evaluation", self.args)
        return output

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one step, and the number of their label elements; the wait for them is timed."""
        return super().get_batch_samples(self.loader_clock.watch(epoch_iterator), num_batches, device)

    def log(self, logs, start_time=None):
        """Trainer's log, with images per second and the share of time spent waiting for them in training logs."""
        if "loss" in logs and self.model.training:
            logs |= self.loader_clock.read(self.args)
        super().log(logs, start_time)

    def create_optimizer(self, model=None):
        """The optimizer that `args.optim` names, on groups by layer and decay; SGD gets `args.momentum`."""
        if self.optimizer is None:
            model = self.model if model is None else model
            args = self.args
            optimizer_class, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(args, model)
            own_groups = {"params", "model", "optimizer_dict"} & set(options)
            if own_groups or not isinstance(optimizer_class, type) or not issubclass(optimizer_class, Optimizer):
                if args.layer_decay != 1.0:
                    raise ValueError(
                        f"`layer_decay` cannot be used with `optim={args.optim}`, which makes groups itself."
                    )
                return super().create_optimizer(model)
            if issubclass(optimizer_class, torch.optim.SGD):
                options.setdefault("momentum", args.momentum)
            groups = parameter_groups(
                model, options.get("lr", args.learning_rate), args.weight_decay, args.layer_decay
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Warm-up, then constant, linear or cosine as the papers have it; other names as transformers does them."""
        name = getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)
        decay = name.removesuffix("_with_warmup")
        if decay not in DECAYS or self.args.lr_scheduler_kwargs:
            if self.args.min_learning_rate:
                raise ValueError(f"`min_learning_rate` goes with the schedules linear and cosine; got {name!r}.")
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            min_ratio = self.args.min_learning_rate / self.args.learning_rate if self.args.learning_rate else 0.0
            factor = warmup_decay(decay, self.args.get_warmup_steps(num_training_steps), num_training_steps, min_ratio)
            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def create_model_card(self, *args, **kwargs) -> None:
        """Nothing: the card is written from the results files, after the final evaluation (`cards.create_model_card`)."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One forward and backward pass; all processes stop together if any loss is not finite."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        broken = ~torch.isfinite(loss)
        if self.args.world_size > 1:
            broken = broken.float()
            torch.distributed.all_reduce(broken, op=torch.distributed.ReduceOp.MAX)
        if broken:
            where = "not finite on another process" if torch.isfinite(loss) else loss.item()
            checkpoint = get_last_checkpoint(self.args.output_dir) if self.state.global_step else None
            raise FloatingPointError(
                f"The loss is {where} at step {self.state.global_step + 1}. The last checkpoint is "
                f"{checkpoint or 'not there yet'}. Lower the learning rate, lengthen the warm-up, clip gradients "
                "(`max_grad_norm=1.0`), or use bf16 in place of fp16."
            )
        return loss
