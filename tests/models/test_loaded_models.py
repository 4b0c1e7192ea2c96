"""Models that were loaded from files work with what surrounds them: PEFT, quantisation, device maps, sharded files."""

import json

import peft
import pytest
import torch
import transformers
from torchao.quantization import Int8WeightOnlyConfig
from torchao.utils import TorchAOBaseTensor

from hf_vitfm import CLIPModel, ViTForImageClassification
from tests.tiny import FIELDS, random_images, random_texts, randomize, relative_error, tiny_clip


# Large enough for files of several shards, small enough for a test.
SHARD = "20KB"


@pytest.fixture
def foreign(tmp_path):
    """A folder that transformers saved, of its own ViT."""
    theirs = randomize(transformers.ViTForImageClassification(transformers.ViTConfig(**FIELDS)))
    theirs.save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign"


@pytest.fixture
def plain(foreign):
    """That model as ours, loaded as is."""
    return ViTForImageClassification.from_pretrained(foreign).eval()


@pytest.fixture(params=["ours", "foreign"])
def folder(request, tmp_path, foreign, plain):
    """The same weights in our format and in transformers'."""
    if request.param == "foreign":
        return foreign
    plain.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


@torch.no_grad()
def logits(model):
    return model(random_images()).logits


def with_adapters(model):
    config = peft.LoraConfig(r=2, target_modules=["qkv", "fc1", "fc2"], modules_to_save=["classifier"])
    return peft.get_peft_model(model, config)


def step(model) -> None:
    """One step of training on two images."""
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0)
    model.train()
    model(pixel_values=random_images(), labels=torch.tensor([0, 3])).loss.backward()
    optimizer.step()
    model.eval()


def test_adapters_alone_are_trained_and_loaded_again(tmp_path, folder, plain):
    model = with_adapters(ViTForImageClassification.from_pretrained(folder))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    torch.testing.assert_close(logits(model.eval()), logits(plain), rtol=0, atol=0)  # LoRA begins at zero
    step(model)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    layers = FIELDS["num_hidden_layers"]
    # A is left as it is by the first step, for B is zero; three adapted modules in each layer, and the new head.
    assert len([name for name in changed if "lora_B" in name]) == 3 * layers
    assert all("lora_" in name or "modules_to_save" in name for name in changed)
    assert relative_error(logits(model), logits(plain)) > 1e-3
    model.save_pretrained(tmp_path / "adapters")
    again = ViTForImageClassification.from_pretrained(folder)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "adapters").eval()
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-6)
    merged = again.merge_and_unload()
    assert type(merged) is ViTForImageClassification
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=1e-4)


def test_adapters_work_on_both_towers_of_a_loaded_clip(tmp_path):
    tiny_clip().save_pretrained(tmp_path)
    model = peft.get_peft_model(
        CLIPModel.from_pretrained(tmp_path), peft.LoraConfig(r=2, target_modules=["qkv", "fc1", "fc2"])
    )
    tokens, mask = random_texts()
    output = model(input_ids=tokens, attention_mask=mask, pixel_values=random_images(), return_loss=True)
    output.loss.backward()
    trained = [name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()]
    assert all("lora_B" in name for name in trained)
    for tower in ("text_model", "vision_model"):
        assert sum(tower in name for name in trained) == 3 * FIELDS["num_hidden_layers"]


def test_weights_are_quantised_while_they_are_loaded(folder, plain):
    config = transformers.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["classifier"])
    model = ViTForImageClassification.from_pretrained(folder, quantization_config=config).eval()
    packed = {name: weight for name, weight in model.named_parameters() if isinstance(weight.data, TorchAOBaseTensor)}
    assert len(packed) == 4 * FIELDS["num_hidden_layers"]  # qkv, proj, fc1, fc2
    assert not any("classifier" in name for name in packed)
    for name, weight in packed.items():
        exact = plain.get_parameter(name)
        steps = exact.abs().amax(dim=1, keepdim=True) / 127  # 8 bits for each row
        assert ((weight.dequantize() - exact).abs() < 0.51 * steps).all()
    assert 0 < relative_error(logits(model), logits(plain)) < 0.05


def test_quantised_weights_are_saved_and_loaded_again(tmp_path, folder):
    config = transformers.TorchAoConfig(Int8WeightOnlyConfig())
    model = ViTForImageClassification.from_pretrained(folder, quantization_config=config).eval()
    model.save_pretrained(tmp_path / "packed")
    again = ViTForImageClassification.from_pretrained(tmp_path / "packed").eval()
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-6)


ON_DISK = {"vit.embeddings": "cpu", "vit.encoder": "disk", "vit.layernorm": "cpu", "classifier": "cpu"}


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, ON_DISK], ids=["auto", "cpu", "disk"])
def test_a_device_map_changes_no_output(tmp_path, folder, plain, device_map):
    where = {"offload_folder": tmp_path / "offload"} if device_map is ON_DISK else {}
    model = ViTForImageClassification.from_pretrained(folder, device_map=device_map, **where).eval()
    is_offloaded = any(weight.is_meta for weight in model.parameters())
    assert is_offloaded is bool(where)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=0)


def test_positions_are_resized_under_a_device_map(folder, plain):
    plain.resize_position_embeddings(48)
    model = ViTForImageClassification.from_pretrained(folder, device_map="auto", image_size=48).eval()
    images = random_images(height=48, width=48)
    torch.testing.assert_close(model(images).logits, plain(images).logits, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["ours", "foreign"])
def test_sharded_files_hold_the_same_model(tmp_path, foreign, plain, kind):
    if kind == "ours":
        model = plain
    else:
        model = transformers.ViTForImageClassification.from_pretrained(foreign)
    model.save_pretrained(tmp_path / "sharded", max_shard_size=SHARD)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    again = ViTForImageClassification.from_pretrained(tmp_path / "sharded").eval()
    torch.testing.assert_close(logits(again), logits(plain), rtol=0, atol=0)
