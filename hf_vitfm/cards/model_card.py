"""The README.md of a finished run, written from the run's own files and nothing else.

Every number on the card is read from a file that the run wrote, so that none can be forgotten, invented or outdated.
Nothing is looked up on the network. Accuracies are fractions in the files and in the card's metadata, percent in its text.
Here is what every card has; what a kind of task has of its own is in `classification_card`, `pretraining_card` and
`contrastive_card`, modules with the same functions.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from huggingface_hub import ModelCardData

from . import classification_card, contrastive_card, pretraining_card
from .architecture import architecture_section
from .checks import checks_section, overfitting, rounded_weights
from .hub_names import is_hub_id, license_fields
from .markdown import as_code, as_duration, as_number, as_size, as_table, as_text
from .redact import redact, redact_command
from .usage import OWN, Published, usage_section


MARKER = "<!-- Written by hf_vitfm from the files of this run. Remove this line if you edit the card, to keep your text. -->"

RUN_FIELDS = (
    "task recipe config command dataset.name dataset.id dataset.license dataset.train_rows dataset.evaluation_split "
    "dataset.evaluation_rows base_model hyperparameters versions hardware parameters"
).split()
KINDS = {task: kind for kind in (classification_card, pretraining_card, contrastive_card) for task in kind.TASKS}

PICTURES = {
    "curves.png": "Loss, scores and learning rate over the steps of the training",
    "confusion.png": "Confusion matrix: which classes are taken for which",
    "examples.png": "Right predictions and the most confident mistakes",
    "average_precision.png": "Average precision of every class",
    "scatter.png": "Predicted against true values",
    "retrieval.png": "Evaluation images, each with the captions that the model finds most alike",
    "reconstructions.png": "Evaluation images as they are, masked, and as the model completes them",
}


def create_model_card(
    directory: str | Path,
    *,
    repo_id: str | None = None,
    overwrite: bool = False,
    run: dict | None = None,
    formats: Sequence[str] | None = None,
    remote_code: bool = False,
) -> Path:
    """Write the README.md of a finished run.

    Read are config.json, preprocessor_config.json, all_results.json and run.json, all of them required; the pictures in
    `PICTURES` are shown when they are there. The field `task` of run.json says which card it is (`KINDS`). For classifiers
    `problem_type` says which numbers belong to the run (`results.MEASURES`): without it, those of one class per image.
    `half_weights` says that the file holds rounded weights. For masked autoencoders `labelled` (dataset, bank_rows,
    query_rows) says on what the neighbours' accuracy was measured. For CLIPs `zero_shot` (dataset, rows, classes,
    templates) says what was classified by names, and `truncated_captions` how often a caption was cut. What checking
    needs is read by `checks`. Absolute paths and secrets in run.json do not reach the card (`redact`). The licence of
    the weights is the optional field `license` of run.json: that of the dataset says nothing about it.

    Args:
        directory: the folder that the run wrote.
        repo_id: where the model will be published, "owner/name", for the card's code. Default: the folder's name.
        overwrite: replace a README.md that was not written by this function.
        run: what run.json is going to hold, where it is not written yet. Default: what it holds.
        formats: in which the model will be published, that of the root first, the others in folders of their names; for
            the card's code. Default: that of the directory alone.
        remote_code: whether the model's code will lie beside the weights (`hub.remote_code`).

    Returns:
        The path of the README.md.

    Raises:
        FileNotFoundError: if a file is missing; it is named.
        ValueError: if a field is missing or has an impossible value; it is named.
        FileExistsError: if there is a README.md of somebody else's.
    """
    if repo_id is not None and not is_hub_id(repo_id):
        raise ValueError(f"`repo_id` must be an owner, a slash and a name; got {repo_id!r}. Leave it out if unknown.")
    target = (directory := Path(directory)) / "README.md"
    config, processor, results, run, kind = _read_all(directory, run)
    published = Published(tuple(formats or [_format(config)]), remote_code)
    if not overwrite:
        _check_replaceable(target)
    name = repo_id.split("/")[-1] if repo_id else directory.resolve().name
    sections = [
        f"---\n{_metadata(kind, config, results, run, name, published).to_yaml()}\n---",
        MARKER,
        kind.introduction(config, run),
        _pictures(directory, *kind.FIRST_PICTURES),
        kind.results_text(config, results, run),
        _pictures(directory, *kind.RESULT_PICTURES),
        usage_section(kind, repo_id, config, run, published),
        architecture_section(kind.architecture(config), config, processor, run),
        _training(results, run),
        _pictures(directory, "curves.png"),
        checks_section(repo_id, run),
        _data(run),
        _intended_use(kind),
        _limitations(kind.limitations(config, results, run), overfitting(results, run), config, run),
        _versions(run),
        _citation(kind.citation(config).strip()),
    ]
    partial = target.with_name("README.md.partial")
    partial.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")
    os.replace(partial, target)
    return target


# Files


def _read_all(directory: Path, run: dict | None) -> tuple[dict, dict, dict, dict, ModuleType]:
    """Configuration, image processor, results and run, all checked, and the module of the card's kind."""
    config = _read_json(directory, "config.json")
    processor = _read_json(directory, "preprocessor_config.json")
    results = _read_json(directory, "all_results.json")
    run = _checked_run(_read_json(directory, "run.json") if run is None else run)
    kind = KINDS[run["task"]]
    required = kind.required_fields(config, run)
    for file, content in {"run.json": run, "all_results.json": results, "config.json": config}.items():
        _require(content, file, required[file])
    kind.check(config, results, run)
    return config, processor, results, run, kind


