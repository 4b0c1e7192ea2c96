"""The masking-ratio figure: which runs are made of which, the table and the picture, and going on after a kill."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from recipes.mae import mask_ratio


CONFIG = "recipes/mae/configs/mask_ratio.yaml"


class Stub:
    """Stands for a script's main: notes its configuration and options, and leaves a score."""

    def __init__(self, name: str, calls: list):
        self.name, self.calls = name, calls

    def __call__(self, argv: list[str]) -> None:
        settings = yaml.safe_load(Path(argv[0]).read_text())
        options = dict(zip(argv[1::2], argv[2::2], strict=True))
        self.calls.append((self.name, settings, options))
        directory = Path(options["--output_dir"])
        score = 0.5 + 0.001 * len(self.calls)
        results = {} if self.name == "pretrain" else {"eval_top1": score}
        (directory / "all_results.json").write_text(json.dumps(results))
        (directory / "run.json").write_text(json.dumps({"dataset": {"evaluation_split": "test"}}))


@pytest.fixture
def calls(monkeypatch):
    made = []
    for name in ("pretrain", "finetune", "linear_probe"):
        monkeypatch.setattr(getattr(mask_ratio, name), "main", Stub(name, made))
    return made


def run(tmp_path, *options):
    return mask_ratio.main([CONFIG, "--output_dir", str(tmp_path / "out"), *options])


def test_each_ratio_is_pre_trained_once_and_used_by_both_stages(calls, tmp_path):
    record = run(tmp_path, "--ratios", "0.75", "0.15")
    names = [name for name, _, _ in calls]
    assert names == ["pretrain", "finetune", "linear_probe"] * 2 + ["finetune", "finetune"]
    ratios = [settings["model"]["mask_ratio"] for name, settings, _ in calls if name == "pretrain"]
    assert ratios == [0.15, 0.75]
    for i in (1, 2, 4, 5):  # both stages start from the pre-training before them
        pretrained = calls[i - 1 if names[i] == "finetune" else i - 2]
        assert calls[i][2]["--checkpoint"] == pretrained[2]["--output_dir"]
        assert "mask_ratio" not in calls[i][1]["model"]
    assert set(record["top1"]["finetune"]) == set(record["top1"]["linear_probe"]) == {"0.15", "0.75"}


def test_models_from_scratch_are_the_same_encoder_by_both_recipes(calls, tmp_path):
    run(tmp_path, "--ratios", "0.5")
    encoder = yaml.safe_load(Path(CONFIG).read_text())["encoder"]
    same, longer = (settings for _, settings, options in calls[-2:])
    assert all("--checkpoint" not in options for *_, options in calls[-2:])
    for settings in (same, longer):
        assert encoder.items() <= settings["model"].items() and "decoder_hidden_size" not in settings["model"]
    fine_tuning = calls[1][1]
    assert {k: v for k, v in same.items() if k != "model"} == {k: v for k, v in fine_tuning.items() if k != "model"}
    assert longer["num_train_epochs"] > same["num_train_epochs"]


def test_table_and_picture_tell_the_scores(calls, tmp_path):
    record = run(tmp_path, "--ratios", "0.15", "0.75")
    out = tmp_path / "out"
    assert json.loads((out / "mask_ratio.json").read_text())["top1"] == record["top1"]
    table = (out / "mask_ratio.md").read_text()
    for ratio in ("0.15", "0.75"):
        row = next(line for line in table.splitlines() if f"{100 * float(ratio):g} %" in line)
        assert f"{100 * record['top1']['finetune'][ratio]:.1f}" in row
        assert f"{100 * record['top1']['linear_probe'][ratio]:.1f}" in row
    assert Image.open(out / "mask_ratio.png").size[0] > 300


def test_finished_runs_are_kept_when_ratios_are_added(calls, tmp_path):
    first = run(tmp_path, "--ratios", "0.5")
    count = len(calls)
    second = run(tmp_path, "--ratios", "0.5", "0.75")
    assert [name for name, _, _ in calls[count:]] == ["pretrain", "finetune", "linear_probe"]
    assert second["top1"]["finetune"]["0.5"] == first["top1"]["finetune"]["0.5"]


def test_other_pre_training_does_not_keep_old_scores(calls, tmp_path):
    run(tmp_path, "--ratios", "0.5")
    out = tmp_path / "out"
    shutil.rmtree(out / "pretrain-0.5")
    with pytest.raises(FileExistsError, match="finetune-0.5 holds something else"):
        run(tmp_path, "--ratios", "0.5", "--pretrain", "{num_train_epochs: 7}")


@pytest.mark.parametrize("ratios", [["1.0"], ["0"], ["0.5", "0.5"], ["-0.1"]])
def test_impossible_ratios_are_refused(calls, tmp_path, ratios):
    with pytest.raises(ValueError, match="ratios"):
        run(tmp_path, "--ratios", *ratios)
    assert not calls


@pytest.mark.slow
def test_smoke_takes_two_ratios_and_a_folder_of_its_own():
    args = mask_ratio.MaskRatioArguments("out", ratios=[0.15, 0.5, 0.75], encoder={}, smoke=True)
    assert (args.ratios, args.output_dir) == ([0.15, 0.5], "out-smoke")


def test_smoke(tmp_path):
    record = mask_ratio.main([CONFIG, "--smoke", "--ratios", "0.75", "--output_dir", str(tmp_path / "out")])
    assert record["top1"]["finetune"].keys() == record["top1"]["linear_probe"].keys() == {"0.75"}
    assert (tmp_path / "out-smoke" / "mask_ratio.png").is_file()
