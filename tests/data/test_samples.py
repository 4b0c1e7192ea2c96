import importlib.util
import sys

import datasets
import pytest

from hf_vitfm.data.samples import EMBEDDED, SAMPLE_NAMES, find_checkpoint, load_sample, sample_checkpoint


def test_fashion_mnist_is_balanced_and_names_its_classes():
    splits = load_sample("fashion-mnist")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 4000, "test": 1000}
    classes = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
    assert splits["train"].features["label"].names == classes.split(", ")
    assert splits["test"].features == splits["train"].features
    for split, rows in splits.items():
        counts = [list(rows["label"]).count(label) for label in range(10)]
        assert counts == [len(rows) // 10] * 10
        assert str(rows.split) == split
    image = splits["test"][0]["image"]
    assert (image.size, image.mode) == ((28, 28), "L")


def test_emoji_pairs_two_drawings_of_the_same_things():
    splits = load_sample("emoji")
    assert list(splits) == ["google", "twitter"]
    google, twitter = splits["google"], splits["twitter"]
    assert list(google["caption"]) == list(twitter["caption"])
    assert len(google) == len(set(google["emoji"])) == 1906
    assert len(google.features["category"].names) == 9
    assert len(google.features["subcategory"].names) == 98
    first, second = google[0]["image"], twitter[0]["image"]
    assert first.size == second.size == (32, 32)
    assert first.convert("RGB").tobytes() != second.convert("RGB").tobytes()


def test_opening_samples_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    for name in SAMPLE_NAMES:
        for rows in load_sample(name).values():
            assert rows.cache_files == []
    assert list(tmp_path.iterdir()) == []


def test_unknown_sample_lists_the_names():
    with pytest.raises(ValueError, match=r"emoji, fashion-mnist; got 'mnist'"):
        load_sample("mnist")


def test_missing_datasets_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        load_sample("emoji")


@pytest.mark.parametrize("name", ["samples", "datasets", "transforms", "collators"])
def test_data_modules_import_without_the_datasets_library(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    spec = importlib.util.spec_from_file_location(f"hf_vitfm.data.{name}_again", EMBEDDED.parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert "datasets" not in vars(module)


def test_every_embedded_file_is_in_the_notice():
    notice = (EMBEDDED / "README.md").read_text(encoding="utf-8")
    for file in EMBEDDED.glob("*.parquet"):
        assert f"`{file.name}`" in notice
    for owner in ("2017 Zalando SE", "2013 Cal Henderson", "Google", "Twitter", "CC-BY 4.0", "Apache-2.0"):
        assert owner in notice


def test_unknown_checkpoint_lists_the_names():
    with pytest.raises(ValueError, match="emoji-clip, fashion-mae, fashion-vit; got 'fashion-mnist'"):
        sample_checkpoint("fashion-mnist")


def test_checkpoints_are_found_by_name_and_misspelt_ones_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("emoji-clip") == str(EMBEDDED / "emoji-clip")
    with pytest.raises(ValueError, match="There is no 'emoji_clip' here. Did you mean 'emoji-clip'"):
        find_checkpoint("emoji_clip")
    (tmp_path / "emoji_clip").mkdir()
    for source in ("emoji_clip", "google/vit-base-patch16-224", "openai/clip-vit-base-patch32"):
        assert find_checkpoint(source) == source
