"""Positions of other image sizes, resized at load or in the call, against what each library makes of the same change."""

from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import scipy.ndimage
import timm
import torch
import transformers
from open_clip.model import resize_pos_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from hf_vitfm import (
    CLIPModel,
    CLIPVisionModel,
    MAEForPreTraining,
    MAEModel,
    ViTForImageClassification,
    ViTModel,
)
from tests.conversion.test_jax import GRID, PATCH, WIDTH, arrays
from tests.conversion.test_mae_original import original as of_maes_code
from tests.conversion.test_mae_original import their_mae
from tests.conversion.test_open_clip import save_theirs
from tests.conversion.test_openai import state_dict as of_openai
from tests.conversion.timm_models import ARGUMENTS, save_timm, timm_model
from tests.tiny import FIELDS, TEXT_FIELDS, VISION_FIELDS, random_images, randomize


# Of 4 x 4 patches of 8 x 8 pixels: more, fewer, one row less, and more of one and fewer of the other.
SIZES = pytest.mark.parametrize("size", [(56, 56), (16, 16), (24, 32), (48, 16)])
SQUARES = pytest.mark.parametrize("size", [48, 56, 24, 8])


def assert_same(found, expected):
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


TIMMS = (
    "augreg",
    "siglip gap: tanh GELU",
    "dinov2 registers",
    "registers with positions",
    "class token and registers with positions",
    "deit distilled",
    "deit3",
    "not square, any size",
)


@torch.no_grad()
@SIZES
@pytest.mark.parametrize("family", TIMMS)
def test_timms(tmp_path, family, size):
    folder, images = save_timm(timm_model(family), tmp_path), random_images(1, *size)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size).eval()
    expected = theirs(images)
    assert_same(ViTForImageClassification.from_pretrained(folder, image_size=size)(images).logits, expected)
    in_the_call = ViTForImageClassification.from_pretrained(folder)(images, interpolate_pos_encoding=True).logits
    assert_same(in_the_call, expected)


@torch.no_grad()
@SQUARES
def test_those_of_timms_flexivit(tmp_path, size):
    folder = save_timm(randomize(timm.create_model("flexivit_small", **ARGUMENTS)), tmp_path)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size)
    ours = ViTModel.from_pretrained(folder, image_size=size).embeddings.position_embeddings
    assert_same(ours[:, 1:], theirs.pos_embed)


@torch.no_grad()
@SIZES
def test_open_clips(tmp_path, size):
    save_theirs(tmp_path)
    images = random_images(3, *size)
    expected = open_clip.create_model(f"local-dir:{tmp_path}", force_image_size=size).eval().encode_image(images)
    ours = CLIPModel.from_pretrained(tmp_path, image_size=size)
    assert_same(ours.get_image_features(images).pooler_output, expected)


