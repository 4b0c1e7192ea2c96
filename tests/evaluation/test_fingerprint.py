"""Fingerprints change with whatever changes the features, and with nothing else."""

import copy
import functools
import io
import os

import datasets
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision import transforms as v1
from torchvision.transforms import v2
from transformers import AutoModel, CLIPImageProcessor, ConvNextConfig, ViTImageProcessor

from hf_vitfm import ViTForImageClassification, ViTModel, build_transform
from hf_vitfm.data.order import ImageView
from hf_vitfm.evaluation.features import TEXT_PARTS
from hf_vitfm.evaluation.fingerprint import fingerprint_model, fingerprint_rows, fingerprint_transform
from tests.data.images import encode, noise
from tests.tiny import randomize, tiny_clip, tiny_config


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(noise(9, 7, seed=seed))


def rows(count: int = 4) -> list[dict]:
    return [{"image": encode(noise(9, 7, seed=i)), "label": i % 3, "name": "a"} for i in range(count)]


def changed(index: int, **fields) -> list[dict]:
    found = rows()
    found[index] |= fields
    return found


def arrow(found: list[dict]) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64"), "name": datasets.Value("string")}
    )
    return datasets.Dataset.from_list(found, features=features)


def one_level_brighter() -> bytes:
    pixels = noise(9, 7, seed=1)
    pixels[3, 3, 0] ^= 1
    return encode(pixels)


CHANGES = {
    "pixel": changed(1, image=one_level_brighter()),
    "label": changed(1, label=2),
    "no labels": [{**row, "label": None} for row in rows()],
    "order": rows()[::-1],
    "one less": rows()[:3],
    "one more": rows(5),
    "unreadable": changed(1, image=b""),
}


@pytest.mark.parametrize("kind", [list, arrow])
def test_rows_change_with_their_content_and_not_with_their_names(kind):
    expected = fingerprint_rows(kind(rows()))
    assert fingerprint_rows(kind(rows())) == expected == fingerprint_rows(kind(changed(1, name="b")))
    found = {fingerprint_rows(kind(other)) for other in CHANGES.values()}
    assert len({expected, *found}) == 1 + len(CHANGES)


def test_rows_of_a_dataset_are_those_that_are_left():
    dataset = arrow(rows(6))
    expected = fingerprint_rows(arrow(rows(4)))
    assert (
        fingerprint_rows(dataset.select(range(4)))
        == expected
        == fingerprint_rows(dataset.filter(lambda _, i: i < 4, with_indices=True))
    )
    others = [
        dataset,
        dataset.select([0, 1, 3, 2]),
        dataset.shuffle(seed=0).select(range(4)),
        dataset.select(range(1, 5)),
        dataset.select(range(4)).map(lambda row: {"label": row["label"] + 1}),
    ]
    assert len({expected, *map(fingerprint_rows, others)}) == 6


def test_rows_that_a_dataset_makes_when_asked_are_asked():
    def brighter(batch):
        return {
            "image": [image.point(lambda level: min(255, level + gain)) for image in batch["image"]],
            "label": batch["label"],
        }

    gain, dataset = 1, arrow(rows())
    dataset.set_transform(brighter)
    first = fingerprint_rows(dataset)
    assert first == fingerprint_rows(dataset) != fingerprint_rows(arrow(rows()))
    gain = 2
    assert fingerprint_rows(dataset) != first


def test_files_count_by_what_they_hold(tmp_path):
    encoded = encode(noise(9, 7))
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_bytes(encoded)
    first, moved, as_dictionary = (
        fingerprint_rows([{"image": image}])
        for image in (paths[0], str(paths[1]), {"bytes": None, "path": str(paths[0])})
    )
    assert first == moved == as_dictionary
    stamp = paths[0].stat().st_mtime_ns
    other = bytearray(encoded)
    other[-20] ^= 1
    paths[0].write_bytes(other)
    os.utime(paths[0], ns=(stamp, stamp))
    assert fingerprint_rows([{"image": paths[0]}]) != first
    paths[0].unlink()
    assert fingerprint_rows([{"image": paths[0]}]) not in (first, fingerprint_rows([{"image": paths[1]}]))


def test_decoded_images_count_by_all_that_is_seen_of_them():
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    recoloured = palette.copy()
    recoloured.putpalette([255 - level for level in palette.getpalette()])
    transparent = palette.copy()
    transparent.info["transparency"] = 0
    turned = picture()
    exif = turned.getexif()
    exif[274] = 6
    file = io.BytesIO()
    turned.save(file, "JPEG", exif=exif)
    upright = io.BytesIO()
    turned.save(upright, "JPEG")
    tensor = torch.from_numpy(noise(9, 7)).permute(2, 0, 1)
    images = [
        picture(), picture(1), picture().convert("L"), picture().resize((9, 7)), palette, recoloured, transparent,
        Image.open(file), Image.open(upright), tensor, tensor.flip(0), noise(9, 7),
    ]  # fmt: skip
    found = [fingerprint_rows([{"image": image}]) for image in images]
    assert len(set(found)) == len(images)
    assert found == [fingerprint_rows([{"image": copy.copy(image)}]) for image in images]
    truncated = Image.open(io.BytesIO(upright.getvalue()[:-20]))
    assert fingerprint_rows([{"image": truncated}]) not in found


def test_views_and_subsets_are_told_apart():
    transforms = [build_transform(ViTImageProcessor(size={"height": size, "width": size})) for size in (8, 16)]
    found = [
        rows(),
        *(ImageView(rows(), transform) for transform in transforms),
        ImageView(rows(), transforms[0], on_bad_image="skip"),
        Subset(ImageView(rows(), transforms[0]), [0, 1]),
        Subset(ImageView(rows(), transforms[0]), [1, 0]),
    ]
    assert len(set(map(fingerprint_rows, found))) == len(found)
    again = ImageView(rows(), build_transform(ViTImageProcessor(size={"height": 8, "width": 8})))
    assert fingerprint_rows(again) == fingerprint_rows(found[1])


