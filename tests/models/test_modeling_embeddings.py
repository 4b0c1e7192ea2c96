"""Patches, prefix tokens and positions: tables and resizing against independent implementations."""

import numpy as np
import pytest
import scipy.ndimage
import timm.layers
import torch
import transformers
from torch.nn import functional as F
from transformers.models.vit.modeling_vit import ViTEmbeddings

from hf_vitfm import ViTModel
from hf_vitfm.models.modeling_embeddings import (
    INTERPOLATIONS,
    PatchEmbeddings,
    VisionEmbeddings,
    resize_positions,
    sincos_positions,
)
from tests.tiny import random_images, randomize, tiny_config


GRIDS = [((4, 4), (6, 6)), ((4, 4), (3, 7)), ((3, 5), (6, 4)), ((5, 3), (5, 8)), ((6, 4), (2, 2)), ((4, 4), (2, 8))]


def embeddings(**fields) -> VisionEmbeddings:
    return randomize(VisionEmbeddings(tiny_config(**fields)))


def positions_of(grid, prefix=1, width=6):
    return torch.randn(1, prefix + grid[0] * grid[1], width)


@pytest.mark.parametrize(("width", "grid"), [(32, (4, 4)), (8, (2, 5)), (768, (14, 14)), (4, (1, 1))])
def test_sincos_table_is_that_of_the_mae_paper(width, grid):
    rows, columns = grid
    omega = 1 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    expected = np.empty((rows, columns, width))
    for row in range(rows):
        for column in range(columns):
            halves = [
                np.concatenate([np.sin(position * omega), np.cos(position * omega)]) for position in (column, row)
            ]
            expected[row, column] = np.concatenate(halves)  # the column comes first
    found = sincos_positions(width, grid)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected.reshape(-1, width), rtol=0, atol=1e-7)


def test_sincos_table_needs_a_width_of_fours():
    with pytest.raises(ValueError, match="divisible by 4; got 30"):
        sincos_positions(30, (4, 4))


