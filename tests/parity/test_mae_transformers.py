"""MAE against transformers' ViTMAE: loss, logits, mask and gradients on the same weights and noise, both ways."""

import pytest
import torch
import transformers
from torch import Tensor

from hf_vitfm import MAEConfig, MAEForPreTraining, MAEModel, ViTForImageClassification, export_checkpoint
from tests.tiny import MAE_FIELDS, random_images, randomize, relative_error, tiny_mae


def their_copy(model: MAEForPreTraining, directory) -> transformers.ViTMAEForPreTraining:
    export_checkpoint(model, directory)
    theirs, info = transformers.ViTMAEForPreTraining.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return theirs


def gradients(model, loss: Tensor, directory) -> dict[str, Tensor]:
    """Gradients under our names: the gradients take the place of the weights and go through the conversion."""
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(directory)
    return MAEForPreTraining.from_pretrained(directory).state_dict()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.4])
def test_loss_logits_mask_and_gradients_agree(tmp_path, normalize, mask_ratio):
    ours = tiny_mae(norm_pix_loss=normalize, mask_ratio=mask_ratio)
    theirs = their_copy(ours, tmp_path / "theirs").eval()
    images, noise = random_images(4), torch.rand(4, 16)
    found, expected = ours(images, noise), theirs(images, noise=noise)
    assert abs(found.loss - expected.loss) <= 1e-5
    assert (found.logits - expected.logits).abs().max() <= 1e-5
    assert torch.equal(found.mask, expected.mask) and torch.equal(found.ids_restore, expected.ids_restore)
    assert (found.loss - ours.train()(images, noise).loss).abs() <= 1e-6  # the masked patches alone
    expected = gradients(theirs, expected.loss, tmp_path / "their gradients")
    found = gradients(ours.eval(), found.loss, tmp_path / "our gradients")
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if "position_embeddings" not in name and not name.endswith("qkv.bias"):
            assert relative_error(found[name], gradient) <= 1e-5, name


@pytest.mark.parametrize("normalize", [False, True])
def test_base_size_agrees(tmp_path, normalize):
    torch.manual_seed(0)
    ours = MAEForPreTraining(MAEConfig.from_variant("B/16", norm_pix_loss=normalize)).eval()
    theirs = their_copy(ours, tmp_path).eval()
    images, noise = random_images(1, 224, 224), torch.rand(1, 196)
    with torch.no_grad():
        found, expected = ours(images, noise), theirs(images, noise=noise)
    assert abs(found.loss - expected.loss) <= 1e-5
    assert (found.logits - expected.logits).abs().max() <= 1e-5


def test_their_checkpoint_loads_and_saves_back(tmp_path):
    torch.manual_seed(0)
    theirs = randomize(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**MAE_FIELDS, mask_ratio=0.5)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = MAEForPreTraining.from_pretrained(tmp_path / "theirs").eval()
    images, noise = random_images(2), torch.rand(2, 16)
    assert abs(ours(images, noise).loss - theirs(images, noise=noise).loss) <= 1e-5
    again = their_copy(ours, tmp_path / "back").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.state_dict().items())
    base = MAEModel.from_pretrained(tmp_path / "theirs").eval()
    expected = theirs.vit(images, noise=noise).last_hidden_state
    assert (base(images, noise).last_hidden_state - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("source", ["theirs", "ours", "encoder"])
def test_the_encoder_becomes_a_classifier(tmp_path, source):
    model = tiny_mae()
    if source == "theirs":
        export_checkpoint(model, tmp_path)
    else:
        (model if source == "ours" else model.vit).save_pretrained(tmp_path)
    classifier, info = ViTForImageClassification.from_pretrained(
        tmp_path, pooling="mean", num_labels=3, drop_path_rate=0.1, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {
        "vit.fc_norm.weight",
        "vit.fc_norm.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert classifier.vit.embeddings.position_embeddings.requires_grad
    model.vit.config.mask_ratio = 0
    images = random_images()
    tokens = classifier.vit.eval()(images).last_hidden_state
    expected = model.vit(images, output_hidden_states=True).hidden_states[-1]
    assert (tokens - expected).abs().max() <= 1e-5
