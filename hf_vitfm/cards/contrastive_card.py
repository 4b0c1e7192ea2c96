"""What is particular to the card of a CLIP, trained on images with captions; `model_card` has the rest."""

from huggingface_hub import EvalResult

from .architecture import cutting
from .hub_names import as_slug, is_hub_id
from .markdown import as_code, as_count, as_percent, as_size, as_table, as_text
from .results import check_numbers, check_shares, interval
from .usage import Published


TASKS = {"contrastive-image-text": "Contrastive training on images and texts"}
AUTO_CLASS = "AutoModelForZeroShotImageClassification"
INTENDED_USE = (
    "It is meant for search, and for sorting into classes, among pictures and texts like those that it was trained on."
)
FIRST_PICTURES = ("retrieval.png",)
RESULT_PICTURES = ()
CUTOFFS = (1, 5, 10)
DIRECTIONS = {"image_to_text": "captions found by an image", "text_to_image": "images found by a caption"}
ZERO_SHOT = {
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "mean_per_class": "Mean per-class (balanced) accuracy",
}
ZERO_SHOT_FIELDS = ("dataset", "rows", "classes", "templates")
OWN_TOWERS = {"vision_config": "vitfm_clip_vision", "text_config": "vitfm_clip_text"}
PROPERTIES = {
    "num_hidden_layers": "Layers",
    "hidden_size": "Width",
    "num_attention_heads": "Attention heads",
    "intermediate_size": "Width of the MLP",
    "image_size": "Image size, pixels",
    "patch_size": "Patch size, pixels",
    "vocab_size": "Tokens of the vocabulary",
    "max_position_embeddings": "Longest text, tokens",
}

CLIP_CITATION = """
@inproceedings{radford2021learning,
  title     = {Learning Transferable Visual Models From Natural Language Supervision},
  author    = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and Agarwal, Sandhini
               and Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and Krueger, Gretchen
               and Sutskever, Ilya},
  booktitle = {International Conference on Machine Learning},
  year      = {2021}
}
"""


def required_fields(config: dict, run: dict) -> dict[str, list[str]]:
    """Fields that the files of such a run must have, by file, on top of those of every run."""
    zero_shot = run.get("zero_shot")
    recalls = [f"eval_{direction}_recall@{k}" for direction in DIRECTIONS for k in CUTOFFS]
    ranks = [f"eval_{direction}_median_rank" for direction in DIRECTIONS]
    return {
        "run.json": ["dataset.evaluation_captions"]
        + ([f"zero_shot.{name}" for name in ZERO_SHOT_FIELDS] if zero_shot else []),
        "all_results.json": ["eval_loss", *recalls, *ranks] + (["eval_zero_shot_top1"] if zero_shot else []),
        "config.json": ["projection_dim", *(f"{tower}.model_type" for tower in OWN_TOWERS)],
    }


def check(config: dict, results: dict, run: dict) -> None:
    """Refuse values that cannot be."""
    shares = [key for key in results if "_recall@" in key or key.startswith("eval_zero_shot_")]
    check_shares({f"`{key}` in all_results.json": results[key] for key in shares})
    check_numbers(results, *(key for key in results if key.endswith("_rank")))
    counts = {"dataset.evaluation_captions": run["dataset"]["evaluation_captions"]}
    if run.get("zero_shot"):
        counts |= {f"zero_shot.{name}": run["zero_shot"][name] for name in ("rows", "classes")}
    for field, value in counts.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"`{field}` in run.json must be a whole number above 0; got {value!r}. Count it again.")


