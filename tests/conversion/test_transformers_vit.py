"""transformers' ViT folders: what is refused, on reading and on writing, and how it is named."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_vitfm import ViTConfig, ViTForImageClassification, ViTModel, export_checkpoint
from tests.tiny import FIELDS, randomize, tiny_config


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


MODELS = pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification])


@pytest.mark.parametrize(
    "name",
    [
        "vit.embeddings.cls_token",
        "vit.encoder.layer.1.intermediate.dense.weight",
        "vit.encoder.layer.2.attention.attention.key.weight",
        "vit.encoder.layer.0.attention.attention.query.bias",
        "vit.layernorm.bias",
    ],
)
@MODELS
def test_missing_weight_is_an_error_that_names_it(folder, model_class, name):
    edit_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=rf"1 missing \({name.removeprefix('vit.')}\), 0 unexpected"):
        model_class.from_pretrained(folder)


def test_all_qkv_biases_missing_is_an_error_unless_the_configuration_says_so(folder):
    def drop(weights):
        for name in [name for name in weights if "attention.attention" in name and name.endswith("bias")]:
            del weights[name]

    edit_weights(folder, drop)
    with pytest.raises(ValueError, match="9 missing"):
        ViTModel.from_pretrained(folder)
    edit_config(folder, qkv_bias=False)
    assert ViTModel.from_pretrained(folder).encoder.layers[0].attention.qkv.bias is None


@MODELS
def test_left_over_weights_are_an_error_that_names_the_first_five_and_counts_all(folder, model_class):
    edit_weights(folder, lambda weights: weights.update({f"extra.{i}": torch.zeros(1) for i in range(7)}))
    with pytest.raises(
        ValueError, match=r"7 unexpected \(extra.0, .*extra.4\)\. The file is damaged or of another kind"
    ):
        model_class.from_pretrained(folder)


def test_more_layers_than_the_configuration_has_are_an_error(folder):
    edit_config(folder, num_hidden_layers=2)
    with pytest.raises(ValueError, match="0 missing .*16 unexpected"):
        ViTModel.from_pretrained(folder)


def test_masked_image_model_is_refused(tmp_path):
    transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**FIELDS, encoder_stride=8)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="unexpected .*mask_token"):
        ViTForImageClassification.from_pretrained(tmp_path)


def test_wrong_shapes_are_an_error(folder):
    edit_config(folder, intermediate_size=64)
    with pytest.raises(RuntimeError, match=r"fc1.bias: \(48,\) saved, \(64,\) in the model"):
        ViTForImageClassification.from_pretrained(folder)


def test_pooler_of_another_activation_is_refused(tmp_path):
    transformers.ViTModel(transformers.ViTConfig(**FIELDS, pooler_act="relu")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`pooler_act` must be 'tanh'.*got 'relu'"):
        ViTModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "bert"}, "`model_type` 'bert'"),
        ({"hidden_size": 32}, "no config.json with a `model_type`"),
        (None, "no config.json with a `model_type`"),
    ],
)
@MODELS
def test_unknown_format_is_refused_naming_what_was_found_and_what_can_be_read(tmp_path, model_class, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{message}.*'vitfm_vit'.*'vit', 'deit', 'vit_mae'"):
        model_class.from_pretrained(tmp_path)


def test_single_file_is_read_with_the_configuration_beside_it(folder, theirs):
    model = ViTForImageClassification.from_pretrained(folder / "model.safetensors", num_labels=5)
    assert torch.equal(model.classifier.weight, theirs.classifier.weight)


def test_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        ViTModel.from_pretrained(tmp_path / "nowhere")


def test_folder_without_weights_is_an_error_that_says_what_was_looked_for(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="looked for model.safetensors, .*pytorch_model.bin, .*`subfolder`"):
        ViTModel.from_pretrained(folder)


def test_configuration_is_taken_over(folder):
    names = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}
    edit_config(folder, layer_norm_eps=1e-9, id2label=names, label2id={name: i for i, name in names.items()})
    config = ViTForImageClassification.from_pretrained(folder).config
    assert type(config) is ViTConfig
    assert (config.layer_norm_eps, config.id2label, config.label2id["elk"]) == (1e-9, names, 4)
    assert {name: getattr(config, name) for name in FIELDS} == FIELDS
    assert (config.pooling, config.position_interpolation, config.representation_size) == ("cls", "bicubic", None)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_overrides_apply_to_foreign_folders_too(tmp_path, qkv_bias):
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**FIELDS, qkv_bias=qkv_bias))
    theirs.save_pretrained(tmp_path)
    loaded = ViTForImageClassification.from_pretrained(
        tmp_path, num_labels=3, image_size=(48, 32), drop_path_rate=0.2, ignore_mismatched_sizes=True
    )
    assert loaded.classifier.weight.shape == (3, 32) and (loaded.classifier.weight == 0).all()
    assert loaded.config.image_size == (48, 32)
    assert loaded.vit.embeddings.position_embeddings.shape == (1, 25, 32)
    assert loaded.vit.encoder.layers[-1].drop_path.rate == 0.2
    with pytest.raises(RuntimeError, match="`num_labels`"):
        ViTForImageClassification.from_pretrained(tmp_path, num_labels=3)
    with pytest.raises(ValueError, match="Did you mean `num_labels`"):
        ViTForImageClassification.from_pretrained(tmp_path, num_label=3)


def test_subfolder_is_read(folder, theirs):
    loaded = ViTForImageClassification.from_pretrained(folder.parent, subfolder="theirs")
    assert torch.equal(loaded.classifier.weight, theirs.classifier.weight)


def test_name_or_path_is_the_source(folder):
    model = ViTModel.from_pretrained(folder)
    assert model.name_or_path == model.config.name_or_path == str(folder)


def test_foreign_model_saved_by_us_is_ours(folder, tmp_path):
    loaded = ViTForImageClassification.from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "vitfm_vit"
    again = ViTForImageClassification.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in loaded.state_dict().items())


NOT_HELD = {
    "pooling": {"pooling": "mean"},
    "use_class_token": {"pooling": "none", "use_class_token": False},
    "num_register_tokens": {"num_register_tokens": 2},
    "layer_scale_init_value": {"layer_scale_init_value": 0.1},
    "representation_size": {"representation_size": 24},
}


@pytest.mark.parametrize("field", NOT_HELD)
def test_export_refuses_what_the_format_cannot_hold_and_writes_nothing(tmp_path, field):
    model_class = ViTModel if field == "use_class_token" else ViTForImageClassification
    model = model_class(tiny_config(**NOT_HELD[field]))
    named = "pooling" if field == "use_class_token" else field  # the first of two
    with pytest.raises(ValueError, match=f"cannot hold `{named}=.*`save_pretrained`"):
        export_checkpoint(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_refuses_a_model_without_class_token_that_is_pooled_otherwise(tmp_path):
    model = ViTModel(tiny_config())
    model.config.use_class_token = False
    with pytest.raises(ValueError, match="cannot hold `use_class_token=False`"):
        export_checkpoint(model, tmp_path / "out")


def test_export_refuses_an_unknown_format_or_model_and_writes_nothing(tmp_path, theirs):
    with pytest.raises(
        ValueError, match="`format` must be one of .*jax, mae, .*transformers.*got 'onnx' and ViTModel"
    ):
        export_checkpoint(ViTModel(tiny_config()), tmp_path / "out", format="onnx")
    with pytest.raises(ValueError, match="the model one of this library's.*got 'transformers' and ViTForImage"):
        export_checkpoint(theirs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_replaces_what_is_there_and_makes_folders(tmp_path):
    directory = tmp_path / "a" / "b"
    for seed in (0, 1):
        model = randomize(ViTForImageClassification(tiny_config()), seed)
        assert export_checkpoint(model, str(directory)) == directory
    back = ViTForImageClassification.from_pretrained(directory)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())


def test_sincos_positions_are_exported_as_they_are(tmp_path):
    model = ViTForImageClassification(tiny_config(position_embedding_type="sincos"))
    back = transformers.ViTForImageClassification.from_pretrained(export_checkpoint(model, tmp_path))
    assert torch.equal(back.vit.embeddings.position_embeddings, model.vit.embeddings.position_embeddings)


def test_resized_model_is_exported_at_its_size(folder, tmp_path):
    resized = ViTForImageClassification.from_pretrained(folder, image_size=(48, 24))
    back = transformers.ViTForImageClassification.from_pretrained(export_checkpoint(resized, tmp_path / "out"))
    images = torch.randn(1, 3, 48, 24)
    torch.testing.assert_close(back(images).logits, resized(images).logits, rtol=0, atol=1e-5)
