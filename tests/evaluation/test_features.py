"""Features, compared with transformers' models on the same weights and images."""

import copy

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from transformers import (
    AutoModel,
    Dinov2WithRegistersConfig,
    ResNetConfig,
    SwinConfig,
    ViTImageProcessor,
    ViTMAEModel,
    ViTModel,
)

from hf_vitfm import ViTForImageClassification, build_transform, export_checkpoint
from hf_vitfm.data.decode import BadImageError
from hf_vitfm.evaluation.classification import evaluate_classification
from hf_vitfm.evaluation.features import check_labelled, extract_features
from tests.data.images import noise
from tests.tiny import random_images, randomize, tiny_config, tiny_mae


def tensor_rows(count: int = 5) -> list[dict]:
    return [{"pixel_values": image, "label": 3 * i} for i, image in enumerate(random_images(count))]


def stacked(rows: list[dict]) -> torch.Tensor:
    return torch.stack([row["pixel_values"] for row in rows])


@torch.no_grad()
def tokens_of(model, rows: list[dict]) -> torch.Tensor:
    return model.eval()(pixel_values=stacked(rows)).last_hidden_state


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_class_token_and_mean_are_those_of_transformers_vit(tmp_path):
    model = randomize(ViTForImageClassification(tiny_config()))
    tokens = tokens_of(ViTModel.from_pretrained(export_checkpoint(model, tmp_path)), tensor_rows())
    for pooling, expected in (("cls", tokens[:, 0]), ("mean", tokens[:, 1:].mean(1))):
        features, labels = extract_features(model, tensor_rows(), batch_size=2, pooling=pooling)
        close(features, expected)
        assert features.dtype == torch.float32
        assert labels.dtype == torch.int64 and labels.tolist() == [0, 3, 6, 9, 12]


def test_mean_of_a_model_whose_norm_follows_the_pooling_is_what_its_head_sees():
    model = randomize(ViTForImageClassification(tiny_config(pooling="mean", num_register_tokens=2)))
    features, _ = extract_features(model, tensor_rows(), pooling="mean")
    with torch.no_grad():
        close(model.classifier(features), model(stacked(tensor_rows())).logits)


@pytest.mark.parametrize("mode", [True, False])
def test_an_autoencoder_sees_whole_images_and_is_left_as_it_was(tmp_path, mode):
    model = tiny_mae(mask_ratio=0.75, masking="grid").train(mode)
    model.decoder.eval()
    config = copy.deepcopy(model.config.to_dict())
    state = torch.random.get_rng_state()
    found = {pooling: extract_features(model, tensor_rows(), pooling=pooling)[0] for pooling in ("cls", "mean")}
    assert model.config.to_dict() == config
    assert model.vit.training == mode and not model.decoder.training
    assert torch.equal(torch.random.get_rng_state(), state)
    tokens = tokens_of(
        ViTModel.from_pretrained(export_checkpoint(tiny_mae().vit, tmp_path), add_pooling_layer=False), tensor_rows()
    )
    close(found["cls"], tokens[:, 0])
    close(found["mean"], tokens[:, 1:].mean(1))
    theirs = ViTMAEModel.from_pretrained(tmp_path)
    close(extract_features(theirs, tensor_rows(), pooling="mean")[0], found["mean"])
    assert theirs.config.mask_ratio == 0.75


@pytest.mark.parametrize(
    ("config", "num_prefix"),
    [
        (
            Dinov2WithRegistersConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
                num_register_tokens=3,
            ),
            4,
        ),
        (SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4), 0),
    ],
    ids=["registers", "swin"],
)
def test_other_models_of_tokens(config, num_prefix):
    model = randomize(AutoModel.from_config(config))
    tokens = tokens_of(model, tensor_rows())
    close(extract_features(model, tensor_rows(), pooling="mean")[0], tokens[:, num_prefix:].mean(1))
    if num_prefix:
        close(extract_features(model, tensor_rows())[0], tokens[:, 0])
    else:
        with pytest.raises(ValueError, match="no class token"):
            extract_features(model, tensor_rows())


def test_a_convolutional_network_gives_the_mean_of_its_map():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        expected = model(stacked(tensor_rows())).pooler_output.flatten(1)
    close(extract_features(model, tensor_rows(), pooling="mean")[0], expected)


def test_images_go_through_the_transform_in_their_order():
    model = randomize(ViTForImageClassification(tiny_config()))
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    rows = [{"image": Image.fromarray(noise(40, 30, seed=i)), "label": i} for i in range(5)]
    features, labels = extract_features(model, rows, build_transform(processor), batch_size=2)
    expected = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = model.vit(expected).last_hidden_state
    close(features, tokens[:, 0])
    assert labels.tolist() == list(range(5))


def test_half_precision_and_rows_without_labels():
    model = randomize(ViTForImageClassification(tiny_config()))
    rows = [{"pixel_values": row["pixel_values"]} for row in tensor_rows()]
    expected, _ = extract_features(model, rows)
    features, labels = extract_features(model.bfloat16(), rows)
    assert features.dtype == torch.float32 and labels.tolist() == [-100] * 5
    assert (features - expected).norm() < 0.05 * expected.norm()


def test_what_cannot_be_done_is_said():
    model = randomize(
        ViTForImageClassification(tiny_config(pooling="mean", use_class_token=False, num_register_tokens=1))
    )
    rows = [{"image": Image.fromarray(noise()), "label": 0}]
    for dataset, options, message in (
        (tensor_rows(), {"pooling": "max"}, "`pooling` must be one of cls, mean"),
        ([], {}, "at least one row"),
        (rows, {}, "`transform` is missing"),
        (tensor_rows(), {}, "no class token"),
    ):
        with pytest.raises(ValueError, match=message):
            extract_features(model, dataset, **options)
    bad = [*rows, {"image": b"no image", "label": 0}]
    transform = build_transform(ViTImageProcessor(size={"height": 32, "width": 32}))
    with pytest.raises(BadImageError, match="row 1"):
        extract_features(model, bad, transform, pooling="mean")


