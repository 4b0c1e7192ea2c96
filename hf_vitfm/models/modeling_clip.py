"""CLIP: a text and a vision tower in one space (Radford et al. 2021; sigmoid objective of Zhai et al. 2023).

Shapes: B batch, T tokens, D width, E width of the joint space, I images, S texts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_base import as_pair
from .configuration_clip import VitfmCLIPConfig, VitfmCLIPTextConfig, VitfmCLIPVisionConfig
from .modeling_clip_towers import CLIPPreTrainedModel, CLIPTextModel, CLIPVisionModel, projection
from .modeling_contrastive import contrastive_loss
from .modeling_pooling import pool_tokens


@dataclass
class CLIPOutput(ModelOutput):
    """What `CLIPModel` returns, as transformers' `CLIPOutput` has it.

    `loss`, if it was asked for; `logits_per_image` (I, S) and `logits_per_text` (S, I), scaled cosines; `text_embeds`
    (S, E) and `image_embeds` (I, E) of unit length; the outputs of both towers, whose `pooler_output` is projected.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        """All that is there, the towers' outputs as tuples."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class CLIPModel(CLIPPreTrainedModel):
    """Both towers, their projections, and the factor (and bias) on the cosines."""

    config: VitfmCLIPConfig
    config_class = VitfmCLIPConfig
    base_model_prefix = "clip"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")

    def __init__(self, config: VitfmCLIPConfig):
        super().__init__(config)
        self.text_model = _build_tower(config.text_config, config.text_pooling)
        self.vision_model = _build_tower(config.vision_config, config.vision_pooling)
        text_width = _pooled_width(config.text_config, config.text_pooling)
        vision_width = _pooled_width(config.vision_config, config.vision_pooling)
        vision, text = config.vision_config, config.text_config
        is_projected = not _is_own(vision, VitfmCLIPVisionConfig) or vision.use_projection
        has_bias = _is_own(text, VitfmCLIPTextConfig) and text.projection_bias
        self.visual_projection = projection(vision_width, config.projection_dim) if is_projected else nn.Identity()
        self.text_projection = projection(text_width, config.projection_dim, has_bias)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Parameter(torch.empty(())) if config.objective == "sigmoid" else None
        self.locked_towers = ()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if module is not self:
            super()._init_weights(module)
            return
        init.constant_(self.logit_scale, self.config.logit_scale_init_value)
        if self.logit_bias is not None:
            init.constant_(self.logit_bias, self.config.logit_bias_init_value)

    @classmethod
    def from_towers(cls, vision_model: PreTrainedModel, text_model: PreTrainedModel, **fields):
        """Join two models, trained or not; projections, factor and bias are new.

        Args:
            vision_model: this library's `CLIPVisionModel`, or anything that `AutoModel` builds and that takes
                `pixel_values`. It becomes a part of the result, without a pooler that `vision_pooling` makes needless.
            text_model: this library's `CLIPTextModel`, or anything that `AutoModel` builds and that takes `input_ids`.
            **fields: those of `VitfmCLIPConfig`, such as `text_pooling`.
        """
        model = cls(cls.config_class(vision_config=vision_model.config, text_config=text_model.config, **fields))
        for name, tower in (("vision_model", vision_model), ("text_model", text_model)):
            built = getattr(model, name)
            if type(tower) is not type(built):
                raise ValueError(
                    f"`{name}` must be a {type(built).__name__}, which `AutoModel` builds from its configuration; got a "
                    f"{type(tower).__name__}. Take its base model."
                )
            tower.config = built.config  # part of the new configuration
            setattr(model, name, _without_idle_weights(tower, getattr(model.config, name.replace("model", "pooling"))))
        return model.train(vision_model.training or text_model.training)

    def lock_towers(self, vision: bool = False, text: bool = False) -> None:
        """Freeze towers for good: no gradients, and evaluation mode also while the rest trains (LiT, Zhai et al. 2022).

        The projections stay trainable. Nothing of it is saved.

        Args:
            vision: lock the vision tower.
            text: lock the text tower.
        """
        chosen = {"vision_model": vision, "text_model": text}
        self.locked_towers = tuple(name for name, lock in chosen.items() if lock or name in self.locked_towers)
        for name in self.locked_towers:
            getattr(self, name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True):
        """As every module's, but locked towers stay in evaluation mode."""
        super().train(mode)
        for name in self.locked_towers:
            getattr(self, name).eval()
        return self

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """As transformers', but files name the weights of foreign towers as the model does.

        The names that such a tower has on the Hub would be read by `from_pretrained`, but not by a trainer, which loads
        the file as it is and takes no notice of what does not fit.
        """
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode and project texts.

        Args:
            input_ids: (S, T) tokens.
            attention_mask: (S, T) with 1 for tokens to attend to.
            position_ids: (S, T) or (1, T) positions.
            token_type_ids: (S, T), for text towers that know them; others do without.
            output_attentions: also return the tower's attention weights.
            output_hidden_states: also return the tower's hidden states.

        Returns:
            The tower's outputs with the projected `pooler_output` (S, E), not of unit length.
        """
        if _is_own(self.config.text_config, VitfmCLIPTextConfig):
            token_type_ids = None
        outputs = self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            return_dict=True,
            **_given(position_ids=position_ids, token_type_ids=token_type_ids),
            **self._recorded(output_attentions, output_hidden_states),
        )
        pooling = self.config.text_pooling
        if pooling is None:
            pooled = _own_pooling(outputs, self.text_model, "text_pooling")
        else:
            pooled = pool_tokens(outputs.last_hidden_state, pooling, attention_mask)
        return _projected(outputs, self.text_projection(pooled))

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode and project images.

        Args:
            pixel_values: (I, channels, height, width), normalised as the image processor does.
            interpolate_pos_encoding: resize the positions to the images' size in this call.
            output_attentions: also return the tower's attention weights.
            output_hidden_states: also return the tower's hidden states.

        Returns:
            The tower's outputs with the projected `pooler_output` (I, E), not of unit length.
        """
        outputs = self.vision_model(
            pixel_values=pixel_values,
            return_dict=True,
            **_given(interpolate_pos_encoding=interpolate_pos_encoding or None),
            **self._recorded(output_attentions, output_hidden_states),
        )
        pooling, tokens = self.config.vision_pooling, outputs.last_hidden_state
        if pooling is None:
            pooled = _own_pooling(outputs, self.vision_model, "vision_pooling")
        else:
            if tokens.ndim != 3:
                raise ValueError(
                    f"{type(self.vision_model).__name__} gives a map {tuple(tokens.shape)}, not tokens (images, tokens, "
                    f"width), so `vision_pooling={pooling!r}` has nothing to pool. Leave it out."
                )
            if pooling == "mean":  # patches come last in every library
                tokens = tokens[:, -_num_patches(self.config.vision_config, pixel_values) :]
            pooled = pool_tokens(tokens, pooling)
        return _projected(outputs, self.visual_projection(pooled))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_logits: bool | None = None,
    ) -> CLIPOutput:
        """Embed texts and images and compare them.

        Args:
            input_ids: as `get_text_features` takes them.
            pixel_values: as `get_image_features` takes them.
            attention_mask: as `get_text_features` takes it.
            position_ids: as `get_text_features` takes them.
            return_loss: also return the loss of the configuration's objective; text k belongs to image k.
            interpolate_pos_encoding: resize the positions to the images' size in this call.
            token_type_ids: as `get_text_features` takes them.
            output_attentions: of both towers.
            output_hidden_states: of both towers.
            return_logits: whether to compute the logits of all pairs, by default unless a loss is trained: it does
                without them, and they are many.

        Raises:
            ValueError: if there is a loss to compute, but not one text per image.
        """
        recorded = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        vision = self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True, **recorded)
        text = self.get_text_features(
            input_ids, attention_mask, position_ids, token_type_ids, return_dict=True, **recorded
        )
        image_embeds = F.normalize(vision.pooler_output, dim=-1)
        text_embeds = F.normalize(text.pooler_output, dim=-1)
        loss = logits = None
        if return_loss:
            loss = self.loss(image_embeds, text_embeds)
        if not (return_loss and self.training) if return_logits is None else return_logits:
            logits = text_embeds @ image_embeds.t() * self.logit_scale.exp()
            logits = logits if self.logit_bias is None else logits + self.logit_bias
        return CLIPOutput(
            loss=loss,
            logits_per_image=None if logits is None else logits.t(),
            logits_per_text=logits,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )

    def loss(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """The configuration's objective over all pairs of embeddings (B, E) of unit length, of this process alone."""
        if len(image_embeds) != len(text_embeds):
            raise ValueError(
                f"The loss needs one text per image; got {len(image_embeds)} images and {len(text_embeds)} texts."
            )
        return contrastive_loss(
            image_embeds, text_embeds, self.logit_scale.exp(), self.logit_bias, objective=self.config.objective
        )

    def _recorded(self, output_attentions: bool | None, output_hidden_states: bool | None) -> dict:
        """What a tower is asked to record; nothing is said of what is not, since not every tower takes both words."""
        config = self.config
        attentions = config.output_attentions if output_attentions is None else output_attentions
        hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return _given(output_attentions=attentions or None, output_hidden_states=hidden_states or None)


def _given(**arguments) -> dict:
    return {name: value for name, value in arguments.items() if value is not None}


def _is_own(config: PreTrainedConfig, own: type[PreTrainedConfig]) -> bool:
    """Whether a tower is this library's, by type name: remote code may have its configuration from a twin of the file."""
    return config.model_type == own.model_type


def _build_tower(config: PreTrainedConfig, pooling: str | None) -> PreTrainedModel:
    if _is_own(config, VitfmCLIPTextConfig):
        return CLIPTextModel(config)
    if _is_own(config, VitfmCLIPVisionConfig):
        return CLIPVisionModel(config)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # keys and values of a decoder, which nobody reads again
    return _without_idle_weights(AutoModel.from_config(config), pooling)


def _without_idle_weights(tower: PreTrainedModel, pooling: str | None) -> PreTrainedModel:
    """Take away a learned pooler that is not used, and freeze what masked pretraining puts in the place of patches.

    Neither would have a gradient, which distributed training refuses.
    """
    for name, parameter in tower.named_parameters():
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)
    pooler = getattr(tower, "pooler", None)
    if pooling is not None and isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        tower.pooler = None
    return tower


