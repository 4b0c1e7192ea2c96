"""The README.md of a finished image-classification run, written from the run's own files and nothing else.

Every number on the card is read from a file that the run wrote, so that none can be forgotten, invented or outdated.
Nothing is looked up on the network. Accuracies are fractions in the files and in the card's metadata, percent in its text.
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .redact import redact, redact_command


MARKER = "<!-- Written by hf_vitfm from the files of this run. Remove this line if you edit the card, to keep your text. -->"
MAX_CLASS_ROWS = 30

RUN_FIELDS = (
    "task recipe config command dataset.name dataset.id dataset.license dataset.train_rows dataset.evaluation_split "
    "dataset.evaluation_rows base_model hyperparameters versions hardware parameters per_class"
).split()
RESULT_FIELDS = ["eval_loss", "eval_top1", "eval_mean_per_class"]
VIT_FIELDS = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size image_size patch_size num_channels pooling"
).split()

# Key of all_results.json, identifier in the metadata, name.
METRICS = [
    ("eval_top1", "accuracy", "Top-1 accuracy"),
    ("eval_top5", "top_5_accuracy", "Top-5 accuracy"),
    ("eval_mean_per_class", "mean_per_class_accuracy", "Mean per-class accuracy"),
]
PICTURES = {
    "curves.png": "Loss, accuracy and learning rate over the steps of the training",
    "confusion.png": "Confusion matrix: which classes are taken for which",
    "examples.png": "Right predictions and the most confident mistakes",
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


def create_model_card(directory: str | Path, *, repo_id: str | None = None, overwrite: bool = False) -> Path:
    """Write the README.md of a finished run.

    Read are config.json, preprocessor_config.json, all_results.json and run.json, all of them required; curves.png,
    confusion.png and examples.png are shown when they are there. Absolute paths and secrets in run.json do not reach
    the card (`redact`). The licence of the weights is the optional field `license` of run.json: that of the dataset,
    which is stated too, says nothing about it.

    Args:
        directory: the folder that the run wrote.
        repo_id: where the model will be published, "owner/name", for the card's code. Default: the folder's name.
        overwrite: replace a README.md that was not written by this function.

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
    run = _read_run(directory)
    _check_results(config, results, run)
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
        _results(results, run),
        _pictures(directory, "confusion.png", "examples.png"),
        _usage(repo_id),
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


def _read_run(directory: Path) -> dict:
    run = _read_json(directory, "run.json")
    _require(run, "run.json", RUN_FIELDS)
    if run["task"] != "image-classification":
        raise ValueError(
            f"`task` in run.json must be 'image-classification'; got {run['task']!r}. There is no card for other tasks."
        )
    for field in ("hyperparameters", "versions", "per_class"):
        if not isinstance(run[field], dict):
            raise ValueError(f"`{field}` in run.json must be an object; got {run[field]!r}. Write names with values.")
    rows = {"parameters": run["parameters"]} | {
        f"dataset.{key}": run["dataset"][key] for key in ("train_rows", "evaluation_rows")
    }
    for field, value in rows.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"`{field}` in run.json must be a whole number above 0; got {value!r}. Count it again.")
    return {**redact({**run, "command": None}), "command": redact_command(str(run["command"]))}


def _check_results(config: dict, results: dict, run: dict):
    fields = RESULT_FIELDS + (["eval_top5"] if len(run["per_class"]) > 5 else [])
    _require(results, "all_results.json", fields)
    if _is_vit(config):
        _require(config, "config.json", VIT_FIELDS)
    fractions = {f"`{key}` in all_results.json": results[key] for key, _, _ in METRICS if key in results}
    fractions |= {
        f"`per_class` in run.json, {name!r}": value for name, value in run["per_class"].items() if value is not None
    }
    for what, value in fractions.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{what} must be a fraction in 0..1; got {value!r}. Divide percent by 100.")
    for key in ("eval_loss", "train_loss", "train_runtime", "epoch"):
        value = results.get(key, 0)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(
                f"`{key}` in all_results.json must be a finite number; got {value!r}. A run that diverged gets no card."
            )
    # transformers leaves id2label out of config.json when it is the default, two classes.
    num_labels = len(config.get("id2label", "01"))
    if len(run["per_class"]) != num_labels:
        raise ValueError(
            f"`per_class` in run.json must name the {num_labels} classes of config.json; got {len(run['per_class'])}. "
            "Check that both are of the same run; write null for a class that was not evaluated."
        )


# Sections


