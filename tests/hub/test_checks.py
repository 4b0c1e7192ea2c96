"""What must not be published is refused by file and line; what a run leaves for itself stays behind."""

import re
import shutil

import pytest
import transformers

from hf_vitfm import ViTForImageClassification, push_to_hub, sample_checkpoint
from tests.tiny import FIELDS, tiny_config


SECRET = "hf_" + "aB3" * 11


@pytest.fixture
def folder(tmp_path):
    """A model without the files of its run."""
    (tmp_path / "run").mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(sample_checkpoint("fashion-mae") / name, tmp_path / "run")
    return tmp_path / "run"


def plan(source, **options):
    return push_to_hub(source, "ada/model", dry_run=True, **options)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (".env", "A=1", r"\.env is a file of secrets"),
        ("deep/er/id_rsa", "x", "deep/er/id_rsa is a file of secrets"),
        ("server.pem", "x", r"server\.pem is a file of secrets"),
        ("README.md", f"# Mine\n\nlogin(token='{SECRET}')\n", "README.md, line 3, holds what looks like a Hub token"),
        ("notes.txt", f"\n{SECRET}\n", "notes.txt, line 2, holds what looks like a Hub token"),
        ("run.json", '{\n"key": "AKIAIOSFODNN7EXAMPLE"}', "run.json, line 2, .* an AWS access key"),
        ("log.json", '["-----BEGIN RSA PRIVATE KEY-----"]', "log.json, line 1, .* a private key"),
        ("all_results.json", '{"url": "https://ada:lovelace@host/x"}', "all_results.json, line 1, .* a password"),
        ("README.md", "see /srv/ada/data", "README.md, line 1, holds an absolute path, /srv/ada"),
        ("run.json", '{\n\n"config": "/mnt/here/a.yaml"}', "run.json, line 3, holds an absolute path, /mnt/here"),
        ("run.json", '{"config": "C:\\\\Users\\\\ada"}', "run.json, line 1, holds an absolute path"),
        ("README.md", "in C:\\Users\\ada", "README.md, line 1, holds an absolute path"),
        ("run.json", '{"config": "/some/where/far/away"}', "run.json, line 1, holds an absolute path"),
    ],
)
def test_secrets_and_paths_are_refused_by_file_and_line(folder, name, text, words):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"Not fit to be published: {words}") as refusal:
        plan(folder)
    for secret in (SECRET, "AKIAIOSFODNN7EXAMPLE", "lovelace"):
        assert secret not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "See https://example.org/home/ada/x and [data](/datasets/imagenet/of/all) for images/train/cat.\n",
        "The label `/a/arena/rodeo` of Places365, either/or, 1/2, <b>bold</b>, `</p>`, tests/data/x.png.\n",
        "The class `hf_vitfm_format_version`, sk-learn, a token of 12 characters, password: none.\n",
    ],
)
def test_ordinary_words_are_published(folder, text):
    (folder / "README.md").write_text(text)
    assert plan(folder).card == text  # somebody's own card stays as it is


def test_known_token_is_found_whatever_it_looks_like(folder, monkeypatch):
    (folder / "run.json").write_text('{"note": "correct-horse-battery"}')
    assert "run.json" in plan(folder).files
    with pytest.raises(ValueError, match="run.json, line 1, holds your token"):
        plan(folder, token="correct-horse-battery")
    monkeypatch.setenv("HF_TOKEN", "correct-horse-battery")
    with pytest.raises(ValueError, match="run.json, line 1, holds your token"):
        plan(folder)


def test_large_file_is_refused_unless_asked(folder):
    with pytest.raises(
        ValueError, match=r"model.safetensors has [\d,]+ bytes, more than `max_file_size` \(1,000,000\)"
    ):
        plan(folder, max_file_size=10**6)
    assert plan(folder).files["model.safetensors"] == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("formats", [("transformers",), ("hf_vitfm", "transformers"), ("hf_vitfm", "timm", "jax")])
def test_format_that_cannot_hold_the_model_is_refused_by_field(formats):
    model = ViTForImageClassification(tiny_config(pooling="mean"))
    with pytest.raises(ValueError, match="cannot hold `(pooling='mean'|hidden_act='gelu')`"):
        plan(model, formats=formats)
    with pytest.raises(ValueError, match="`format` must be one of .*; got 'open_clip'"):
        plan(model, formats=("open_clip",))


@pytest.mark.parametrize("formats", [(), ("timn",), ("timm", "timm")])
def test_wrong_formats_are_refused(folder, formats):
    with pytest.raises(ValueError, match="`formats` must be different ones of dinov2, hf_vitfm, jax, .*got "):
        plan(folder, formats=formats)
    with pytest.raises(ValueError, match="`remote_code` is the code of the format hf_vitfm"):
        plan(folder, formats=("transformers",), remote_code=True)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        plan(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="must be a model .* got int"):
        plan(3)
    with pytest.raises((ValueError, OSError)):
        plan(tmp_path)
    with pytest.raises(ValueError, match="[Rr]epo id"):
        push_to_hub(tmp_path, "no//name", dry_run=True)


def test_model_of_transformers_stays_what_it_is(tmp_path):
    config = transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[1])
    swin = transformers.SwinForImageClassification(config)
    swin.save_pretrained(tmp_path / "swin")
    for source in (swin, tmp_path / "swin"):
        with pytest.raises(ValueError, match=re.escape("formats=('transformers',)")):
            plan(source)
        found = plan(source, formats=("transformers",))
        assert {"config.json", "model.safetensors", "README.md"} == set(found.files)
        assert "library_name: transformers" in found.card and "SwinForImageClassification" in found.card
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**FIELDS))
    theirs.save_pretrained(tmp_path / "vit")
    assert "library_name: hf_vitfm" in plan(tmp_path / "vit").card  # ours can hold it
