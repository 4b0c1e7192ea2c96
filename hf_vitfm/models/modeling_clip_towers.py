"""The towers of CLIP, alone and with their projection to the joint space (Radford et al. 2021, section 2.4).

Shapes: B batch, T tokens, D width, E width of the joint space.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_base import as_pair
from .configuration_clip import VitfmCLIPTextConfig, VitfmCLIPVisionConfig
from .modeling_base import VitfmPreTrainedModel
from .modeling_embeddings import PositionTable, VisionEmbeddings
from .modeling_encoder import Encoder
from .modeling_pooling import MapPooling, pool_tokens, take_position, text_position


@dataclass
class CLIPTextModelOutput(ModelOutput):
    """A projected text: `text_embeds` (B, E), not normalised, and the tower's outputs."""

    text_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CLIPVisionModelOutput(ModelOutput):
    """A projected image: `image_embeds` (B, E), not normalised, and the tower's outputs."""

    image_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class CLIPPreTrainedModel(VitfmPreTrainedModel):
    """Base of the CLIP models; initialised as OpenAI's code (clip/model.py, `initialize_parameters`).

    The matrices of the text tower and the projections are normal with the deviation that their module is marked with;
    the vision tower's are torch's own, its tokens and positions normal with deviation D^-0.5.
    """

    accepts_loss_kwargs = False  # the loss is a mean over the pairs of this batch
    _no_split_modules = ["TextEmbeddings", "VisionEmbeddings", "EncoderLayer", "MapPooling"]

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=getattr(module, "init_std", 0.02))
        elif isinstance(module, MapPooling):  # Xavier's as JAX takes it for one row, which SigLIP's code has
            bound = (6 / (1 + module.query.shape[-1])) ** 0.5
            init.uniform_(module.query, -bound, bound)
        else:
            super()._init_weights(module)

    def _init_dense(self, module: nn.Linear | nn.Conv2d) -> None:
        fan_out, fan_in = module.weight.shape[0], module.weight[0].numel()
        if hasattr(module, "init_std"):
            init.normal_(module.weight, std=module.init_std)
        elif hasattr(module, "num_fused"):  # torch's MultiheadAttention takes the fused matrix for one
            bound = (6 / (fan_in + fan_out)) ** 0.5
            init.uniform_(module.weight, -bound, bound)
        else:
            init.uniform_(module.weight, -(fan_in**-0.5), fan_in**-0.5)
        if module.bias is not None:
            if getattr(module, "is_mlp", False):
                init.uniform_(module.bias, -(fan_in**-0.5), fan_in**-0.5)
            else:
                init.zeros_(module.bias)

    def _init_tokens(self, module: PositionTable) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            if name == "position_embeddings" and not module.is_learned:
                init.copy_(parameter, module.initial_positions())
            else:
                init.normal_(parameter, std=parameter.shape[-1] ** -0.5)


def projection(width: int, projection_dim: int, bias: bool = False) -> nn.Linear:
    """The linear map from a tower's pooled vector (B, D) to the joint space (B, E)."""
    dense = nn.Linear(width, projection_dim, bias=bias)
    dense.init_std = width**-0.5
    return dense


