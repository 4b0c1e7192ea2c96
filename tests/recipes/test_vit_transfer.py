"""The protocol of Table 4: which runs there are, on which images, what is chosen, and going on after a kill."""

import json
import statistics
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from hf_vitfm import ImageClassificationTrainer
from recipes.vit import transfer
from tests.recipes.quick_report import use_quick_report


CONFIG = "recipes/vit/configs/transfer_cifar10.yaml"


class Stub:
    """Stands for finetune.main: notes its command line, and leaves a score that the learning rate decides."""

    def __init__(self, accuracies: dict[str, float | None]):
        self.accuracies = accuracies
        self.calls = []

    def __call__(self, argv: list[str]) -> None:
        options = dict(zip(argv[1::2], argv[2::2], strict=True))
        self.calls.append(options)
        directory = Path(options["--output_dir"])
        accuracy = self.accuracies.get(directory.name, self.accuracies.get(options["--learning_rate"]))
        if accuracy is None:
            raise FloatingPointError("The loss is nan.")
        split = f"{options['--holdout']} of train" if "--holdout" in options else "test"
        (directory / "all_results.json").write_text(json.dumps({"eval_top1": accuracy}))
        (directory / "run.json").write_text(json.dumps({"dataset": {"evaluation_split": split}}))


@pytest.fixture
def config(tmp_path):
    settings = {"dataset": "fashion-mnist", "eval_split": "test", "output_dir": str(tmp_path / "out")}
    sweep = {"learning_rates": [0.1, 0.01, 0.3], "grid_holdout": 0.02}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**settings, **sweep}))
    return str(path)


def use(monkeypatch, accuracies) -> Stub:
    stub = Stub(accuracies)
    monkeypatch.setattr(transfer.finetune, "main", stub)
    return stub


def test_the_grid_is_held_out_and_the_seeds_take_its_best_rate(monkeypatch, tmp_path, config):
    seeds = {"seed-0": 0.9, "seed-1": 0.8, "seed-2": 0.85}
    stub = use(monkeypatch, {"0.01": 0.5, "0.1": 0.7, "0.3": 0.7, **seeds})
    record = transfer.main([config])
    grid, final = stub.calls[:3], stub.calls[3:]
    assert [call["--learning_rate"] for call in grid] == ["0.01", "0.1", "0.3"]
    assert {(call["--holdout"], call["--seed"]) for call in grid} == {("0.02", "0")}
    assert [call["--seed"] for call in final] == ["0", "1", "2"]
    assert all(call["--learning_rate"] == "0.1" and "--holdout" not in call for call in final)
    assert record == json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert record["top1_mean"] == pytest.approx(0.85)
    assert record["top1_standard_deviation"] == pytest.approx(statistics.stdev([0.9, 0.8, 0.85]))
    assert [entry["top1"] for entry in record["grid"]] == [0.5, 0.7, 0.7]
    assert (record["learning_rate"], record["held_out"]) == (0.1, "0.02 of train")
    assert (tmp_path / "out" / "grid.png").exists()
    assert "--learning_rate 0.1 --seed 2" in record["seeds"][2]["command"]


def test_a_grid_of_one_is_no_grid(monkeypatch, tmp_path, config):
    stub = use(monkeypatch, {"0.01": 0.5})
    record = transfer.main([config, "--learning_rates", "0.01", "--seeds", "7"])
    assert [call["--output_dir"] for call in stub.calls] == [str(tmp_path / "out" / "seed-7")]
    assert (record["grid"], record["top1_standard_deviation"]) == ([], None)
    assert not (tmp_path / "out" / "grid.png").exists()


def test_a_rate_that_diverges_is_not_chosen(monkeypatch, config):
    use(monkeypatch, {"0.01": 0.2, "0.1": 0.1})
    record = transfer.main([config, "--seeds", "0"])
    assert record["learning_rate"] == 0.01
    assert record["grid"][2]["top1"] is None


