"""The code on a card runs where it says that it does, for each way to publish a model; its metadata is accepted."""

import json
import re

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hf_vitfm.cards.usage import Published
from hf_vitfm.conversion.export import written_formats
from hf_vitfm.hub.staging import stage
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


def write_run(folder, name: str, for_transformers: bool):
    """The folder of a finished run, made up but for its model; the model."""
    folder.mkdir()
    model, processor = build(name, for_transformers)
    results, run = FILES[name]
    if name == "vit":
        run = {**run, "per_class": dict.fromkeys(model.config.id2label.values(), 0.9)}
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    getattr(processor, "image_processor", processor).save_pretrained(folder)
    (folder / "all_results.json").write_text(json.dumps(results))
    (folder / "run.json").write_text(json.dumps(run))
    return model


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
    model = write_run(tmp_path / "run", name, for_transformers=bool({"transformers", "timm"} & {*formats}))
    how = {"formats": formats, "remote_code": remote_code}
    folder.mkdir()
    hub.publish(repo_id, stage(tmp_path / "run", folder, repo_id=repo_id, **how).directory)  # as a push does
    card = (folder / "README.md").read_text()

    data = ModelCard(card).data
    assert data.library_name == library and ("custom_code" in data.tags) == remote_code
    told = [result.metric_value for result in data.eval_results]
    assert told and all(value in FILES[name][0].values() for value in told)
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

    (tmp_path / "again").mkdir()
    local = (stage(tmp_path / "run", tmp_path / "again", **how).directory / "README.md").read_text()
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
