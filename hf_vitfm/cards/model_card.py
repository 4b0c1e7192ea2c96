"""The README.md of a finished image-classification run, written from the run's own files and nothing else.

Every number on the card is read from a file that the run wrote, so that none can be forgotten, invented or outdated.
Nothing is looked up on the network. Accuracies are fractions in the files and in the card's metadata, percent in its text.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .markdown import as_code, as_count, as_duration, as_number, as_pair, as_size, as_table, as_text
from .redact import redact, redact_command
from .results import (
    MEASURES,
    REGRESSION,
    SINGLE,
    check_results,
    details_field,
    measured,
    measured_limits,
    problem_type,
    purpose,
    required_results,
    results_section,
)


MARKER = "<!-- Written by hf_vitfm from the files of this run. Remove this line if you edit the card, to keep your text. -->"

RUN_FIELDS = (
    "task recipe config command dataset.name dataset.id dataset.license dataset.train_rows dataset.evaluation_split "
    "dataset.evaluation_rows base_model hyperparameters versions hardware parameters"
).split()
TASKS = {"image-classification": "Image classification", "image-regression": "Image regression"}
VIT_FIELDS = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size image_size patch_size num_channels pooling"
).split()

PICTURES = {
    "curves.png": "Loss, scores and learning rate over the steps of the training",
    "confusion.png": "Confusion matrix: which classes are taken for which",
    "examples.png": "Right predictions and the most confident mistakes",
    "average_precision.png": "Average precision of every class",
    "scatter.png": "Predicted against true values",
}
RESAMPLING = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}

VIT_CITATION = """
@inproceedings{dosovitskiy2021image,
  title     = {An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale},
  author    = {Dosovitskiy, Alexey and Beyer, Lucas and Kolesnikov, Alexander and Weissenborn, Dirk and Zhai, Xiaohua
               and Unterthiner, Thomas and Dehghani, Mostafa and Minderer, Matthias and Heigold, Georg and Gelly, Sylvain
               and Uszkoreit, Jakob and Houlsby, Neil},
  booktitle = {International Conference on Learning Representations},
  year      = {2021}
}
"""


def create_model_card(
    directory: str | Path, *, repo_id: str | None = None, overwrite: bool = False, run: dict | None = None
) -> Path:
    """Write the README.md of a finished run.

    Read are config.json, preprocessor_config.json, all_results.json and run.json, all of them required; the pictures in
    `PICTURES` are shown when they are there. The field `problem_type` of run.json says which numbers belong to the run
    (`results.MEASURES`): without it, those of one class per image. Absolute paths and secrets in run.json do not reach
    the card (`redact`). The licence of the weights is the optional field `license` of run.json: that of the dataset,
    which is stated too, says nothing about it.

    Args:
        directory: the folder that the run wrote.
        repo_id: where the model will be published, "owner/name", for the card's code. Default: the folder's name.
        overwrite: replace a README.md that was not written by this function.
        run: what run.json is going to hold, where it is not written yet. Default: what it holds.

    Returns:
        The path of the README.md.

    Raises:
        FileNotFoundError: if a file is missing; it is named.
        ValueError: if a field is missing or has an impossible value; it is named.
        FileExistsError: if there is a README.md of somebody else's.
    """
    if repo_id is not None and not _is_hub_id(repo_id):
        raise ValueError(f"`repo_id` must be an owner, a slash and a name; got {repo_id!r}. Leave it out if unknown.")
    directory = Path(directory)
    target = directory / "README.md"
    config = _read_json(directory, "config.json")
    processor = _read_json(directory, "preprocessor_config.json")
    results = _read_json(directory, "all_results.json")
    run = _checked_run(_read_json(directory, "run.json") if run is None else run)
    _require(results, "all_results.json", required_results(run))
    if _is_vit(config):
        _require(config, "config.json", VIT_FIELDS)
    check_results(config, results, run)
    if target.exists() and not overwrite and MARKER not in target.read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(
            f"{target} was not written by `create_model_card`, or was edited since. Move it away, or pass "
            "`overwrite=True` to replace it."
        )

    name = repo_id.split("/")[-1] if repo_id else directory.resolve().name
    sections = [
        f"---\n{_metadata(config, results, run, name).to_yaml()}\n---",
        MARKER,
        _introduction(config, run),
        results_section(results, run),
        _pictures(directory, "confusion.png", "average_precision.png", "scatter.png", "examples.png"),
        _usage(repo_id, problem_type(run)),
        _architecture(config, processor, run),
        _training(results, run),
        _pictures(directory, "curves.png"),
        _data(run),
        _limitations(config, results, run),
        _versions(run),
        f"## Citation\n\n```bibtex\n{VIT_CITATION.strip()}\n```" if _is_vit(config) else "",
    ]
    partial = target.with_name("README.md.partial")
    partial.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")
    os.replace(partial, target)
    return target


# Files


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
    if run["task"] not in TASKS:
        raise ValueError(
            f"`task` in run.json must be {' or '.join(map(repr, TASKS))}; got {run['task']!r}. There is no card for "
            "other tasks."
        )
    if problem_type(run) not in MEASURES:
        raise ValueError(
            f"`problem_type` in run.json must be one of {', '.join(MEASURES)}; got {run['problem_type']!r}."
        )
    _require(run, "run.json", [details_field(run)])
    for field in ("hyperparameters", "versions", details_field(run)):
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


def _metadata(config: dict, results: dict, run: dict, name: str) -> ModelCardData:
    dataset = run["dataset"]
    evaluations = [
        EvalResult(
            task_type=run["task"],
            task_name=TASKS[run["task"]],
            dataset_type=dataset["id"] or _slug(dataset["name"]),
            dataset_name=dataset["name"],
            dataset_split=dataset["evaluation_split"],
            metric_type=measure.identifier,
            metric_name=measure.name,
            metric_value=results[measure.key],
        )
        for measure in measured(results, run)
    ]
    return ModelCardData(
        **_license(run.get("license")),
        library_name="hf_vitfm" if str(config.get("model_type")).startswith("vitfm_") else "transformers",
        # The Hub knows no task of numbers for images.
        pipeline_tag=run["task"] if run["task"] == "image-classification" else None,
        tags=["hf_vitfm", "vision", run["task"]] + (["vit"] if _is_vit(config) else []),
        base_model=run["base_model"] if _is_hub_id(run["base_model"]) else None,
        base_model_relation="finetune" if _is_hub_id(run["base_model"]) else None,
        datasets=[dataset["id"]] if _is_hub_id(dataset["id"]) else None,
        metrics=[MEASURES[problem_type(run)][0].identifier],
        model_name=name,
        eval_results=evaluations,
    )


def _introduction(config: dict, run: dict) -> str:
    kind = "Vision Transformer (ViT)" if _is_vit(config) else as_text((config.get("architectures") or ["model"])[0])
    dataset = as_text(run["dataset"]["name"])
    if run["base_model"]:
        origin = f"fine-tuned on {dataset} from {as_code(run['base_model'])}"
    else:
        origin = f"trained on {dataset} from randomly initialised weights"
    return (
        f"# {kind} for {dataset}\n\n"
        f"This {kind} {purpose(run)}. It has {as_count(run['parameters'])} parameters "
        f"and was {origin}."
    )


def _usage(repo_id: str | None, kind: str) -> str:
    target = f'"{repo_id}"' if repo_id else '"path/to/this/folder"  # or the Hub id of this repository'
    options = ", top_k=3" if kind == SINGLE else ""
    answer = {
        SINGLE: """    probabilities = classifier(**inputs).logits.softmax(-1)[0]
