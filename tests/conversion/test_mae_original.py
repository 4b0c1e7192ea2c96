"""The files of MAE's own code: encoders and classifiers as timm has them, the whole autoencoder as transformers has it."""

import pytest
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer

from hf_vitfm import MAEConfig, MAEForPreTraining, MAEModel, ViTForImageClassification, ViTModel
from hf_vitfm.conversion import deit, mae_original, transformers_mae
from tests.conversion.direct import load, same, shapes
from tests.tiny import MAE_FIELDS, random_images, randomize, tiny_config, tiny_mae


HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 2}  # no published model has these widths
FIELDS = {**MAE_FIELDS, "intermediate_size": 64, "decoder_intermediate_size": 48}
TIMM = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 2,
    "num_classes": 5,
}
MODELS = {
    "encoder": {"num_classes": 0},
    "classifier of the mean": {"global_pool": "avg"},
}


def their_mae() -> transformers.ViTMAEForPreTraining:
    return randomize(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**FIELDS, layer_norm_eps=1e-6)))


# transformers' names of modules -> those of models_mae.py, in this order.
NAMES = {
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.embeddings.": "",
    "vit.layernorm": "norm",
    "vit.layers.": "blocks.",
    "decoder.decoder_encoder.layer.": "decoder_blocks.",
    "decoder.decoder_layers.": "decoder_blocks.",
    "decoder.": "",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
}


def original(model) -> dict[str, torch.Tensor]:
    """transformers' weights under the names of models_mae.py."""
    found = {}
    for name, tensor in model.state_dict().items():
        for theirs, renamed in NAMES.items():
            name = name.replace(theirs, renamed)
        found[name] = tensor
    for name in [name for name in found if "q_proj" in name]:
        parts = [found.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        found[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    return found


DOCUMENTED = (
    "cls_token",
    "pos_embed",
    "mask_token",
    "decoder_pos_embed",
    "patch_embed.proj.weight",
    "blocks.2.attn.qkv.weight",
    "norm.weight",
    "decoder_embed.weight",
    "decoder_blocks.1.mlp.fc2.bias",
    "decoder_norm.bias",
    "decoder_pred.weight",
)


@pytest.mark.parametrize("normalize", [False, True])
def test_autoencoder_gives_transformers_loss_and_pixels_and_is_written_back_as_it_was(normalize):
    theirs = their_mae()
    weights = original(theirs)
    assert set(DOCUMENTED) <= set(weights) and mae_original.matches({}, shapes(weights))
    ours = load(mae_original, MAEForPreTraining, weights, **HEADS, norm_pix_loss=normalize)
    theirs.config.norm_pix_loss = normalize
    images, noise = random_images(2), torch.rand(2, 16)
    with torch.no_grad():
        found, expected = ours(images, noise), theirs(images, noise=noise)
        base = load(mae_original, MAEModel, weights, **HEADS)(images, noise).last_hidden_state
        features = theirs.vit(images, noise=noise).last_hidden_state
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(base, features, rtol=0, atol=1e-5)
    assert same(mae_original.write_mae(ours)["checkpoint.pth"]["model"], weights)


@pytest.mark.parametrize("kind", MODELS)
def test_encoder_and_classifier_give_timms_outputs_and_are_written_back_as_they_were(kind):
    theirs, images = randomize(VisionTransformer(**{**TIMM, **MODELS[kind]})), random_images()
    weights = theirs.state_dict()
    assert mae_original.matches({}, shapes(weights)) and not deit.matches({}, shapes(weights))
    base = load(mae_original, ViTModel, weights, num_attention_heads=4)
    with torch.no_grad():
        found, expected = base(images), theirs.forward_features(images)
        pooled = theirs.forward_head(expected, pre_logits=True)
    torch.testing.assert_close(found.last_hidden_state, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pooler_output, pooled, rtol=0, atol=1e-5)
    if kind == "encoder":
        assert same(mae_original.write(base)["checkpoint.pth"]["model"], weights)
        return
    ours = load(mae_original, ViTForImageClassification, weights, num_attention_heads=4)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, theirs(images), rtol=0, atol=1e-5)
    assert same(mae_original.write(ours)["checkpoint.pth"]["model"], weights)


def test_vit_takes_the_encoder_of_a_whole_file():
    weights = original(their_mae())
    whole = load(mae_original, ViTModel, weights, num_attention_heads=4)
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith(("decoder", "mask_token"))}
    assert same(whole.state_dict(), load(mae_original, ViTModel, encoder, num_attention_heads=4).state_dict())
    assert whole.embeddings.position_embeddings.requires_grad and whole.config.position_embedding_type == "learned"


