"""Where checkpoints are and which format they have: folders, files, several formats in one, the Hub without a network."""

import json
import logging

import pytest
import timm
import torch
import torchvision
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from hf_vitfm import CLIPModel, MAEModel, ViTForImageClassification, ViTModel, load_image_processor, load_tokenizer
from hf_vitfm.conversion import detect, formats, source
from hf_vitfm.conversion.formats import Format
from hf_vitfm.conversion.source import Source
from hf_vitfm.models.modeling_vit import ViTPreTrainedModel
from tests.tiny import randomize, tiny_config


def edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def same(model, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


# Single files


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "nested.pth"])
def test_one_file_is_read_like_its_folder(folder, name):
    expected = ViTForImageClassification.from_pretrained(folder)
    if name != "model.safetensors":
        weights = load_file(folder / "model.safetensors")
        torch.save({"model": weights, "epoch": 3} if name == "nested.pth" else weights, folder / name)
        (folder / "model.safetensors").unlink()
    assert same(ViTForImageClassification.from_pretrained(str(folder / name)), expected)
    assert same(ViTForImageClassification.from_pretrained(folder), expected)  # the only weights there are


@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification])
def test_one_file_of_our_own_is_read(tmp_path, model_class):
    saved = randomize(ViTForImageClassification(tiny_config()))
    saved.save_pretrained(tmp_path)
    found = model_class.from_pretrained(tmp_path / "model.safetensors", image_size=48)
    assert found.config.image_size == 48
    assert torch.equal(found.base_model.layernorm.weight, saved.vit.layernorm.weight)


