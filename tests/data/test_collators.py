import numpy as np
import pytest
import torch

from hf_vitfm.data.collators import MaskingCollator, collate_labelled
from hf_vitfm.data.order import ImageView
from hf_vitfm.models.modeling_masking import split_patches


def rows_with(labels, key="label"):
    return [{"pixel_values": torch.full((3, 4, 4), float(i)), key: label} for i, label in enumerate(labels)]


@pytest.mark.parametrize("key", ["label", "labels"])
@pytest.mark.parametrize("labels", [[1, 0, 2], [np.int32(1), np.int32(0), np.int32(2)], list(torch.tensor([1, 0, 2]))])
def test_class_ids_become_int64(labels, key):
    batch = collate_labelled(rows_with(labels, key))
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [1, 0, 2]
    assert batch["pixel_values"].shape == (3, 3, 4, 4)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("labels", [[[0.25, 0.75], [1, 0]], [[1, 0], [1, 1]], [np.array([0.25, 0.75]), np.ones(2)]])
def test_vectors_become_float32(labels):
    batch = collate_labelled(rows_with(labels))
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [[float(value) for value in label] for label in labels]


def test_numbers_for_regression_become_float32():
    labels = collate_labelled(rows_with([0.5, 2.0]))["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [0.5, 2.0]


def test_rows_without_label_give_none_and_other_keys_are_left_out():
    rows = [
        {"pixel_values": torch.zeros(3, 4, 4), "caption": "a"},
        {"pixel_values": torch.zeros(3, 4, 4), "label": None},
    ]
    assert list(collate_labelled(rows)) == ["pixel_values"]


def test_mixed_labels_win_over_the_class_id():
    row = {"pixel_values": torch.zeros(3, 4, 4), "label": 1, "labels": [0.5, 0.5]}
    assert collate_labelled([row])["labels"].tolist() == [[0.5, 0.5]]


def test_different_shapes_are_named():
    rows = [{"pixel_values": torch.zeros(3, 4, 4)}, {"pixel_values": torch.zeros(3, 5, 4)}]
    with pytest.raises(ValueError, match=r"\(3, 4, 4\), \(3, 5, 4\).*[Rr]esize"):
        collate_labelled(rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([{"image": 1}], r"row 0 has the keys \['image'\]"),
        (rows_with([1, None]), "1 of 2 without"),
        (rows_with([1, [0.5, 0.5]]), r"\(\), \(2,\)"),
    ],
)
def test_rows_that_make_no_batch_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        collate_labelled(rows)


def seeded_rows(seeds, height=32, width=32):
    return [{"pixel_values": torch.rand(3, height, width), "sample_seed": seed, "label": "a"} for seed in seeds]


def test_noise_is_a_function_of_the_sample_seed_alone():
    collate = MaskingCollator(8, 0.75)
    batch = collate(seeded_rows(range(50)))
    assert list(batch) == ["pixel_values", "noise"]
    assert batch["noise"].shape == (50, 16) and batch["noise"].dtype == torch.float32
    assert len(batch["noise"].flatten().unique()) > 790  # not one sample's noise for another
    torch.manual_seed(5)
    for alone in (31, 7):
        (again,) = collate(seeded_rows([alone]))["noise"]  # other pixels, another batch and another place in it
        assert torch.equal(again, batch["noise"][alone])
    state = torch.get_rng_state()
    collate([{"pixel_values": torch.zeros(3, 32, 32), "sample_seed": 2**63 - 1}])
    assert torch.equal(torch.get_rng_state(), state)


def test_every_kind_of_masking_is_drawn_by_its_own_rule():
    seeds, masks = range(100), {}
    for masking in ("random", "block", "grid"):
        noise = MaskingCollator(8, 0.75, masking)(seeded_rows(seeds, 112, 112))["noise"]
        _, mask, _ = split_patches(noise, 49)
        masks[masking] = mask.view(100, 14, 14)
        assert torch.equal(MaskingCollator(8, 0.75, masking)(seeded_rows([99], 112, 112))["noise"][0], noise[99])
    shares = masks["random"].mean(dim=0)  # of the samples in which a patch is masked
    assert 0.55 < shares.min() and shares.max() < 0.92 and abs(shares.mean() - 0.75) < 1e-6
    assert not masks["grid"][:, ::2, ::2].any() and masks["grid"].sum() == 100 * 147

    def borders(mask):  # between masked and visible neighbours
        return (mask.diff(dim=1) != 0).sum() + (mask.diff(dim=2) != 0).sum()

    assert borders(masks["block"]) < 0.7 * borders(masks["random"])
    assert len({tuple(mask.flatten().tolist()) for mask in masks["block"]}) > 90
    with pytest.raises(ValueError, match="random, block, grid; got 'blocks'"):
        MaskingCollator(8, 0.75, "blocks")(seeded_rows([1]))


@pytest.mark.parametrize(("patch_size", "patches"), [((16, 8), 2 * 6), ((8, 16), 4 * 3), (16, 2 * 3)])
def test_images_and_patches_need_not_be_square(patch_size, patches):
    noise = MaskingCollator(patch_size, 0.5, "block")(seeded_rows([1, 2], height=32, width=48))["noise"]
    assert noise.shape == (2, patches)


def test_nothing_is_drawn_where_nothing_is_masked():
    rows = [{"pixel_values": torch.rand(3, 32, 32)} for _ in range(2)]  # not even a seed is needed
    assert list(MaskingCollator(8, 0)(rows)) == ["pixel_values"]


def test_bad_images_are_marked_where_there_are_any():
    rows = seeded_rows([1, 2, 3])
    rows[1]["is_blank"] = True
    batch = MaskingCollator(8, 0.75)(rows)
    assert batch["is_blank"].tolist() == [False, True, False]
    assert torch.equal(batch["noise"], MaskingCollator(8, 0.75)(seeded_rows([1, 2, 3]))["noise"])


def test_rows_that_cannot_be_masked_are_refused():
    collate = MaskingCollator(8, 0.75)
    with pytest.raises(ValueError, match="at least one row"):
        collate([])
    with pytest.raises(ValueError, match=r"row 1 has the keys \['pixel_values'\]. Wrap the rows in an `ImageView`"):
        collate([*seeded_rows([1]), {"pixel_values": torch.zeros(3, 32, 32)}])
    with pytest.raises(ValueError, match="must have one shape"):
        collate([*seeded_rows([1]), *seeded_rows([2], height=40)])
    with pytest.raises(ValueError, match="every row must hold `pixel_values`; row 0"):
        collate([{"image": None, "sample_seed": 1}])


def test_masks_are_unrelated_to_the_crops_of_the_same_samples():
    """Both come from the seed of the sample; drawn from one stream, what is visible would follow the place of the crop."""
    view = ImageView([{"image": torch.zeros(1)}] * 500, lambda image: torch.rand(1, 4, 4), seed=0)
    batch = MaskingCollator(1, 0.75)([view[0, i] for i in range(500)])
    first_draws = batch["pixel_values"].flatten(1)  # what a transform would make its crop of
    assert len(first_draws.flatten().unique()) > 7900
    assert not (first_draws == batch["noise"]).any()
    correlations = np.corrcoef(first_draws.numpy(), batch["noise"].numpy(), rowvar=False)[:16, 16:]
    assert np.abs(correlations).max() < 0.2  # 0.045 is the standard deviation of each of the 256
