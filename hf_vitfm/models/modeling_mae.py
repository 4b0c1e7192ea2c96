"""Masked autoencoder: an encoder of visible patches and a light decoder of pixels (He et al. 2022, section 3).

Shapes: B batch, P patches, V visible and M masked ones, T tokens = prefix + patches, D width, E width of the decoder,
Q = patch height x patch width x channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_mae import VitfmMAEConfig
from .modeling_base import VitfmPreTrainedModel
from .modeling_embeddings import PositionTable, VisionEmbeddings, as_pair, patch_grid
from .modeling_encoder import Encoder
from .modeling_masking import draw_noise, fixed_noise, invert_order, num_visible, split_patches


@dataclass
class MAEModelOutput(ModelOutput):
    """What the encoder gives: tokens of the visible patches, and which these are.

    `last_hidden_state` (B, prefix + V, D); `mask` (B, P), 1 = masked; `ids_restore` (B, P), the place of each patch in
    the order visible, then masked.
    """

    last_hidden_state: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MAEForPreTrainingOutput(ModelOutput):
    """Loss, predicted pixels (B, P, Q) where they were asked for, and the mask, as transformers' ViTMAE has them."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class DecoderConfig:
    """The encoder's configuration as the decoder's layers see it: other sizes, nothing recorded, else the same.

    A view rather than a copy, so that the attention implementation can be changed for both at once.
    """

    _RENAMED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

    def __init__(self, config: VitfmMAEConfig):
        self.config = config
        self.drop_path_rate = 0.0  # of the encoder
        self.layer_scale_init_value = None
        self.output_attentions = self.output_hidden_states = False

    def __getattr__(self, name: str):
        if name == "config":  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.config, f"decoder_{name}" if name in self._RENAMED else name)


class MAEPreTrainedModel(VitfmPreTrainedModel):
    """Base of the MAE models; initialised as the original (models_mae.py, `initialize_weights`)."""

    config: VitfmMAEConfig
    config_class = VitfmMAEConfig
    base_model_prefix = "vit"
    accepts_loss_kwargs = False  # the loss is a mean over the masked patches of this batch

    def _init_dense(self, module: nn.Linear | nn.Conv2d) -> None:
        fan_out, fan_in = module.weight.shape[0], module.weight[0].numel()  # a patch is a row, as for a Linear
        bound = (6 / (fan_in + fan_out)) ** 0.5
        init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            init.zeros_(module.bias)

    def _init_tokens(self, module: PositionTable) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            if name == "position_embeddings" and not module.is_learned:
                init.copy_(parameter, module.initial_positions())
            else:  # class, register and mask tokens; positions that are learned
                init.normal_(parameter, std=0.02)


