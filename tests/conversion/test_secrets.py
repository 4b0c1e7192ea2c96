"""Tokens and passwords are in no message: neither those of the environment nor those in a source's name."""

import pytest
from PIL import Image

from hf_vitfm import ViTModel, load_image_processor, load_tokenizer
from hf_vitfm.cli.main import main
from hf_vitfm.conversion.describe import describe
from hf_vitfm.conversion.hide_tokens import hide_tokens


TOKEN = "hf_" + "RecognizableFakeToken"
PASSWORD = "recognizable-fake-password"
SOURCES = {
    "Hub id": "some/vit",
    "no such folder": f"./no/such/{TOKEN}/folder",
    "no such file": f"{TOKEN}.safetensors",
    "URL with a token": f"https://user:{TOKEN}@huggingface.co/some/vit",
    "URL with a password": f"https://user:{PASSWORD}@example.com/some/vit.pth",
    "URL with a parameter": f"https://example.com/vit.pth?download=1&token={PASSWORD}",
}
LOADERS = {
    "model": ViTModel.from_pretrained,
    "image processor": load_image_processor,
    "tokenizer": load_tokenizer,
    "description": describe,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def is_secret_in(text: str) -> bool:
    return TOKEN in text or PASSWORD in text


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("source", SOURCES)
def test_no_message_of_a_loader_holds_a_secret(source, loader):
    for token in (None, TOKEN, PASSWORD):
        with pytest.raises((OSError, ValueError)) as raised:
            LOADERS[loader](SOURCES[source], token=token)
        message = str(raised.value)
        assert not is_secret_in(message)
        assert ("is a URL, which is not read" in message) == source.startswith("URL")


@pytest.mark.parametrize("command", ["info", "convert", "predict"])
@pytest.mark.parametrize("source", SOURCES)
def test_no_output_of_a_command_holds_a_secret(tmp_path, capfd, caplog, command, source):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    rest = {
        "info": [],
        "convert": [tmp_path / "out", "--to", "timm"],
        "predict": [tmp_path, "--output", tmp_path / "x"],
    }
    assert main([command, SOURCES[source], *map(str, rest[command])]) == 2
    output = capfd.readouterr()
    assert output.err.startswith("hf-vitfm ") and not is_secret_in(output.out + output.err + caplog.text)


def test_folder_with_damaged_files_and_a_token_in_its_path(tmp_path, capsys):
    folder = tmp_path / TOKEN
    folder.mkdir()
    (folder / "config.json").write_text("{")
    assert main(["info", str(folder)]) == 2
    (folder / "config.json").unlink()
    (folder / "x.pth").write_bytes(b"junk")
    assert main(["info", str(folder)]) == 2
    assert not is_secret_in(capsys.readouterr().err)


def test_what_is_no_secret_stays(monkeypatch):
    text = (
        "'google/vit-base-patch16-224' in outputs/hf_vitfm at https://huggingface.co/google: the tokenizer is missing"
    )
    assert hide_tokens(text) == text
    monkeypatch.setenv("HF_TOKEN", "vit")  # too short for a token
    assert hide_tokens(text) == text