def _pooled_width(config: PreTrainedConfig, pooling: str | None) -> int:
    """The width of a tower's pooled vector."""
    names = ("hidden_size",) if pooling else ("representation_size", "pooler_output_size", "hidden_size")
    for name in names:
        if getattr(config, name, None):
            return getattr(config, name)
    if getattr(config, "hidden_sizes", None):  # convolutional networks
        return config.hidden_sizes[-1]
    raise ValueError(
        f"A {type(config).__name__} does not say how wide its tokens are, so it cannot be a tower of CLIP."
    )


def _num_patches(config: PreTrainedConfig, pixel_values: Tensor) -> int:
    (height, width), (patch_height, patch_width) = pixel_values.shape[2:], as_pair(config.patch_size)
    return (height // patch_height) * (width // patch_width)


def _own_pooling(outputs: ModelOutput, tower: PreTrainedModel, field: str) -> Tensor:
    pooled = outputs.get("pooler_output")
    if pooled is None:
        raise ValueError(
            f"{type(tower).__name__} has no pooled output of its own. Set `{field}`, for example to "
            f"{'last' if field == 'text_pooling' else 'mean'!r}."
        )
    return pooled.flatten(1)


def _projected(outputs: ModelOutput, pooled: Tensor) -> BaseModelOutputWithPooling:
    return BaseModelOutputWithPooling(
        last_hidden_state=outputs.last_hidden_state,
        pooler_output=pooled,
        hidden_states=outputs.get("hidden_states"),
        attentions=outputs.get("attentions"),
    )
