"""Images with captions from every kind of place, and which caption a sample is seen with."""

import base64
import csv
import json
from collections import Counter

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch.utils.data import DataLoader

from hf_vitfm import load_images, load_pairs, open_stream
from hf_vitfm.data.decode import BadImageError
from hf_vitfm.data.order import EpochOrder, ImageView
from hf_vitfm.data.streams import StreamOrder
from hf_vitfm.data.transforms import _ToTensor
from tests.data.images import grey_png, write_tar


FEATURES = {"image": datasets.Image(), "caption": datasets.Value("string")}
SEVERAL = {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}


def still(image):
    return _ToTensor(1)(image).float()


def greys(rows) -> list[int]:
    return [image.convert("L").getpixel((0, 0)) for image in rows["image"]]


def save_images(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(grey_png(i))


def write_table(path, rows):
    if path.suffix == ".jsonl":
        return path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def table(captions, features=None):
    images = [{"bytes": grey_png(i), "path": None} for i in range(len(captions))]
    return datasets.Dataset.from_dict(
        {"image": images, "caption": captions}, features=datasets.Features(features or FEATURES)
    )


# Places


def test_the_embedded_set_keeps_its_other_columns():
    pairs = load_pairs("emoji")
    assert {split: rows.num_rows for split, rows in pairs.items()} == {"google": 1906, "twitter": 1906}
    rows = pairs["google"]
    assert set(rows.column_names) == {"image", "caption", "emoji", "category", "subcategory"}
    assert all(isinstance(caption, str) and caption for caption in rows["caption"])


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_tables_hold_paths_or_data_urls(tmp_path, kind):
    save_images(tmp_path)
    url = "data:image/png;base64," + base64.b64encode(grey_png(77)).decode()
    rows = [{"file_name": "1.png", "text": 'a "dog", barking', "n": 5}, {"file_name": url, "text": "é 漢", "n": 6}]
    write_table(tmp_path / f"a.{kind}", rows)
    pairs = load_pairs(tmp_path / f"a.{kind}")["train"]
    assert greys(pairs) == [1, 77]
    assert list(pairs["caption"]) == ['a "dog", barking', "é 漢"] and list(pairs["n"]) == [5, 6]
    assert greys(load_images(tmp_path / f"a.{kind}", labels=False)["train"]) == [1, 77]


@pytest.mark.parametrize(
    "url", ["data:image/png,abc", "data:image/png;base64,a", "data:image/png;base64,/../é", "data:"]
)
def test_a_data_url_that_is_none_is_named(tmp_path, url):
    save_images(tmp_path)
    write_table(tmp_path / "a.jsonl", [{"image": "0.png", "text": "a"}, {"image": url, "text": "b"}])
    with pytest.raises(ValueError, match=r"row 1 of .*a\.jsonl holds a data URL that is not"):
        load_pairs(tmp_path / "a.jsonl")


def test_a_folder_with_tables_beside_its_images(tmp_path):
    for split, kind in (("train", "jsonl"), ("test", "csv")):
        save_images(tmp_path / split)
        write_table(tmp_path / split / f"metadata.{kind}", [{"file_name": "2.png", "text": split}])
    pairs = load_pairs(str(tmp_path))
    assert {split: (greys(rows), list(rows["caption"])) for split, rows in pairs.items()} == {
        "train": ([2], ["train"]),
        "test": ([2], ["test"]),
    }
    with pytest.raises(ValueError, match="`revision` and `config_name` are for data sets on the Hub"):
        load_pairs(tmp_path, revision="main")


def test_a_table_beside_parquet_files_is_none_of_the_rows(tmp_path):
    table(["a"]).to_parquet(tmp_path / "a.parquet")
    write_table(tmp_path / "counts.csv", [{"word": "a", "count": 1}])
    assert list(load_pairs(tmp_path)["train"]["caption"]) == ["a"]


def test_a_folder_of_images_alone_has_no_captions(tmp_path):
    save_images(tmp_path)
    with pytest.raises(ValueError, match="no column of captions; the columns are image, file_name"):
        load_pairs(tmp_path)


@pytest.mark.parametrize(("captions", "features"), [(["a", None], FEATURES), ([["a", "b"], []], SEVERAL)])
def test_parquet_saved_sets_and_streams_agree(tmp_path, captions, features):
    rows = table(captions, features)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "a.parquet", tmp_path / "saved"):
        pairs = load_pairs(source)["train"]
        assert (greys(pairs), list(pairs["caption"])) == ([0, 1], captions)
    assert [row["caption"] for row in open_stream(tmp_path / "a.parquet")] == captions