def _metadata(config: dict, results: dict, run: dict, name: str) -> ModelCardData:
    dataset = run["dataset"]
    evaluations = [
        EvalResult(
            task_type=run["task"],
            task_name="Image classification",
            dataset_type=dataset["id"] or _slug(dataset["name"]),
            dataset_name=dataset["name"],
            dataset_split=dataset["evaluation_split"],
            metric_type=identifier,
            metric_name=pretty,
            metric_value=results[key],
        )
        for key, identifier, pretty in METRICS
        if key in results
    ]
    return ModelCardData(
        **_license(run.get("license")),
        library_name="hf_vitfm" if str(config.get("model_type")).startswith("vitfm_") else "transformers",
        pipeline_tag=run["task"],
        tags=["hf_vitfm", "vision", run["task"]] + (["vit"] if _is_vit(config) else []),
        base_model=run["base_model"] if _is_hub_id(run["base_model"]) else None,
        base_model_relation="finetune" if _is_hub_id(run["base_model"]) else None,
        datasets=[dataset["id"]] if _is_hub_id(dataset["id"]) else None,
        metrics=["accuracy"],
        model_name=name,
        eval_results=evaluations,
    )


def _introduction(config: dict, run: dict) -> str:
    kind = "Vision Transformer (ViT)" if _is_vit(config) else _text((config.get("architectures") or ["model"])[0])
    dataset = _text(run["dataset"]["name"])
    if run["base_model"]:
        origin = f"fine-tuned on {dataset} from {_code(run['base_model'])}"
    else:
        origin = f"trained on {dataset} from randomly initialised weights"
    return (
        f"# {kind} for {dataset}\n\n"
        f"This {kind} sorts images into {len(run['per_class'])} classes. It has {_count(run['parameters'])} parameters "
        f"and was {origin}."
    )


def _results(results: dict, run: dict) -> str:
    dataset = run["dataset"]
    rows = []
    for key, _, pretty in METRICS:
        if key in results:
            # A mean over classes is no share of the images, so this interval is not for it.
            interval = "" if key == "eval_mean_per_class" else _interval(results[key], dataset["evaluation_rows"])
            rows.append((pretty, _percent(results[key]), interval))
    rows.append(("Loss (negative log-likelihood, nats)", f"{results['eval_loss']:.4g}", ""))
    return "\n\n".join(
        [
            "## Results",
            f"Measured on the {dataset['evaluation_rows']:,} images of the split {_code(dataset['evaluation_split'])} "
            f"of {_text(dataset['name'])}. The interval says how far chance alone, in the choice of these images, can "
            "move the number.",
            _table(("Measure", "Value", "95 % interval"), rows),
            _class_table(run["per_class"]),
        ]
    )


def _class_table(per_class: dict) -> str:
    header = ("Class", "Accuracy")
    rows = [(_text(name), "not evaluated" if value is None else _percent(value)) for name, value in per_class.items()]
    if len(rows) <= MAX_CLASS_ROWS:
        return "Accuracy by class:\n\n" + _table(header, rows)
    ranked = sorted(((value, name) for name, value in per_class.items() if value is not None), reverse=True)
    chosen = ranked if len(ranked) <= 10 else ranked[:5] + ranked[-5:]
    rows = [(_text(name), _percent(value)) for value, name in chosen]
    return f"Accuracy of the best and the worst of the {len(ranked):,} classes evaluated:\n\n" + _table(header, rows)