def test_runs_that_are_there_are_kept_when_the_protocol_grows(monkeypatch, config):
    stub = use(monkeypatch, {"0.01": 0.5, "0.1": 0.7, "0.3": 0.6, "0.2": 0.1})
    transfer.main([config, "--seeds", "0"])
    stub.calls.clear()
    transfer.main([config, "--seeds", "0", "1", "--learning_rates", "0.01", "0.1", "0.2", "0.3"])
    assert [Path(call["--output_dir"]).name for call in stub.calls] == ["lr-0.2", "seed-1"]


def test_a_changed_configuration_does_not_take_over_old_runs(monkeypatch, config):
    use(monkeypatch, {"0.01": 0.5, "0.1": 0.7, "0.3": 0.6})
    transfer.main([config, "--seeds", "0"])
    Path(config).write_text(Path(config).read_text() + "max_steps: 7\n")
    with pytest.raises(FileExistsError, match="a configuration that was changed"):
        transfer.main([config, "--seeds", "0"])


@pytest.mark.parametrize("option", ["--learning_rate", "--learning-rate", "--seed", "--holdout"])
def test_what_the_protocol_chooses_is_no_option(capsys, config, option):
    with pytest.raises(SystemExit):
        transfer.main([config, option, "1"])
    assert "is chosen by the protocol" in capsys.readouterr().err


def train_steps(monkeypatch, fail_at: int | None = None) -> list[str]:
    """Note the folder of every training step from now on; end the run like Ctrl-C before the given one."""
    steps, training_step = [], ImageClassificationTrainer.training_step

    def step(trainer, *args, **kwargs):
        if len(steps) == fail_at:
            raise KeyboardInterrupt
        steps.append(Path(trainer.args.output_dir).name)
        return training_step(trainer, *args, **kwargs)

    monkeypatch.setattr(ImageClassificationTrainer, "training_step", step)
    return steps


def test_a_killed_protocol_goes_on_and_ends_like_single_runs(monkeypatch, tmp_path):
    use_quick_report(monkeypatch)
    saving = ["--max_steps", "3", "--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "no"]
    argv = [CONFIG, "--smoke", "--use_cpu", *saving]
    sweep = ["--learning_rates", "0.001", "0.5", "--seeds", "1", "--output_dir", str(tmp_path / "out")]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        train_steps(patch, fail_at=5)
        transfer.main([*argv, *sweep])
    with monkeypatch.context() as patch:
        steps = train_steps(patch)
        record = transfer.main([*argv, *sweep])
    assert steps == ["lr-0.5"] + 3 * ["seed-1"]
    assert record["held_out"] == "0.25 of train" and record["dataset"]["evaluation_split"] == "test"
    rate = str(record["learning_rate"])
    single = [*argv, "--learning_rate", rate, "--seed", "1", "--output_dir", str(tmp_path / "single")]
    transfer.finetune.main(single)
    weights = [
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out" / "seed-1", tmp_path / "single")
    ]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[1])


def transfer_on_one_disk(config: str, output_dir: str) -> dict:
    """Run the protocol with stubs; only the first process's folder ever holds a run."""
    import torch.distributed as dist

    stub = Stub({"0.01": 0.5, "0.1": 0.7, "seed-0": 0.9})
    first = dist.get_rank() == 0
    transfer.finetune.main = stub if first else lambda argv: stub.calls.append(argv)
    record = transfer.main([config, "--seeds", "0", "--output_dir", f"{output_dir}/{dist.get_rank()}"])
    return {"record": record, "runs": len(stub.calls)}


def test_two_processes_agree_although_one_sees_the_files(two_processes, tmp_path, config):
    settings = yaml.safe_load(Path(config).read_text())
    Path(config).write_text(yaml.safe_dump({**settings, "learning_rates": [0.01, 0.1]}))
    first, second = two_processes.run(transfer_on_one_disk, config, str(tmp_path))
    assert first["runs"] == second["runs"] == 3
    assert second["record"]["learning_rate"] == first["record"]["learning_rate"] == 0.1
    assert second["record"]["top1_mean"] == first["record"]["top1_mean"] == 0.9
    assert (tmp_path / "0" / "transfer.json").exists() and not (tmp_path / "1").exists()
