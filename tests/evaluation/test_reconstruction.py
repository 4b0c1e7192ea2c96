"""Reconstructions as pictures, compared with transformers' model and plain formulas in float64."""

import copy

import pytest
import torch
from transformers import ViTImageProcessorPil, ViTMAEForPreTraining

from hf_vitfm import export_checkpoint
from hf_vitfm.evaluation.reconstruction import (
    draw_mask_noise,
    load_autoencoder,
    picture_reconstructions,
    pixel_statistics,
    reconstruct,
    to_pixels,
)
from tests.tiny import random_images, tiny_mae


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PATCHES = 16
PLAIN = ((0.0,), (1.0,))


def column(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    return ((pixels - column(MEAN)) / column(STD)).float()


@pytest.fixture
def pixels():
    """Two pictures in 0..1."""
    return torch.rand(2, 3, 32, 32, dtype=torch.float64)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_masked_patches_are_those_of_transformers_model(pixels, tmp_path, norm_pix_loss):
    model = tiny_mae(norm_pix_loss=norm_pix_loss)
    theirs = ViTMAEForPreTraining.from_pretrained(export_checkpoint(model, tmp_path)).double().eval()
    theirs.config.mask_ratio = theirs.vit.embeddings.config.mask_ratio = 0.5
    noise = draw_mask_noise(2, PATCHES)
    found = reconstruct(model, normalized(pixels), 0.5, MEAN, STD, noise)

    values = normalized(pixels).double()
    with torch.no_grad():
        outputs = theirs(values, noise=noise)
    patches, target = outputs.logits, theirs.patchify(values)
    if norm_pix_loss:
        patches = patches * (target.var(dim=-1, keepdim=True) + 1e-6).sqrt() + target.mean(dim=-1, keepdim=True)
    predicted = (theirs.unpatchify(patches) * column(STD) + column(MEAN)).clamp(0, 1)
    hidden = theirs.unpatchify(outputs.mask.unsqueeze(-1).expand_as(target)).bool()
    assert hidden.double().mean() == 0.5
    torch.testing.assert_close(found.reconstruction[hidden].double(), predicted[hidden], atol=2e-5, rtol=0)
    torch.testing.assert_close(found.reconstruction[~hidden].double(), pixels[~hidden], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.masked[~hidden].double(), pixels[~hidden], atol=1e-6, rtol=0)
    assert found.masked[hidden].unique().tolist() == [0.5]


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_is_left_as_it_was(mode):
    model = tiny_mae(masking="grid", mask_ratio=0.75).train(mode)
    config, images = copy.deepcopy(model.config.to_dict()), random_images()
    before = torch.random.get_rng_state()
    reconstruct(model, images, 0.5, *PLAIN)
    with pytest.raises(ValueError, match="leaves none of the 16 patches"):
        reconstruct(model, images, 0.95, *PLAIN)
    for ratio in (1.0, -0.1):
        with pytest.raises(ValueError, match="must be in"):
            reconstruct(model, images, ratio, *PLAIN)
    assert model.config.to_dict() == config and model.training == mode
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_model_of_grid_masking_is_shown_random_masks():
    found = reconstruct(tiny_mae(masking="grid"), torch.zeros(1, 3, 32, 32), 0.5, *PLAIN)
    assert (found.masked[0, 0, ::8, ::8] == 0.5).sum() == 8


def test_masks_nest_and_are_functions_of_seed_and_image():
    images = torch.zeros(3, 3, 32, 32)
    model, noise = tiny_mae(), draw_mask_noise(3, PATCHES, seed=5)
    hidden = [reconstruct(model, images, ratio, *PLAIN, noise).masked == 0.5 for ratio in (0.25, 0.5, 0.75)]
    assert (hidden[0] <= hidden[1]).all() and (hidden[1] <= hidden[2]).all()
    assert [mask.float().mean().item() for mask in hidden] == [0.25, 0.5, 0.75]
    assert torch.equal(draw_mask_noise(2, PATCHES, seed=5), noise[:2])
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(draw_mask_noise(3, PATCHES, seed=6), noise)


def test_images_of_another_size_and_shape(tmp_path):
    found = reconstruct(tiny_mae(), random_images(1, 48, 64), 0.75, *PLAIN)
    assert found.masked.shape == found.reconstruction.shape == (1, 3, 48, 64)


def test_grey_images():
    found = reconstruct(tiny_mae(num_channels=1), torch.randn(2, 1, 32, 32), 0.75, (0.3,), (0.2,))
    assert found.reconstruction.shape == (2, 1, 32, 32)
    assert found.reconstruction.min() >= 0 and found.reconstruction.max() <= 1


def test_statistics_undo_what_the_processor_does(pixels):
    processor = ViTImageProcessorPil(do_resize=False, image_mean=list(MEAN), image_std=list(STD))
    uint8 = (pixels * 255).round().byte()
    values = processor(list(uint8), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(to_pixels(values, *pixel_statistics(processor)), uint8 / 255, atol=1e-6, rtol=0)
    plain = ViTImageProcessorPil(do_resize=False, do_normalize=False)
    values = plain(list(uint8), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(to_pixels(values, *pixel_statistics(plain)), uint8 / 255, atol=1e-6, rtol=0)


def test_equal_seeds_give_equal_pictures(tmp_path):
    model, processor = tiny_mae(norm_pix_loss=True), ViTImageProcessorPil()
    files = [
        picture_reconstructions(model, random_images(), processor, tmp_path / f"{i}.png", (0.5, 0.75), seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    first, second, other = (path.read_bytes() for path in files)
    assert first == second != other


def test_an_encoder_alone_is_refused(tmp_path):
    model = tiny_mae()
    model.save_pretrained(tmp_path / "whole")
    assert not load_autoencoder(tmp_path / "whole").training
    model.vit.save_pretrained(tmp_path / "ours")
    export_checkpoint(model.vit, tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        with pytest.raises(ValueError, match="encoder alone"):
            load_autoencoder(tmp_path / folder)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_autoencoder(tmp_path / "nothing")