def test_several_weight_files_without_a_known_name_are_named(folder):
    for name in ("a.pth", "b.pth"):
        torch.save(load_file(folder / "model.safetensors"), folder / name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds 2 weight files: a.pth, b.pth. Name one of them, as the path"):
        ViTModel.from_pretrained(folder)


def test_what_a_run_leaves_beside_the_weights_is_not_taken_for_them(folder):
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    for name in ("optimizer.pt", "training_args.bin", "rng_state_0.pth"):
        (folder / name).write_bytes(b"nothing to read")
    assert isinstance(ViTModel.from_pretrained(folder), ViTModel)


# Formats


FOREIGN = Format(
    "strange",
    recognise=lambda config, shapes: config.get("architecture") == "strange" or (not config and "strange" in shapes),
    readers={ViTPreTrainedModel: lambda model_class, config, state_dict: (config, state_dict)},
)


@pytest.fixture
def strange(monkeypatch):
    for module in (formats, detect):
        monkeypatch.setattr(module, "FORMATS", (*formats.FORMATS, FOREIGN))


def test_format_of_bare_weights_is_found_by_their_names(tmp_path, strange):
    save_file({"strange": torch.zeros(1)}, tmp_path / "any.safetensors")
    for place in (tmp_path, tmp_path / "any.safetensors"):
        found = detect.detect(Source(place))
        assert (found.format.name, found.candidate.config, dict(found.candidate.shapes)) == (
            "strange",
            {},
            {"strange": (1,)},
        )


def test_transformers_is_preferred_and_said_and_can_be_overridden(folder, strange, caplog):
    edit(folder / "config.json", architecture="strange")
    with caplog.at_level(logging.WARNING):
        assert detect.detect(Source(folder)).format.name == "transformers"
    assert "is read as transformers; `source_format=` would take strange" in caplog.text
    assert detect.detect(Source(folder), "strange").format.name == "strange"
    assert detect.detect(Source(folder), "transformers").format.name == "transformers"


def test_source_format_reaches_from_pretrained(folder):
    assert isinstance(ViTModel.from_pretrained(folder, source_format="transformers"), ViTModel)
    with pytest.raises(ValueError, match="`source_format` must be one of hf_vitfm, transformers.*got 'jaxx'"):
        ViTModel.from_pretrained(folder, source_format="jaxx")
    with pytest.raises(ValueError, match="as `source_format='hf_vitfm'`: it holds transformers"):
        ViTModel.from_pretrained(folder, source_format="hf_vitfm")


@pytest.mark.parametrize("model_class", [CLIPModel, MAEModel])
def test_class_that_cannot_be_made_of_it_is_told_which_can(folder, model_class):
    with pytest.raises(
        ValueError, match=f"{model_class.__name__} cannot read .* it holds transformers .for ViTModel, ViTFor"
    ):
        model_class.from_pretrained(folder)


NOT_OURS = {
    "swin": (
        "config.json",
        {"model_type": "swin"},
        "'swin' is another architecture: load it with transformers' `SwinModel`",
    ),
    "convnext": ("config.json", {"model_type": "convnext"}, "transformers' `ConvNextModel`"),
    "bit": ("config.json", {"model_type": "bit"}, "transformers' `BitModel`"),
    "beit": ("config.json", {"model_type": "beit"}, "transformers' `BeitModel`"),
    "CLIP's ResNet": (
        "open_clip_config.json",
        {"model_cfg": {"vision_cfg": {"layers": [3, 4, 6, 3]}, "text_cfg": {}}},
        "one of CLIP's ResNets, which is not a ViT: load it with `open_clip",
    ),
    "remote code": (
        "config.json",
        {"model_type": "mine", "auto_map": {"AutoModel": "code.Mine"}},
        "`model_type` 'mine'; it names code of its own .`auto_map`., which is never run",
    ),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_other_architectures_are_told_the_class_that_reads_them(tmp_path, name):
    file_name, config, message = NOT_OURS[name]
    (tmp_path / file_name).write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"ViTModel cannot read .*{message}.*Readable are"):
        ViTModel.from_pretrained(tmp_path)


def test_timms_other_architectures_are_told_the_class_that_reads_them(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet50"}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="'resnet50' is another one: load it with `timm.create_model`"):
        ViTModel.from_pretrained(tmp_path)


def test_weights_of_another_architecture_are_described(tmp_path):
    torch.save({"visual.layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "RN50.pt")
    with pytest.raises(ValueError, match="one of CLIP's ResNets"):
        CLIPModel.from_pretrained(tmp_path / "RN50.pt")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no config.json with a `model_type`, and weights named fc.weight"):
        ViTModel.from_pretrained(tmp_path / "other.pt")


def other_model(name):
    if name == "timm's Swin":
        return timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=28, embed_dim=6, depths=(1, 1), num_heads=(1, 1)
        )
    if name == "Swin":
        config = transformers.SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2)
        return transformers.SwinModel(config)
    if name == "BiT":
        config = transformers.BitConfig(embedding_size=32, hidden_sizes=[128] * 4, depths=[1] * 4)
        return transformers.BitModel(config)
    if name == "timm's BiT":
        return timm.models.ResNetV2((1, 1, 1, 1), channels=(128,) * 4, stem_chs=32)
    if name == "ResNet":
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
        return transformers.ResNetModel(config)
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])


