"""The code on a card runs where it says that it does, for each way to publish a model; its metadata is accepted."""

import json
import re

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hf_vitfm import create_model_card, export_checkpoint
from hf_vitfm.cards.usage import Published
from hf_vitfm.conversion.export import written_formats
from hf_vitfm.hub.remote_code import write_remote_code
from tests.cards.test_contrastive_card import RESULTS as CLIP_RESULTS
from tests.cards.test_contrastive_card import RUN as CLIP_RUN
from tests.cards.test_model_card import RESULTS as VIT_RESULTS
from tests.cards.test_model_card import RUN as VIT_RUN
from tests.cards.test_pretraining_card import RESULTS as MAE_RESULTS
from tests.cards.test_pretraining_card import RUN as MAE_RUN
from tests.hub import receiver
from tests.hub.test_remote_code import build
from tests.tiny import random_images


FILES = {"vit": (VIT_RESULTS, VIT_RUN), "mae": (MAE_RESULTS, MAE_RUN), "clip": (CLIP_RESULTS, CLIP_RUN)}
CASES = {  # the formats, the root's first; whether code lies beside it; the library that the Hub is told
    ("vit", "own"): (("hf_vitfm",), False, "hf_vitfm"),
    ("vit", "code"): (("hf_vitfm",), True, "transformers"),
    ("vit", "transformers"): (("transformers", "hf_vitfm"), False, "transformers"),
    ("vit", "several"): (("hf_vitfm", "transformers", "timm"), False, "hf_vitfm"),
    ("vit", "timm"): (("timm", "hf_vitfm"), False, "timm"),
    ("mae", "code"): (("hf_vitfm",), True, "transformers"),
    ("mae", "transformers"): (("transformers", "mae"), False, "transformers"),
    ("clip", "code"): (("hf_vitfm", "open_clip"), True, "transformers"),
    ("clip", "transformers"): (("transformers", "hf_vitfm"), False, "transformers"),
    ("clip", "open_clip"): (("open_clip",), False, "open_clip"),
}


def save(folder, name: str, formats: tuple[str, ...], remote_code: bool):
    """A repository's files but for the card; the model that is in all formats."""
    model, processor = build(name, for_transformers=bool({"transformers", "timm"} & {*formats}))
    for place, format in enumerate(formats):
        target = folder / format if place else folder
        if format == "hf_vitfm":
            model.save_pretrained(target)
            processor.save_pretrained(target)
        else:
            export_checkpoint(model, target, format, processor)
    if remote_code:
        write_remote_code(folder, type(model))
    return model, processor


def write_card(folder, name: str, model, processor, **kwargs) -> str:
    """The card of a run, as it is written before the model is published: in the run's folder."""
    folder.mkdir()
    results, run = FILES[name]
    if name == "vit":
        run = {**run, "per_class": dict.fromkeys(model.config.id2label.values(), 0.9)}
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(config))
    getattr(processor, "image_processor", processor).save_pretrained(folder)
    (folder / "all_results.json").write_text(json.dumps(results))
    (folder / "run.json").write_text(json.dumps(run))
    return create_model_card(folder, **kwargs).read_text()


@pytest.fixture(scope="module")
def stranger(client):
    """A process without the library."""
    client.run(receiver.hide_library)
    return client


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    folder = tmp_path_factory.mktemp("album")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.jpg")
    return folder


@torch.no_grad()
def expected_output(name: str, model, images):
    if name == "clip":
        return model.get_image_features(images).pooler_output
    return model(images).logits


@pytest.mark.parametrize("name, way", CASES)
def test_code_of_the_card_runs_on_the_repository(hub, stranger, album, tmp_path, name, way, monkeypatch):
    formats, remote_code, library = CASES[name, way]
    folder, repo_id = tmp_path / "repository", f"ada/{name}-{way}"
    model, processor = save(folder, name, formats, remote_code)
    how = {"formats": formats, "remote_code": remote_code}
    card = write_card(tmp_path / "run", name, model, processor, repo_id=repo_id, **how)
    (folder / "README.md").write_text(card)
    hub.publish(repo_id, folder)

    data = ModelCard(card).data
    assert data.library_name == library and ("custom_code" in data.tags) == remote_code
    stranger.run(receiver.validate, card)
    assert ("trust_remote_code=True" in card) == remote_code
    assert ("pip install hf-vitfm" in card.split("```python")[0]) == (formats[0] == "hf_vitfm" and not remote_code)

    images = random_images()
    found = stranger.run(receiver.run_snippets, card, str(album), images)
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    ours = [block for block in blocks if "import hf_vitfm" in block or "from hf_vitfm" in block]
    assert len(found) + len(ours) == len(blocks)
    for values in found:
        if "output" in values and name != "mae":  # whose masks are random in transformers
            torch.testing.assert_close(values["output"], expected_output(name, model, images), rtol=1e-4, atol=1e-5)

    others = {"timm", "open_clip"}
    loaded = {formats[0]} & others | {*formats[1:]} & {"transformers", *others}  # whose code leaves a `model`
    assert sum("output" in values for values in found) == len(loaded)

    local = write_card(tmp_path / "again", name, model, processor, **how)
    monkeypatch.chdir(album)
    for block in re.findall(r"```python\n(.*?)```", local, flags=re.DOTALL):
        exec(block.replace("path/to/this/folder", str(folder)), {})


def test_ways_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="`formats` must be different ones of hf_vitfm, transformers.*got .'onnx'"):
        Published(("onnx",))
    with pytest.raises(ValueError, match="`remote_code` goes with 'hf_vitfm' at the root; got 'transformers'"):
        Published(("transformers",), remote_code=True)


def test_every_format_that_is_written_has_a_place_on_the_card():
    assert Published(("hf_vitfm", *written_formats()))
