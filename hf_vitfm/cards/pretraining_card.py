"""What is particular to the card of a masked autoencoder; `model_card` has the rest."""

from huggingface_hub import EvalResult

from ..models.modeling_masking import num_visible
from .architecture import count_patches, cutting
from .hub_names import as_slug, is_hub_id
from .markdown import as_code, as_count, as_percent, as_table, as_text
from .results import check_numbers, check_shares, interval
from .usage import Published


TASKS = {"masked-image-modeling": "Masked image modeling"}
AUTO_CLASS = "AutoModelForPreTraining"
INTENDED_USE = (
    "Its encoder is meant to be fine-tuned on images with labels, or to give features of images, "
    "in both cases of images like those that it was trained on."
)
FIRST_PICTURES = ("reconstructions.png",)
RESULT_PICTURES = ()
KNN = "eval_knn_top1"
LABELLED_FIELDS = ("labelled.dataset", "labelled.bank_rows", "labelled.query_rows")
MAE_FIELDS = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size image_size patch_size num_channels "
    "num_register_tokens decoder_hidden_size decoder_num_hidden_layers decoder_num_attention_heads "
    "decoder_intermediate_size mask_ratio masking norm_pix_loss"
).split()
MASKINGS = {"random": "chosen at random", "block": "in blocks", "grid": "on a regular grid"}

MAE_CITATION = """
@inproceedings{he2022masked,
  title     = {Masked Autoencoders Are Scalable Vision Learners},
  author    = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022}
}
"""


def required_fields(config: dict, run: dict) -> dict[str, list[str]]:
    """Fields that the files of such a run must have, by file, on top of those of every run."""
    return {
        "run.json": list(LABELLED_FIELDS) if run.get("labelled") is not None else [],
        "all_results.json": ["eval_loss"],
        "config.json": MAE_FIELDS,
    }


def check(config: dict, results: dict, run: dict) -> None:
    """Refuse values that cannot be."""
    check_shares({f"`{KNN}` in all_results.json": results[KNN]} if KNN in results else {})
    check_numbers(results)
    for field in LABELLED_FIELDS[1:] if run.get("labelled") is not None else ():
        value = run["labelled"][field.split(".")[1]]
        if type(value) is not int or value < 1:
            raise ValueError(f"`{field}` in run.json must be a whole number above 0; got {value!r}. Count it again.")


def metadata(config: dict, results: dict, run: dict) -> dict:
    """The fields of the card's metadata.

    There is no `pipeline_tag`: transformers' pipeline of image features would mask most of the image.
    """
    labelled = run.get("labelled")
    evaluations = None
    if KNN in results and labelled:
        evaluations = [
            EvalResult(
                task_type="image-classification",
                task_name="Image classification by nearest neighbours",
                dataset_type=labelled["dataset"] if is_hub_id(labelled["dataset"]) else as_slug(labelled["dataset"]),
                dataset_name=labelled["dataset"],
                dataset_split=labelled.get("split"),
                metric_type="accuracy",
                metric_name="20-NN top-1 accuracy",
                metric_value=results[KNN],
            )
        ]
    return {
        "tags": ["hf_vitfm", "vision", "masked-image-modeling", "masked-autoencoder", "mae"],
        "metrics": ["accuracy"] if evaluations else None,
        "eval_results": evaluations,
    }


def introduction(config: dict, run: dict) -> str:
    """Title and first paragraph."""
    dataset = as_text(run["dataset"]["name"])
    origin = (
        f"going on from {as_code(run['base_model'])}" if run["base_model"] else "from randomly initialised weights"
    )
    return (
        f"# Masked autoencoder (MAE) of {dataset}\n\n"
        f"This Vision Transformer learned to see from images without labels: {as_percent(config['mask_ratio'])} of the "
        f"patches of an image were hidden from it, and it learned to predict their pixels. It was pre-trained on "
        f"{dataset}, {origin}, and has {as_count(run['parameters'])} parameters, decoder included. Its encoder is meant "
        "to be fine-tuned on images with labels, or to give features of images."
    )


def results_text(config: dict, results: dict, run: dict) -> str:
    """The section of the numbers."""
    dataset = run["dataset"]
    pixels = (
        "pixels normalised by patch" if config["norm_pix_loss"] else "pixels as the image processor normalises them"
    )
    rows = [(f"Reconstruction loss (mean squared error of {pixels})", f"{results['eval_loss']:.4g}", "")]
    text = (
        f"The loss is the mean over the masked patches of {dataset['evaluation_rows']:,} evaluation images "
        f"({as_text(dataset['evaluation_split'])}), under the same masks at every evaluation."
    )
    if config["norm_pix_loss"]:
        text += (
            " A prediction of nothing but each patch's mean would have a loss of about 1, and less on plain patches."
        )
    if KNN in results:
        labelled = run.get("labelled")
        chance = interval(results[KNN], labelled["query_rows"]) if labelled else ""
        rows.append(("k-NN accuracy (top-1)", as_percent(results[KNN]), chance))
        text += " " + _neighbours(labelled)
    return "\n\n".join(["## Results", text, as_table(("Measure", "Value", "95 % interval"), rows)])


