"""Folders, names and tokens that a push must refuse in words, whatever is wrong with them."""

import codecs
import errno
import json
import os
import shutil
from pathlib import Path
from unittest import mock

import peft
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from hf_vitfm import ViTForImageClassification, push_to_hub, sample_checkpoint
from hf_vitfm.cli.main import main
from hf_vitfm.conversion.hide_tokens import hide_tokens
from hf_vitfm.hub.contents import is_outdated
from tests.hub.client import at_once
from tests.hub.server import token_of
from tests.repo.tree import ROOT
from tests.tiny import randomize, tiny_config


SECRET = "hf_" + "aB3" * 11
ODD_TOKEN = "swordfish-number-9"  # nothing that looks like a Hub token


@pytest.fixture
def folder(tmp_path):
    """A saved classifier."""
    randomize(ViTForImageClassification(tiny_config())).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def plan(source, **options):
    return push_to_hub(source, "ada/model", dry_run=True, **options)


def refused(source, words: str, **options) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        plan(source, **options)
    assert SECRET not in str(refusal.value)


# Weights


def change(folder: Path, function) -> None:
    weights = load_file(folder / "model.safetensors")
    function(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("content", [b"", b"\0" * 100, None], ids=["empty", "zeros", "cut"])
def test_damaged_weights_are_refused_by_file(folder, content):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10] if content is None else content)
    refused(folder, "model.safetensors is damaged, or cut")


def test_weights_that_are_not_those_of_the_configuration_are_refused(folder):
    change(folder, lambda weights: weights.update({"classifier.bias": torch.zeros(2)}))
    refused(folder, r"classifier.bias has the shape \(2,\), config.json says")
    change(folder, lambda weights: weights.pop("classifier.bias"))
    refused(folder, "classifier.bias is missing")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_refused_by_weight(folder, dtype):
    def spoil(weights):
        weights["classifier.bias"] = weights["classifier.bias"].to(dtype)
        weights["classifier.bias"][-1] = float("nan")

    change(folder, spoil)
    refused(folder, "'classifier.bias' in model.safetensors holds NaN")


def test_lost_shard_is_refused_by_name(folder):
    model = ViTForImageClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    assert len([name for name in plan(folder).files if name.endswith(".safetensors")]) > 1
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.unlink()
    refused(folder, f"{shard.name} is missing, which model.safetensors.index.json names")


def test_weights_that_run_json_does_not_record_are_told(tmp_path, caplog):
    run = shutil.copytree(sample_checkpoint("fashion-vit"), tmp_path / "run")
    plan(run)
    assert "may be another model's" not in caplog.text
    change(run, lambda weights: weights["classifier.bias"].add_(1))
    plan(run)
    assert "not those that run.json records" in caplog.text and "hf-vitfm verify" in caplog.text


# Links and other files


@pytest.mark.parametrize("name", ["examples.png", "LICENSE", "run.json"])
def test_link_out_of_the_folder_is_refused(folder, name):
    (folder.parent / "elsewhere").write_text("{}")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    refused(folder, f"{name} is a link to a file outside of the folder")
    (folder.parent / "elsewhere").unlink()
    refused(folder, f"{name} is no file, or a link to none")


def test_links_that_are_usual_are_published(folder):
    folder.rename(folder.parent / "own")
    files = {path.name: path.read_bytes() for path in (folder.parent / "own").iterdir()}
    snapshot, blobs = folder.parent / "cache/snapshots/1234", folder.parent / "cache/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name, content in files.items():  # as the Hub's cache is made
        (blobs / f"blob-{name}").write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/blob-{name}")
    assert set(files) <= set(plan(snapshot).files)
    folder.mkdir()
    shutil.copy(blobs / "blob-config.json", folder / "config.json")
    (folder / "model.safetensors").symlink_to(blobs / "blob-model.safetensors")  # weights on a larger disk
    (folder / "data").symlink_to(folder.parent, target_is_directory=True)
    (folder / "debug.log").symlink_to("nowhere")
    found = plan(folder)
    assert found.files["model.safetensors"] == len(files["model.safetensors"])
    assert found.left_out["data/"] == "a link to a folder"


def test_pipe_in_the_folder_does_not_stop_a_push(folder):
    os.mkfifo(folder / "log")
    assert "model.safetensors" in plan(folder).files


# Secrets


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE], ids=["little", "big"])
def test_text_of_another_encoding_hides_no_secret(folder, mark):
    encoding = "utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-16-be"
    (folder / "README.md").write_bytes(mark + f"# Mine\n{SECRET}\n".encode(encoding))
    refused(folder, "README.md, line 2, holds what looks like a Hub token")
    (folder / "README.md").write_bytes(mark + "# Mine\n".encode(encoding))
    refused(folder, "README.md must be UTF-8")


def test_texts_in_pictures_hide_no_secret(folder):
    info = PngInfo()
    Image.new("RGB", (8, 8)).save(folder / "examples.png")
    assert "examples.png" in plan(folder).files
    info.add_text("command", f"--hub_token {SECRET}")
    Image.new("RGB", (8, 8)).save(folder / "examples.png", pnginfo=info)
    refused(folder, r"examples.png, line \d, holds what looks like a Hub token")
    (folder / "examples.png").write_text(f"no picture\n{SECRET}")
    refused(folder, "examples.png, line 2, holds what looks like a Hub token")


@pytest.mark.parametrize(
    "text",
    [
        "WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567",
        "--api-key 0123456789abcdef0123456789abcdef01234567",
        '{"password": "correctHorse7Battery"}',
        "access_token: 'eyJhbGciOiJIUzI1NiJ9x1'",
    ],
)
def test_keys_of_any_service_are_refused(folder, text):
    (folder / "notes.txt").write_text(f"\n{text}\n")
    refused(folder, "notes.txt, line 2, holds what looks like a password or key")