def computed(count: int, share: bool) -> tuple[torch.Tensor, torch.Tensor]:
    model = randomize(ViTForImageClassification(tiny_config()))
    group = dist.group.WORLD if share else None
    return extract_features(model, tensor_rows(count), batch_size=2, group=group)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_every_process_gets_all_rows(two_processes, count, share):
    expected = computed(count, False)
    for features, labels in two_processes.run(computed, count, share):
        assert torch.equal(features, expected[0]) and torch.equal(labels, expected[1])
    assert expected[1].tolist() == [3 * i for i in range(count)]


class Seen(list):
    """Rows that remember which of them were read."""

    def __init__(self, rows: list[dict]):
        super().__init__(rows)
        self.read = []

    def __getitem__(self, index: int) -> dict:
        self.read.append(index)
        return super().__getitem__(index)


def rows_read() -> list[int]:
    rows = Seen(tensor_rows(7))
    extract_features(randomize(ViTForImageClassification(tiny_config())), rows, batch_size=2, group=dist.group.WORLD)
    return rows.read[2:]  # the first one is looked at, for its kind and for its columns


def test_processes_share_the_rows(two_processes):
    assert two_processes.run(rows_read) == [[0, 1, 4, 5], [2, 3, 6]]


def image_rows(bad: tuple[int, ...]) -> list[dict]:
    return [
        {"image": b"no image" if i in bad else Image.fromarray(noise(40, 30, seed=i)), "label": i} for i in range(7)
    ]


def transformed(**options) -> tuple[torch.Tensor, torch.Tensor] | str:
    """Features of rows of which two are bad, or the error."""
    model = randomize(ViTForImageClassification(tiny_config()))
    transform = build_transform(ViTImageProcessor(size={"height": 32, "width": 32}))
    group = dist.group.WORLD if dist.is_initialized() else None
    try:
        return extract_features(model, image_rows((2, 6)), transform, batch_size=2, group=group, **options)
    except BadImageError as error:
        return str(error)


def test_images_that_are_skipped_keep_their_rows_and_are_counted(two_processes, caplog):
    features, labels = transformed(on_bad_image="skip")
    assert "2 of 7 images were skipped: row 2, row 6" in caplog.text
    assert labels.tolist() == [0, 1, -100, 3, 4, 5, -100]
    black = randomize(ViTForImageClassification(tiny_config())).vit(torch.zeros(1, 3, 32, 32)).last_hidden_state[:, 0]
    close(features[[2, 6]], black.detach().expand(2, -1))
    for got in two_processes.run(transformed, on_bad_image="skip"):
        assert torch.equal(got[0], features) and torch.equal(got[1], labels)


def test_an_image_that_one_process_cannot_read_stops_all_with_its_name(two_processes):
    assert transformed().startswith("row 2 cannot be decoded")
    for message in two_processes.run(transformed):  # the second process reads it
        assert message.startswith("row 2 cannot be decoded")


def test_half_precision_is_computed_beside_the_weights():
    model = randomize(ViTForImageClassification(tiny_config()))
    before = copy.deepcopy(model.state_dict())
    expected, _ = extract_features(model, tensor_rows())
    for dtype in (torch.bfloat16, torch.float16):
        features, _ = extract_features(model, tensor_rows(), dtype=dtype)
        with torch.autocast("cpu", dtype), torch.no_grad():
            assert torch.equal(features, model.vit(stacked(tensor_rows())).last_hidden_state[:, 0].float())
        assert features.dtype == torch.float32 and 1e-4 < (features - expected).norm() / expected.norm() < 0.05
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extract_features(model, tensor_rows(), dtype=torch.float32)[0], expected)
    with pytest.raises(ValueError, match="the model's own torch.float32, or one of torch.bfloat16, torch.float16"):
        extract_features(model, tensor_rows(), dtype=torch.float64)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(2), torch.zeros(2).long(), "must be"),
        (torch.zeros(2, 3), torch.zeros(3).long(), "one of `test_labels` per row"),
        (torch.zeros(0, 3), torch.zeros(0).long(), "at least one"),
        (torch.zeros(2, 3), torch.zeros(2), "class ids"),
        (torch.zeros(2, 3), torch.tensor([0, -100]), "-100"),
        (torch.tensor([[0.0], [float("nan")]]), torch.zeros(2).long(), "NaN"),
    ],
)
def test_features_that_do_not_fit_their_labels_are_named(features, labels, message):
    with pytest.raises(ValueError, match=message):
        check_labelled(features, labels, "test")


@pytest.mark.parametrize(
    ("dataset", "batch_size", "error", "message"),
    [
        ((row for row in [{}]), 1, TypeError, "got a generator. Collect its rows"),
        ([(torch.zeros(3, 32, 32), 0)], 1, TypeError, "its first row is a tuple"),
        ([{"pixel_values": torch.zeros(3, 32, 32)}], 0, ValueError, "`batch_size` must be at least 1; got 0"),
    ],
)
def test_what_is_no_sequence_of_rows_is_refused(dataset, batch_size, error, message):
    for measure in (extract_features, evaluate_classification):
        with pytest.raises(error, match=message):
            measure(ViTForImageClassification(tiny_config()), dataset, batch_size=batch_size)


def test_weights_without_values_are_refused():
    with torch.device("meta"):
        model = ViTForImageClassification(tiny_config())
    with pytest.raises(ValueError, match="on the device meta"):
        extract_features(model, [{"pixel_values": torch.zeros(3, 32, 32)}])
