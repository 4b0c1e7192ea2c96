"""The checkpoints that most people load are found, understood and fit; the table in `published.py` is held against their libraries."""

import json
import math
from pathlib import Path

import pytest
import timm
import torch
import transformers

from hf_vitfm import ViTForImageClassification
from hf_vitfm.conversion.describe import describe
from tests.conversion.published import OURS, Published
from tests.conversion.published_layouts import write_hollow
from tests.conversion.published_others import NOT_OURS


BOTH_KINDS = [entry for entry in OURS if len(entry.configs) > 1]
each = pytest.mark.parametrize("entry", OURS, ids=lambda entry: f"{entry.repo}/{entry.weight_file}")


def write(entry: Published, folder: Path) -> Path:
    """A folder with the repository's files, whose weights have names and shapes and no content."""
    folder.mkdir(exist_ok=True)
    for name, content in entry.configs.items():
        (folder / name).write_text(json.dumps(content))
    if entry.shapes:
        write_hollow(folder / entry.weight_file, entry.shapes)
    return folder


def their_shapes(entry: Published) -> list[tuple]:
    """Shapes of the weights of the model that the library of this format makes of the configuration, sorted."""
    config = entry.configs["config.json"]
    with torch.device("meta"):
        if "architecture" in config:
            model = timm.create_model(config["architecture"], num_classes=config["num_classes"])
        else:
            model_class = getattr(transformers, config["architectures"][0])
            model = model_class(model_class.config_class.from_dict(config))
    return sorted(tuple(tensor.shape) for tensor in model.state_dict().values())


@each
def test_a_published_checkpoint_becomes_our_model_whole(tmp_path, entry):
    source_format = "open_clip" if entry.weight_file.startswith("open_clip") else None
    found = describe(write(entry, tmp_path), source_format)
    config = getattr(found.model.config, "vision_config", found.model.config)
    assert type(found.model).__name__ == entry.model_class
    assert config.image_size == entry.image_size
    assert (found.missing, found.mismatched) == ([], [])
    assert sorted(found.unused) == sorted(entry.left_out)
    unused = sum(math.prod(entry.shapes[name]) for name in entry.left_out if not name.endswith("position_ids"))
    assert sum(parameter.numel() for parameter in found.model.parameters()) + unused == entry.parameters


@pytest.mark.parametrize(
    "entry", [entry for entry in OURS if entry.weight_file == "model.safetensors"], ids=lambda entry: entry.repo
)
def test_the_table_has_the_weights_of_the_library_that_wrote_them(entry):
    shapes = []
    for name, shape in entry.shapes.items():
        if ".weights_in." in name:  # both halves of a gate, which transformers' newer class keeps apart
            shapes += 2 * [(shape[0] // 2, *shape[1:])]
        elif not name.endswith("position_ids"):
            shapes.append(shape)
    assert sorted(shapes) == their_shapes(entry)


def test_of_a_repository_with_files_of_two_libraries_transformers_is_read(tmp_path, caplog):
    for entry in BOTH_KINDS:
        write(entry, tmp_path)
    assert len(BOTH_KINDS) == 2
    assert describe(tmp_path).found.format.name == "transformers"
    assert "`source_format=` would take open_clip" in caplog.text
    other = describe(tmp_path, "open_clip")
    assert other.found.format.name == "open_clip"
    assert (other.missing, other.unused) == ([], [])


@pytest.mark.parametrize("entry", NOT_OURS, ids=lambda entry: entry.repo)
def test_another_architecture_is_refused_by_the_name_of_what_loads_it(tmp_path, entry):
    with pytest.raises(ValueError, match=entry.says):
        ViTForImageClassification.from_pretrained(write(entry, tmp_path))