@pytest.mark.parametrize(
    "text", ["api_key=YOUR_API_KEY_GOES_HERE", "access_token: null", "the secret key is 12 letters"]
)
def test_words_about_keys_are_published(folder, text):
    (folder / "README.md").write_text(text)
    assert plan(folder).card == text


def test_files_of_the_project_are_published(folder):
    """The larger texts that the project has hold nothing that would be taken for a secret."""
    for number, path in enumerate(
        [*ROOT.glob("*.md"), *ROOT.glob("model_cards/*/*.*"), *ROOT.glob("recipes/**/*.yaml")]
    ):
        shutil.copy(path, folder / f"notes-{number}{path.suffix}")
    assert "model.safetensors" in plan(folder).files


# Names, tokens and what else is asked for


@pytest.mark.parametrize("repo_id", ["", "ada/x y", "https://huggingface.co/ada/x", "ada/x/y", "../x", "ada/x\n"])
def test_wrong_name_is_refused_with_the_right_form(folder, repo_id):
    with pytest.raises(ValueError, match="`repo_id` must be .*owner/name.*got"):
        push_to_hub(folder, repo_id, dry_run=True)


@pytest.mark.parametrize("token", [f"{ODD_TOKEN}\n", f"{ODD_TOKEN}\r\nX-Evil: 1", f"ö{ODD_TOKEN}", " ", ""])
def test_token_that_no_header_takes_is_refused_unseen(hub, client, folder, token):
    error = client.failure(at_once, push_to_hub, folder, "ada/odd-token", token=token)
    assert error.kind == "ValueError" and "`token` must be" in error.text
    assert ODD_TOKEN not in error.message and ODD_TOKEN not in Path(client.log).read_text()
    assert not hub.requests


def test_token_is_hidden_as_an_error_quotes_it():
    for token in (f"{ODD_TOKEN}\n", f"{ODD_TOKEN}\r\n{ODD_TOKEN}"):
        assert ODD_TOKEN not in hide_tokens(f"Illegal header value {f'Bearer {token}'.encode()!r}", token)


@pytest.mark.parametrize(
    "option", [{"create_pr": True}, {"tags": ["x"]}, {"max_shard_size": "1MB"}, {"commit_description": "x"}]
)
def test_argument_of_transformers_alone_is_refused_with_the_way_to_it(folder, option):
    model = ViTForImageClassification.from_pretrained(folder)
    with pytest.raises(TypeError, match=f"`{next(iter(option))}` of transformers' .* is not taken here"):
        model.push_to_hub("ada/model", dry_run=True, **option)
    defaults = {"create_pr": False, "tags": None, "max_shard_size": "50GB", "commit_description": None}
    assert "model.safetensors" in model.push_to_hub("ada/model", dry_run=True, **defaults).files


def test_adapters_are_refused(folder):
    adapter = peft.LoraConfig(r=2, target_modules=["qkv"])
    refused_model = peft.get_peft_model(ViTForImageClassification.from_pretrained(folder), adapter)
    with pytest.raises(TypeError, match="merge_and_unload"):
        plan(refused_model)
    refused_model.save_pretrained(folder)
    refused(ViTForImageClassification.from_pretrained(folder), "carries adapters")


def test_full_disk_is_told_with_what_to_do(folder):
    with mock.patch("shutil.copyfile", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(OSError, match="nothing was sent.*TMPDIR"):
            plan(folder)


def test_weights_on_another_disk_are_not_copied(folder):
    copied = []

    def copy(source, target):
        copied.append(Path(source).name)
        Path(target).write_bytes(Path(source).read_bytes())

    with mock.patch("os.link", side_effect=OSError(errno.EXDEV, "another disk")), mock.patch("shutil.copyfile", copy):
        found = plan(folder)
    assert found.files["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert "config.json" in copied and "model.safetensors" not in copied


def test_results_that_are_no_json_are_named_where_they_are(tmp_path):
    run = shutil.copytree(sample_checkpoint("fashion-vit"), tmp_path / "run")
    (run / "run.json").write_text("{")
    refused(run, str(run / "run.json"))


def test_command_takes_spaces_and_no_contradiction(folder, capsys):
    command = ["push", str(folder), "ada/model", "--dry-run"]
    assert main([*command, "--format", "hf_vitfm, timm"]) == 0 and "timm/model.safetensors" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--private", "--public"])


# What was there before


def push_formats(repo_id: str) -> None:
    for formats in (("open_clip",), ("hf_vitfm",)):
        push_to_hub(sample_checkpoint("emoji-clip"), repo_id, formats=formats, token=token_of("ada"))


def test_model_of_another_format_at_the_root_is_replaced(hub, client):
    client.run(push_formats, "ada/other-format")
    names = set(hub.repository("ada/other-format").files)
    assert "model.safetensors" in names and not [name for name in names if name.startswith("open_clip")]
    assert is_outdated("adapter_config.json", {"model.safetensors"}) and not is_outdated("adapter.txt", set())


def save_and_push(folder: Path) -> None:
    model = ViTForImageClassification.from_pretrained(folder)
    model.save_pretrained(folder.with_name("saved"), push_to_hub=True, repo_id="ada/saved", token=token_of("ada"))


def test_saving_with_a_push_is_private_too(hub, client, folder):
    client.run(save_and_push, folder)
    repository = hub.repository("ada/saved")
    assert repository.private and "ViTForImageClassification" in repository.files["README.md"].decode()
    assert json.loads((folder.with_name("saved") / "config.json").read_text())["model_type"] == "vitfm_vit"