def _read_json(directory: Path, name: str) -> dict:
    path = directory / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; a card needs config.json, preprocessor_config.json, all_results.json and run.json. "
            "Pass the output folder of a finished run of a recipe."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Write the file again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(content).__name__}. Write the file again.")
    return content


def _format(config: dict) -> str:
    return OWN if str(config.get("model_type")).startswith("vitfm_") else "transformers"


def _check_replaceable(card: Path) -> None:
    if card.exists() and MARKER not in card.read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(
            f"{card} was not written by `create_model_card`, or was edited since. Move it away, or pass "
            "`overwrite=True` to replace it."
        )


def _require(content: dict, file: str, fields: list[str]):
    for field in fields:
        value = content
        for key in field.split("."):
            if not isinstance(value, dict) or key not in value:
                raise ValueError(
                    f"{file} has no field `{field}`; a card needs {', '.join(fields)}. Add it (null where the file's "
                    "format allows it), or run the recipe again."
                )
            value = value[key]


def _checked_run(run: dict) -> dict:
    _require(run, "run.json", RUN_FIELDS)
    if run["task"] not in KINDS:
        raise ValueError(
            f"`task` in run.json must be {' or '.join(map(repr, KINDS))}; got {run['task']!r}. There is no card for "
            "other tasks."
        )
    for field in ("hyperparameters", "versions"):
        if not isinstance(run[field], dict):
            raise ValueError(f"`{field}` in run.json must be an object; got {run[field]!r}. Write names with values.")
    rows = {"parameters": run["parameters"]} | {
        f"dataset.{key}": run["dataset"][key] for key in ("train_rows", "evaluation_rows")
    }
    for field, value in rows.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"`{field}` in run.json must be a whole number above 0; got {value!r}. Count it again.")
    return {**redact({**run, "command": None}), "command": redact_command(str(run["command"]))}


# Sections


def _intended_use(kind: ModuleType) -> str:
    return f"## Intended use\n\n{kind.INTENDED_USE} Whether it is fit for anything else has to be measured first."


def _metadata(
    kind: ModuleType, config: dict, results: dict, run: dict, name: str, published: Published
) -> ModelCardData:
    dataset, own = run["dataset"]["id"], kind.metadata(config, results, run)
    if published.remote_code:
        own["tags"] = [*own["tags"], "custom_code"]
    return ModelCardData(
        **license_fields(run.get("license")),
        library_name=published.library,
        base_model=run["base_model"] if is_hub_id(run["base_model"]) else None,
        base_model_relation="finetune" if is_hub_id(run["base_model"]) else None,
        datasets=[dataset] if is_hub_id(dataset) else None,
        model_name=name,
        **own,
    )