def test_sincos_model_has_the_table_after_zero_rows_and_does_not_train_it():
    config = tiny_config(position_embedding_type="sincos", use_distillation_token=True, num_register_tokens=2)
    positions = ViTModel(config).embeddings.position_embeddings
    assert not positions.requires_grad
    assert torch.equal(positions[0, :2], torch.zeros(2, 32))
    assert torch.equal(positions[0, 2:], sincos_positions(32, (4, 4)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_resize_keeps_prefix_rows_and_gives_the_new_grid(interpolation, prefix, old, new):
    positions = positions_of(old, prefix)
    resized = resize_positions(positions, old, new, interpolation)
    assert resized.shape == (1, prefix + new[0] * new[1], 6)
    assert torch.equal(resized[:, :prefix], positions[:, :prefix])


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_resize_to_the_same_grid_returns_the_same_tensor(interpolation):
    positions = positions_of((3, 5))
    assert resize_positions(positions, (3, 5), (3, 5), interpolation) is positions


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bilinear_align_corners_is_scipys_zoom_of_the_papers_code(old, new):
    positions = positions_of(old)
    image = positions[0, 1:].reshape(*old, -1).numpy()
    expected = scipy.ndimage.zoom(image, (new[0] / old[0], new[1] / old[1], 1), order=1)
    resized = resize_positions(positions, old, new, "bilinear_align_corners")
    np.testing.assert_allclose(resized[0, 1:].reshape(*new, -1).numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("interpolation", "mode", "antialias"),
    [("bicubic_antialias", "bicubic", True), ("bicubic", "bicubic", False), ("bilinear", "bilinear", False)],
)
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_other_interpolations_are_timms(old, new, interpolation, mode, antialias):
    positions = positions_of(old, prefix=2)
    expected = timm.layers.resample_abs_pos_embed(
        positions, new, old, num_prefix_tokens=2, interpolation=mode, antialias=antialias
    )
    assert torch.equal(resize_positions(positions, old, new, interpolation), expected)


@pytest.mark.parametrize("new", [(6, 6), (3, 7), (2, 2)])
def test_bicubic_is_what_transformers_does(new):
    fields = {"hidden_size": 32, "image_size": 32, "patch_size": 8, "num_attention_heads": 4}
    theirs = ViTEmbeddings(transformers.ViTConfig(**fields))
    tokens = torch.empty(1, 1 + new[0] * new[1], 32)
    expected = theirs.interpolate_pos_encoding(tokens, new[0] * 8, new[1] * 8)
    found = resize_positions(theirs.position_embeddings, (4, 4), new, "bicubic")
    assert torch.equal(found, expected)


def test_interpolations_differ_from_each_other():
    positions = positions_of((4, 4))
    resized = [resize_positions(positions, (4, 4), (3, 3), name) for name in INTERPOLATIONS]
    for i, first in enumerate(resized):
        for second in resized[i + 1 :]:
            assert (first - second).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_resize_keeps_the_dtype_and_computes_in_at_least_float32(dtype):
    positions = positions_of((4, 4)).to(dtype)
    resized = resize_positions(positions, (4, 4), (5, 5), "bicubic")
    precise = resize_positions(positions.double(), (4, 4), (5, 5), "bicubic")
    assert resized.dtype == dtype
    torch.testing.assert_close(resized, precise.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch_size", [8, (4, 8)])
def test_keep_embeds_the_kept_patches_only_and_as_all(patch_size, channels):
    patches = randomize(
        PatchEmbeddings(tiny_config(patch_size=patch_size, num_channels=channels, image_size=(32, 48)))
    )
    images = torch.randn(2, channels, 32, 48)
    every = patches(images)
    rows, columns = patches.grid(images)
    assert every.shape == (2, rows * columns, 32)
    keep = torch.stack([torch.randperm(rows * columns)[:5] for _ in range(2)])
    expected = every.gather(1, keep[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(patches(images, keep), expected, rtol=0, atol=1e-5)


def test_keep_gives_kept_patches_their_own_positions():
    module = embeddings(num_register_tokens=2, use_distillation_token=True)
    images, keep = random_images(), torch.tensor([[3, 0, 7], [15, 2, 1]])
    every = module(images)
    expected = torch.cat([every[:, :4], every[:, 4:].gather(1, keep[..., None].expand(-1, -1, 32))], dim=1)
    torch.testing.assert_close(module(images, keep=keep), expected, rtol=0, atol=1e-5)


def test_tokens_are_class_distillation_registers_patches_and_registers_have_no_position():
    module = embeddings(num_register_tokens=2, use_distillation_token=True)
    images, positions = random_images(), module.position_embeddings
    tokens = module(images)
    patches = F.conv2d(images, module.patch_embeddings.projection.weight, module.patch_embeddings.projection.bias, 8)
    assert (module.num_position_prefix, module.num_prefix_tokens, tokens.shape) == (2, 4, (2, 20, 32))
    for i in range(2):
        torch.testing.assert_close(tokens[i, 0], (module.cls_token + positions[:, 0])[0, 0])
        torch.testing.assert_close(tokens[i, 1], (module.distillation_token + positions[:, 1])[0, 0])
        torch.testing.assert_close(tokens[i, 2:4], module.register_tokens[0])
        torch.testing.assert_close(tokens[i, 4:], patches[i].flatten(1).T + positions[0, 2:])


def test_without_prefix_tokens_there_are_patches_only():
    module = embeddings(use_class_token=False, pooling="mean")
    assert (module.num_prefix_tokens, module.position_embeddings.shape) == (0, (1, 16, 32))
    assert module(random_images()).shape == (2, 16, 32)


@pytest.mark.parametrize(
    ("rate", "image_size", "kept"),
    [(0.5, 32, 8), (0.75, 32, 4), (0.9, 32, 1), (0.99, 32, 1), (0.3, 32, 11), (0.8, (16, 40), 2), (0.9, (16, 40), 1)],
)
def test_patch_dropout_keeps_the_right_number_and_only_in_training(rate, image_size, kept):
    module = embeddings(patch_dropout=rate, image_size=image_size, num_register_tokens=1)
    images = random_images(2, *((image_size, image_size) if isinstance(image_size, int) else image_size))
    every = module(images)
    assert every.shape[1] == 2 + module.grid[0] * module.grid[1]
    tokens = module.train()(images)
    assert tokens.shape[1] == 2 + kept
    for i in range(2):  # each kept token is one of the image's own, none twice
        nearest = torch.cdist(tokens[i, 2:], every[i, 2:]).min(dim=1)
        assert nearest.values.max() < 1e-3 and len(set(nearest.indices.tolist())) == kept
    torch.testing.assert_close(tokens[:, :2], every[:, :2])


def test_patch_dropout_follows_the_global_generator_and_differs_between_images():
    module = embeddings(patch_dropout=0.5).train()
    images = random_images(1).expand(2, -1, -1, -1)
    torch.manual_seed(3)
    first = module(images)
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(3)
    assert torch.equal(module(images), first)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 30, 32), "30x32 pixels does not divide into patches of 8x8. Resize or crop it"),
        ((2, 1, 32, 32), r"\(batch, 3 channels, height, width\); got \(2, 1, 32, 32\)"),
        ((3, 32, 32), r"got \(3, 32, 32\)"),
        ((2, 3, 48, 32), r"are 48x32 pixels, the model's positions are for 32x32.*image_size=\[48, 32\]"),
    ],
)
def test_images_that_do_not_fit_are_refused_saying_what_to_do(shape, message):
    with pytest.raises(ValueError, match=message):
        embeddings()(torch.zeros(shape))


def test_images_of_another_size_are_embedded_with_interpolated_positions():
    module = embeddings(position_interpolation="bicubic_antialias")
    images = random_images(2, 48, 24)
    positions = timm.layers.resample_abs_pos_embed(module.position_embeddings, (6, 3))
    expected = module.patch_embeddings(images) + positions[:, 1:]
    torch.testing.assert_close(module(images, interpolate=True)[:, 1:], expected)


def test_resized_module_takes_the_new_size_only_and_stays_trainable_as_it_was():
    for kind in ("learned", "sincos"):
        module = embeddings(position_embedding_type=kind)
        expected = module(random_images(2, 48, 24), interpolate=True)
        module.resize((48, 24))
        assert torch.equal(module(random_images(2, 48, 24)), expected)
        assert module.position_embeddings.requires_grad == (kind == "learned")
        assert module.position_embeddings.is_leaf
        with pytest.raises(ValueError, match="positions are for 48x24"):
            module(random_images())


def test_resizing_to_a_size_that_does_not_fit_the_patch_is_refused():
    with pytest.raises(ValueError, match="multiple of the patch size 8x8; got 20x32"):
        embeddings().resize((20, 32))


def test_gradient_reaches_positions_through_interpolation():
    module = embeddings()
    module(random_images(2, 40, 40), interpolate=True).sum().backward()
    assert (module.position_embeddings.grad.abs().sum(dim=-1) > 0).all()
