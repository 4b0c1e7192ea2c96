"""Folders with links in circles and with files that are none are listed once, and end."""

import os
import subprocess
import sys

import pytest

from hf_vitfm.data.datasets import load_images
from hf_vitfm.data.decode import BadImageError, decode_image
from hf_vitfm.data.sources.walk import walk_files
from hf_vitfm.evaluation.predict import find_images
from tests.data.images import grey_png


def save(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(grey_png(3))


def test_a_link_back_up_adds_no_rows(tmp_path):
    save(tmp_path / "cat" / "1.png", tmp_path / "cat" / "2.png", tmp_path / "dog" / "1.png")
    (tmp_path / "cat" / "up").symlink_to("..")
    rows = load_images(tmp_path)["train"]
    assert list(rows["label"]) == [0, 0, 1]
    assert find_images([tmp_path]) == [str(tmp_path / name) for name in ("cat/1.png", "cat/2.png", "dog/1.png")]


def test_a_link_to_a_folder_beside_it_is_a_folder_of_its_own(tmp_path):
    save(tmp_path / "test" / "cat" / "1.png")
    (tmp_path / "validation").symlink_to("test")
    assert {split: len(rows) for split, rows in load_images(tmp_path).items()} == {"validation": 1, "test": 1}


def test_files_come_by_name_before_subfolders_and_hidden_ones_not_at_all(tmp_path):
    save(*(tmp_path / name for name in ("z.png", "b/1.png", "a/2.png", "a/1.png", ".c/1.png", ".d.png")))
    assert [str(file.relative_to(tmp_path)) for file in walk_files(tmp_path)] == [
        "z.png",
        "a/1.png",
        "a/2.png",
        "b/1.png",
    ]


def test_pipes_are_left_out_and_broken_links_are_not(tmp_path):
    save(tmp_path / "cat" / "1.png")
    os.mkfifo(tmp_path / "cat" / "2.png")
    (tmp_path / "cat" / "3.png").symlink_to("gone.png")
    assert [file.name for file in walk_files(tmp_path)] == ["1.png", "3.png"]
    assert len(load_images(tmp_path)["train"]) == 2
    with pytest.raises(ValueError, match=r"2\.png' is neither a file nor a folder"):
        find_images([tmp_path / "cat" / "2.png"])


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, caplog, monkeypatch):
    save(tmp_path / "cat" / "1.png", tmp_path / "lost" / "1.png")
    scandir = os.scandir

    def refuse(folder):  # permissions do not bind every user
        if str(folder).endswith("lost"):
            raise PermissionError("no")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [file.parent.name for file in walk_files(tmp_path)] == ["cat"]
    assert f"The files of {tmp_path / 'lost'} are left out" in caplog.text


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    code = "import sys; from hf_vitfm.data.decode import decode_image; decode_image(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path / "x.jpg")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert f"BadImageError: {tmp_path / 'x.jpg'} cannot be decoded: it is no regular file." in result.stderr
    with pytest.raises(BadImageError, match="no regular file"):
        decode_image(tmp_path)