def _training(results: dict, run: dict) -> str:
    since = f" since the resume at step {run['resumed_at_step']:,}" if run.get("resumed_at_step") else ""
    facts = [
        ("Recipe", as_code(run["recipe"])),
        ("Configuration", as_code(run["config"])),
        ("Started from", as_code(run["base_model"]) if run["base_model"] else "random weights"),
        ("Training images", _training_images(run["dataset"])),
        ("Hardware", as_text(run["hardware"])),
    ]
    if "epoch" in results:
        facts.append(("Epochs", f"{results['epoch']:g}"))
    if "train_runtime" in results:
        facts.append(("Training time" + since, as_duration(results["train_runtime"])))
    if "train_loss" in results:
        facts.append(("Mean training loss" + since, f"{results['train_loss']:.4g}"))
    settings = [
        (as_code(key), as_code(as_number(value))) for key, value in run["hyperparameters"].items() if value is not None
    ]
    command = " ".join(run["command"].split())
    parts = ["## How it was trained", f"```bash\n{command}\n```", as_table(("", ""), facts)]
    if run.get("target_scale"):
        parts.append(
            "The numbers to predict were standardised for training, by the mean and standard deviation of the training "
            "images; the training loss and the curves are in these units, all results above in those of the data."
        )
    if settings:
        parts += ["Hyperparameters:", as_table(("Name", "Value"), settings)]
    return "\n\n".join(parts)


def _training_images(dataset: dict) -> str:
    skipped = dataset.get("skipped_train_rows")
    return f"{dataset['train_rows']:,}" + (f" ({skipped:,} more could not be read)" if skipped else "")


def _images_trained_on(dataset: dict) -> str:
    """Their number and the name of their set, and its split where that is not called train."""
    split = dataset.get("train_split", "train")
    place = "" if split == "train" else f"the split {as_code(split)} of "
    return f"{dataset['train_rows']:,} images of {place}{as_text(dataset['name'])}"


def _data(run: dict) -> str:
    dataset, weights = run["dataset"], run.get("license")
    identifier = f" ({as_code(dataset['id'])})" if dataset["id"] else ", a local folder"
    data_license = (
        f"Its licence is {as_code(dataset['license'])}." if dataset["license"] else "Its licence is not known."
    )
    return f"## Data and licences\n\nTrained on {_images_trained_on(dataset)}{identifier}. {data_license} " + (
        f"The weights are under {as_code(weights)}." if weights else "No licence has been stated for the weights."
    )


def _limitations(particular: list[str], overfitted: str | None, config: dict, run: dict) -> str:
    dataset = run["dataset"]
    origin = (
        f", after what its base model {as_code(run['base_model'])} was trained on." if run["base_model"] else " only."
    )
    first, *others = particular
    trained = f"It was trained on {_images_trained_on(dataset)}{origin}"
    points = [first, trained, *([overfitted] if overfitted else []), *others]
    if "image_size" in config:
        points.append(
            f"It sees {as_size(config['image_size'])} pixels; detail that is lost at that size is lost to it."
        )
    if run.get("half_weights"):
        points.append(rounded_weights(run))
    return "## Limitations\n\n" + "\n".join(f"- {point}" for point in points)


def _citation(text: str) -> str:
    return f"## Citation\n\n```bibtex\n{text}\n```" if text else ""


def _versions(run: dict) -> str:
    return "## Versions\n\n" + as_table(
        ("Library", "Version"), [(as_text(name), as_text(version)) for name, version in run["versions"].items()]
    )


def _pictures(directory: Path, *names: str) -> str:
    return "\n\n".join(f"![{PICTURES[name]}]({name})" for name in names if (directory / name).is_file())