@pytest.mark.parametrize(
    ("name", "model_class"),
    [
        ("timm's Swin", "SwinModel"),
        ("Swin", "SwinModel"),
        ("BiT", "BitModel"),
        ("timm's BiT", "BitModel"),
        ("ResNet", "ResNetModel"),
        ("torchvision's ResNet", "ResNetModel"),
    ],
)
def test_weights_alone_of_other_architectures_are_told_the_class_that_reads_them(tmp_path, name, model_class):
    torch.save({"model": other_model(name).state_dict()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"load its folder with transformers' `{model_class}`.*timm.create_model"):
        ViTModel.from_pretrained(tmp_path / "x.pth")


def test_code_that_a_readable_configuration_names_is_not_run_and_said(folder, caplog):
    edit(folder / "config.json", auto_map={"AutoModel": "code.Mine"})
    (folder / "code.py").write_text("raise SystemExit('code was run')")
    with caplog.at_level(logging.WARNING):
        ViTModel.from_pretrained(folder)
    assert "names code of its own (`auto_map`), which is never run" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", "3", '"vit"', "\xff"])
def test_damaged_configuration_is_named(folder, content):
    (folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises((OSError, ValueError), match=r"config.json|valid JSON"):
        ViTModel.from_pretrained(folder)


# The Hub


@pytest.mark.parametrize("load", [ViTModel.from_pretrained, load_image_processor, load_tokenizer])
def test_repository_that_is_not_cached_says_so_and_how_to_get_it(load):
    message = (
        "'google/vit-base-patch16-224' is no folder here and not in the cache.*offline.*`hf download google/vit-base"
    )
    with pytest.raises((OSError, ValueError), match=message):
        load("google/vit-base-patch16-224")


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path, monkeypatch):
    asked = []

    def unanswered(name, file_name, local_files_only=False, **kwargs):
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(source, "hf_hub_download", unanswered)
    monkeypatch.setattr(source, "is_offline_mode", lambda: False)
    monkeypatch.setattr(source, "list_repo_files", lambda *args, **kwargs: pytest.fail("the Hub was asked again"))
    with pytest.raises(ValueError, match="'some/vit' is no folder here .* the Hub cannot be reached.*`hf download"):
        detect.detect(Source("some/vit", cache_dir=tmp_path))
    assert asked[0] is False and all(asked[1:])


def test_cached_repository_is_read_without_a_network(folder, tmp_path, theirs):
    repository = tmp_path / "cache" / "models--some--vit"
    (repository / "snapshots").mkdir(parents=True)
    folder.rename(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    loaded = ViTForImageClassification.from_pretrained("some/vit", cache_dir=tmp_path / "cache")
    assert torch.equal(loaded.classifier.weight, theirs.classifier.weight)
    assert Source("some/vit", cache_dir=tmp_path / "cache").why_absent() is None


def test_reason_of_the_hub_is_passed_on_without_the_token(monkeypatch):
    token = "hf_" + "a" * 34

    def refuse(*args, **kwargs):
        raise OSError(f"Access to model some/vit is restricted. You sent {token}.")

    monkeypatch.setattr(source, "hf_hub_download", refuse)
    with pytest.raises(OSError, match="'some/vit' cannot be read: Access to model some/vit is restricted") as raised:
        Source("some/vit", token=token).candidates()
    assert token not in str(raised.value) and raised.value.__suppress_context__


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "weights.safetensors", "some/weights.npz"])
def test_path_to_nothing_is_not_taken_for_a_hub_id(name):
    with pytest.raises(
        FileNotFoundError, match="does not exist. Name a folder that holds a checkpoint, a weight file"
    ):
        ViTModel.from_pretrained(name)


# Half models


@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification])
def test_our_own_file_that_lacks_weights_is_refused(tmp_path, model_class):
    randomize(ViTForImageClassification(tiny_config())).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vit.encoder.layers.1.norm1.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing in .*encoder.layers.1.norm1.bias"):
        model_class.from_pretrained(tmp_path)


def test_mismatches_are_listed_with_both_shapes_five_of_them(folder):
    edit(folder / "config.json", hidden_size=64)
    with pytest.raises(ValueError) as raised:
        ViTForImageClassification.from_pretrained(folder)
    message = str(raised.value)
    assert message.count(" saved, ") == 5 and "(32,) saved, (64,) in the model" in message