print(classifier.config.id2label[probabilities.argmax().item()], probabilities.max().item())""",
        REGRESSION: """    numbers = classifier(**inputs).logits[0].tolist()
print(dict(zip(classifier.config.id2label.values(), numbers)))""",
    }
    several = """    probabilities = classifier(**inputs).logits.sigmoid()[0].tolist()
print(dict(zip(classifier.config.id2label.values(), probabilities)))"""
    return f"""## How to use it

```python
import hf_vitfm  # registers the model classes with transformers
from transformers import pipeline

model = {target}
classifier = pipeline("image-classification", model=model)
print(classifier("picture.jpg"{options}))
```

Or step by step:

```python
import hf_vitfm
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = {target}
image_processor = AutoImageProcessor.from_pretrained(model)
classifier = AutoModelForImageClassification.from_pretrained(model).eval()
inputs = image_processor(Image.open("picture.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
{answer.get(kind, several)}
```

Or a folder of pictures into a table, `predictions.csv`:

```bash
hf-vitfm predict {repo_id or "path/to/this/folder"} path/to/pictures
```"""


def _architecture(config: dict, processor: dict, run: dict) -> str:
    names = {
        "num_hidden_layers": "Layers",
        "hidden_size": "Width",
        "num_attention_heads": "Attention heads",
        "intermediate_size": "Width of the MLP",
        "num_channels": "Channels",
    }
    rows = [(label, config[key]) for key, label in names.items() if key in config]
    sizes = {"image_size": "Image size, pixels", "patch_size": "Patch size, pixels"}
    rows += [(label, as_size(config[key])) for key, label in sizes.items() if key in config]
    rows.append(("Parameters", f"{run['parameters']:,}"))
    text = ["## The model"]
    if _is_vit(config):
        (height, width), (patch_height, patch_width) = as_pair(config["image_size"]), as_pair(config["patch_size"])
        patches = (height // patch_height) * (width // patch_width)
        pooled = "the mean of the patch tokens" if config["pooling"] == "mean" else "the class token"
        text.append(
            f"An image of {as_size(config['image_size'])} pixels is cut into {patches} patches of "
            f"{as_size(config['patch_size'])} pixels. Each becomes a vector of {config['hidden_size']} numbers, and "
            f"{config['num_hidden_layers']} transformer layers of {config['num_attention_heads']} attention heads relate "
            f"them to each other. A linear layer reads the answer off {pooled}."
        )
    text += [as_table(("Property", "Value"), rows), _preprocessing(processor)]
    return "\n\n".join(part for part in text if part)


def _preprocessing(processor: dict) -> str:
    steps = []
    if processor.get("do_resize") and processor.get("size"):
        resampling = RESAMPLING.get(processor.get("resample"))
        steps.append(f"resized to {as_size(processor['size'])}" + (f" ({resampling})" if resampling else ""))
    if processor.get("do_center_crop") and processor.get("crop_size"):
        steps.append(f"cropped in the middle to {as_size(processor['crop_size'])}")
    if processor.get("do_rescale"):
        steps.append(f"multiplied by {processor.get('rescale_factor', 1 / 255):.6g}")
    if processor.get("do_normalize") and "image_mean" in processor and "image_std" in processor:
        mean, deviation = (", ".join(f"{value:g}" for value in processor[key]) for key in ("image_mean", "image_std"))
        steps.append(f"normalised with the mean ({mean}) and the standard deviation ({deviation}) of the channels")
    return f"The image processor in this folder prepares pictures: {'; '.join(steps)}." if steps else ""


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


def _data(run: dict) -> str:
    dataset, weights = run["dataset"], run.get("license")
    identifier = f" ({as_code(dataset['id'])})" if dataset["id"] else ", a local folder"
    data_license = (
        f"Its licence is {as_code(dataset['license'])}." if dataset["license"] else "Its licence is not known."
    )
    return (
        "## Data and licences\n\n"
        f"Trained on {dataset['train_rows']:,} images of {as_text(dataset['name'])}{identifier}. {data_license} "
        + (f"The weights are under {as_code(weights)}." if weights else "No licence has been stated for the weights.")
    )


def _limitations(config: dict, results: dict, run: dict) -> str:
    dataset = run["dataset"]
    name, split = as_text(dataset["name"]), as_code(dataset["evaluation_split"])
    origin = (
        f", after what its base model {as_code(run['base_model'])} was trained on." if run["base_model"] else " only."
    )
    unmeasured = (
        "How it does on pictures from elsewhere, on damaged pictures, or across groups of people was not measured"
    )
    if problem_type(run) != REGRESSION:
        calibrated = "eval_calibration_error" in results
        unmeasured += (
            "; nor does the calibration error say how its probabilities hold there"
            if calibrated
            else ", nor whether its probabilities are calibrated"
        )
    first, *others = measured_limits(results, run)
    points = [
        first,
        f"It was trained on {dataset['train_rows']:,} images of {name}{origin}",
        f"It was evaluated on the split {split} of {name} only ({dataset['evaluation_rows']:,} images). {unmeasured}.",
    ]
    if "image_size" in config:
        points.append(
            f"It sees {as_size(config['image_size'])} pixels; detail that is lost at that size is lost to it."
        )
    return "## Limitations\n\n" + "\n".join(f"- {point}" for point in [*points, *others])


def _versions(run: dict) -> str:
    return "## Versions\n\n" + as_table(
        ("Library", "Version"), [(as_text(name), as_text(version)) for name, version in run["versions"].items()]
    )


def _pictures(directory: Path, *names: str) -> str:
    return "\n\n".join(f"![{PICTURES[name]}]({name})" for name in names if (directory / name).is_file())


# Values


def _is_vit(config: dict) -> bool:
    return config.get("model_type") == "vitfm_vit"


def _is_hub_id(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", value) is not None


def _license(name: str | None) -> dict:
    if not name:
        return {}
    if re.fullmatch(r"[a-z0-9.-]+", name.lower()):
        return {"license": name.lower()}
    return {"license": "other", "license_name": _slug(name)}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "unnamed"
