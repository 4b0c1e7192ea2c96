"""Which images a comparison learns from and tests on, and what it calls their classes."""

import datasets
import pytest

from hf_vitfm.evaluation.compare_data import comparison_prompts, open_comparison
from hf_vitfm.training.recipe import DataArguments
from tests.evaluation.compared import CLASSES, save_folder


def files(rows) -> list[str]:
    return [row["image"]["path"] for row in rows.cast_column("image", datasets.Image(decode=False))]


def test_splits_are_taken_by_their_names(tmp_path):
    folder = save_folder(tmp_path / "all", train=4, val=2, test=3)
    data = open_comparison(folder)
    assert {part: len(rows) for part, rows in data.parts.items()} == {"train": 12, "validation": 6, "test": 9}
    assert data.names == CLASSES
    data = open_comparison(save_folder(tmp_path / "two", train=4, val=2))
    assert {part: len(rows) for part, rows in data.parts.items()} == {"train": 12, "test": 6}
    data = open_comparison(folder, splits=("validation", "train"))
    assert {part: len(rows) for part, rows in data.parts.items()} == {"train": 6, "test": 12}


@pytest.mark.parametrize("splits", [{"alone": 8}, {"train": 4, "val": 2, "test": 3}])
def test_the_recipe_trains_and_tests_on_the_same_rows(splits, tmp_path):
    data = open_comparison(save_folder(tmp_path, **splits), seed=5)
    seed = data.recipe.get("seed", 42)
    fields = {name: value for name, value in data.recipe.items() if name != "seed"}
    train, test, _ = DataArguments(**fields).load(seed)
    assert files(train) == files(data.train) and files(test) == files(data.test)
    assert not set(files(train)) & set(files(test))


def test_one_split_is_divided_by_a_seed(tmp_path):
    folder = save_folder(tmp_path, alone=8)
    first, again, other = (open_comparison(folder, seed=seed) for seed in (0, 0, 1))
    assert (len(first.train), len(first.test), first.validation) == (18, 6, None)
    assert sorted(first.test["label"]) == [0, 0, 1, 1, 2, 2]
    assert files(first.test) == files(again.test) != files(other.test)


def test_a_split_without_labels_is_not_tested_on(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = open_comparison(save_folder(tmp_path / "images", alone=2)).train["image"]
    for split, labels in (("train", [0, 1]), ("validation", [1, 0]), ("test", [-1, -1])):
        columns = {"image": list(rows[:2]), "label": labels}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / f"{split}.parquet")
    data = open_comparison(tmp_path / "data")
    assert data.recipe["eval_split"] == "validation" and data.validation is None


def test_what_is_not_clear_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="labelled splits google, twitter.*--splits google twitter"):
        open_comparison("emoji", label_column="category")
    with pytest.raises(ValueError, match="two of google, twitter; got 'google' and 'apple'"):
        open_comparison("emoji", ("google", "apple"), "category")
    (tmp_path / "only").mkdir()
    (save_folder(tmp_path / "folder", alone=2) / "Bag").rename(tmp_path / "only" / "Bag")
    with pytest.raises(ValueError, match="one class, 'Bag'"):
        open_comparison(tmp_path / "only")


def test_prompts_are_named_by_the_folders_and_say_so(tmp_path):
    folder = save_folder(tmp_path, alone=2)
    (folder / "Bag").rename(folder / "hand_bag")
    data = open_comparison(folder)
    prompts = comparison_prompts(data)
    assert set(prompts.names) == {"hand bag", "Sneaker", "T-shirt"} and prompts.templates == ("a photo of a {}.",)
    assert "names of the labels" in prompts.source and "'a photo of a {}.'" in prompts.source
    given = comparison_prompts(data, ["a {}", "{}"])
    assert given.templates == ("a {}", "{}") and "given" in given.source
    with pytest.raises(ValueError, match="must hold"):
        comparison_prompts(data, ["no place"])


def test_prompts_beside_the_images_are_taken(tmp_path):
    folder = save_folder(tmp_path, alone=2)
    (folder / "classnames.txt").write_text("bag\nshoe\nshirt\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    prompts = comparison_prompts(open_comparison(folder))
    assert prompts.names == ("bag", "shoe", "shirt") and prompts.templates == ("a {}",)
    (folder / "classnames.txt").write_text("bag\nshoe\n")
    with pytest.raises(ValueError, match="2 names .* for 3 classes"):
        comparison_prompts(open_comparison(folder))


def test_sets_that_ship_have_names_of_their_own():
    prompts = comparison_prompts(open_comparison("fashion-mnist"))
    assert prompts.names[0] == "t-shirt"
    subcategories = open_comparison("emoji", ("google", "twitter"), "subcategory")
    assert len(comparison_prompts(subcategories).names) == 98
