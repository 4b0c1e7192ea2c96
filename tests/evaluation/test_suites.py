"""The tables of suites: they hold the papers' data sets, and what is wrong in one is said."""

import pytest

from hf_vitfm.evaluation.suites import SUITE_NAMES, load_suite
from tests.repo.tree import ROOT


# Radford et al. 2021, Table 9: classes, training and test images.
TABLE_9 = """
food101 101 75750 25250 accuracy
cifar10 10 50000 10000 accuracy
cifar100 100 50000 10000 accuracy
birdsnap 500 42283 2149 accuracy
sun397 397 19850 19850 accuracy
cars 196 8144 8041 accuracy
fgvc_aircraft 100 6667 3333 mean_per_class
voc2007 20 5011 4952 map11
dtd 47 3760 1880 accuracy
pets 37 3680 3669 mean_per_class
caltech101 102 3060 6085 mean_per_class
flowers102 102 2040 6149 mean_per_class
mnist 10 60000 10000 accuracy
fer2013 8 32140 3574 accuracy
stl10 10 1000 8000 accuracy
eurosat 10 10000 5000 accuracy
resisc45 45 3150 25200 accuracy
gtsrb 43 26640 12630 accuracy
kitti 4 6770 711 accuracy
country211 211 43200 21100 accuracy
pcam 2 294912 32768 accuracy
ucf101 101 9537 1794 accuracy
kinetics700 700 494801 31669 mean_top1_top5
clevr_counts 8 2000 500 accuracy
hateful_memes 2 8500 500 roc_auc
sst2 2 7792 1821 accuracy
imagenet 1000 1281167 50000 accuracy
"""


def test_clip27_is_the_table_of_the_paper():
    suite = load_suite("clip27")
    lines = [f"{row.name} {row.num_classes} {row.train_size} {row.test_size} {row.metric}" for row in suite.rows]
    assert lines == TABLE_9.split("\n")[1:-1]
    assert sum(row.few_shot for row in suite.rows) == 20


def test_vtab_has_its_groups_and_its_thousand_images():
    suite = load_suite("vtab1k")
    groups = [row.group for row in suite.rows]
    assert (groups.count("natural"), groups.count("specialised"), groups.count("structured")) == (7, 4, 8)
    assert suite.first_rows == {"train": 800, "validation": 200}
    assert suite.score == "mean"
    classes = {row.name: row.num_classes for row in suite.rows}
    # As the task table of the benchmark has them.
    assert list(classes.values()) == [102, 100, 47, 102, 37, 397, 10, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9]


def test_imagenet_and_its_relatives():
    sizes = {row.name: (row.num_classes, row.test_size) for row in load_suite("imagenet").rows}
    assert sizes == {
        "imagenet": (1000, 50000),
        "imagenet-real": (1000, 50000),
        "imagenet-v2": (1000, 10000),
        "imagenet-a": (200, 7500),
        "imagenet-r": (200, 30000),
        "imagenet-sketch": (1000, 50889),
    }


@pytest.mark.parametrize("name", SUITE_NAMES)
def test_every_row_says_what_is_known_of_it(name):
    suite = load_suite(name)
    assert suite.source and suite.title
    for row in suite.rows:
        assert row.licence != "not stated", row.name
        assert row.hub_status in ("page seen", "not verified")
        assert row.sample or row.hub or row.note or "licence" in row.licence or "accepted" in row.licence, row.name


def test_the_tables_are_part_of_the_package():
    assert "hf_vitfm.evaluation = suites/*.yaml" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ValueError, match="no suite 'clip72'. Did you mean 'clip27'"):
        load_suite("clip72")
    with pytest.raises(ValueError, match="no data set 'flower102'. Did you mean 'flowers102'"):
        load_suite("clip27").select(["flower102"])


ROW = "{name: a, title: A, num_classes: 2, metric: accuracy, layout: folder"


def test_a_suite_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"title: Mine\nsource: me\nrows:\n- {ROW}, test: [test, validation]}}\n")
    suite = load_suite(file)
    assert (suite.name, suite.names, suite.rows[0].test, suite.rows[0].tested) == (
        "mine",
        ["a"],
        ("test", "validation"),
        False,
    )


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (f"- {ROW}, colour: red}}", "row a has unknown fields: colour"),
        (f"- {ROW}, task: guess}}", "`task` of row a must be one of"),
        ("- {name: a}", "missing 4 required"),
        (f"- {ROW}}}\n- {ROW}}}", "each a name of its own"),
        ("- [", "is no suite"),
    ],
)
def test_a_wrong_suite_is_refused(rows, complaint, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"title: Mine\nsource: me\nrows:\n{rows}\n")
    with pytest.raises(ValueError, match=complaint):
        load_suite(file)
