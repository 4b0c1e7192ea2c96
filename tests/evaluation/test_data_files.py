"""Files beside a data set, in a folder and in the Hub's cache; the Hub's own client reads the cache."""

import pytest
from huggingface_hub import constants

from hf_vitfm.evaluation.data_files import find_data_file


@pytest.fixture
def cached_data_set(tmp_path, monkeypatch):
    """The cache as the Hub's client leaves it after fetching one file of "some/data"."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "datasets--some--data"
    snapshot = folder / "snapshots" / ("a" * 40)
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "classnames.txt").write_text("cat\n")
    (snapshot / "sub" / "real.json").write_text("[]")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    return snapshot


def test_a_file_of_a_folder_is_found(tmp_path):
    (tmp_path / "classnames.txt").write_text("cat")
    assert find_data_file(tmp_path, "classnames.txt") == tmp_path / "classnames.txt"
    with pytest.raises(FileNotFoundError, match=r"holds no 'real.json'"):
        find_data_file(str(tmp_path), "real.json")


def test_a_file_of_the_hub_comes_from_its_cache_when_offline(cached_data_set):
    assert find_data_file("some/data", "classnames.txt").read_text() == "cat\n"
    assert find_data_file("some/data", "sub/real.json", "a" * 40) == cached_data_set / "sub" / "real.json"


def test_what_is_not_cached_is_said_with_the_command_that_fetches_it(cached_data_set):
    with pytest.raises(ConnectionError, match="hf download some/data other.txt --repo-type dataset"):
        find_data_file("some/data", "other.txt")


@pytest.mark.parametrize("source", ["./nowhere", "a/b/c", "nowhere"])
def test_what_can_be_no_data_set_is_named(source):
    with pytest.raises(FileNotFoundError, match="must be a folder or the id of a data set"):
        find_data_file(source, "classnames.txt")
