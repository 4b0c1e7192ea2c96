"""The order of samples and their augmentation are functions of (seed, epoch, sample)."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from hf_vitfm.data.decode import BadImageError
from hf_vitfm.data.order import EpochOrder, ImageView, mix_seed
from tests.data.images import encode, grey_png
from tests.data.images import noise as pixels


def noise(image):
    return image + torch.rand(3)


def test_an_epoch_is_a_permutation_cut_to_whole_global_batches():
    order = EpochOrder(11, seed=0, global_batch=4)
    keys = list(order)
    assert len(keys) == len(order) == 8
    assert {epoch for epoch, _ in keys} == {0}
    assert len({index for _, index in keys}) == 8
    assert set(index for _, index in EpochOrder(11, 0, 4, drop_last=False)) == set(range(11))


def test_the_order_depends_on_seed_and_epoch_alone():
    first = EpochOrder(50, seed=1, global_batch=5)
    before = torch.get_rng_state()
    again, other_seed = list(EpochOrder(50, 1, 10)), list(EpochOrder(50, 2, 5))
    assert list(first) == again != other_seed
    assert torch.equal(torch.get_rng_state(), before)
    first.set_epoch(3)
    assert [index for _, index in first] != [index for _, index in again]
    assert next(iter(first))[0] == 3


def test_a_set_smaller_than_a_global_batch_is_an_error():
    with pytest.raises(ValueError, match="7 rows, fewer than one global batch of 8"):
        EpochOrder(7, 0, 8)


@pytest.mark.parametrize(("num_rows", "global_batch", "repeats"), [(60, 12, 3), (50, 8, 3), (40, 10, 2), (45, 5, 4)])
def test_repeats_put_copies_of_a_sample_into_one_global_batch(num_rows, global_batch, repeats):
    keys = list(EpochOrder(num_rows, seed=0, global_batch=global_batch, repeats=repeats))
    assert len(keys) == num_rows // global_batch * global_batch == len(set(keys))
    seen = set()
    for start in range(0, len(keys), global_batch):
        batch = [(index, copy) for _, index, copy in keys[start : start + global_batch]]
        copies = {index: sorted(c for i, c in batch if i == index) for index, _ in batch}
        assert len(copies) == -(-global_batch // repeats)
        counts = {len(numbers) for numbers in copies.values()}
        assert max(counts) <= repeats and max(counts) - min(counts) <= 1
        assert all(numbers == list(range(len(numbers))) for numbers in copies.values())
        assert all(batch[k][0] != batch[k + 1][0] for k in range(0, global_batch - 1, 2))
        assert seen.isdisjoint(copies)
        seen |= set(copies)


def test_repeats_follow_the_order_of_single_samples():
    single = [index for _, index in EpochOrder(24, seed=4, global_batch=12)]
    repeated = list(EpochOrder(24, seed=4, global_batch=12, repeats=3))
    assert [index for _, index, copy in repeated if copy == 0] == single[:8]
    assert repeated[:4] == [(0, index, 0) for index in single[:4]]


def test_copies_have_different_neighbours_to_be_mixed_with():
    keys = [key[1:] for key in EpochOrder(12, seed=0, global_batch=12, repeats=3)]
    partners = {index: set() for index, _ in keys}
    for (first, _), (second, _) in zip(keys[::2], keys[1::2], strict=True):
        partners[first].add(second)
        partners[second].add(first)
    assert all(len(found) == 2 for found in partners.values())


@pytest.mark.parametrize("num_rows", range(8, 16))
def test_an_incomplete_last_batch_is_repeated_too(num_rows):
    keys = list(EpochOrder(num_rows, seed=0, global_batch=8, drop_last=False, repeats=3))
    assert len(keys) == num_rows == len(set(keys))
    rest = [index for _, index, _ in keys[8:]]
    assert all(first != second for first, second in zip(rest[::2], rest[1::2], strict=False))


@pytest.mark.parametrize("repeats", [0, 8, 9])
def test_repeats_that_leave_one_sample_to_a_batch_are_an_error(repeats):
    with pytest.raises(ValueError, match=f"`repeats`.*global batch of 8; got {repeats}"):
        EpochOrder(20, 0, 8, repeats=repeats)


def test_copies_are_augmented_differently_and_the_first_as_ever():
    view = ImageView([{"image": torch.zeros(3)}] * 2, noise, seed=5)
    first = view[2, 1]["pixel_values"]
    assert torch.equal(view[2, 1, 0]["pixel_values"], first)
    torch.manual_seed(mix_seed(5, 2, 1))
    assert torch.equal(first, torch.rand(3))
    views = [view[2, 1, copy]["pixel_values"] for copy in range(3)]
    assert not any(torch.equal(views[i], views[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(view[2, 1, 2]["pixel_values"], views[2])


def test_augmentation_is_addressed_and_leaves_the_global_state_alone():
    view = ImageView([{"image": torch.zeros(3), "label": 1}] * 2, noise, seed=5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = view[2, 1]["pixel_values"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(view[2, 1]["pixel_values"], first)
    assert not torch.equal(view[2, 0]["pixel_values"], first)
    assert not torch.equal(view[3, 1]["pixel_values"], first)
    assert view[0]["label"] == 1


def test_workers_do_not_change_what_a_sample_looks_like():
    view = ImageView([{"image": torch.zeros(3)} for _ in range(8)], noise, seed=5)
    loaders = [
        torch.utils.data.DataLoader(view, sampler=EpochOrder(8, 3, 4), batch_size=4, num_workers=workers)
        for workers in (0, 2)
    ]
    alone, shared = ([batch["pixel_values"] for batch in loader] for loader in loaders)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_rows_without_an_image_say_what_they_have():
    with pytest.raises(ValueError, match="columns picture"):
        ImageView([{"picture": 1}], noise)[0]


def test_neighbouring_addresses_get_unrelated_seeds():
    seeds = [mix_seed(0, epoch, index) for epoch in range(30) for index in range(300)]
    assert len(set(seeds)) == len(seeds)
    assert mix_seed(1, 2) != mix_seed(2, 1)
    bits = torch.tensor([[seed >> k & 1 for k in range(63)] for seed in seeds], dtype=torch.float32)
    assert (bits.mean(0) - 0.5).abs().max() < 0.03


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_encoded_images_of_every_type_of_bytes_are_decoded(kind):
    view = ImageView([{"image": kind(grey_png(9))}, {"image": kind(b"GIF no more")}], None)
    assert view.image(0).getpixel((0, 0)) == 9
    with pytest.raises(BadImageError, match="^row 1 cannot be decoded: .* begins with b'GIF no more'"):
        view.image(1)


def test_opened_images_are_turned_upright_as_paths_are(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "a.png").write_bytes(encode(pixels(4, 6), exif=exif))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    plain = Image.fromarray(pixels(4, 6))
    rows = [{"image": image} for image in (tmp_path / "a.png", Image.open(tmp_path / "a.png"), plain)]
    view = ImageView(rows, np.asarray)
    assert expected.shape == (6, 4, 3)
    assert np.array_equal(view[0]["pixel_values"], expected) and np.array_equal(view[1]["pixel_values"], expected)
    assert np.array_equal(view[2]["pixel_values"], np.asarray(plain))
