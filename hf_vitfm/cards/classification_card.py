"""What is particular to the card of a classifier, or of a model that predicts numbers; `model_card` has the rest."""

from huggingface_hub import EvalResult

from .architecture import cutting
from .hub_names import as_slug
from .markdown import as_code, as_count, as_text
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
from .usage import Published


TASKS = {"image-classification": "Image classification", "image-regression": "Image regression"}
AUTO_CLASS = "AutoModelForImageClassification"
INTENDED_USE = "It is meant for pictures like those that it was trained on, and as a start for fine-tuning on others."
FIRST_PICTURES = ()
RESULT_PICTURES = ("confusion.png", "average_precision.png", "scatter.png", "examples.png")
VIT_FIELDS = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size image_size patch_size num_channels pooling"
).split()

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


def required_fields(config: dict, run: dict) -> dict[str, list[str]]:
    """Fields that the files of such a run must have, by file, on top of those of every run."""
    if problem_type(run) not in MEASURES:
        raise ValueError(
            f"`problem_type` in run.json must be one of {', '.join(MEASURES)}; got {run['problem_type']!r}."
        )
    details = details_field(run)
    if not isinstance(run.get(details, {}), dict):
        raise ValueError(f"`{details}` in run.json must be an object; got {run[details]!r}. Write names with values.")
    return {
        "run.json": [details],
        "all_results.json": required_results(run) if details in run else [],
        "config.json": VIT_FIELDS if _is_vit(config) else [],
    }


def check(config: dict, results: dict, run: dict) -> None:
    """Refuse values that cannot be."""
    check_results(config, results, run)


def metadata(config: dict, results: dict, run: dict) -> dict:
    """The fields of the card's metadata."""
    dataset = run["dataset"]
    return {
        # The Hub knows no task of numbers for images.
        "pipeline_tag": run["task"] if run["task"] == "image-classification" else None,
        "tags": ["hf_vitfm", "vision", run["task"]] + (["vit"] if _is_vit(config) else []),
        "metrics": [MEASURES[problem_type(run)][0].identifier],
        "eval_results": [
            EvalResult(
                task_type=run["task"],
                task_name=TASKS[run["task"]],
                dataset_type=dataset["id"] or as_slug(dataset["name"]),
                dataset_name=dataset["name"],
                dataset_split=dataset["evaluation_split"],
                metric_type=measure.identifier,
                metric_name=measure.name,
                metric_value=results[measure.key],
            )
            for measure in measured(results, run)
        ],
    }


def introduction(config: dict, run: dict) -> str:
    """Title and first paragraph."""
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


def results_text(config: dict, results: dict, run: dict) -> str:
    """The section of the numbers."""
    return results_section(results, run)


def examples(target: str, config: dict, run: dict, published: Published) -> str:
    """Code that uses the model at the root of a repository; `target` is its name or folder as Python has it."""
    kind = problem_type(run)
    options = ", top_k=3" if kind == SINGLE else ""
    answer = {
        SINGLE: """    probabilities = classifier(**inputs).logits.softmax(-1)[0]
print(classifier.config.id2label[probabilities.argmax().item()], probabilities.max().item())""",
        REGRESSION: """    numbers = classifier(**inputs).logits[0].tolist()
print(dict(zip(classifier.config.id2label.values(), numbers)))""",
    }
    several = """    probabilities = classifier(**inputs).logits.sigmoid()[0].tolist()
print(dict(zip(classifier.config.id2label.values(), probabilities)))"""
    install = "" if published.needs_library else ", with hf_vitfm installed (`pip install hf-vitfm`)"
    return f"""```python
{published.imports}from transformers import pipeline

model = {target}
classifier = pipeline("image-classification", model=model{published.trust})
print(classifier("picture.jpg"{options}))
```

Or step by step:

```python
{published.imports}import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = {target}
image_processor = AutoImageProcessor.from_pretrained(model)
classifier = AutoModelForImageClassification.from_pretrained(model{published.trust}).eval()
inputs = image_processor(Image.open("picture.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
{answer.get(kind, several)}
```

Or a folder of pictures into a table, `predictions.csv`{install}:

```bash
hf-vitfm predict {target.split('"')[1]} path/to/pictures
```"""


def architecture(config: dict) -> str:
    """How the model works."""
    if not _is_vit(config):
        return ""
    pooled = {"cls": "the class token", "mean": "the mean of the patch tokens"}
    pooled["cls_mean"] = " and ".join(pooled.values())
    return (
        f"{cutting(config)} Each becomes a vector of {config['hidden_size']} numbers, and "
        f"{config['num_hidden_layers']} transformer layers of {config['num_attention_heads']} attention heads relate "
        f"them to each other. A linear layer reads the answer off {pooled[config['pooling']]}."
    )


def limitations(config: dict, results: dict, run: dict) -> list[str]:
    """Sentences on what speaks against the model, the weightiest first."""
    dataset = run["dataset"]
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
    evaluated = (
        f"It was evaluated on the split {as_code(dataset['evaluation_split'])} of {as_text(dataset['name'])} only "
        f"({dataset['evaluation_rows']:,} images). {unmeasured}."
    )
    return [first, evaluated, *others]


def citation(config: dict) -> str:
    """BibTeX of the architecture, empty where it is not known."""
    return VIT_CITATION if _is_vit(config) else ""


def _is_vit(config: dict) -> bool:
    return config.get("model_type") == "vitfm_vit"
