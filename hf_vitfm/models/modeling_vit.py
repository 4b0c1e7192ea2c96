"""Vision Transformer: base model and image classifier (Dosovitskiy et al. 2021; mean pooling as in He et al. 2022)."""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_vit import VitfmViTConfig
from .modeling_base import VitfmPreTrainedModel
from .modeling_embeddings import VisionEmbeddings
from .modeling_encoder import Encoder
from .modeling_losses import classification_loss


class ViTPreTrainedModel(VitfmPreTrainedModel):
    """Base of the ViT models."""

    config: VitfmViTConfig
    config_class = VitfmViTConfig
    base_model_prefix = "vit"


class ViTModel(ViTPreTrainedModel):
    """Encoder with pooled output.

    `last_hidden_state` has passed the final norm, except where that follows the pooling, as by default for the mean.
    `pooler_output` is the pooled token, passed through the pre-logits layer (dense, tanh) where the configuration has
    one; None for `pooling="none"`. Of `pooling="cls_mean"` it is twice as wide: class token, then mean of the patches.
    """

    def __init__(self, config: VitfmViTConfig):
        super().__init__(config)
        self.embeddings = VisionEmbeddings(config)
        self.pre_layernorm = self._norm(config.use_pre_norm)
        self.encoder = Encoder(config)
        self.layernorm = self._norm(config.norm_place == "tokens")
        self.fc_norm = self._norm(config.norm_place == "pooled")
        representation = config.representation_size
        self.pre_logits = nn.Linear(config.pooled_size, representation) if representation else None
        self.post_init()

    def _norm(self, is_there: bool) -> nn.Module:
        return nn.LayerNorm(self.config.hidden_size, eps=self.config.layer_norm_eps) if is_there else nn.Identity()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (B, channels, height, width), normalised as the image processor does.
            interpolate_pos_encoding: resize the positions to the images' size in this call.
            attention_mask: (B, tokens) with 1 for tokens to attend to, prefix tokens first.
            output_attentions: also return the attention weights of every layer, (B, heads, tokens, tokens).
            output_hidden_states: also return the first layer's input and every layer's output, before the final norm.

        Raises:
            ValueError: if the images do not fit the patches or, without interpolation, the positions.
        """
        encoded = self.encoder(
            self.pre_layernorm(self.embeddings(pixel_values, interpolate=bool(interpolate_pos_encoding))),
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        sequence = self.layernorm(encoded.last_hidden_state)
        return BaseModelOutputWithPooling(
            last_hidden_state=sequence,
            pooler_output=self.pool(sequence),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def pool(self, sequence: Tensor) -> Tensor | None:
        """(B, T, D) -> (B, pooled size) or, with a pre-logits layer, (B, representation size)."""
        pooling = self.config.pooling
        if pooling == "none":
            return None
        pooled = []
        if pooling in ("cls", "cls_mean"):
            pooled.append(sequence[:, 0])
        if pooling in ("mean", "cls_mean"):
            pooled.append(sequence[:, self.embeddings.num_prefix_tokens :].mean(dim=1))
        pooled = self.fc_norm(torch.cat(pooled, dim=1) if len(pooled) > 1 else pooled[0])
        return pooled if self.pre_logits is None else torch.tanh(self.pre_logits(pooled))


class ViTForImageClassification(ViTPreTrainedModel):
    """ViT with a linear classifier on the pooled output.

    With a distillation token, the logits are the mean of both heads' (DeiT at inference).
    """

    def __init__(self, config: VitfmViTConfig):
        super().__init__(config)
        if config.pooling == "none":
            raise ValueError('A classifier needs `pooling="cls"`, "mean" or "cls_mean"; got "none".')
        self.num_labels = config.num_labels
        self.vit = ViTModel(config)
        self.classifier = self._head(config.representation_size or config.pooled_size)
        self.distillation_classifier = self._head(config.hidden_size) if config.use_distillation_token else None
        self.post_init()

    def _head(self, width: int) -> nn.Module:
        if self.num_labels == 0:
            return nn.Identity()
        head = nn.Linear(width, self.num_labels)
        head.head_init = self.config.head_init
        return head

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: (B, channels, height, width), normalised as the image processor does.
            labels: (B,) class ids, or (B, K) floats; `config.problem_type` says which kind (`classification_loss`).
            interpolate_pos_encoding: resize the positions to the images' size in this call.
            attention_mask: (B, tokens) with 1 for tokens to attend to, prefix tokens first.
            output_attentions: also return the attention weights of every layer.
            output_hidden_states: also return the embeddings and every layer's output.
            num_items_in_batch: label elements in the whole accumulated batch, as Trainer passes it.

        Returns:
            `loss` (if there are labels), `logits` (B, K), `hidden_states` and `attentions` (if asked for).
        """
        outputs = self.vit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(outputs.pooler_output)
        if self.distillation_classifier is not None:
            logits = (logits + self.distillation_classifier(outputs.last_hidden_state[:, 1])) / 2
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config.problem_type, num_items_in_batch)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