class TextEmbeddings(nn.Module):
    """Token embeddings plus learned positions."""

    def __init__(self, config: VitfmCLIPTextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_embedding.init_std, self.position_embedding.init_std = 0.02, 0.01
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """(B, T) -> (B, T, D); positions count from 0 where they are not given."""
        length, limit = input_ids.shape[1], self.position_embedding.num_embeddings
        if length > limit:
            raise ValueError(
                f"A text of {length} tokens is longer than the {limit} that the model has positions for. Let the "
                "tokenizer shorten it (`truncation=True`), or build the model with a larger `max_position_embeddings`."
            )
        weight = self.position_embedding.weight
        positions = weight[:length] if position_ids is None else self.position_embedding(position_ids)
        return self.dropout(self.token_embedding(input_ids) + positions)


class CLIPTextPreTrainedModel(CLIPPreTrainedModel):
    """Base of the text models."""

    config: VitfmCLIPTextConfig
    config_class = VitfmCLIPTextConfig
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _input_embed_layer = "token_embedding"


class CLIPTextModel(CLIPTextPreTrainedModel):
    """The text tower; `pooler_output` is the token that ends the text, after the final norm."""

    def __init__(self, config: VitfmCLIPTextConfig):
        super().__init__(config)
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config, is_causal=config.is_causal)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        into_residual = (2 * config.num_hidden_layers * config.hidden_size) ** -0.5
        for layer in self.encoder.layers:
            layer.attention.qkv.init_std = config.hidden_size**-0.5
            layer.attention.proj.init_std = into_residual
            layer.mlp.fc1.init_std = (2 * config.hidden_size) ** -0.5
            layer.mlp.fc2.init_std = into_residual
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode texts.

        Args:
            input_ids: (B, T) tokens, T at most `max_position_embeddings`.
            attention_mask: (B, T) with 1 for tokens to attend to. Texts that are padded on the right do not need one in
                a causal tower: no token sees what follows it. SigLIP's attend to the padding too.
            position_ids: (B, T) or (1, T) positions, by default 0 to T - 1.
            output_attentions: also return the attention weights of every layer, (B, heads, T, T).
            output_hidden_states: also return the embeddings and every layer's output, before the final norm.

        Raises:
            ValueError: if the texts are not (B, T), or longer than the limit.
        """
        if input_ids.ndim != 2:
            raise ValueError(f"`input_ids` must be (batch, tokens); got {tuple(input_ids.shape)}.")
        encoded = self.encoder(
            self.embeddings(input_ids, position_ids),
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        sequence = self.final_layer_norm(encoded.last_hidden_state)
        position = text_position(input_ids, self.config.pooling, self.config.eos_token_id, attention_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=sequence,
            pooler_output=take_position(sequence, position),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class CLIPTextModelWithProjection(CLIPTextPreTrainedModel):
    """The text tower with its projection to the joint space."""

    def __init__(self, config: VitfmCLIPTextConfig):
        super().__init__(config)
        self.text_model = CLIPTextModel(config)
        self.text_projection = projection(config.hidden_size, config.projection_dim, config.projection_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> CLIPTextModelOutput:
        """Encode and project texts; arguments as `CLIPTextModel` takes them."""
        outputs = self.text_model(
            input_ids, attention_mask, position_ids, output_attentions, output_hidden_states, return_dict=True
        )
        return CLIPTextModelOutput(
            text_embeds=self.text_projection(outputs.pooler_output),
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CLIPVisionPreTrainedModel(CLIPPreTrainedModel):
    """Base of the vision models."""

    config: VitfmCLIPVisionConfig
    config_class = VitfmCLIPVisionConfig
    base_model_prefix = "vision_model"


class CLIPVisionModel(CLIPVisionPreTrainedModel):
    """The vision tower.

    `last_hidden_state` is the encoder's output, after the final norm where that stands on the tokens; `pooler_output`
    what the pooling makes of it, after the final norm too.
    """

    def __init__(self, config: VitfmCLIPVisionConfig):
        super().__init__(config)
        self.embeddings = VisionEmbeddings(config)
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pre_layrnorm = norm if config.use_pre_norm else nn.Identity()
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention_pooling = MapPooling(config) if config.pooling == "map" else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (B, channels, height, width), normalised as the image processor does.
            interpolate_pos_encoding: resize the positions to the images' size in this call.
            output_attentions: also return the attention weights of every layer, (B, heads, T, T).
            output_hidden_states: also return the normed embeddings and every layer's output.

        Raises:
            ValueError: if the images do not fit the patches or, without interpolation, the positions.
        """
        if self.config.trim_images:
            (height, width), patch = pixel_values.shape[-2:], as_pair(self.config.patch_size)
            pixel_values = pixel_values[..., : height - height % patch[0], : width - width % patch[1]]
        encoded = self.encoder(
            self.pre_layrnorm(self.embeddings(pixel_values, interpolate=bool(interpolate_pos_encoding))),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        tokens, is_first = encoded.last_hidden_state, self.config.final_norm == "tokens"
        tokens = self.post_layernorm(tokens) if is_first else tokens
        pooled = self._pool(tokens)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=pooled if is_first else self.post_layernorm(pooled),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.attention_pooling is not None:
            return self.attention_pooling(tokens)
        if self.config.pooling == "mean":
            tokens = tokens[:, self.embeddings.num_prefix_tokens :]
        return pool_tokens(tokens, self.config.pooling)


class CLIPVisionModelWithProjection(CLIPVisionPreTrainedModel):
    """The vision tower with its projection to the joint space."""

    def __init__(self, config: VitfmCLIPVisionConfig):
        super().__init__(config)
        self.vision_model = CLIPVisionModel(config)
        dense = projection(config.hidden_size, config.projection_dim) if config.use_projection else nn.Identity()
        self.visual_projection = dense
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> CLIPVisionModelOutput:
        """Encode and project images; arguments as `CLIPVisionModel` takes them."""
        outputs = self.vision_model(
            pixel_values, interpolate_pos_encoding, output_attentions, output_hidden_states, return_dict=True
        )
        return CLIPVisionModelOutput(
            image_embeds=self.visual_projection(outputs.pooler_output),
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