def _usage(repo_id: str | None) -> str:
    target = f'"{repo_id}"' if repo_id else '"path/to/this/folder"  # or the Hub id of this repository'
    return f"""## How to use it

```python
import hf_vitfm  # registers the model classes with transformers
from transformers import pipeline

model = {target}
classifier = pipeline("image-classification", model=model)
print(classifier("picture.jpg", top_k=3))
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
    probabilities = classifier(**inputs).logits.softmax(-1)[0]
print(classifier.config.id2label[probabilities.argmax().item()], probabilities.max().item())
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
    rows += [(label, _size(config[key])) for key, label in sizes.items() if key in config]
    rows.append(("Parameters", f"{run['parameters']:,}"))
    text = ["## The model"]
    if _is_vit(config):
        (height, width), (patch_height, patch_width) = _pair(config["image_size"]), _pair(config["patch_size"])
        patches = (height // patch_height) * (width // patch_width)
        pooled = "the mean of the patch tokens" if config["pooling"] == "mean" else "the class token"
        text.append(
            f"An image of {_size(config['image_size'])} pixels is cut into {patches} patches of "
            f"{_size(config['patch_size'])} pixels. Each becomes a vector of {config['hidden_size']} numbers, and "
            f"{config['num_hidden_layers']} transformer layers of {config['num_attention_heads']} attention heads relate "
            f"them to each other. A linear layer reads the class off {pooled}."
        )
    text += [_table(("Property", "Value"), rows), _preprocessing(processor)]
    return "\n\n".join(part for part in text if part)


def _preprocessing(processor: dict) -> str:
    steps = []
    if processor.get("do_resize") and processor.get("size"):
        resampling = RESAMPLING.get(processor.get("resample"))
        steps.append(f"resized to {_size(processor['size'])}" + (f" ({resampling})" if resampling else ""))
    if processor.get("do_center_crop") and processor.get("crop_size"):
        steps.append(f"cropped in the middle to {_size(processor['crop_size'])}")
    if processor.get("do_rescale"):
        steps.append(f"multiplied by {processor.get('rescale_factor', 1 / 255):.6g}")
    if processor.get("do_normalize") and "image_mean" in processor and "image_std" in processor:
        mean, deviation = (", ".join(f"{value:g}" for value in processor[key]) for key in ("image_mean", "image_std"))
        steps.append(f"normalised with the mean ({mean}) and the standard deviation ({deviation}) of the channels")
    return f"The image processor in this folder prepares pictures: {'; '.join(steps)}." if steps else ""


def _training(results: dict, run: dict) -> str:
    facts = [
        ("Recipe", _code(run["recipe"])),
        ("Configuration", _code(run["config"])),
        ("Started from", _code(run["base_model"]) if run["base_model"] else "random weights"),
        ("Training images", f"{run['dataset']['train_rows']:,}"),
        ("Hardware", _text(run["hardware"])),
    ]
    if "epoch" in results:
        facts.append(("Epochs", f"{results['epoch']:g}"))
    if "train_runtime" in results:
        facts.append(("Training time", _duration(results["train_runtime"])))
    if "train_loss" in results:
        facts.append(("Mean training loss", f"{results['train_loss']:.4g}"))
    settings = [
        (_code(key), _code(_number(value))) for key, value in run["hyperparameters"].items() if value is not None
    ]
    command = " ".join(run["command"].split())
    parts = ["## How it was trained", f"```bash\n{command}\n```", _table(("", ""), facts)]
    if settings:
        parts += ["Hyperparameters:", _table(("Name", "Value"), settings)]
    return "\n\n".join(parts)


def _data(run: dict) -> str:
    dataset, weights = run["dataset"], run.get("license")
    identifier = f" ({_code(dataset['id'])})" if dataset["id"] else ", a local folder"
    data_license = (
        f"Its licence is {_code(dataset['license'])}." if dataset["license"] else "Its licence is not known."
    )
    return (
        "## Data and licences\n\n"
        f"Trained on {dataset['train_rows']:,} images of {_text(dataset['name'])}{identifier}. {data_license} "
        + (f"The weights are under {_code(weights)}." if weights else "No licence has been stated for the weights.")
    )


def _limitations(config: dict, results: dict, run: dict) -> str:
    dataset, per_class = run["dataset"], run["per_class"]
    name, split = _text(dataset["name"]), _code(dataset["evaluation_split"])
    known = {key: value for key, value in per_class.items() if value is not None}
    points = [
        f"It knows {len(per_class)} classes and always answers with one of them, also for a picture of something else.",
        f"It was trained on {dataset['train_rows']:,} images of {name}"
        + (
            f", after what its base model {_code(run['base_model'])} was trained on."
            if run["base_model"]
            else " only."
        ),
        f"It was evaluated on the split {split} of {name} only ({dataset['evaluation_rows']:,} images). How it does on "
        "pictures from elsewhere, on damaged pictures, or across groups of people was not measured, nor whether its "
        "probabilities are calibrated.",
    ]
    if "image_size" in config:
        points.append(f"It sees {_size(config['image_size'])} pixels; detail that is lost at that size is lost to it.")
    if known and min(known.values()) < results["eval_top1"]:
        worst = min(known, key=known.get)
        points.append(f"Classes differ: the weakest, {_text(worst)}, has an accuracy of {_percent(known[worst])}.")
    if len(known) < len(per_class):
        points.append(f"Classes without an image in the evaluation: {len(per_class) - len(known):,}.")
    if run["hyperparameters"].get("load_best_model_at_end") in (True, "true", "True"):
        points.append(
            "Of the checkpoints of the run, the best one on these evaluation images was kept: its numbers are a little "
            "too good."
        )
    return "## Limitations\n\n" + "\n".join(f"- {point}" for point in points)


def _versions(run: dict) -> str:
    return "## Versions\n\n" + _table(
        ("Library", "Version"), [(_text(name), _text(version)) for name, version in run["versions"].items()]
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


def _text(value: Any) -> str:
    """One line of Markdown that shows the value as it is, in a table too."""
    # An underscore inside a word is no markup.
    return re.sub(r"([\\`*\[\]<>|]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(value).split()))


def _code(value: Any) -> str:
    text = " ".join(str(value).split()).replace("`", "'")
    return f"`{text}`".replace("|", r"\|")


def _table(header: tuple, rows: list[tuple]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(share: float, rows: int) -> str:
    """Wilson's interval of a share, which stays within 0..100 % and has a width at both ends."""
    z = 1.959964
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return f"{100 * max(0.0, centre - half):.1f} to {100 * min(1.0, centre + half):.1f} %"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value) if not isinstance(value, str) else value


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,}"


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _size(value: Any) -> str:
    """Sizes as configurations and image processors write them: 32, [32, 48], {"height": 32}, {"shortest_edge": 256}."""
    if isinstance(value, dict):
        if {"height", "width"} <= value.keys():
            value = [value["height"], value["width"]]
        else:
            return ", ".join(f"{key.replace('_', ' ')} {edge}" for key, edge in value.items())
    return "x".join(map(str, _pair(value)))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (seconds, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "under 1 s"
