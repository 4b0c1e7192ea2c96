"""Training CLIP: two towers that learn which text belongs to which image (Radford et al. 2021)."""

import logging
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.pair_collator import PairCollator
from ..data.tokenizers import check_tokenizer, longest_text
from ..data.transforms import build_transform
from ..evaluation.retrieval import evaluate_retrieval
from ..models.modeling_clip import CLIPModel
from ..models.modeling_contrastive import contrastive_loss
from .clip_arguments import CLIPTrainingArguments
from .grad_cache import GradientCache
from .optimization import NO_DECAY_NAMES
from .scalars import flatten_scalars, limit, restore_scalars, whole_scalar
from .trainer import VisionTrainer
from .zero_shot import ZeroShotTask


logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = 100.0  # section 2.5 of the paper


class CLIPTrainer(VisionTrainer):
    """Trains CLIP with the pairs of all processes as negatives, and with gradient caching those of the whole step.

    The loss is that of the global batch, the same number on every process, and so are the gradients, whatever the
    number of processes and chunks. After every step the factor on the cosines is brought back to 100 at most. Weight
    decay leaves out biases, norms, the factor, and embeddings of tokens and positions.

    Evaluation reports the loss in batches of `per_device_eval_batch_size` pairs (each image with its first caption) and
    `evaluate_retrieval` over the whole set, with all captions; with a labelled data set also how many of its images the
    names of their classes find (`zero_shot_top1`, `zero_shot_top5`, `zero_shot_mean_per_class`). `predict()` gives, row
    by row, the embeddings of images (rows, dim) and of their captions (rows, captions, dim), and the numbers of captions
    (rows,); rows with fewer captions than others are filled up.

    Args:
        model: `CLIPModel`; towers whose weights need no gradient stay as they are, and are not run for one.
        args: `CLIPTrainingArguments`.
        labelled_dataset: rows with `image` and `label`, for the zero-shot accuracy, or None.
        classnames: of the labels, in the order of their ids.
        templates: each with one "{}" for the name, as `ZeroShotClassifier.build` takes them.
        data_collator: rows -> `pixel_values`, `input_ids` and `attention_mask`; in evaluation also, where images have
            several captions, `text_to_image` (texts,) int64: the row of a text's image in the batch, ascending, -1 = none.
            By default `PairCollator` with the tokenizer of `processing_class`, for rows with `image` and `caption`.
        processing_class: CLIP's processor; transforms follow its image processor.
        **kwargs: as `VisionTrainer` has them.

    Raises:
        TypeError: if the model or the arguments are others.
        ValueError: if the model's temperature is not finite, there is neither a collator nor a tokenizer, the
            tokenizer does not fit the model, only a part is given of what the zero-shot accuracy needs, or several
            processes are to look for unused weights.
    """

    def __init__(
        self,
        model: CLIPModel | None = None,
        args: CLIPTrainingArguments | None = None,
        *,
        labelled_dataset: Sequence[dict] | None = None,
        classnames: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        data_collator=None,
        processing_class=None,
        **kwargs,
    ):
        if not isinstance(model, CLIPModel):
            raise TypeError(f"`model` must be a CLIPModel; got {type(model).__name__}.")
        if not isinstance(args, CLIPTrainingArguments):
            raise TypeError(f"`args` must be CLIPTrainingArguments; got {type(args).__name__}.")
        _check_temperature(model)
        if args.ddp_find_unused_parameters and args.world_size > 1:
            raise ValueError(
                "`ddp_find_unused_parameters` cannot be True for CLIP: it takes the factor on the cosines for unused, which "
                "the loss uses after the towers are done. Leave it out; if a tower has weights that take no part in it, "
                "freeze them: `parameter.requires_grad_(False)`."
            )
        self.zero_shot = ZeroShotTask.of(labelled_dataset, classnames, templates, processing_class)
        data_collator = data_collator or _pair_collator(model, processing_class)
        self.reads_captions = isinstance(data_collator, PairCollator)
        self._flattened: list[str] = []
        self._waiting: list[dict] = []  # the micro-batches of this step, until they are embedded
        self._cache: GradientCache | None = None
        if processing_class is not None:
            image_processor = getattr(processing_class, "image_processor", processing_class)
            for name, options in (("train", {"train": True, **args.train_transform_options}), ("eval", {})):
                if kwargs.get(f"{name}_transform") is None:
                    kwargs[f"{name}_transform"] = build_transform(image_processor, **options)
        super().__init__(
            model=model, args=args, data_collator=data_collator, processing_class=processing_class, **kwargs
        )
        self.label_names = []
        self._caches_gradients = args.grad_cache_chunk_size is not None
        if self._caches_gradients:
            self.loss_is_scaled_for_ga = True
        elif args.gradient_accumulation_steps > 1:
            logger.warning(
                f"Each pair is told apart from those of its micro-batch, {args.train_batch_size * args.world_size} on "
                f"all devices, not from the {args.global_batch_size} of the step. For all of them, set "
                f"`grad_cache_chunk_size={args.per_device_train_batch_size}`."
            )
        if self.is_fsdp_enabled:
            self._flattened = flatten_scalars(model)

    @property
    def no_decay_names(self) -> tuple[str, ...]:
        """Names that `parameter_groups` does not decay: those of every trainer, and embedding tables of any tower."""
        modules = self.model.named_modules()
        return (*NO_DECAY_NAMES, *(f"{name}.weight" for name, module in modules if isinstance(module, nn.Embedding)))

    def create_optimizer(self, model=None):
        """As every trainer's; each of its steps ends by limiting the factor on the cosines."""
        is_new = self.optimizer is None or not getattr(self, "_limits_scale", False)
        optimizer = super().create_optimizer(model)
        if is_new:
            self._limits_scale = True
            optimizer.register_step_post_hook(lambda *_: limit(self.model.logit_scale, math.log(MAX_LOGIT_SCALE)))
        return optimizer

    def get_train_dataloader(self):
        """As every trainer's; with gradient caching the device gets a chunk at a time, not a step's worth of images."""
        loader = super().get_train_dataloader()
        if self._caches_gradients:
            loader.device = None
        return loader

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one step, which gradient caching makes one batch of."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._waiting = list(batches) if self._caches_gradients else []
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of the global batch; with gradient caching, this chunk's share of it."""
        if self._caches_gradients and not return_outputs:
            if self._waiting:
                # One by one: what is on the device is one chunk.
                batches, self._waiting = map(self._prepare_inputs, self._waiting), []
                self._cache = GradientCache(self.model, model, batches, self._objective)
            return self._cache.replay(inputs)
        outputs = model(**inputs, return_logits=False)
        scale, bias = self._factors()
        loss = self._objective(outputs.image_embeds, outputs.text_embeds, scale, bias)
        return (loss, outputs) if return_outputs else loss

    def _factors(self) -> tuple[Tensor, Tensor | None]:
        bias = self.model.logit_bias
        return whole_scalar(self.model.logit_scale), None if bias is None else whole_scalar(bias)

    def _objective(self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, logit_bias: Tensor | None):
        return contrastive_loss(
            image_embeds,
            text_embeds,
            logit_scale.exp(),
            logit_bias,
            objective=self.model.config.objective,
            group=dist.group.WORLD if self.args.world_size > 1 else None,
        )

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Embeddings of a batch: images (rows, dim), captions (rows, captions, dim), numbers of captions (rows,)."""
        inputs = dict(self._prepare_inputs(inputs))
        owners = inputs.pop("text_to_image", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, return_logits=False)
        image, text = outputs.image_embeds, outputs.text_embeds
        if owners is None:
            owners = torch.arange(len(image), device=image.device)
        return None, (image, *_by_image(text, owners, len(image))), None

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        """The loss, retrieval and the zero-shot accuracy, with the averaged weights if there are any."""
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        image, text, counts = (torch.as_tensor(part, device=self.args.device) for part in output.predictions)
        has_caption = counts > 0
        image, text, counts = image[has_caption], text[has_caption], counts[has_caption]
        if not len(image):
            raise ValueError("No row of the evaluation set has a caption.")
        metrics = {"loss": self._evaluation_loss(image, text[:, 0])}
        is_caption = torch.arange(text.shape[1], device=counts.device) < counts[:, None]
        metrics |= evaluate_retrieval(image, text[is_caption], is_caption.nonzero()[:, 0])
        if self.zero_shot is not None and metric_key_prefix.startswith("eval"):  # not for `predict()`
            with self._averaged(), self.accelerator.autocast():
                found = self.zero_shot.evaluate(self)
            metrics |= {f"zero_shot_{name}": value for name, value in found.items()}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    @torch.no_grad()
    def _evaluation_loss(self, image: Tensor, text: Tensor) -> float:
        """Mean over batches, weighted by their pairs; batches follow the data set, not the processes."""
        with self._averaged():
            scale, bias = self._factors()
            scale, bias = scale.exp(), None if bias is None else bias.clone()
        size, objective = self.args.eval_batch_size, self.model.config.objective
        losses = [
            contrastive_loss(*pair, scale, bias, objective=objective) * len(pair[0])
            for pair in zip(image.split(size), text.split(size), strict=True)
        ]
        return (torch.stack(losses).sum() / len(image)).item()

    # Saving

    def _save(self, output_dir=None, state_dict=None) -> None:
        super()._save(output_dir, state_dict and restore_scalars(state_dict, self._flattened))


def _check_temperature(model: CLIPModel) -> None:
    for name in ("logit_scale", "logit_bias"):
        factor = getattr(model, name)
        if factor is not None and not torch.isfinite(factor).all():
            raise ValueError(
                f"`{name}` of the model is {factor.item()}, with which no loss is finite. Load a checkpoint from before "
                f"it broke, or set it: `model.{name}.data.fill_(...)`."
            )


def _by_image(text_embeds: Tensor, owners: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """Group the embeddings of texts (S, E) by image (I, most texts, E), filled with zeros; and the numbers of texts (I,).

    `owners` (S,) says which image a text belongs to, ascending but for -1 = none.
    """
    text_embeds, owners = text_embeds[owners >= 0], owners[owners >= 0]
    counts = torch.bincount(owners, minlength=num_images)
    grouped = text_embeds.new_zeros(num_images, max(1, int(counts.max())), text_embeds.shape[1])
    places = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]
    grouped[owners, places] = text_embeds
    return grouped, counts


def _pair_collator(model: CLIPModel, processing_class) -> PairCollator:
    tokenizer = getattr(processing_class, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            "Captions need a tokenizer: give CLIP's processor as `processing_class`, or a `data_collator` for rows that "
            "are tokenised already."
        )
    config = model.config.text_config
    check_tokenizer(tokenizer, config)
    return PairCollator(tokenizer, longest_text(tokenizer, config))