def metadata(config: dict, results: dict, run: dict) -> dict:
    """The fields of the card's metadata."""
    dataset = run["dataset"]
    evaluations = [
        EvalResult(
            task_type="image-text-retrieval",
            task_name="Retrieval of captions and images",
            dataset_type=dataset["id"] if is_hub_id(dataset["id"]) else as_slug(dataset["name"]),
            dataset_name=dataset["name"],
            dataset_split=dataset["evaluation_split"],
            metric_type=f"{direction}_recall@{k}",
            metric_name=f"Recall@{k}, {words}",
            metric_value=results[f"eval_{direction}_recall@{k}"],
        )
        for direction, words in DIRECTIONS.items()
        for k in CUTOFFS
    ]
    if run.get("zero_shot"):
        name = _zero_shot_name(run)
        evaluations.append(
            EvalResult(
                task_type="zero-shot-image-classification",
                task_name="Zero-shot image classification",
                dataset_type=as_slug(name),
                dataset_name=name,
                metric_type="accuracy",
                metric_name="Zero-shot top-1 accuracy",
                metric_value=results["eval_zero_shot_top1"],
            )
        )
    return {
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["hf_vitfm", "vision", "clip", "contrastive-learning", "zero-shot-image-classification"],
        "metrics": ["recall"] + (["accuracy"] if run.get("zero_shot") else []),
        "eval_results": evaluations,
    }


def introduction(config: dict, run: dict) -> str:
    """Title and first paragraph."""
    dataset = as_text(run["dataset"]["name"])
    origin = (
        f"starting from {as_code(run['base_model'])}" if run["base_model"] else "from randomly initialised weights"
    )
    locked = run.get("locked_towers")
    kept = f" Training left the {' and the '.join(locked)} tower as it was." if locked else ""
    return (
        f"# CLIP of {dataset}\n\n"
        "This model puts images and texts into one space, where a picture lies near the words that fit it: it finds "
        "pictures by words and words by pictures, and sorts pictures into classes that it is only told the names of. It "
        f"was trained on the images and captions of {dataset}, {origin}, and has {as_count(run['parameters'])} parameters.{kept}"
    )


def results_text(config: dict, results: dict, run: dict) -> str:
    """The section of the numbers."""
    dataset = run["dataset"]
    images, captions = dataset["evaluation_rows"], dataset["evaluation_captions"]
    text = (
        f"Retrieval among {images:,} evaluation images and their {captions:,} captions "
        f"({as_text(dataset['evaluation_split'])}). Recall@k is the share for which a right answer is among "
        f"the k best; guessing would find {as_percent(min(1, 10 / captions))} of the captions at k = 10. The interval says "
        "how far chance alone, in the choice of these images, can move the number."
    )
    rows = []
    for direction, words in DIRECTIONS.items():
        asked = images if direction == "image_to_text" else captions
        for k in CUTOFFS:
            share = results[f"eval_{direction}_recall@{k}"]
            rows.append((f"Recall@{k}, {words}", as_percent(share), interval(share, asked)))
        rows.append((f"Median rank, {words}", f"{results[f'eval_{direction}_median_rank']:g}", ""))
    rows.append((f"Loss ({config.get('objective', 'softmax')}, in batches)", f"{results['eval_loss']:.4g}", ""))
    parts = ["## Results", text, as_table(("Measure", "Value", "95 % interval"), rows)]
    if run.get("zero_shot"):
        parts += _zero_shot_text(results, run)
    if dataset.get("credit"):
        parts.append(f"The images shown: {as_text(dataset['credit'])}.")
    return "\n\n".join(parts)


def _zero_shot_name(run: dict) -> str:
    name, dataset = run["zero_shot"]["dataset"], run["dataset"]
    return f"{dataset['name']} ({dataset['evaluation_split']})" if name == "the evaluation set" else name


def _zero_shot_text(results: dict, run: dict) -> list[str]:
    about = run["zero_shot"]
    templates = about["templates"]
    words = (
        f"the texts are {', '.join(map(as_code, templates))} with a class's name in place of the braces"
        if len(templates) <= 3
        else f"{len(templates)} texts with a class's name in them are averaged"
    )
    text = (
        f"Zero-shot classification of {about['rows']:,} images of {as_text(_zero_shot_name(run))} into "
        f"{about['classes']:,} classes, whose labels no training saw: {words}. Guessing would be right in "
        f"{as_percent(1 / about['classes'])}"
    )
    largest = about.get("largest_class")
    text += "." if largest is None else f", always naming the largest class in {as_percent(largest)}."
    rows = []
    for key, name in ZERO_SHOT.items():
        value = results.get(f"eval_zero_shot_{key}")
        if value is not None and not (key == "top5" and about["classes"] <= 5):
            rows.append((name, as_percent(value), "" if key == "mean_per_class" else interval(value, about["rows"])))
    return [text, as_table(("Measure", "Value", "95 % interval"), rows)]