# Transforms


def processor(**fields) -> ViTImageProcessor:
    return ViTImageProcessor(**{"size": {"height": 8, "width": 8}, **fields})


def test_every_parameter_of_a_transform_counts():
    found = [
        build_transform(processor()),
        build_transform(processor(), interpolation="bicubic"),
        build_transform(processor(size={"height": 8, "width": 9})),
        build_transform(processor(size={"shortest_edge": 8})),
        build_transform(processor(image_mean=[0.5, 0.5, 0.501])),
        build_transform(processor(image_std=[0.5, 0.5, 0.501])),
        build_transform(processor(do_normalize=False)),
        build_transform(processor(rescale_factor=1 / 256)),
        build_transform(processor(), train=True),
        build_transform(processor(), train=True, horizontal_flip=0.4),
        build_transform(CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})),
        build_transform(CLIPImageProcessor(size={"shortest_edge": 9}, crop_size={"height": 8, "width": 8})),
        v1.Compose([v1.Resize(8), v1.ToTensor()]),
        v1.Compose([v1.Resize(8, antialias=False), v1.ToTensor()]),
        v1.Compose([v1.Resize(8, v1.InterpolationMode.BICUBIC), v1.ToTensor()]),
        v2.Compose([v2.Resize(8), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
        v2.Compose([v2.Resize(8), v2.ToImage(), v2.ToDtype(torch.float32, scale=False)]),
        open_clip.transform.image_transform(8, is_train=False),
        open_clip.transform.image_transform(8, is_train=False, mean=(0.5, 0.5, 0.5)),
        functools.partial(v2.functional.resize, size=[8]),
        functools.partial(v2.functional.resize, size=[9]),
        None,
    ]
    digests = [fingerprint_transform(transform) for transform in found]
    assert len(set(digests)) == len(found)
    assert digests == [fingerprint_transform(copy.deepcopy(transform)) for transform in found]


def own_transform(image):
    return image


class OwnTransform:
    def __call__(self, image):
        return image


@pytest.mark.parametrize(
    "transform",
    [
        lambda image: image,
        own_transform,
        OwnTransform(),
        v1.Compose([v1.Lambda(lambda image: image)]),
        functools.partial(own_transform),
        OwnTransform().__call__,
    ],
    ids=["lambda", "function", "object", "inside", "partial", "method"],
)
def test_code_that_may_change_under_its_name_is_refused(transform):
    with pytest.raises(
        ValueError, match=r"whose code may change while its name stays. .* set an attribute .*`cache_dir` out"
    ):
        fingerprint_transform(transform)


def test_a_text_may_stand_for_code():
    found = []
    for version in ("mine 1", "mine 2"):
        transform = OwnTransform()
        transform.fingerprint = version
        found += [fingerprint_transform(transform), fingerprint_transform(v1.Compose([transform]))]
    assert len(set(found)) == 4
    transform = OwnTransform()
    transform.fingerprint = "mine 1"
    assert fingerprint_transform(transform) == found[0]


# Models


def test_every_weight_buffer_and_setting_of_a_model_counts():
    model = randomize(AutoModel.from_config(ConvNextConfig(hidden_sizes=[8], depths=[1], num_stages=1)))
    model.register_buffer("extra", torch.zeros(2), persistent=False)
    digests = [fingerprint_model(model)]
    for tensor in [*model.parameters(), *model.buffers()]:
        with torch.no_grad():
            tensor.view(-1)[-1] += 2.0**-10
        digests.append(fingerprint_model(model))
    model.config.layer_norm_eps = 1e-3
    digests.append(fingerprint_model(model))
    digests += [fingerprint_model(model.bfloat16()), fingerprint_model(ViTModel(tiny_config()))]
    assert len(set(digests)) == len(digests)


def test_where_a_model_comes_from_does_not_count(tmp_path):
    model = randomize(ViTForImageClassification(tiny_config()))
    expected = fingerprint_model(model.vit)
    model.save_pretrained(tmp_path / "a")
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "a")
    assert fingerprint_model(loaded.vit) == expected == fingerprint_model(model.vit.train())
    loaded.classifier.weight.data.zero_()
    assert fingerprint_model(loaded.vit) == expected


def test_weights_of_the_texts_may_be_left_out():
    model = tiny_clip()
    images, all_of_it = fingerprint_model(model, TEXT_PARTS), fingerprint_model(model)
    model.text_model.embeddings.token_embedding.weight.data.zero_()
    assert fingerprint_model(model, TEXT_PARTS) == images and fingerprint_model(model) != all_of_it
    model.visual_projection.weight.data.zero_()
    assert fingerprint_model(model, TEXT_PARTS) != images


def test_a_weight_without_values_is_named():
    with torch.device("meta"):
        model = ViTModel(tiny_config())
    with pytest.raises(ValueError, match="The weight 'embeddings.cls_token' .* on meta"):
        fingerprint_model(model)
    with pytest.raises(ValueError, match="an array of Python objects"):
        fingerprint_rows([{"pixel_values": np.array([None])}])


def test_the_eps_of_a_norm_counts_that_its_configuration_does_not_tell():
    model = randomize(ViTModel(tiny_config()))
    expected = fingerprint_model(model)
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.LayerNorm))
    eps, norm.eps = norm.eps, 0.5
    assert fingerprint_model(model) != expected
    norm.eps = eps
    assert fingerprint_model(model) == expected