def test_parquet_of_bytes_with_a_caption_column_of_another_name(tmp_path):
    columns = {"jpg": [grey_png(3)], "TEXT": ["upper"], "re_caption": ["better"], "label": [1]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for name, expected in ((None, "upper"), ("re_caption", "better")):
        chosen = {"image_column": "jpg", "caption_column": name}
        assert list(load_pairs(tmp_path / "a.parquet", **chosen)["train"]["caption"]) == [expected]
        (row,) = open_stream(tmp_path / "a.parquet", **chosen)
        assert (row["caption"], row["label"]) == (expected, 1)


def test_data_sets_on_the_hub(monkeypatch):
    def load_dataset(source, name, revision):
        rows = table(["a", "b"]).rename_column("caption", "sentence")
        return datasets.DatasetDict({"train": rows, "valid": rows.select([1])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    pairs = load_pairs("somebody/pairs", revision="main")
    assert {split: list(rows["caption"]) for split, rows in pairs.items()} == {
        "train": ["a", "b"],
        "validation": ["b"],
    }


def test_tars_with_captions_as_text_or_fields(tmp_path):
    members = {"1.png": grey_png(1), "1.txt": " a cat\n", "1.json": {"caption": "no", "alt": "an animal"}}
    members |= {"2.png": grey_png(2), "2.json": {"title": "b", "alt": ["c", "d"]}}
    members |= {"3.png": grey_png(3), "3.json": {"title": 5, "alt": "\ud800"}}
    members |= {"4.png": grey_png(4)}
    write_tar(tmp_path / "a.tar", members)
    for name, read, opened in (
        (None, ["a cat", "b", 5, None], ["a cat", "b", None, None]),
        ("txt", ["a cat", None, None, None], ["a cat", None, None, None]),
        ("alt", ["an animal", ["c", "d"], "\ud800", None], [["an animal"], ["c", "d"], None, None]),
    ):
        assert [row["caption"] for row in open_stream(tmp_path / "a.tar", caption_column=name)] == read
        pairs = load_pairs(tmp_path / "a.tar", caption_column=name)["train"]
        assert (greys(pairs), list(pairs["caption"])) == ([1, 2, 3, 4], opened)
    with pytest.raises(ValueError, match="`caption_column` must be one of .*; got 'nothing'"):
        load_pairs(tmp_path / "a.tar", caption_column="nothing")


# Columns


@pytest.mark.parametrize(
    ("columns", "name", "message"),
    [
        ({"title": "a", "text": "b"}, None, "several columns of captions: title, text; the columns are image, title, text"),
        ({"words": "a"}, None, "no column of captions; the columns are image, words. Name one as `caption_column`"),
        ({"text": "a"}, "caption", "`caption_column` must be one of text; got 'caption'"),
        ({"text": "a"}, "image", "`caption_column` must be one of text; got 'image'"),
        ({"text": 5}, None, "column 'text' must hold captions, as text or as lists of text; it holds Value.*int64"),
        ({"caption": [{"raw": "a"}]}, None, "column 'caption' must hold captions"),
        ({"caption": None}, None, "column 'caption' must hold captions, .* it holds Value.*null"),
    ],
)  # fmt: skip
def test_columns_that_are_not_clear_are_named(tmp_path, columns, name, message):
    save_images(tmp_path)
    write_table(tmp_path / "a.jsonl", [{"image": "0.png", **columns}])
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path / "a.jsonl", caption_column=name)


def test_the_column_of_images_can_be_named(tmp_path):
    features = {"front": datasets.Image(), "back": datasets.Image(), "text": datasets.Value("string")}
    pictures = [{"bytes": grey_png(level), "path": None} for level in (1, 2)]
    rows = {"front": pictures[:1], "back": pictures[1:], "text": ["a"]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(tmp_path / "a.parquet")
    for name, level in (("front", 1), ("back", 2)):
        assert greys(load_pairs(tmp_path / "a.parquet", image_column=name)["train"]) == [level]


def test_a_column_called_caption_goes_first_and_one_of_text_before_numbers(tmp_path):
    save_images(tmp_path)
    for columns, expected in (({"title": "a", "caption": "b"}, "b"), ({"title": 5, "text": "c"}, "c")):
        write_table(tmp_path / "a.jsonl", [{"image": "0.png", **columns}])
        assert list(load_pairs(tmp_path / "a.jsonl")["train"]["caption"]) == [expected]


def test_a_stream_whose_caption_column_is_not_clear_says_so_when_captions_are_wanted(tmp_path):
    columns = {"image": [grey_png(3)], "text": ["a"], "title": ["b"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    rows = open_stream(tmp_path / "a.parquet")
    assert "pixel_values" in ImageView(rows, still)[0]
    with pytest.raises(
        ValueError, match=r"row 0 .* has the columns image; expected `caption`.*`caption_column`"
    ) as error:
        ImageView(rows, still, 0, "skip", captions=True)[0, 0]
    assert not isinstance(error.value, BadImageError)
    with pytest.raises(ValueError, match="`caption_column` must be one of text, title; got 'x'"):
        open_stream(tmp_path / "a.parquet", caption_column="x")


# Bad rows


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        (None, "there is none, got None"),
        ([], r"there is none, got \[\]"),
        ("", "it is empty, got ''"),
        (" \n\t", "it is empty"),
        (["a", ""], "it is empty, got ''"),
        (["a", None], "it must be text, got None"),
        (5, r"it must be text, got 5 \(int\)"),
        (float("nan"), r"it must be text, got nan \(float\)"),
        (b"bytes", r"it must be text, got b'bytes' \(bytes\)"),
        ({"raw": "a"}, "it must be text, got {'raw': 'a'}"),
        ("half \ud800", "it must be text"),
    ],
)
def test_a_row_without_a_usable_caption_is_a_bad_row(caption, message):
    rows = [{"image": grey_png(i), "caption": "good"} for i in range(3)]
    rows[1]["caption"] = caption
    for seed in (None, 0):
        with pytest.raises(BadImageError, match=f"^row 1 has no caption to learn from: {message}"):
            ImageView(rows, still, seed, captions=True)[1]
    training = ImageView(rows, still, 3, "skip", captions=True)
    assert training[0, 1]["caption"] == "good" and training[0, 1]["pixel_values"][0, 0, 0] != 1
    evaluation = ImageView(rows, still, on_bad_image="skip", captions=True)
    bad = evaluation[1]
    assert bad["caption"] == [] and not bad["pixel_values"].any()
    assert evaluation[2]["caption"] == ["good"]
    assert training.bad_indices() == evaluation.bad_indices() == [1]


def test_an_error_names_the_path_of_the_image(tmp_path):
    save_images(tmp_path)
    write_table(tmp_path / "a.csv", [{"image": "0.png", "text": "a"}, {"image": "2.png", "text": ""}])
    view = ImageView(load_pairs(tmp_path / "a.csv")["train"], still, captions=True)
    with pytest.raises(BadImageError, match=rf"^row 1 \({tmp_path / '2.png'}\) has no caption"):
        view[1]


def test_captions_are_no_concern_where_they_are_not_wanted():
    rows = table([None, "a"])
    assert all(set(ImageView(rows, still)[i]) == {"pixel_values", "sample_seed"} for i in range(2))


# Which caption


SIX = [[f"{row}{letter}" for letter in "abc"] for row in range(6)]


def test_evaluation_keeps_all_captions_and_training_draws_one():
    rows = table(SIX, SEVERAL)
    evaluation, training = ImageView(rows, still, captions=True), ImageView(rows, still, seed=1, captions=True)
    assert [evaluation[i]["caption"] for i in range(6)] == SIX
    assert ImageView(table(["a"]), still, captions=True)[0]["caption"] == ["a"]
    assert ImageView(table(["a"]), still, seed=1, captions=True)[0, 0]["caption"] == "a"
    drawn = [training[epoch, i]["caption"] for epoch in range(200) for i in range(6)]
    assert [caption[0] for caption in drawn] == list("012345") * 200
    counts = Counter(caption[1] for caption in drawn)
    assert all(330 < counts[letter] < 470 for letter in "abc")  # 400 expected, sigma 16
    copies = {training[0, 3, copy]["caption"] for copy in range(8)}
    assert len(copies) > 1


def test_rows_that_already_have_pixels_get_a_caption_too():
    rows = [{"pixel_values": torch.zeros(1, 2, 2), "caption": ["a", "b"]}]
    assert ImageView(rows, None, captions=True)[0]["caption"] == ["a", "b"]
    assert {ImageView(rows, None, seed, captions=True)[0, 0]["caption"] for seed in range(9)} == {"a", "b"}


def test_the_caption_is_a_function_of_seed_epoch_and_row():
    rows = table(SIX, SEVERAL)

    def seen(workers, seed, epoch):
        view, order = ImageView(rows, still, seed, captions=True), EpochOrder(6, seed=5, global_batch=2)
        order.set_epoch(epoch)
        loader = DataLoader(view, sampler=order, batch_size=2, num_workers=workers, collate_fn=list)
        return sorted(row["caption"] for batch in loader for row in batch)

    state = torch.get_rng_state()
    view = ImageView(rows, still, 4, captions=True)
    alone = sorted(view[1, i]["caption"] for i in range(6))
    assert torch.equal(torch.get_rng_state(), state)
    assert seen(0, 4, 1) == seen(2, 4, 1) == alone
    assert len({tuple(seen(0, seed, epoch)) for seed in (4, 5) for epoch in (1, 2)}) == 4


def test_streams_of_several_captions_draw_the_same_ones_with_any_workers(tmp_path):
    for shard in range(3):
        rows = range(4 * shard, 4 * shard + 4)
        members = {f"{row}.json": {"captions": [f"{row}{letter}" for letter in "abc"]} for row in rows}
        write_tar(tmp_path / f"train-{shard}.tar", members | {f"{row}.png": grey_png(row) for row in rows})

    def seen(workers):
        rows = open_stream(tmp_path, window=4)
        view = ImageView(rows, still, seed=2, captions=True)
        order = StreamOrder(rows, 7, micro_batch=2, global_batch=2, workers=workers)
        loader = DataLoader(view, sampler=order, batch_size=2, num_workers=workers, collate_fn=list)
        return [(int(row["pixel_values"][0, 0, 0]), row["caption"]) for batch in loader for row in batch]

    alone = seen(0)
    assert sorted(grey for grey, _ in alone) == list(range(12))
    assert all(caption[:-1] == str(grey) for grey, caption in alone)
    assert len({caption[-1] for _, caption in alone}) > 1
    assert sorted(seen(2)) == sorted(alone)