def test_configuration_far_larger_than_its_weights_is_refused_at_once(folder, tmp_path):
    own = tmp_path / "own"
    ViTForImageClassification(tiny_config()).save_pretrained(own)
    for place in (folder, own):
        original = (place / "config.json").read_text()
        for field, value, message in (
            ("num_hidden_layers", 10**9, "num_hidden_layers=1000000000"),
            ("intermediate_size", 10**9, "describes a model of"),
        ):
            edit(place / "config.json", **{field: value})
            with pytest.raises(ValueError, match=message):
                ViTForImageClassification.from_pretrained(place)
            (place / "config.json").write_text(original)


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 10**6}, {"intermediate_size": 10**12}])
def test_claim_of_quantised_weights_lets_no_such_configuration_through(tmp_path, fields):
    ViTForImageClassification(tiny_config()).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", quantization_config={"quant_method": "none of transformers'"}, **fields)
    with pytest.raises(ValueError, match="they do not belong together"):
        ViTForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("id2label", {"cat": "0"}), ("id2label", ["cat"]), ("quantization_config", "int8")]
)
def test_damaged_dictionaries_of_a_configuration_are_named(folder, tmp_path, field, value):
    own = tmp_path / "own"
    ViTForImageClassification(tiny_config()).save_pretrained(own)
    for place in (folder, own):
        edit(place / "config.json", **{field: value})
        with pytest.raises(ValueError, match=f"The configuration.*`{field}.*it is damaged"):
            ViTForImageClassification.from_pretrained(place)


def test_class_may_be_called_as_a_field_is(folder):
    edit(folder / "config.json", id2label={"0": "layers", "1": "depth"}, label2id={"layers": 0, "depth": 1})
    model = ViTForImageClassification.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert model.config.label2id == {"layers": 0, "depth": 1}


def test_weights_that_are_whole_numbers_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    weights["vit.layernorm.weight"] = weights["vit.layernorm.weight"].to(torch.int32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights of .* are not floating-point numbers: layernorm.weight"):
        ViTModel.from_pretrained(folder)


# What wrappers, other years and hands leave


@pytest.mark.parametrize("kind", ["theirs", "ours", "ours in shards"])
def test_prefix_of_a_wrapper_in_safetensors_is_left_out(folder, kind):
    if kind.startswith("ours"):
        randomize(ViTForImageClassification(tiny_config())).save_pretrained(
            folder, max_shard_size="20KB" if "shards" in kind else "1GB"
        )
    if "shards" in kind:
        (folder / "model.safetensors").unlink()  # what the fixture saved
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        names = {f"module.{name}": file for name, file in index["weight_map"].items()}
        edit(folder / "model.safetensors.index.json", weight_map=names)
    expected = ViTForImageClassification.from_pretrained(folder) if "shards" not in kind else None
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        save_file(
            {f"module.{name}": tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"}
        )
    found = ViTForImageClassification.from_pretrained(folder)
    if expected is None:
        expected = randomize(ViTForImageClassification(tiny_config()))
    assert len(files) > 1 or "shards" not in kind
    assert same(found, expected)


def test_damaged_configuration_of_another_format_is_said_and_does_not_matter(folder, monkeypatch):
    expected = ViTForImageClassification.from_pretrained(folder)
    (folder / "open_clip_config.json").write_text("{")
    said = []
    monkeypatch.setattr(detect.logger, "warning_once", lambda text, *values: said.append(text % values))
    assert same(ViTForImageClassification.from_pretrained(folder), expected)
    assert len(said) == 1 and "is read as transformers" in said[0]
    assert "open_clip_config.json is not a valid JSON file" in said[0]
    for arguments in ({"source_format": "open_clip"}, {"source_format": "timm"}):
        with pytest.raises(OSError, match="open_clip_config.json is not a valid JSON file"):
            ViTForImageClassification.from_pretrained(folder, **arguments)
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match="open_clip_config.json is not a valid JSON file"):
        ViTForImageClassification.from_pretrained(folder)  # and not taken for weights without a configuration


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_type_of_weights_may_be_named_with_its_library(folder, field, is_ours):
    if is_ours:
        ViTForImageClassification(tiny_config()).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps({**config, field: "torch.float16"}))
    assert ViTForImageClassification.from_pretrained(folder).dtype == torch.float16


def test_error_about_weights_comes_without_a_table_of_them(tmp_path, caplog):
    ViTForImageClassification(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not fit the model"):
        ViTForImageClassification.from_pretrained(tmp_path, num_labels=7)
    assert "LOAD REPORT" not in caplog.text
    ViTForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert "LOAD REPORT" in caplog.text
