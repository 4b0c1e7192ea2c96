"""MAE: initialisation, masking, loss and sizes against the paper's formulas and its code."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from hf_vitfm import MAEConfig, MAEForPreTraining, MAEModel
from hf_vitfm.models.modeling_mae import normalize_patches
from hf_vitfm.models.modeling_masking import draw_noise, num_visible, split_patches
from tests.tiny import MAE_FIELDS, random_images, relative_error, tiny_mae


def table(dim: int, size: int) -> np.ndarray:
    """MAE's util/pos_embed.py in its own terms: the column in the first half, the row in the second."""
    frequencies = 1 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4))
    rows = []
    for y in range(size):
        for x in range(size):
            halves = [np.concatenate([np.sin(c * frequencies), np.cos(c * frequencies)]) for c in (x, y)]
            rows.append(np.concatenate(halves))
    return np.stack([np.zeros(dim), *rows])


def build(kind: str, tmp_path) -> MAEForPreTraining:
    config = MAEConfig(**MAE_FIELDS)
    if kind == "from config":
        return AutoModelForPreTraining.from_config(config)
    if kind == "on the meta device":
        with torch.device("meta"):
            model = MAEForPreTraining(config)
        model.to_empty(device="cpu")
        for module in model.modules():
            module._is_hf_initialized = False
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False
        model.init_weights()
        return model
    model = MAEForPreTraining(config)
    if kind == "from pretrained":
        model.save_pretrained(tmp_path)
        return AutoModelForPreTraining.from_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("kind", ["built", "from config", "from pretrained", "on the meta device"])
def test_positions_are_the_table_and_predictions_differ(kind, tmp_path):
    """transformers' own class has zero positions when it is built from a configuration."""
    model = build(kind, tmp_path).eval()
    for module, width in ((model.vit.embeddings, 32), (model.decoder, 24)):
        np.testing.assert_allclose(module.position_embeddings[0].detach().numpy(), table(width, 4), atol=1e-7)
        assert not module.position_embeddings.requires_grad
    logits = model(random_images(1)).logits[0]
    assert torch.pdist(logits).min() > 1e-4
    for name, parameter in model.named_parameters():
        assert parameter.abs().sum() > 0 or name.endswith(".bias"), name


