"""ViT models: pooling, heads, forward arguments and precision."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_vitfm import ViTForImageClassification, ViTModel
from hf_vitfm.models.modeling_embeddings import resize_positions
from tests.tiny import OPTIONS, random_images, randomize, relative_error, tiny_config


def tokens_before_norm(model, images):
    return model.encoder(model.embeddings(images)).last_hidden_state


@pytest.mark.parametrize("registers", [0, 2])
def test_cls_pooling_takes_the_class_token_after_the_final_norm(images, registers):
    model = randomize(ViTModel(tiny_config(num_register_tokens=registers)))
    outputs = model(images)
    expected = model.layernorm(tokens_before_norm(model, images))
    assert torch.equal(outputs.last_hidden_state, expected)
    assert torch.equal(outputs.pooler_output, expected[:, 0])
    assert isinstance(model.layernorm, nn.LayerNorm) and isinstance(model.fc_norm, nn.Identity)


@pytest.mark.parametrize(("class_token", "registers"), [(True, 0), (True, 3), (False, 0), (False, 3)])
def test_mean_pooling_norms_the_mean_of_the_patches_and_has_no_final_norm(images, class_token, registers):
    model = randomize(
        ViTModel(tiny_config(pooling="mean", use_class_token=class_token, num_register_tokens=registers))
    )
    outputs = model(images)
    tokens = tokens_before_norm(model, images)
    assert torch.equal(outputs.last_hidden_state, tokens)
    assert torch.equal(outputs.pooler_output, model.fc_norm(tokens[:, -16:].mean(dim=1)))
    assert isinstance(model.fc_norm, nn.LayerNorm) and isinstance(model.layernorm, nn.Identity)


def test_no_pooling_gives_tokens_only_and_no_classifier(images):
    config = tiny_config(pooling="none", use_class_token=False)
    outputs = randomize(ViTModel(config))(images)
    assert outputs.pooler_output is None and outputs.last_hidden_state.shape == (2, 16, 32)
    with pytest.raises(ValueError, match='needs `pooling="cls"`, "mean" or "cls_mean"; got "none"'):
        ViTForImageClassification(config)


@pytest.mark.parametrize("registers", [0, 2])
def test_cls_mean_pooling_joins_the_class_token_and_the_mean_of_the_patches(images, registers):
    model = randomize(ViTModel(tiny_config(pooling="cls_mean", num_register_tokens=registers)))
    tokens = model.layernorm(tokens_before_norm(model, images))
    expected = torch.cat([tokens[:, 0], tokens[:, -16:].mean(dim=1)], dim=1)
    assert torch.equal(model(images).pooler_output, expected)
    classifier = ViTForImageClassification(tiny_config(pooling="cls_mean"))
    assert classifier.classifier.in_features == 64


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("place", ["tokens", "pooled", "none"])
def test_final_norm_stands_where_the_configuration_says(images, pooling, place):
    model = randomize(ViTModel(tiny_config(pooling=pooling, final_norm=place)))
    tokens = tokens_before_norm(model, images)
    norm = {"tokens": model.layernorm, "pooled": model.fc_norm}.get(place, nn.Identity())
    assert isinstance(norm, nn.LayerNorm) == (place != "none")
    norms = [name for name, _ in model.named_children() if isinstance(getattr(model, name), nn.LayerNorm)]
    assert len(norms) == (place != "none")
    sequence = norm(tokens) if place == "tokens" else tokens
    pooled = sequence[:, 0] if pooling == "cls" else sequence[:, -16:].mean(dim=1)
    outputs = model(images)
    assert torch.equal(outputs.last_hidden_state, sequence)
    assert torch.equal(outputs.pooler_output, norm(pooled) if place == "pooled" else pooled)


def test_pre_norm_stands_before_the_first_layer_and_patches_have_no_bias(images):
    model = randomize(ViTModel(tiny_config(use_pre_norm=True)))
    assert model.embeddings.patch_embeddings.projection.bias is None
    outputs = model(images, output_hidden_states=True)
    expected = F.layer_norm(
        model.embeddings(images), (32,), model.pre_layernorm.weight, model.pre_layernorm.bias, eps=1e-6
    )
    assert torch.equal(outputs.hidden_states[0], expected)
    assert torch.equal(outputs.last_hidden_state, model.layernorm(model.encoder(expected).last_hidden_state))


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
def test_pre_logits_is_a_dense_layer_with_tanh_on_the_pooled_output(images, pooling):
    model = randomize(ViTForImageClassification(tiny_config(pooling=pooling, representation_size=24)))
    pre_logits, model.vit.pre_logits = model.vit.pre_logits, None
    pooled = model.vit(images).pooler_output
    model.vit.pre_logits = pre_logits
    expected = torch.tanh(F.linear(pooled, pre_logits.weight, pre_logits.bias))
    assert torch.equal(model.vit(images).pooler_output, expected)
    assert torch.equal(model(images).logits, model.classifier(expected))


def test_logits_of_a_distilled_model_are_the_mean_of_both_heads(images):
    model = randomize(ViTForImageClassification(tiny_config(use_distillation_token=True, num_register_tokens=2)))
    tokens = model.vit(images).last_hidden_state
    expected = (model.classifier(tokens[:, 0]) + model.distillation_classifier(tokens[:, 1])) / 2
    assert torch.equal(model(images).logits, expected)


def test_classifier_without_labels_passes_the_pooled_output_on(images):
    model = randomize(ViTForImageClassification(tiny_config(num_labels=0)))
    assert torch.equal(model(images).logits, model.vit(images).pooler_output)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_parameter_gets_a_gradient(name):
    config = tiny_config(**OPTIONS[name])
    model = randomize(ViTForImageClassification(config)).train()
    size = config.image_size if isinstance(config.image_size, tuple) else (32, 32)
    model(random_images(2, *size), labels=torch.tensor([0, 1])).loss.backward()
    frozen = {"vit.embeddings.position_embeddings"} if config.position_embedding_type == "sincos" else set()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in frozen:
            assert parameter.grad is None
        else:
            assert parameter.grad.abs().sum() > 0, parameter_name


def test_return_dict_false_gives_a_tuple_by_argument_and_by_configuration(classifier, images):
    labels = torch.tensor([0, 1])
    expected = classifier(images, labels=labels)
    by_argument = classifier(images, labels=labels, return_dict=False)
    classifier.config.return_dict = False
    for found in (by_argument, classifier(images, labels=labels)):
        assert type(found) is tuple and len(found) == 2
        assert torch.equal(found[0], expected.loss) and torch.equal(found[1], expected.logits)
    base = classifier.vit(images)
    assert type(base) is tuple and [value.ndim for value in base] == [3, 2]


def test_hidden_states_and_attentions_come_by_argument_and_by_configuration(classifier, images):
    plain = classifier(images)
    assert plain.hidden_states is None and plain.attentions is None
    asked = classifier(images, output_hidden_states=True, output_attentions=True)
    classifier.config.output_hidden_states = classifier.config.output_attentions = True
    configured = classifier(images)
    assert classifier.config._attn_implementation == "sdpa"
    for found in (asked, configured):
        assert len(found.hidden_states) == 4 and len(found.attentions) == 3
        assert torch.equal(found.hidden_states[0], classifier.vit.embeddings(images))
        torch.testing.assert_close(found.logits, plain.logits, rtol=1e-5, atol=1e-5)
    refused = classifier(images, output_hidden_states=False, output_attentions=False)
    assert refused.hidden_states is None and refused.attentions is None


def test_last_hidden_state_is_the_norm_of_the_last_of_the_hidden_states(classifier, images):
    outputs = classifier.vit(images, output_hidden_states=True)
    assert torch.equal(classifier.vit.layernorm(outputs.hidden_states[-1]), outputs.last_hidden_state)


def test_interpolated_positions_are_those_of_a_resized_model(classifier):
    images = random_images(2, 48, 24)
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True"):
        classifier(images)
    interpolated = classifier(images, interpolate_pos_encoding=True).logits
    positions = classifier.vit.embeddings.position_embeddings
    expected = resize_positions(positions, (4, 4), (6, 3), "bicubic")
    classifier.resize_position_embeddings([48, 24])
    assert torch.equal(classifier.vit.embeddings.position_embeddings, expected)
    assert classifier.config.image_size == (48, 24)
    assert torch.equal(classifier(images).logits, interpolated)


def test_interpolation_at_the_models_own_size_changes_nothing(classifier, images):
    assert torch.equal(classifier(images, interpolate_pos_encoding=True).logits, classifier(images).logits)


def test_masked_tokens_do_not_matter(classifier, images):
    mask = torch.ones(2, 17)
    mask[:, 1:5] = 0  # the first row of patches, eight pixels high
    changed = images.clone()
    changed[:, :, :8] = 0
    torch.testing.assert_close(
        classifier(images, attention_mask=mask).logits, classifier(changed, attention_mask=mask).logits
    )
    assert not torch.allclose(classifier(images).logits, classifier(changed).logits)


def test_unknown_argument_of_forward_is_refused(classifier, images):
    with pytest.raises(TypeError, match="pixel_value"):
        classifier(images, pixel_value=images)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_recomputes_layers_and_changes_no_gradient(images, use_reentrant):
    config = tiny_config(drop_path_rate=0.5, hidden_dropout_prob=0.3, patch_dropout=0.25)
    model = randomize(ViTForImageClassification(config)).train()
    calls = []
    model.vit.encoder.layers[1].mlp.register_forward_hook(lambda *args: calls.append(1))

    def gradients():
        torch.manual_seed(5)
        model.zero_grad()
        model(images, labels=torch.tensor([0, 1])).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    found = gradients()
    assert len(calls) == 3  # once plain, once in the checkpointed forward pass, once recomputed
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    model.gradient_checkpointing_disable()
    gradients()
    assert len(calls) == 4


def test_float64_model_agrees_with_float32_and_stays_float64(images):
    model = randomize(ViTForImageClassification(tiny_config()))
    labels = torch.tensor([0, 1])
    single = model(images, labels=labels)
    double = model.double()(images.double(), labels=labels)
    assert double.logits.dtype == double.loss.dtype == torch.float64
    assert relative_error(single.logits, double.logits) < 1e-5
    assert relative_error(single.loss, double.loss) < 1e-5


def test_bfloat16_weights_take_float32_images_and_give_a_float32_loss(classifier, images):
    expected = classifier(images).logits
    outputs = classifier.to(torch.bfloat16)(images, labels=torch.tensor([0, 1]))
    assert outputs.logits.dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32
    assert relative_error(outputs.logits, expected) < 0.1


@pytest.mark.parametrize("output_attentions", [False, True])
def test_bfloat16_autocast_computes_in_bfloat16_and_trains(classifier, images, output_attentions):
    labels = torch.tensor([0, 1])
    expected = classifier(images, labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = classifier(images, labels=labels, output_attentions=output_attentions)
    outputs.loss.backward()
    assert outputs.logits.dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32
    assert relative_error(outputs.logits, expected.logits) < 0.1
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in classifier.parameters())


def test_input_embeddings_are_the_patch_embeddings(classifier):
    assert classifier.get_input_embeddings() is classifier.vit.embeddings.patch_embeddings


def test_attention_implementation_can_be_changed_on_a_built_model(classifier, images):
    expected = classifier(images).logits
    classifier.set_attn_implementation("eager")
    assert classifier.config._attn_implementation == "eager"
    torch.testing.assert_close(classifier(images).logits, expected, rtol=1e-5, atol=1e-5)
