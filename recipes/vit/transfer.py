"""The ViT paper's whole fine-tuning protocol: a grid of learning rates, then several seeds with the best one.

Table 4 of Dosovitskiy et al. 2021: every learning rate is tried with a part of the training images held out, the best
one there is taken (never one on test images), and the model is trained anew on all training images, with several seeds:

    python recipes/vit/transfer.py recipes/vit/configs/transfer_cifar10.yaml

Every run is one of recipes/vit/finetune.py, with a folder of its own in the output folder. Killed at any moment, the same
command goes on where it was. On several devices put `accelerate launch` in the place of `python`.
"""

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path

import yaml
from accelerate import PartialState

import finetune  # the script beside this one
from hf_vitfm.cards.grid_figure import draw_grid
from hf_vitfm.cards.redact import redact, redact_command
from hf_vitfm.training.arguments import VisionTrainingArguments
from hf_vitfm.training.fine_tuning import ModelArguments
from hf_vitfm.training.recipe import DataArguments, parse_recipe
from hf_vitfm.training.sweep import (
    SweepArguments,
    SweepRun,
    choose_learning_rate,
    perform,
    say,
)


SMOKE_RUNS = 2  # `--smoke`: learning rates, and seeds
OWN_LISTS, OWN_VALUES = ("learning_rates", "seeds"), ("grid_holdout", "output_dir")
CHOSEN_HERE = {
    "learning_rate": "give --learning_rates",
    "seed": "give --seeds",
    "holdout": "give --grid_holdout",
    "resume_from_checkpoint": "the same command goes on by itself",
}


def shared_options(argv: list[str]) -> list[str]:
    """The part of the command line that goes to every run; what the protocol chooses may not be in it."""
    parser = argparse.ArgumentParser("transfer.py", add_help=False, allow_abbrev=False)
    for name in (*OWN_LISTS, *OWN_VALUES, *CHOSEN_HERE):
        nargs = "+" if name in OWN_LISTS else None
        parser.add_argument(*{f"--{name}", f"--{name.replace('_', '-')}"}, dest=name, nargs=nargs)
    own, shared = parser.parse_known_args(argv)
    for name, remedy in CHOSEN_HERE.items():
        if getattr(own, name) is not None:
            parser.error(f"--{name} is chosen by the protocol; {remedy}.")
    return shared


def search(runs: dict[float, SweepRun]) -> dict[float, dict | None]:
    """Results on the held-out images by learning rate; None where training diverged."""
    results = {}
    for number, (rate, run) in enumerate(runs.items(), 1):
        title = f"[grid {number}/{len(runs)}] learning rate {rate:g}"
        try:
            results[rate] = perform(run, finetune.main, title)
        except FloatingPointError as error:  # on all processes alike
            say(f"{title}: diverged. {error}")
            results[rate] = None
    return results


def summarize(rate: float, runs: dict[int, SweepRun], results: dict[int, dict]) -> dict:
    """The final numbers over seeds; the standard deviation is the one of a sample (n - 1)."""
    accuracies = [results[seed]["eval_top1"] for seed in runs]
    return {
        "learning_rate": rate,
        "top1_mean": statistics.fmean(accuracies),
        "top1_standard_deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "seeds": [
            {"seed": seed, "top1": results[seed]["eval_top1"], "directory": run.directory.name, "command": run.command}
            for seed, run in runs.items()
        ],
        "dataset": results[next(iter(runs))]["dataset"],
    }


def main(argv: list[str] | None = None) -> dict:
    """Run the protocol; returns what transfer.json holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    classes = (ModelArguments, DataArguments, VisionTrainingArguments, SweepArguments)
    _, data_args, training_args, sweep = parse_recipe(classes, argv, description=__doc__)
    shared, output_dir = tuple(shared_options(argv)), Path(training_args.output_dir)
    rates, seeds = sorted(sweep.learning_rates), sweep.seeds
    if data_args.smoke:
        rates, seeds = rates[:SMOKE_RUNS], seeds[:SMOKE_RUNS]
    settings = yaml.safe_load(Path(argv[0]).read_text(encoding="utf-8"))
    for name in (*OWN_LISTS, *OWN_VALUES):  # runs that are there stay good when the grid grows
        settings.pop(name, None)

    def make_run(name: str, **chosen) -> SweepRun:
        options = [word for key, value in chosen.items() for word in (f"--{key}", str(value))]
        return SweepRun(output_dir / name, "recipes/vit/finetune.py", (*shared, *options), settings)

    # 1. The grid, on held-out training images
    grid, scores, rate, held_out = {}, {}, rates[0], None
    if len(rates) > 1:
        grid = {
            rate: make_run(f"lr-{rate}", learning_rate=rate, seed=seeds[0], holdout=sweep.grid_holdout)
            for rate in rates
        }
        found = search(grid)
        scores = {rate: results and results["eval_top1"] for rate, results in found.items()}
        rate = choose_learning_rate(scores)
        held_out = found[rate]["dataset"]["evaluation_split"]
        say(f"learning rate {rate:g} is the best on the held-out images")
    # 2. The seeds, on all training images
    runs = {seed: make_run(f"seed-{seed}", learning_rate=rate, seed=seed) for seed in seeds}
    results = {
        seed: perform(run, finetune.main, f"[seed {number}/{len(runs)}] seed {seed}, learning rate {rate:g}")
        for number, (seed, run) in enumerate(runs.items(), 1)
    }
    # 3. The report
    record = {
        "recipe": "recipes/vit/transfer.py",
        "config": argv[0],
        "command": redact_command(shlex.join(["python", "recipes/vit/transfer.py", *argv])),
        "held_out": held_out,
        "grid": [
            {"learning_rate": rate, "top1": scores[rate], "directory": run.directory.name, "command": run.command}
            for rate, run in grid.items()
        ],
        **summarize(rate, runs, results),
    }
    record = redact(record)
    if PartialState().is_main_process:
        (output_dir / "transfer.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if grid:
            draw_grid(scores, rate, output_dir / "grid.png")
    deviation = record["top1_standard_deviation"]
    spread = "" if deviation is None else f" (standard deviation {100 * deviation:.2f})"
    say(f"top-1 {100 * record['top1_mean']:.2f} %{spread} over {len(runs)} seeds: {output_dir / 'transfer.json'}")
    return record


if __name__ == "__main__":
    main()