def test_matrices_are_xavier_and_tokens_normal():
    torch.manual_seed(0)
    model = MAEForPreTraining(MAEConfig.from_variant("B/16", num_hidden_layers=1, decoder_num_hidden_layers=1))
    for name, fan in (
        ("vit.encoder.layers.0.attention.qkv.weight", 768 + 3 * 768),  # the fused matrix is one, as in the original
        ("vit.embeddings.patch_embeddings.projection.weight", 768 + 768),
        ("decoder.embed.weight", 768 + 512),
        ("predict.weight", 512 + 768),
    ):
        weight = model.state_dict()[name]
        bound = (6 / fan) ** 0.5
        assert weight.abs().max() <= bound and weight.abs().max() > 0.99 * bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    for token in (model.vit.embeddings.cls_token, model.decoder.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(
    ("variant", "encoder", "decoder"),
    [("B/16", 85_647_360, 26_008_320), ("L/16", 303_099_904, 26_139_392), ("H/14", 630_435_840, 26_178_124)],
)
def test_parameter_counts_are_the_papers(variant, encoder, decoder):
    with torch.device("meta"):
        model = MAEForPreTraining(MAEConfig.from_variant(variant))
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(count for name, count in trainable.items() if name.startswith("vit.")) == encoder
    assert sum(count for name, count in trainable.items() if not name.startswith("vit.")) == decoder


def test_the_loss_is_that_of_the_papers_code():
    model = tiny_mae(norm_pix_loss=True)
    images, noise = random_images(3), torch.rand(3, 16)
    output = model(images, noise)
    # models_mae.py, forward_loss: patches by einsum "nchpwq->nhwpqc"
    target = torch.einsum("nchpwq->nhwpqc", images.reshape(3, 3, 4, 8, 4, 8)).reshape(3, 16, 192)
    mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
    error = (output.logits - (target - mean) / (variance + 1e-6) ** 0.5) ** 2
    expected = (error.mean(dim=-1) * output.mask).sum() / output.mask.sum()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(model.patchify(images), target)
    assert torch.equal(model.unpatchify(model.patchify(images)), images)
    assert normalize_patches(target).var(dim=-1).mean().item() == pytest.approx(1, abs=1e-4)


def test_masked_pixels_do_not_reach_the_encoder():
    model = tiny_mae()
    images, noise = random_images(1), torch.rand(1, 16)
    output = model(images, noise)
    masked = model.unpatchify(output.mask[:, :, None].expand(-1, -1, 192)).bool()
    changed = torch.where(masked, torch.randn_like(images), images)
    assert torch.equal(model(changed, noise).logits, output.logits)


def test_without_a_mask_it_gives_features_in_order():
    model = tiny_mae(mask_ratio=0)
    images = random_images()
    output = model.vit(images)
    assert output.last_hidden_state.shape == (2, 17, 32)
    assert not output.mask.any() and torch.equal(output.ids_restore[0], torch.arange(16))
    assert model(images).loss is None and model(images).logits.shape == (2, 16, 192)


@pytest.mark.parametrize("masking", ["random", "block", "grid"])
def test_evaluation_is_reproducible_and_training_is_not(masking):
    model = tiny_mae(masking=masking)
    images = random_images(2)
    first, second = model(images), model(images)
    assert torch.equal(first.logits, second.logits)
    torch.testing.assert_close(model(images[1:]).logits, first.logits[1:], atol=1e-5, rtol=1e-5)  # whatever the batch
    assert first.mask.sum(dim=1).tolist() == [12, 12]
    if masking != "grid":
        masks = [model.train()(images).mask for _ in range(3)]
        assert not all(torch.equal(mask, masks[0]) for mask in masks)


def test_masks_have_their_shapes():
    grid, ratio = (14, 14), 0.75
    visible = num_visible(196, ratio)
    masks = {}
    for masking in ("random", "block", "grid"):
        noise = torch.stack([draw_noise(masking, grid, ratio) for _ in range(20)])
        keep, mask, restore = split_patches(noise, visible)
        assert keep.shape == (20, 49) and (mask.sum(dim=1) == 147).all() and not mask.gather(1, keep).any()
        order = restore.argsort(dim=1)  # visible, then masked
        assert torch.equal(order[:, :49], keep) and mask.gather(1, order[:, 49:]).all()
        masks[masking] = mask.reshape(20, *grid)
    assert torch.equal(masks["grid"][0, ::2, ::2], torch.zeros(7, 7)) and masks["grid"][0].sum() == 147

    def borders(mask):  # between masked and visible neighbours
        return (mask.diff(dim=1) != 0).sum() + (mask.diff(dim=2) != 0).sum()

    assert borders(masks["block"]) < 0.7 * borders(masks["random"])
    with pytest.raises(ValueError, match="random, block, grid"):
        draw_noise("blocks", grid, ratio)


def test_other_sizes_resize_both_tables(tmp_path):
    tiny_mae().save_pretrained(tmp_path)
    model = MAEForPreTraining.from_pretrained(tmp_path, image_size=(48, 16)).eval()
    assert model.decoder.grid == model.vit.embeddings.grid == (6, 2)
    output = model(random_images(1, 48, 16))
    assert output.logits.shape == (1, 12, 192)
    whole = MAEForPreTraining.from_pretrained(tmp_path).eval()
    in_call = whole(random_images(1, 48, 16), interpolate_pos_encoding=True)
    torch.testing.assert_close(in_call.logits, output.logits)
    with pytest.raises(ValueError, match="interpolate_pos_encoding"):
        whole(random_images(1, 48, 16))


def test_both_parts_follow_the_attention_implementation(tmp_path):
    model = tiny_mae()
    images = random_images()
    outputs = []
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert model.decoder.encoder.config._attn_implementation == name
        outputs.append(model(images).logits)
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


def test_it_compiles_with_the_loss_and_recorded_outputs():
    model = tiny_mae()
    images, noise = random_images(), torch.rand(2, 16)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for mode in (True, False):
        model.train(mode)
        torch.testing.assert_close(compiled(images, noise).loss, model(images, noise).loss)
    assert len(compiled(images, noise, output_hidden_states=True).hidden_states) == 4


def test_half_precision_and_checkpointing_agree():
    model = tiny_mae().train()
    images, noise = random_images(), torch.rand(2, 16)
    expected = model(images, noise).loss
    expected.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.autocast("cpu", torch.bfloat16):
        assert abs(model(images, noise).loss - expected) < 0.05 * expected
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(images, noise).loss.backward()
    for name, gradient in plain.items():
        assert relative_error(dict(model.named_parameters())[name].grad, gradient) < 1e-5, name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_ratio": -0.1}, "mask_ratio"),
        ({"mask_ratio": 0.95}, "leaves none of the 16 patches"),
        ({"masking": "grid", "mask_ratio": 0.5}, "one of every 2 x 2"),
        ({"decoder_hidden_size": 30}, "decoder_hidden_size"),
        ({"decoder_num_attention_heads": 5}, "decoder_num_attention_heads"),
        ({"image_size": 30}, "multiple of"),
        ({"decoder_depth": 3}, "no field"),
    ],
)
def test_bad_configurations_say_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=message):
        MAEConfig(**{**MAE_FIELDS, **fields})


def test_bad_input_is_refused():
    model = tiny_mae()
    with pytest.raises(ValueError, match="does not divide into patches"):
        model(random_images(1, 30, 32))
    with pytest.raises(ValueError, match=r"one value per patch, \(1, 16\)"):
        model(random_images(1), torch.rand(2, 16))


def test_auto_classes_give_ours(tmp_path):
    tiny_mae().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MAEConfig
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is MAEForPreTraining
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is MAEModel
    saved = MAEForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(base.embeddings.position_embeddings, saved.vit.embeddings.position_embeddings)


@pytest.mark.parametrize(("variant", "limit"), [("L/16", 0.10), ("H/14", 0.10), ("B/16", 0.31)])
def test_the_decoder_costs_little_per_token(variant, limit):
    """MAE, section 3: under 10 % of the encoder's compute per token (for L and H)."""
    config = MAEConfig.from_variant(variant)

    def cost(width, hidden, layers):  # multiplications per token in the layers' matrices
        return layers * (4 * width**2 + 2 * width * hidden)

    decoder = cost(config.decoder_hidden_size, config.decoder_intermediate_size, config.decoder_num_hidden_layers)
    assert decoder < limit * cost(config.hidden_size, config.intermediate_size, config.num_hidden_layers)