class MAEModel(MAEPreTrainedModel):
    """The encoder; it sees the patches that the mask leaves. With `mask_ratio=0` it gives features of whole images."""

    def __init__(self, config: VitfmMAEConfig):
        super().__init__(config)
        self.embeddings = VisionEmbeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> MAEModelOutput:
        """Encode the visible patches of images.

        Args:
            pixel_values: (B, channels, height, width), normalised as the image processor does.
            noise: (B, P); the patches with the smallest values are visible. Not given: drawn by `config.masking` in
                training, always the same in evaluation.
            interpolate_pos_encoding: resize the positions to the images' size in this call.
            output_attentions: also return the attention weights of every layer, (B, heads, T, T).
            output_hidden_states: also return the embeddings and every layer's output, before the final norm.

        Raises:
            ValueError: if the images do not fit the patches or, without interpolation, the positions; or the noise
                does not fit the patches.
        """
        keep, mask, ids_restore = self.choose_patches(pixel_values, noise)
        encoded = self.encoder(
            self.embeddings(pixel_values, interpolate=bool(interpolate_pos_encoding), keep=keep),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        return MAEModelOutput(
            last_hidden_state=self.layernorm(encoded.last_hidden_state),
            mask=mask,
            ids_restore=ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def choose_patches(self, pixel_values: Tensor, noise: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """Indices of the visible patches (B, V), None for all of them; mask (B, P); `ids_restore` (B, P)."""
        config, batch, device = self.config, pixel_values.shape[0], pixel_values.device
        grid = self.embeddings.patch_embeddings.grid(pixel_values)
        num_patches = grid[0] * grid[1]
        if config.mask_ratio == 0:
            order = torch.arange(num_patches, device=device).expand(batch, -1)
            return None, torch.zeros(batch, num_patches, device=device), order
        visible = num_visible(num_patches, config.mask_ratio)
        if visible < 1:
            raise ValueError(
                f"`mask_ratio` {config.mask_ratio} leaves none of the {num_patches} patches of these images visible."
            )
        if noise is None:
            noise = self.draw_noise(batch, grid, device)
        if noise.shape != (batch, num_patches):
            raise ValueError(
                f"`noise` must have one value per patch, {(batch, num_patches)}; got {tuple(noise.shape)}."
            )
        return split_patches(noise, visible)

    def draw_noise(self, batch: int, grid: tuple[int, int], device) -> Tensor:
        """Noise (B, P) from the global generator in training; in evaluation the same for every image and call."""
        masking, num_patches = self.config.masking, grid[0] * grid[1]
        if masking == "random":
            if self.training:
                return torch.rand(batch, num_patches, device=device)
            return fixed_noise(num_patches, device).expand(batch, -1)
        generator = None if self.training else torch.Generator().manual_seed(0)
        count = batch if self.training else 1
        noise = [draw_noise(masking, grid, self.config.mask_ratio, generator) for _ in range(count)]
        return torch.stack(noise).to(device).expand(batch, -1)


class MAEDecoder(PositionTable):
    """Adds mask tokens for the masked patches and decodes all patches.

    Attention does not depend on the order of its tokens, so they stay in the order visible, then masked: their positions
    are put into this order, not the tokens into that of the image. The tokens that the loss needs are the last ones.
    """

    def __init__(self, config: VitfmMAEConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.add_positions(config, width, num_prefix=1, is_learned=False)
        self.encoder = Encoder(DecoderConfig(config))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self, latent: Tensor, order: Tensor, grid: tuple[int, int], interpolate: bool, num_outputs: int
    ) -> Tensor:
        """Decode patches.

        Args:
            latent: the encoder's tokens, (B, prefix + V, D).
            order: indices of the patches (B, P), the visible ones first, as they are in `latent`.
            grid: (rows, columns) of patches.
            interpolate: resize the positions to this grid.
            num_outputs: how many patches are wanted, from the end of `order`.

        Returns:
            Tokens of the last patches of `order`, (B, num_outputs, E).
        """
        registers = self.config.num_register_tokens
        if registers:  # they have done their work in the encoder
            latent = torch.cat([latent[:, :1], latent[:, 1 + registers :]], dim=1)
        visible = latent.shape[1] - 1
        tokens = self.embed(latent)
        positions = self.positions(grid, interpolate)
        patch_positions = positions[0, 1:][order]  # (B, P, E)
        parts = [
            tokens[:, :1] + positions[:, :1],
            tokens[:, 1:] + patch_positions[:, :visible],
            self.mask_token + patch_positions[:, visible:],
        ]
        return self.norm(self.encoder(torch.cat(parts, dim=1), num_outputs=num_outputs).last_hidden_state)


class MAEForPreTraining(MAEPreTrainedModel):
    """Encoder, decoder and the loss on the pixels of masked patches (MAE, section 3)."""

    def __init__(self, config: VitfmMAEConfig):
        super().__init__(config)
        self.vit = MAEModel(config)
        self.decoder = MAEDecoder(config)
        height, width = as_pair(config.patch_size)
        self.predict = nn.Linear(config.decoder_hidden_size, height * width * config.num_channels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_logits: bool | None = None,
    ) -> MAEForPreTrainingOutput:
        """Mask, encode, decode, and compare with the masked pixels.

        Args:
            pixel_values: as `MAEModel` takes them; they are also the target.
            noise: as `MAEModel` takes it.
            interpolate_pos_encoding: resize both position tables to the images' size in this call.
            output_attentions: of the encoder.
            output_hidden_states: of the encoder.
            return_logits: also predict the pixels of visible patches, and return all. By default in evaluation only:
                the loss needs the masked patches alone.

        Returns:
            `loss` is None where nothing is masked; `logits` is None where it was not asked for.
        """
        interpolate = bool(interpolate_pos_encoding)
        encoded = self.vit(
            pixel_values,
            noise,
            interpolate_pos_encoding=interpolate,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        grid = self.vit.embeddings.patch_embeddings.grid(pixel_values)
        order = invert_order(encoded.ids_restore)
        num_patches = order.shape[1]
        visible = num_visible(num_patches, self.config.mask_ratio) if self.config.mask_ratio else num_patches
        wants_logits = not self.training if return_logits is None else return_logits
        num_outputs = num_patches if wants_logits else num_patches - visible
        loss = logits = None
        if num_outputs:
            tokens = self.decoder(encoded.last_hidden_state, order, grid, interpolate, num_outputs)
            predicted = self.predict(tokens)  # in `order`, masked patches last
            if visible < num_patches:
                masked = order[:, visible:]
                loss = self.loss(predicted[:, -masked.shape[1] :], self.patchify(pixel_values, masked))
            if wants_logits:
                index = encoded.ids_restore.unsqueeze(-1).expand(-1, -1, predicted.shape[-1])
                logits = predicted.gather(1, index)
        return MAEForPreTrainingOutput(
            loss=loss,
            logits=logits,
            mask=encoded.mask,
            ids_restore=encoded.ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Mean of `patch_losses` over masked patches."""
        return self.patch_losses(predicted, target).mean()

    def patch_losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Mean squared errors (B, M) of patches (B, M, Q), in float32; of normalised ones with `norm_pix_loss`."""
        precise = torch.promote_types(predicted.dtype, torch.float32)
        predicted, target = predicted.to(precise), target.to(precise)
        if self.config.norm_pix_loss:
            target = normalize_patches(target)
        return (predicted - target).square().mean(dim=-1)

    def patchify(self, pixel_values: Tensor, indices: Tensor | None = None) -> Tensor:
        """Images (B, channels, height, width) -> patches (B, P, Q), row by row; within a patch row, column, channel.

        With `indices` (B, M), only those patches: (B, M, Q).
        """
        rows, columns = self.vit.embeddings.patch_embeddings.grid(pixel_values)
        height, width = as_pair(self.config.patch_size)
        patches = pixel_values.unflatten(3, (columns, width)).unflatten(2, (rows, height))
        patches = patches.permute(0, 2, 4, 3, 5, 1)  # (B, rows, columns, h, w, channels), nothing is copied yet
        if indices is None:
            return patches.flatten(3).flatten(1, 2)
        images = torch.arange(len(indices), device=indices.device).unsqueeze(1)
        return patches[images, indices // columns, indices % columns].flatten(2)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The inverse of `patchify`; `grid` is (rows, columns), by default that of the configuration's image."""
        rows, columns = patch_grid(self.config) if grid is None else grid
        height, width = as_pair(self.config.patch_size)
        shape = (rows, columns, height, width, self.config.num_channels)
        pixels = patches.unflatten(2, shape[2:]).unflatten(1, shape[:2])  # (B, rows, columns, h, w, channels)
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def normalize_patches(patches: Tensor) -> Tensor:
    """Subtract each patch's mean and divide by its standard deviation (unbiased, plus 1e-6 under the root)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()
