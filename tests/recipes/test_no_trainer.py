"""The raw loop trains as the Trainer recipe does: the same weights in float32, on one process and on two."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

import hf_vitfm  # noqa: F401  (registers the model)
from recipes.vit import finetune, finetune_no_trainer
from tests.recipes.quick_report import use_quick_report


FIVE_STEPS = ["--smoke", "--max_steps", "5", "--global_batch_size", "16", "--eval_strategy", "no"]
SGD = ["recipes/vit/configs/finetune_b16_in1k.yaml", *FIVE_STEPS, "--learning_rate", "1.0", "--warmup_steps", "2"]
ADAMW = [
    "recipes/vit/configs/deit_s16_in1k.yaml",  # mixing, repeats, RandAugment, erasing, smoothing, a final rate above 0
    *FIVE_STEPS,
    *("--layer_decay", "0.7", "--ema_decay", "0.5", "--warmup_steps", "1"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Output folder and metrics of the Trainer recipe for a command line."""
    done = {}

    def run(argv: list[str]):
        key = tuple(argv)
        if key not in done:
            folder = tmp_path_factory.mktemp("trainer")
            with pytest.MonkeyPatch.context() as patch:
                use_quick_report(patch)
                done[key] = folder, finetune.main([*argv, "--use_cpu", "--output_dir", str(folder)])
        return done[key]

    return run


def relative_errors(folder, reference) -> dict[str, float]:
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, reference))
    assert ours.keys() == theirs.keys()
    return {
        name: (torch.linalg.vector_norm(ours[name] - theirs[name]) / max(theirs[name].norm(), 1e-30)).item()
        for name in theirs
    }


@pytest.mark.parametrize("argv", [SGD, ADAMW], ids=["sgd, clipped", "adamw, mixed, averaged"])
def test_weights_and_metrics_equal_the_trainers_with_accumulation(argv, trained, tmp_path):
    reference, expected = trained(argv)
    results = finetune_no_trainer.main([*argv, "--use_cpu", "--output_dir", str(tmp_path)])
    assert max(relative_errors(tmp_path, reference).values()) <= 1e-6
    for name in ("eval_loss", "eval_top1", "eval_top5", "eval_mean_per_class"):
        assert results[name] == pytest.approx(expected[name], rel=1e-6)
    assert json.loads((tmp_path / "all_results.json").read_text()) == results
    assert (results["steps"], results["processes"]) == (5, 1)
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert model.config.id2label[9] == "Ankle boot"
    assert AutoImageProcessor.from_pretrained(tmp_path).size["height"] == 16


def test_training_moved_the_weights(trained):
    """So that equality above says something."""
    reference, _ = trained(SGD)
    head = load_file(reference / "model.safetensors")["classifier.weight"]
    assert head.abs().max() > 0.01


def test_two_processes_equal_one_of_the_trainer(two_processes, trained, tmp_path):
    reference, expected = trained(SGD)
    split = ["--per_device_train_batch_size", "2", "--output_dir", str(tmp_path)]
    first, second = two_processes.run(finetune_no_trainer.main, [*SGD, *split])
    assert first == second
    assert first["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    assert max(relative_errors(tmp_path, reference).values()) <= 1e-5


def test_the_launcher_starts_two_processes_on_a_cpu(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, pathlib\npathlib.Path(__file__).with_name(os.environ['RANK']).touch()\n")
    config = ["--config_file", "recipes/accelerate/cpu.yaml"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *config, str(script)]
    done = subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "script.py"]


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--optim", "adagrad"], "`optim` must be sgd, lars"), (["--lr_scheduler_type", "polynomial"], "must be one of")],
)
def test_what_the_loop_does_not_know_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        finetune_no_trainer.main([*SGD, *options, "--use_cpu", "--output_dir", str(tmp_path)])
