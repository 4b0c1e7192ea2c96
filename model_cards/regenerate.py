"""Write the cards of the checkpoints that ship from their files, and measure anew what these say.

    python model_cards/regenerate.py
    python model_cards/regenerate.py --measure fashion-mae

Without `--measure` each README.md is rendered from the results files beside it, as a run does in the end. With it the named
checkpoints are evaluated again first, on the data of the command in their run.json: the metrics in all_results.json, and in
run.json all that lets others check them (`evaluation`, `splits`, `sources`, `weights`, ...), are those of the files that
ship. What only the training knew stays as it was.
"""

import argparse
import json
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the recipes

from hf_vitfm import create_model_card, sample_checkpoint  # noqa: E402
from hf_vitfm.cards.redact import redact  # noqa: E402
from hf_vitfm.data.samples import CHECKPOINT_NAMES  # noqa: E402
from hf_vitfm.hub.reopen import build_trainer, open_rows  # noqa: E402
from hf_vitfm.training.arguments import VisionTrainingArguments  # noqa: E402
from hf_vitfm.training.clip_arguments import CLIPTrainingArguments  # noqa: E402
from hf_vitfm.training.clip_start import CLIPModelArguments  # noqa: E402
from hf_vitfm.training.fine_tuning import ClassificationRun  # noqa: E402
from hf_vitfm.training.pair_arguments import PairArguments, ZeroShotArguments  # noqa: E402
from hf_vitfm.training.recipe import DataArguments, parse_recipe  # noqa: E402
from hf_vitfm.training.record import as_json, fingerprint_splits, hash_weights, measure, trace_loss  # noqa: E402


CARDS = ROOT / "model_cards"
LICENSE = "apache-2.0"  # of this project, and so of the weights that ship with it
SHIPPED = ("all_results.json", "run.json")  # which `hf-vitfm verify` needs, so they ship with the weights


def read_command(command: str) -> tuple[str, list[str]]:
    """The script of a recipe and its command line, of a command that may start with `accelerate launch`."""
    words = shlex.split(command)
    place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[place], words[place + 1 :]


def reopen_classification(argv: list[str]):
    """The training arguments of a run, what run.json says of its data, and the rows it was trained on."""
    run = ClassificationRun.start("recipes/mae/finetune.py", argv, None)
    sources = {"evaluation": run.data_args.source()}
    return run.training_args, run.data_args.describe(), sources, run.train_rows


def reopen_pretraining(argv: list[str]):
    """The same of a masked autoencoder."""
    from recipes.mae import pretrain

    classes = (pretrain.ModelArguments, DataArguments, pretrain.LabelledArguments, VisionTrainingArguments)
    _, data, labelled, training = parse_recipe(classes, argv)
    train_rows, eval_rows, _ = data.load(training.seed, labels=False)
    sources = {"evaluation": data.source()} if eval_rows is not None else {}
    options = labelled.options(smoke=False)
    return training, data.describe(), sources | ({"labelled": options.source()} if options else {}), train_rows


def reopen_pairs(argv: list[str]):
    """The same of a CLIP."""
    classes = (CLIPModelArguments, PairArguments, ZeroShotArguments, CLIPTrainingArguments)
    _, data, zero_shot, training = parse_recipe(classes, argv)
    sources = {"evaluation": data.source(), **zero_shot.source()}
    return training, data.describe(), sources, data.load(training.seed)[0]


REOPENED = {
    "recipes/mae/finetune.py": reopen_classification,
    "recipes/mae/pretrain.py": reopen_pretraining,
    "recipes/clip/train.py": reopen_pairs,
}


def measure_again(name: str) -> None:
    """Evaluate a checkpoint that ships and write what comes out into its results files."""
    folder, weights = CARDS / name, sample_checkpoint(name)
    run, results = (json.loads((folder / file).read_text()) for file in ("run.json", "all_results.json"))
    script, argv = read_command(run["command"])
    training, dataset, sources, train_rows = REOPENED[script](argv)
    seed = training.seed if training.data_seed is None else training.data_seed
    run |= {
        "dataset": {**run["dataset"], **redact(dataset)},
        "license": LICENSE,
        "model_type": json.loads((weights / "config.json").read_text())["model_type"],
        "half_weights": any(
            weight.dtype == torch.float16 for weight in load_file(weights / "model.safetensors").values()
        ),
        "sources": sources,
        "seeds": {"seed": training.seed, "data_seed": seed},
        "world_size": int(re.search(r"(\d+) (?:processes|x) ", run["hardware"])[1]),
        "loss_trace": trace_loss(json.loads((folder / "log.json").read_text())),
        "weights": hash_weights(weights),
        "evaluation": {"batch_size": training.per_device_eval_batch_size},
    }
    rows, arguments = open_rows(run)
    with tempfile.TemporaryDirectory() as output:
        run["evaluation"] = measure(build_trainer(weights, run, arguments, Path(output)))[1]
    run["splits"] = fingerprint_splits({"train": train_rows, **rows})
    results |= run["evaluation"]["metrics"]
    (folder / "all_results.json").write_text(json.dumps(results, indent=4, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "run.json").write_text(as_json(run), encoding="utf-8")


def render(name: str, folder: Path) -> str:
    """The card of a checkpoint that ships: the text that its files make."""
    shutil.copytree(sample_checkpoint(name), folder, dirs_exist_ok=True)
    shutil.copytree(CARDS / name, folder, dirs_exist_ok=True)
    return create_model_card(folder, overwrite=True).read_text(encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Regenerate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--measure", nargs="*", choices=CHECKPOINT_NAMES, metavar="NAME", help="all, if none is named")
    options = parser.parse_args(argv)
    chosen = () if options.measure is None else options.measure or CHECKPOINT_NAMES
    for name in CHECKPOINT_NAMES:
        if name in chosen:
            measure_again(name)
        for file in SHIPPED:
            shutil.copyfile(CARDS / name / file, sample_checkpoint(name) / file)
        with tempfile.TemporaryDirectory() as folder:
            text = render(name, Path(folder) / name)
        (CARDS / name / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