def examples(target: str, config: dict, run: dict, published: Published) -> str:
    """Code that uses the model at the root of a repository; `target` is its name or folder as Python has it."""
    return f"""Sort a picture into classes that you name:

```python
{published.imports}from transformers import pipeline

model = {target}
classifier = pipeline("zero-shot-image-classification", model=model{published.trust})
print(classifier("picture.jpg", candidate_labels=["a cat", "a house"], hypothesis_template="{{}}"))
```

Embeddings of pictures and texts, to search with:

```python
{published.imports}import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

model = {target}
image_processor = AutoImageProcessor.from_pretrained(model)
tokenizer = AutoTokenizer.from_pretrained(model{published.trust})
clip = AutoModel.from_pretrained(model{published.trust}).eval()
images = image_processor([Image.open("picture.jpg").convert("RGB")], return_tensors="pt")
texts = tokenizer(["a cat", "a house"], padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    image_embeds = clip.get_image_features(**images).pooler_output
    text_embeds = clip.get_text_features(texts["input_ids"], texts["attention_mask"]).pooler_output
cosines = torch.cosine_similarity(image_embeds[:, None], text_embeds[None], dim=-1)  # (images, texts)
```"""


def architecture(config: dict) -> str:
    """How the model works."""
    vision, text = config["vision_config"], config["text_config"]
    sentences = []
    if vision["model_type"] == OWN_TOWERS["vision_config"]:
        sentences.append(f"{cutting(vision)} A transformer makes one vector of them.")
    else:
        sentences.append(f"Images go through a tower of the kind {as_code(vision['model_type'])}.")
    if text["model_type"] == OWN_TOWERS["text_config"]:
        sentences.append(
            "A second transformer reads the text from left to right, and what it has at the end token stands for the text."
        )
    else:
        sentences.append(f"Texts go through a tower of the kind {as_code(text['model_type'])}.")
    sentences.append(
        f"Both are projected to {config['projection_dim']} numbers of unit length, and their cosine says how well image "
        "and text fit."
    )
    towers = (vision, text)
    rows = [
        (label, *(_property(key, tower) for tower in towers))
        for key, label in PROPERTIES.items()
        if any(key in tower for tower in towers)
    ]
    return " ".join(sentences) + "\n\n" + as_table(("", "Image tower", "Text tower"), rows)


def _property(key: str, tower: dict) -> str:
    if key not in tower:
        return ""
    return as_size(tower[key]) if key in ("image_size", "patch_size") else f"{tower[key]}"


def limitations(config: dict, results: dict, run: dict) -> list[str]:
    """Sentences on what speaks against the model, the weightiest first."""
    points = [
        "It compares and never declines: of the texts it is given, one is always the best, also where none is true.",
        "It knows words as the captions used them. Other wordings, other languages and finer distinctions were not "
        "measured, nor how it does on pictures from elsewhere or across groups of people.",
        "A cosine is no probability, and a softmax over some texts depends on which texts are given.",
        "What its captions say of people and things, it repeats; it is not fit for decisions about people.",
    ]
    known, captions = run["dataset"].get("known_captions"), run["dataset"]["evaluation_captions"]
    if known:
        words = "All" if known == captions else f"{known:,} of the"
        points.insert(
            1,
            f"{words} {captions:,} captions of the evaluation are captions of training images too; they do not say how it "
            "does on texts that it has not seen.",
        )
    truncated = run.get("truncated_captions")
    if truncated:
        points.append(f"Captions longer than the context were cut, {truncated:,} times in the run.")
    if "image_size" in config["vision_config"]:
        points.append(
            f"It sees {as_size(config['vision_config']['image_size'])} pixels; detail that is lost at that size is lost "
            "to it."
        )
    return points


def citation(config: dict) -> str:
    """BibTeX of the method."""
    return CLIP_CITATION