def _neighbours(labelled: dict | None) -> str:
    text = "The k-NN accuracy tells how good the features are before any fine-tuning: "
    if labelled is None:
        return text + "labelled images are classified by their 20 nearest neighbours, by the mean of the patch tokens."
    neighbours = min(20, labelled["bank_rows"])
    return text + (
        f"each of {labelled['query_rows']:,} images of {as_text(labelled['dataset'])} is classified by its {neighbours} "
        f"nearest neighbours among {labelled['bank_rows']:,} other labelled ones, by the mean of the patch tokens with "
        "nothing masked. The interval says how far chance alone, in the choice of these images, can move the number."
    )


def examples(target: str, config: dict, run: dict, published: Published) -> str:
    """Code that uses the model at the root of a repository; `target` is its name or folder as Python has it."""
    return (_with_library if published.needs_library else _with_transformers)(target, config, published)


def _with_transformers(target: str, config: dict, published: Published) -> str:
    prefix = 1 + config.get("num_register_tokens", 0)
    return f"""Features of images, with nothing masked:

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = {target}
image_processor = AutoImageProcessor.from_pretrained(model)
encoder = AutoModel.from_pretrained(model, mask_ratio=0.0{published.trust}).eval()
inputs = image_processor(Image.open("picture.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    tokens = encoder(**inputs).last_hidden_state
features = tokens[:, {prefix}:].mean(dim=1)  # (1, {config["hidden_size"]})
```

Encoder and decoder, which hide most of a picture and predict its pixels:

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForPreTraining

model = {target}
image_processor = AutoImageProcessor.from_pretrained(model)
autoencoder = AutoModelForPreTraining.from_pretrained(model{published.trust}).eval()
inputs = image_processor(Image.open("picture.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    outputs = autoencoder(**inputs)
print(outputs.loss.item(), outputs.logits.shape)  # pixels by patch
```"""


def _with_library(target: str, config: dict, published: Published) -> str:
    prefix = 1 + config["num_register_tokens"]
    tokens = "class token" if prefix == 1 else "class and register tokens"
    return f"""Fine-tune the encoder on your own classes; the decoder is left out, and the head is new:

```python
from hf_vitfm import ViTForImageClassification

model = {target}
classifier = ViTForImageClassification.from_pretrained(model, pooling="mean", num_labels=10)
```

Features of images, with nothing masked:

```python
import torch
from PIL import Image
from hf_vitfm import MAEModel, load_image_processor

model = {target}
image_processor = load_image_processor(model)
encoder = MAEModel.from_pretrained(model, mask_ratio=0).eval()
inputs = image_processor(Image.open("picture.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    tokens = encoder(**inputs).last_hidden_state
features = tokens[:, {prefix}:].mean(dim=1)  # without the {tokens}: (1, {config["hidden_size"]})
```

Hide most of a picture, and draw what the model makes of the rest:

```python
from PIL import Image
from hf_vitfm import MAEForPreTraining, load_image_processor
from hf_vitfm.evaluation.reconstruction import picture_reconstructions

model = {target}
image_processor = load_image_processor(model)
autoencoder = MAEForPreTraining.from_pretrained(model).eval()
inputs = image_processor(Image.open("picture.jpg").convert("RGB"), return_tensors="pt")
picture_reconstructions(autoencoder, inputs["pixel_values"], image_processor, "reconstruction.png", [{config["mask_ratio"]:g}])
```"""


def architecture(config: dict) -> str:
    """How the model works."""
    patches = count_patches(config)
    masked = patches - num_visible(patches, config["mask_ratio"])
    target = "normalised by their patch's mean and variance" if config["norm_pix_loss"] else "not normalised by patch"
    return (
        f"{cutting(config)} In pre-training, {masked} of these are masked, {MASKINGS[config['masking']]}, and "
        f"the encoder never sees them: {config['num_hidden_layers']} transformer layers of width {config['hidden_size']} "
        f"relate the visible ones to each other. A decoder of width {config['decoder_hidden_size']} and depth "
        f"{config['decoder_num_hidden_layers']} gets a mask token in the place of each masked patch, and predicts its "
        f"pixels, {target}. After pre-training the decoder is of use for drawing reconstructions only."
    )


def limitations(config: dict, results: dict, run: dict) -> list[str]:
    """Sentences on what speaks against the model, the weightiest first."""
    points = [
        "It knows no classes and names nothing in a picture; for that it has to be fine-tuned, with labels.",
        "It learned to predict pixels, not to tell things apart: its features before fine-tuning, and any number "
        "measured with them, say little of how good it is after fine-tuning.",
        "What it draws in masked patches is a blurred guess, and no evidence of what was there."
        + (
            " Mean and contrast of these patches are taken from the original for the picture."
            if config["norm_pix_loss"]
            else ""
        ),
        "Its loss can be compared with that of models of the same patch size, masking and normalisation only.",
        "How it does on pictures from elsewhere, on damaged pictures, or across groups of people was not measured.",
    ]
    return points


def citation(config: dict) -> str:
    """BibTeX of the method."""
    return MAE_CITATION
