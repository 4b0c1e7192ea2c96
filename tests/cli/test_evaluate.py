"""`hf-vitfm evaluate`, as it is typed."""

import json

import pytest

from hf_vitfm.cli.main import main
from tests.evaluation.suite_fixtures import write_fixture


def test_the_sample_suite_runs_offline(tmp_path, capsys):
    command = [
        "evaluate",
        "sample",
        "emoji-clip",
        "fashion-mae",
        "--only",
        "fashion-mnist",
        "--tasks",
        "zero_shot",
    ]
    command += ["--output", str(tmp_path), "--device", "cpu"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "| Fashion-MNIST | accuracy |" in table
    assert "- fashion-mae: skipped, the model embeds no texts (fashion-mnist)" in table
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    scores = {(result["model"], result["task"]): result.get("score") for result in results}
    assert 0 < scores["emoji-clip", "zero_shot"] < 1 and scores["fashion-mae", "zero_shot"] is None
    assert main(command) == 0
    assert capsys.readouterr().err.count("(stored)") == 1


def test_local_data_and_a_baseline(tmp_path, capsys):
    from hf_vitfm.evaluation.suites import load_suite

    suite, data = load_suite("clip27"), []
    for row in suite.select(["dtd", "ucf101"]):
        data += ["--data", f"{row.name}={write_fixture(row, tmp_path / row.name)}"]
    command = ["evaluate", "clip27", "emoji-clip", *data, "--tasks", "zero_shot,linear_probe"]
    command += ["--baseline", "fashion-mae", "--output", str(tmp_path / "output"), "--device", "cpu"]
    assert main(command) == 0
    output, errors = capsys.readouterr()
    assert output.index("Describable Textures") < output.index("UCF101")
    assert "3 classes, the suite says 47" in output
    assert "food101: needs the network" in errors and "hateful_memes: not given" in errors
    assert (tmp_path / "output" / "zero_shot_deltas.png").is_file()


def test_a_model_that_fails_makes_the_result_partial(tmp_path, capsys):
    command = ["evaluate", "sample", str(tmp_path / "no_model"), "fashion-mae", "--only", "fashion-mnist"]
    assert main([*command, "--tasks", "knn", "--output", str(tmp_path / "output"), "--device", "cpu"]) == 1
    output = capsys.readouterr().out
    (result,) = json.loads((tmp_path / "output" / "results.json").read_text())["results"]
    assert result["score"] > 0.75
    assert "| Fashion-MNIST | accuracy |" in output and "## Not evaluated" in output and "no_model" in output


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["clip72", "m"], "no suite 'clip72'. Did you mean 'clip27'"),
        (["clip27", "m", "--only", "pest"], "no data set 'pest'. Did you mean 'pets'"),
        (["clip27", "m", "--data", "pets=nowhere"], "pets=nowhere: there is nothing at this path"),
        (["clip27", "m", "--baseline", "b", "--tasks", "zero_shot"], "--tasks must have both"),
        (["clip27", "m", "--only", "pets"], "nothing could be evaluated"),
    ],
)
def test_what_is_not_possible_as_asked(words, complaint, tmp_path, capsys):
    assert main(["evaluate", *words, "--output", str(tmp_path)]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--data", "pets"], ["--tasks", "probe"], ["--batch-size", "0"]])
def test_wrong_options_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "clip27", "m", *words])
    assert f"argument {words[0]}" in capsys.readouterr().err