@pytest.mark.parametrize("config", [tiny_config(), tiny_config(pooling="mean")], ids=["class token", "mean"])
def test_our_classifier_opens_in_timm(config):
    ours, images = randomize(ViTForImageClassification(config)), random_images()
    options = {"global_pool": "avg"} if config.pooling == "mean" else {}
    theirs = VisionTransformer(**{**TIMM, "mlp_ratio": 1.5, **options}).eval()
    theirs.load_state_dict(mae_original.write(ours)["checkpoint.pth"]["model"])
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images).logits, rtol=0, atol=1e-5)


def test_encoder_alone_is_no_autoencoder_and_a_classifier_neither():
    encoder = VisionTransformer(**{**TIMM, "num_classes": 0}).state_dict()
    with pytest.raises(ValueError, match="holds the encoder alone; MAEForPreTraining needs its decoder.*_full.pth"):
        load(mae_original, MAEForPreTraining, encoder, **HEADS)
    load(mae_original, MAEModel, encoder, **HEADS)
    classifier = VisionTransformer(**TIMM, global_pool="avg").state_dict()
    with pytest.raises(ValueError, match="is a classifier that was fine-tuned.*`ViTForImageClassification`"):
        load(mae_original, MAEModel, classifier, **HEADS)


@pytest.mark.parametrize(
    ("drop", "message"),
    {
        "mask_token": "1 missing .mask_token., 0 unexpected",
        "decoder_blocks.0.norm1.weight": "1 missing .decoder_blocks.0.norm1.weight",
        "decoder_embed.weight": "has no tensor 'decoder_embed.weight'",
        "norm.weight": "1 missing .norm.weight.",
        "blocks.0.mlp.fc1.weight": "has no tensor 'blocks.0.mlp.fc1.weight'",
    }.items(),
)
def test_missing_weights_are_an_error(drop, message):
    weights = original(their_mae())
    del weights[drop]
    with pytest.raises(ValueError, match=message):
        load(mae_original, MAEForPreTraining, weights, **HEADS)


@pytest.mark.parametrize(
    ("field", "fields"),
    {
        "use_class_token": {"use_class_token": False, "pooling": "mean"},
        "use_distillation_token": {"use_distillation_token": True},
        "representation_size": {"representation_size": 24},
        "num_register_tokens": {"num_register_tokens": 1},
        "layer_scale_init_value": {"layer_scale_init_value": 0.1},
        "qkv_bias": {"qkv_bias": False},
        "layer_norm_eps": {"layer_norm_eps": 1e-12},
        "hidden_act": {"hidden_act": "relu"},
        "image_size": {"image_size": (32, 48)},
        "final_norm": {"final_norm": "none"},
    }.items(),
)
def test_writing_a_classifier_refuses_what_the_code_cannot_compute(field, fields):
    with pytest.raises(ValueError, match=f"MAE's own format cannot hold `{field}="):
        mae_original.write(ViTForImageClassification(tiny_config(**fields)))


@pytest.mark.parametrize(
    ("field", "fields"),
    {
        "decoder_intermediate_size": {},  # another ratio than the encoder's
        "masking": {"masking": "block"},
        "position_embedding_type": {"position_embedding_type": "learned"},
        "layer_norm_eps": {"layer_norm_eps": 1e-12},
        "num_register_tokens": {"num_register_tokens": 2},
    }.items(),
)
def test_writing_an_autoencoder_refuses_what_the_code_cannot_compute(field, fields):
    with pytest.raises(ValueError, match=f"MAE's own format cannot hold `{field}="):
        mae_original.write_mae(tiny_mae(**fields))


def test_encoder_of_an_autoencoder_is_written_alone():
    ours = MAEModel(MAEConfig(**FIELDS))
    weights = mae_original.write_mae(ours)["checkpoint.pth"]["model"]
    assert shapes(weights) == shapes(VisionTransformer(**{**TIMM, "num_classes": 0}).state_dict())


def test_notes_say_what_the_file_does_not():
    notes = mae_original.notes({}, shapes(original(their_mae())))
    assert any("`norm_pix_loss`" in note for note in notes) and any("heads" in note for note in notes)
    assert len(transformers_mae.notes({"layer_norm_eps": 1e-12, "norm_pix_loss": False}, {})) == 2
    assert not transformers_mae.notes({"layer_norm_eps": 1e-6, "norm_pix_loss": True}, {})
