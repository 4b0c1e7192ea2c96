"""Linear probe: a linear classifier on the features of a frozen encoder (MAE, He et al. 2022, appendix A.1)."""

import copy
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig
from transformers import initialization as hf_init

from ..conversion.files import check_source
from ..models.modeling_vit import ViTForImageClassification
from .recipe import VIT_TYPES, load_for_fine_tuning


# main_linprobe.py of MAE's code; the momentum is the default of torch's BatchNorm1d.
EPSILON, MOMENTUM, HEAD_DEVIATION = 1e-6, 0.1, 0.01


class NormalizedLinear(nn.Linear):
    """Linear layer behind a batch norm without scale and shift: features of any size train with one learning rate.

    In training the moments are those of the batches of all processes together (MAE's code has those of each process),
    with accumulation of one micro-batch; in evaluation the running ones. No gradient flows to the features.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.register_buffer("running_mean", torch.zeros(in_features))
        self.register_buffer("running_var", torch.ones(in_features))

    def initialize(self, init: ModuleType = nn.init) -> None:
        """Begin anew: small random weights, no bias, no moments; `init` holds the functions to use."""
        init.trunc_normal_(self.weight, std=HEAD_DEVIATION)
        init.zeros_(self.bias)
        init.zeros_(self.running_mean)
        init.ones_(self.running_var)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K).

        Raises:
            ValueError: in training, if the batch has one row only.
        """
        features = features.detach().to(self.weight.dtype)
        mean, variance = self._update(features) if self.training else (self.running_mean, self.running_var)
        return F.linear((features - mean) * (variance + EPSILON).rsqrt(), self.weight, self.bias)

    @torch.no_grad()
    def _update(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Take the moments of a batch in; returns its mean and variance."""
        count, mean = len(features), features.mean(dim=0)
        squares = (features - mean).square().sum(dim=0)  # around the mean: no digits cancel out
        if dist.is_initialized() and dist.get_world_size() > 1:
            own = torch.cat([features.new_tensor([count]), mean, squares])
            parts = own.new_empty(dist.get_world_size() * len(own))
            dist.all_gather_into_tensor(parts, own)
            counts, means, squares = parts.view(-1, len(own)).split([1, len(mean), len(mean)], dim=1)
            count = counts.sum()
            mean = (counts * means).sum(dim=0) / count
            squares = (squares + counts * (means - mean).square()).sum(dim=0)
        elif count < 2:
            raise ValueError("A batch of one row has no variance. Raise `per_device_train_batch_size` to at least 2.")
        self.running_mean.lerp_(mean, MOMENTUM)
        self.running_var.lerp_(squares / (count - 1), MOMENTUM)
        return mean, squares / count

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of a plain linear layer with the same outputs as this one in evaluation."""
        mean, deviation = self.running_mean.double(), (self.running_var.double() + EPSILON).sqrt()
        weight = self.weight.double() / deviation
        return weight.to(self.weight.dtype), (self.bias.double() - weight @ mean).to(self.bias.dtype)


class LinearProbeForImageClassification(ViTForImageClassification):
    """A ViT of which only the head is trained, behind a batch norm; the rest stays in evaluation mode, without gradients.

    Its checkpoints hold the running moments, so that a run can go on. `fold()` makes the plain ViT that others load.
    """

    def _head(self, width: int) -> nn.Module:
        return NormalizedLinear(width, self.num_labels)

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, NormalizedLinear):
            module.initialize(hf_init)  # leaves alone what a checkpoint has filled
        else:
            super()._init_weights(module)

    def __init__(self, config):
        super().__init__(config)
        self._freeze_tables(self)

    @staticmethod
    def _freeze_tables(model) -> None:
        """Freeze the whole encoder, also after loading, which makes every tensor trainable."""
        model.vit.requires_grad_(False)

    def train(self, mode: bool = True):
        """Training mode for the head alone: dropout and drop path of the encoder stay off."""
        super().train(mode)
        self.vit.eval()
        return self

    def fold(self) -> ViTForImageClassification:
        """A plain ViT with the same logits, the batch norm folded into its head; trainable as any other."""
        weights = self.state_dict()
        for name, head in self.named_modules():
            if isinstance(head, NormalizedLinear):
                weights[f"{name}.weight"], weights[f"{name}.bias"] = head.folded()
                del weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        model = ViTForImageClassification(copy.deepcopy(self.config)).to(self.device, self.dtype)
        model.load_state_dict(weights)
        return model.eval()


def load_linear_probe(checkpoint: str, **fields) -> LinearProbeForImageClassification:
    """Load the encoder of a ViT or an MAE, frozen, with a new head.

    Args:
        checkpoint: Hub id or folder, of this library or of transformers.
        **fields: of the ViT's configuration: `id2label`, `label2id`, `image_size`, `pooling`, ... With the pooling "mean"
            an MAE's tokens pass a norm without scale and shift, as it has none for it.

    Raises:
        FileNotFoundError: if the checkpoint is a path that does not exist.
        ValueError: if it is neither a ViT nor an MAE, or lacks a weight of the encoder.
    """
    check_source(checkpoint)
    saved = AutoConfig.from_pretrained(checkpoint)
    if saved.model_type not in VIT_TYPES:
        raise ValueError(
            f"A linear probe needs a ViT or an MAE (`model_type` {', '.join(VIT_TYPES)}); {checkpoint!r} is "
            f"{saved.model_type!r}."
        )
    if getattr(saved, "pooling", None) == "mean" and fields.get("pooling", "mean") == "cls":
        raise ValueError(
            f'{checkpoint!r} was trained with `pooling="mean"` and has no final norm, which `pooling="cls"` needs and a '
            'probe does not train. Set `pooling="mean"`.'
        )
    model = load_for_fine_tuning(checkpoint, LinearProbeForImageClassification, **fields)
    for module in model.modules():
        if isinstance(module, NormalizedLinear):
            module.initialize()  # a classifier's head may have had the same shape
    return model
