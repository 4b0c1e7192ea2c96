"""Bad images in `ImageView`: named, or skipped without changing the size of a batch."""

import logging
import math

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vitfm.data.collators import collate_labelled
from hf_vitfm.data.decode import BadImageError
from hf_vitfm.data.order import EpochOrder, ImageView, in_memory
from hf_vitfm.data.transforms import _ToTensor
from tests.data.images import encode, grey_png


BAD = (2, 5, 6)


def to_tensor(image):
    """Grey level in 0..1 plus noise below one level, so that the level names the row."""
    return _ToTensor(1)(image).float() + 0.4 * torch.rand(1)


def still(image):
    return _ToTensor(1)(image).float()


def images(bad=BAD, rows=12):
    return [b"not an image" if i in bad else grey_png(10 * i) for i in range(rows)]


def rows_of_datasets(**kwargs):
    values = images(**kwargs)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": [{"bytes": data, "path": None} for data in values], "label": list(range(len(values)))}
    return datasets.Dataset.from_dict(columns, features=features)


def levels(rows) -> list[int]:
    return [int(row["pixel_values"].flatten()[0]) // 10 for row in rows]


def test_an_error_names_the_row_and_the_path(tmp_path):
    with pytest.raises(BadImageError, match="^row 2 cannot be decoded: it is not an image"):
        ImageView(rows_of_datasets(), still)[2]
    (tmp_path / "a.png").write_bytes(b"")
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", datasets.Image())
    with pytest.raises(BadImageError, match=rf"^row 0 \({tmp_path / 'a.png'}\) cannot be decoded: .*empty"):
        ImageView(rows, still)[0]
    with pytest.raises(BadImageError, match=r"^row 0 cannot be transformed: .*PIL mode F"):
        ImageView([{"image": Image.new("F", (4, 4))}], still)[0]


def test_a_mistake_in_a_transform_is_no_bad_image():
    def broken(image):
        return image.no_such_method()

    view = ImageView(rows_of_datasets(), broken, seed=0, on_bad_image="skip")
    with pytest.raises(AttributeError, match="no_such_method"):
        view[0]


def test_good_rows_are_what_they_were():
    rows = rows_of_datasets(bad=())
    decoded = [{"image": row["image"], "label": row["label"]} for row in rows]
    for view in (ImageView(rows, still), ImageView(decoded, still, on_bad_image="skip")):
        assert levels(view[i] for i in range(12)) == list(range(12))
        assert [view[i]["label"] for i in range(12)] == list(range(12))


def test_rows_that_are_formatted_or_converted_by_datasets_are_left_to_it():
    grey = datasets.Dataset.from_dict({"image": [encode(Image.new("RGB", (4, 4), "red"))]})
    grey = grey.cast_column("image", datasets.Image(mode="L"))
    assert ImageView(grey, lambda image: torch.tensor(image.mode == "L"))[0]["pixel_values"]
    as_arrays = rows_of_datasets(bad=()).with_format("torch")
    assert ImageView(as_arrays, lambda image: image[:1].float())[3]["pixel_values"].unique().tolist() == [30]


def test_in_training_another_row_takes_the_place_of_a_bad_one_always_the_same():
    views = [ImageView(rows_of_datasets(), to_tensor, seed=4, on_bad_image="skip") for _ in range(2)]
    first, second = ([view[epoch, i] for epoch in range(3) for i in range(12)] for view in views)
    for a, b in zip(first, second, strict=True):
        assert a["label"] == b["label"] and torch.equal(a["pixel_values"], b["pixel_values"])
    labels = [row["label"] for row in first]
    assert labels == levels(first)
    assert not set(labels) & set(BAD)
    kept = [label for place, label in enumerate(labels) if place % 12 not in BAD]
    assert kept == [i for i in range(12) if i not in BAD] * 3
    replaced = [labels[12 * epoch + i] for epoch in range(3) for i in BAD]
    assert len(set(replaced)) > 2
    assert views[0].bad_indices() == sorted(BAD)


def test_copies_of_a_bad_row_are_copies_of_one_other(tmp_path):
    view = ImageView(rows_of_datasets(), to_tensor, seed=4, on_bad_image="skip")
    first, second = view[1, 5, 0], view[1, 5, 1]
    assert first["label"] == second["label"]
    assert not torch.equal(first["pixel_values"], second["pixel_values"])


def test_in_evaluation_a_bad_row_keeps_its_place_and_has_no_target():
    view = ImageView(rows_of_datasets(), still, on_bad_image="skip")
    batch = collate_labelled([view[i] for i in range(4)])
    assert batch["labels"].tolist() == [0, 1, -100, 3]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0, 10, 0, 30]
    for target, shape in ((0.5, (2,)), ([0.0, 1.0], (2, 2))):
        rows = [{"image": data, "label": target} for data in (grey_png(1), b"")]
        labels = collate_labelled([ImageView(rows, still, on_bad_image="skip")[i] for i in range(2)])["labels"]
        assert labels.shape == shape
        assert labels.isfinite().flatten().tolist() == [True] * (labels.numel() // 2) + [False] * (labels.numel() // 2)
        assert math.isnan(labels[1].sum())


def test_blank_pixels_have_the_shape_of_the_others():
    def crop(image):
        return torch.from_numpy(np.array(image.convert("RGB").resize((6, 5)))).float()

    view = ImageView(rows_of_datasets(), crop, on_bad_image="skip")
    assert view[2]["pixel_values"].shape == view[0]["pixel_values"].shape == (5, 6, 3)
    assert not view[2]["pixel_values"].any()


def test_a_data_set_that_is_all_bad_is_an_error():
    rows = rows_of_datasets(bad=range(12))
    with pytest.raises(BadImageError, match=r"row 3 is bad, and so are 10 others .* of 12 rows"):
        ImageView(rows, to_tensor, seed=0, on_bad_image="skip")[0, 3]
    with pytest.raises(BadImageError, match=r"row 3 is bad, .*: 11 of 12 rows"):
        ImageView(rows, to_tensor, on_bad_image="skip")[3]


def test_workers_report_to_the_main_process_and_batches_stay_whole():
    loaders = []
    for workers in (0, 2):
        view = ImageView(rows_of_datasets(), to_tensor, seed=4, on_bad_image="skip")
        order = EpochOrder(12, seed=1, global_batch=4)
        loader = torch.utils.data.DataLoader(
            view, sampler=order, batch_size=4, num_workers=workers, collate_fn=collate_labelled
        )
        loaders.append(list(loader))
        assert view.bad_indices() == sorted(BAD)
        assert [view.name(i) for i in BAD] == ["row 2", "row 5", "row 6"]
    for alone, shared in zip(*loaders, strict=True):
        assert alone["pixel_values"].shape == (4, 1, 4, 4)
        assert all(torch.equal(alone[name], shared[name]) for name in alone)


def test_a_bad_row_is_logged_once(caplog):
    view = ImageView(rows_of_datasets(), to_tensor, seed=4, on_bad_image="skip")
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            view[epoch, 2]
    assert sum("row 2 cannot be decoded" in record.message for record in caplog.records) == 1


def test_images_kept_in_memory_are_decoded_once_but_the_bad_ones():
    kept = in_memory(rows_of_datasets())
    assert [isinstance(row["image"], Image.Image) for row in kept] == [i not in BAD for i in range(12)]
    with pytest.raises(BadImageError, match="^row 5 cannot be decoded: it is not an image"):
        ImageView(kept, still)[5]
    lazily, at_once = (ImageView(rows, to_tensor, 4, on_bad_image="skip") for rows in (rows_of_datasets(), kept))
    assert all(torch.equal(lazily[0, i]["pixel_values"], at_once[0, i]["pixel_values"]) for i in range(12))


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="one of error, skip; got 'ignore'"):
        ImageView([], still, on_bad_image="ignore")