@SIZES
def test_those_of_openais_weights_are_open_clips(tmp_path, size):
    weights = of_openai()
    torch.save(weights, tmp_path / "model.pt")
    ours = CLIPVisionModel.from_pretrained(tmp_path / "model.pt", source_format="openai", image_size=size)
    resize_pos_embed(weights, SimpleNamespace(visual=SimpleNamespace(grid_size=(size[0] // 8, size[1] // 8))))
    found = ours.embeddings.position_embeddings[0].detach()
    assert_same(found, weights["visual.positional_embedding"])


@pytest.mark.parametrize("kind", ["vision_transformer", "big_vision"])
@SQUARES
def test_those_of_the_jax_code(tmp_path, kind, size):
    """Both repositories call `scipy.ndimage.zoom` with order 1; big_vision has no row for the class token."""
    weights = arrays(kind)
    np.savez(tmp_path / "model.npz", **{name: tensor.numpy() for name, tensor in weights.items()})
    is_big_vision, side = kind == "big_vision", size // PATCH
    table = weights["pos_embedding" if is_big_vision else "Transformer/posembed_input/pos_embedding"][0].numpy()
    prefix = np.zeros((1, WIDTH), np.float32) if is_big_vision else table[:1]
    grid = table[-(GRID**2) :].reshape(GRID, GRID, WIDTH)
    grid = scipy.ndimage.zoom(grid, (side / GRID, side / GRID, 1), order=1)
    expected = np.concatenate([prefix, grid.reshape(side * side, WIDTH)])[None]
    ours = ViTModel.from_pretrained(tmp_path / "model.npz", image_size=size)
    assert_same(ours.embeddings.position_embeddings.detach(), torch.from_numpy(expected))


def as_maes_code_does(table, num_prefix, size):
    """The function of MAE's code that DeiT's code has as well."""
    prefix, grid = table[:, :num_prefix], table[:, num_prefix:]
    side = int(grid.shape[1] ** 0.5)
    grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(size // 8, size // 8), mode="bicubic", align_corners=False)
    return torch.cat([prefix, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4, "num_classes": 5}
OF_PAPERS = {
    "MAE": (lambda: VisionTransformer(**TIMM, global_pool="avg"), 1),
    "DeiT": (lambda: VisionTransformer(**TIMM), 1),
    "DeiT with distillation": (lambda: VisionTransformerDistilled(**TIMM), 2),
}


@SQUARES
@pytest.mark.parametrize("kind", OF_PAPERS)
def test_those_of_maes_and_deits_code(tmp_path, kind, size):
    build, num_prefix = OF_PAPERS[kind]
    weights = randomize(build()).state_dict()
    torch.save({"model": weights}, tmp_path / "model.pth")
    ours = ViTModel.from_pretrained(tmp_path / "model.pth", image_size=size, num_attention_heads=4)
    expected = as_maes_code_does(weights["pos_embed"], num_prefix, size)
    assert_same(ours.embeddings.position_embeddings.detach(), expected)


@SQUARES
def test_both_tables_of_maes_autoencoder(tmp_path, size):
    weights = of_maes_code(their_mae())
    torch.save({"model": weights}, tmp_path / "model.pth")
    fields = {"num_attention_heads": 4, "decoder_num_attention_heads": 2, "mask_ratio": 0}
    ours = MAEForPreTraining.from_pretrained(tmp_path / "model.pth", image_size=size, **fields)
    for name, part in (("pos_embed", ours.vit.embeddings), ("decoder_pos_embed", ours.decoder)):
        assert_same(part.position_embeddings.detach(), as_maes_code_does(weights[name], 1, size))


DINO = {**FIELDS, "mlp_ratio": 2}
TRANSFORMERS = {
    "ViT": (transformers.ViTModel, transformers.ViTConfig(**FIELDS), ViTModel),
    "DeiT": (transformers.DeiTModel, transformers.DeiTConfig(**FIELDS), ViTModel),
    "DINOv2": (transformers.Dinov2Model, transformers.Dinov2Config(**DINO), ViTModel),
    "DINOv2 with registers": (
        transformers.Dinov2WithRegistersModel,
        transformers.Dinov2WithRegistersConfig(**DINO, num_register_tokens=3),
        ViTModel,
    ),
    "MAE": (transformers.ViTMAEModel, transformers.ViTMAEConfig(**FIELDS, mask_ratio=0.5), MAEModel),
    "CLIP": (
        transformers.CLIPModel,
        transformers.CLIPConfig(text_config=TEXT_FIELDS, vision_config=VISION_FIELDS),
        CLIPModel,
    ),
    "SigLIP": (
        transformers.SiglipModel,
        transformers.SiglipConfig(text_config={**TEXT_FIELDS, "projection_size": 32}, vision_config=VISION_FIELDS),
        CLIPModel,
    ),
}


@torch.no_grad()
@SIZES
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_those_of_transformers(tmp_path, kind, size):
    their_class, config, our_class = TRANSFORMERS[kind]
    theirs, images = randomize(their_class(config)), random_images(2, *size)
    theirs.save_pretrained(tmp_path)
    of_dino = kind.startswith("DINOv2")
    noise = torch.rand(2, size[0] * size[1] // 64, generator=torch.Generator().manual_seed(0))

    def features(model, **options):
        if our_class is CLIPModel:
            return model.get_image_features(images, **options).pooler_output
        return model(images, **({"noise": noise} if our_class is MAEModel else {}), **options).last_hidden_state

    expected = features(theirs, **({} if of_dino else {"interpolate_pos_encoding": True}))
    assert_same(features(our_class.from_pretrained(tmp_path, image_size=size)), expected)
    assert_same(features(our_class.from_pretrained(tmp_path), interpolate_pos_encoding=True), expected)
