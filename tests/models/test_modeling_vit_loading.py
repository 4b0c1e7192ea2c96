"""Saving and loading: equal bits, overrides at load, position resize, heads that come and go, and clear errors."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification

from hf_vitfm import ViTConfig, ViTForImageClassification, ViTModel
from hf_vitfm.models.modeling_embeddings import INTERPOLATIONS, resize_positions
from tests.tiny import OPTIONS, random_images, randomize, tiny_config


POSITIONS = "vit.embeddings.position_embeddings"


@pytest.fixture
def folder(tmp_path, classifier):
    """A saved classifier of five labels."""
    classifier.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def pre_logits_folder(tmp_path):
    randomize(ViTForImageClassification(tiny_config(representation_size=24))).save_pretrained(tmp_path)
    return tmp_path


def assert_same_weights(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification])
def test_saved_model_loads_with_equal_bits(tmp_path, name, model_class):
    model = randomize(model_class(tiny_config(**OPTIONS[name])))
    model.save_pretrained(tmp_path)
    auto_class = AutoModel if model_class is ViTModel else AutoModelForImageClassification
    for loaded in (model_class.from_pretrained(tmp_path), auto_class.from_pretrained(tmp_path)):
        assert type(loaded) is model_class
        assert_same_weights(loaded.state_dict(), model.state_dict())
        assert not loaded.training
        for (key, found), expected in zip(loaded.named_parameters(), model.parameters(), strict=True):
            assert found.requires_grad == expected.requires_grad, key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept_and_can_be_chosen(tmp_path, classifier, dtype):
    classifier.to(dtype).save_pretrained(tmp_path)
    assert_same_weights(ViTForImageClassification.from_pretrained(tmp_path).state_dict(), classifier.state_dict())
    assert ViTForImageClassification.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_sharded_model_loads_with_equal_bits(tmp_path, classifier):
    classifier.save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = ViTForImageClassification.from_pretrained(tmp_path, image_size=48)
    del loaded.vit.embeddings.position_embeddings, classifier.vit.embeddings.position_embeddings
    assert_same_weights(loaded.state_dict(), classifier.state_dict())


def test_base_model_takes_the_encoder_of_a_classifier(folder, classifier):
    assert_same_weights(ViTModel.from_pretrained(folder).state_dict(), classifier.vit.state_dict())


def test_classifier_takes_a_base_models_encoder_and_gets_a_new_head(tmp_path, config):
    base = randomize(ViTModel(config))
    base.save_pretrained(tmp_path)
    loaded, info = ViTForImageClassification.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert_same_weights(loaded.vit.state_dict(), base.state_dict())
    assert loaded.classifier.weight.shape == (3, 32) and (loaded.classifier.weight == 0).all()
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("image_size", "grid"), [(48, (6, 6)), ((24, 56), (3, 7)), ([16, 32], (2, 4))])
@pytest.mark.parametrize("load", [ViTForImageClassification, AutoModelForImageClassification])
def test_positions_are_resized_at_load(folder, classifier, load, image_size, grid, interpolation):
    loaded = load.from_pretrained(folder, image_size=image_size, position_interpolation=interpolation)
    weights, expected = loaded.state_dict(), classifier.state_dict()
    expected[POSITIONS] = resize_positions(expected[POSITIONS], (4, 4), grid, interpolation)
    assert_same_weights(weights, expected)
    assert loaded.config.image_size == (image_size if isinstance(image_size, int) else tuple(image_size))
    assert loaded.vit.embeddings.position_embeddings.requires_grad
    height, width = grid[0] * 8, grid[1] * 8
    assert loaded(random_images(1, height, width)).logits.shape == (1, 5)


def test_resized_model_is_saved_at_its_new_size(folder, tmp_path):
    resized = ViTForImageClassification.from_pretrained(folder, image_size=(24, 56))
    resized.save_pretrained(tmp_path / "resized")
    again = ViTForImageClassification.from_pretrained(tmp_path / "resized")
    assert again.config.image_size == (24, 56)
    assert_same_weights(again.state_dict(), resized.state_dict())


def test_positions_of_prefix_tokens_are_kept_at_resize(tmp_path):
    model = randomize(ViTModel(tiny_config(use_distillation_token=True, num_register_tokens=2)))
    model.save_pretrained(tmp_path)
    loaded = ViTModel.from_pretrained(tmp_path, image_size=64)
    assert loaded.embeddings.position_embeddings.shape == (1, 2 + 64, 32)
    assert torch.equal(
        loaded.embeddings.position_embeddings[:, :2].detach(), model.embeddings.position_embeddings[:, :2].detach()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_are_resized_at_load_also_with_a_device_map_and_a_dtype(folder, classifier, dtype):
    loaded = ViTForImageClassification.from_pretrained(folder, image_size=48, device_map="cpu", dtype=dtype)
    saved = classifier.state_dict()[POSITIONS].to(dtype)
    assert torch.equal(loaded.state_dict()[POSITIONS], resize_positions(saved, (4, 4), (6, 6), "bicubic"))


def test_configuration_given_to_from_pretrained_counts_and_is_left_as_it_was(folder):
    config = ViTConfig.from_pretrained(folder, image_size=48, drop_path_rate=0.2)
    before = config.to_dict()
    loaded = ViTForImageClassification.from_pretrained(folder, config=config)
    assert config.to_dict() == before
    assert (loaded.config.image_size, loaded.config.drop_path_rate) == (48, 0.2)
    assert loaded.vit.embeddings.position_embeddings.shape == (1, 37, 32)
    both = ViTForImageClassification.from_pretrained(folder, config=config, drop_path_rate=0.3)
    assert (both.config.image_size, both.config.drop_path_rate, config.drop_path_rate) == (48, 0.3, 0.2)


def test_configuration_can_be_the_path_of_one(folder, tmp_path):
    tiny_config(drop_path_rate=0.2).save_pretrained(tmp_path / "other")
    loaded = ViTForImageClassification.from_pretrained(folder, config=str(tmp_path / "other"))
    assert loaded.config.drop_path_rate == 0.2


def test_overrides_reach_the_modules(folder):
    loaded = ViTForImageClassification.from_pretrained(
        folder, drop_path_rate=0.4, layer_norm_eps=1e-3, hidden_dropout_prob=0.1, attn_implementation="eager"
    )
    layer = loaded.vit.encoder.layers[-1]
    assert (layer.drop_path.rate, layer.norm1.eps, layer.dropout.p) == (0.4, 1e-3, 0.1)
    assert loaded.config._attn_implementation == "eager"


@pytest.mark.parametrize("load", [ViTForImageClassification, AutoModelForImageClassification])
def test_recording_can_be_switched_on_at_load(folder, load, images):
    loaded = load.from_pretrained(folder, output_attentions=True, output_hidden_states=True)
    outputs = loaded(images)
    assert len(outputs.attentions) == 3 and len(outputs.hidden_states) == 4
    assert loaded.config._attn_implementation == "sdpa"
    loaded.save_pretrained(folder / "again")
    assert len(load.from_pretrained(folder / "again")(images).attentions) == 3


def test_mean_pooling_can_be_chosen_at_load_and_gets_a_new_norm(folder, classifier):
    loaded, info = ViTForImageClassification.from_pretrained(folder, pooling="mean", output_loading_info=True)
    assert set(info["missing_keys"]) == {"vit.fc_norm.weight", "vit.fc_norm.bias"}
    assert set(info["unexpected_keys"]) == {"vit.layernorm.weight", "vit.layernorm.bias"}
    assert (loaded.vit.fc_norm.weight == 1).all()
    assert torch.equal(loaded.classifier.weight, classifier.classifier.weight)


@pytest.mark.parametrize("load", [ViTForImageClassification, AutoModelForImageClassification])
def test_another_number_of_labels_is_refused_naming_weights_shapes_and_the_way_out(folder, load):
    message = r"classifier.bias: \(5,\) saved, \(3,\) in the model.*`num_labels`.*`ignore_mismatched_sizes=True`"
    with pytest.raises(RuntimeError, match=message):
        load.from_pretrained(folder, num_labels=3)


@pytest.mark.parametrize("load", [ViTForImageClassification, AutoModelForImageClassification])
def test_another_number_of_labels_gets_a_new_head_on_request(folder, classifier, load):
    loaded = load.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)
    assert loaded.classifier.weight.shape == (3, 32) and (loaded.classifier.weight == 0).all()
    assert loaded.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert_same_weights(loaded.vit.state_dict(), classifier.vit.state_dict())


def test_new_label_names_at_load_keep_the_head(folder, classifier):
    names = dict(enumerate(["ant", "bee", "cat", "dog", "elk"]))
    loaded = ViTForImageClassification.from_pretrained(folder, id2label=names)
    assert loaded.config.id2label == names and loaded.config.label2id["elk"] == 4
    assert torch.equal(loaded.classifier.weight, classifier.classifier.weight)


@pytest.mark.parametrize("load", [ViTForImageClassification, AutoModelForImageClassification])
def test_new_head_drops_the_pre_logits_layer(pre_logits_folder, load):
    loaded = load.from_pretrained(pre_logits_folder, num_labels=3, ignore_mismatched_sizes=True)
    assert loaded.vit.pre_logits is None and loaded.config.representation_size is None
    assert loaded.classifier.weight.shape == (3, 32)


@pytest.mark.parametrize("load", [ViTForImageClassification, AutoModelForImageClassification])
@pytest.mark.parametrize("overrides", [{}, {"num_labels": 5}, {"num_labels": 3, "representation_size": 24}])
def test_old_head_or_a_representation_size_keeps_the_pre_logits_layer(pre_logits_folder, load, overrides):
    loaded = load.from_pretrained(pre_logits_folder, ignore_mismatched_sizes=True, **overrides)
    saved = load_file(pre_logits_folder / "model.safetensors")
    assert torch.equal(loaded.vit.pre_logits.weight, saved["vit.pre_logits.weight"])


def test_mismatched_patch_size_is_refused(folder):
    with pytest.raises(
        RuntimeError, match=r"projection.weight: \(32, 3, 8, 8\) saved, \(32, 3, 16, 16\) in the model"
    ):
        ViTForImageClassification.from_pretrained(folder, patch_size=16)


@pytest.mark.parametrize("load", [ViTForImageClassification, AutoModelForImageClassification])
def test_unknown_argument_is_refused_with_a_suggestion(folder, load):
    with pytest.raises(ValueError, match="`drop_path_rat` is neither.*Did you mean `drop_path_rate`"):
        load.from_pretrained(folder, drop_path_rat=0.1)


@pytest.mark.parametrize("load", [ViTForImageClassification, AutoModelForImageClassification])
def test_image_size_that_does_not_fit_the_patch_is_refused_at_load(folder, load):
    with pytest.raises(ValueError, match="multiple of `patch_size`; got 30x30.*fits is 32x32"):
        load.from_pretrained(folder, image_size=30)


def test_wrong_weights_of_our_own_format_are_reported(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["vit.layernorm.weight"] = torch.zeros(33)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"vit.layernorm.weight: \(33,\) saved, \(32,\) in the model"):
        ViTForImageClassification.from_pretrained(folder)


def test_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="no file named model.safetensors"):
        ViTForImageClassification.from_pretrained(folder)


def test_damaged_config_is_called_by_its_name(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(OSError, match="not a valid JSON file"):
        ViTForImageClassification.from_pretrained(folder)


def test_number_of_endless_digits_in_a_config_is_refused_by_the_files_name(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"hidden_size": 32', f'"hidden_size": {"9" * 5000}'))
    with pytest.raises(OSError, match="config.json of .* Fetch it again"):
        ViTForImageClassification.from_pretrained(folder)


def test_saved_file_cannot_choose_an_attention_function_from_the_hub(folder):
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**saved, "attn_implementation": "kernels-community/flash-attn2"}))
    assert ViTForImageClassification.from_pretrained(folder).config._attn_implementation == "sdpa"
    chosen = ViTForImageClassification.from_pretrained(folder, attn_implementation="eager")
    assert chosen.config._attn_implementation == "eager"


def test_name_or_path_is_the_source(folder):
    assert ViTForImageClassification.from_pretrained(folder).name_or_path == str(folder)


def test_saved_file_names_its_format(folder):
    saved = json.loads((folder / "config.json").read_text())
    assert (saved["model_type"], saved["vitfm_format_version"]) == ("vitfm_vit", 1)


def test_raw_state_dict_of_a_saved_file_loads_as_trainer_does(folder, classifier):
    other = ViTForImageClassification(classifier.config)
    other.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    assert_same_weights(other.state_dict(), classifier.state_dict())


def test_learned_positions_do_not_become_a_table(folder):
    with pytest.raises(ValueError, match="has learned positions"):
        ViTForImageClassification.from_pretrained(folder, position_embedding_type="sincos")
