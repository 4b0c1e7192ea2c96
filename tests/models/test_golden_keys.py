"""Names and shapes of saved weights never change unnoticed: files that people have must keep loading.

When a change is intended, raise `vitfm_format_version`, read the old names too, and write the file anew:
`python -m tests.models.test_golden_keys`.
"""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from hf_vitfm import CLIPModel, MAEConfig, MAEForPreTraining, ViTForImageClassification
from tests.tiny import MAE_FIELDS, OPTIONS, SIGLIP, tiny_clip, tiny_clip_config, tiny_config


GOLDEN = Path(__file__).parents[1] / "golden" / "keys.json"
NAMES = ("all with class token", "all with mean", "plain", "gated with pre-norm", "mae", "clip", "siglip")


def make_model(name: str):
    if name == "mae":
        return MAEForPreTraining(MAEConfig(**MAE_FIELDS, num_register_tokens=2, layer_scale_init_value=0.1))
    if name == "siglip":
        return tiny_clip(**SIGLIP)
    if name == "clip":
        extras = {"num_hidden_layers": 2, "layer_scale_init_value": 0.1}
        config = tiny_clip_config(text=extras, vision={**extras, "num_register_tokens": 2}, objective="sigmoid")
        return CLIPModel(config)
    return ViTForImageClassification(tiny_config(num_hidden_layers=2, **OPTIONS[name]))


def keys_and_shapes(name: str) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in make_model(name).state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_the_names_and_shapes_of_earlier_versions(name):
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    assert list(keys_and_shapes(name).items()) == list(expected.items())


@pytest.mark.parametrize("name", NAMES)
def test_saved_file_has_the_names_and_shapes_of_the_state_dict(tmp_path, name):
    make_model(name).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    assert saved == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    lines = []
    for option in NAMES:
        shapes = ",\n".join(f"    {json.dumps(key)}: {shape}" for key, shape in keys_and_shapes(option).items())
        lines.append(f"  {json.dumps(option)}: {{\n{shapes}\n  }}")
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
