"""The card of a model that comes without the files of a training run: what its configuration tells, and no more."""

from types import SimpleNamespace

from huggingface_hub import ModelCardData

from . import classification_card, contrastive_card, pretraining_card
from .architecture import architecture_section
from .markdown import as_code, as_count, as_table, as_text
from .model_card import MARKER
from .results import MEASURES, SINGLE
from .usage import Published, usage_section


_KINDS = {  # by the end of a class's name
    "ForImageClassification": (classification_card, "image-classification"),
    "MAEModel": (pretraining_card, None),
    "MAEForPreTraining": (pretraining_card, None),
    "CLIPModel": (contrastive_card, "zero-shot-image-classification"),
    "ViTModel": (None, "image-feature-extraction"),
}
_OWN_TYPE = "vitfm_"


def bare_card(
    config: dict,
    processor: dict | None,
    parameters: int,
    versions: dict[str, str],
    published: Published,
    repo_id: str | None = None,
) -> str:
    """The text of a README.md that says what the model is and how to load it, and that the rest is not known.

    Args:
        config: of config.json; the first of `architectures` is the model's class.
        processor: of preprocessor_config.json; None without one.
        parameters: their number.
        versions: of the libraries that wrote the files, by name.
        published: how the repository holds the model.
        repo_id: owner and name, for the code.
    """
    class_name = (config.get("architectures") or ["model"])[0]
    kind, task = next((found for end, found in _KINDS.items() if class_name.endswith(end)), (None, None))
    is_own = str(config.get("model_type")).startswith(_OWN_TYPE)
    if not is_own and kind is not classification_card:
        kind = None  # the others' examples are for our classes
    tags = [*(["hf_vitfm"] if is_own else []), "vision", *([task] if task else [])]
    metadata = ModelCardData(
        library_name=published.library,
        pipeline_tag=task,
        tags=tags + (["custom_code"] if published.remote_code else []),
    )
    named = config.get("problem_type")
    run = {"problem_type": named if named in MEASURES else SINGLE}
    citation = kind.citation(config).strip() if kind is not None and is_own else ""
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        MARKER,
        f"# {as_text(repo_id.split('/')[-1] if repo_id else class_name)}\n\nA {as_code(class_name)} of "
        f"{as_count(parameters)} parameters.",
        usage_section(kind or _plain_kind(class_name, is_own), repo_id, config, run, published),
        ""
        if processor
        else "No image processor was published with it: how pictures have to be prepared is not known.",
        architecture_section("", config, processor or {}, {"parameters": parameters}),
        "## Training, results and limitations\n\nNot known: the model was published without the files of a training "
        "run. On what images it was trained, how well it does and what it gets wrong, and under what licence it may be "
        "used, its publisher has to say.",
        "## Versions\n\n" + as_table(("Library", "Version"), [tuple(map(as_text, item)) for item in versions.items()]),
        f"## Citation\n\n```bibtex\n{citation}\n```" if citation else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _plain_kind(class_name: str, is_own: bool) -> SimpleNamespace:
    """What `usage_section` needs of a model of no kind: code that loads it."""
    auto = "AutoModel" if is_own else class_name

    def examples(target: str, config: dict, run: dict, published: Published) -> str:
        return (
            f"```python\n{published.imports}from transformers import {auto}\n\nmodel = {target}\n"
            f"model = {auto}.from_pretrained(model{published.trust})\n```"
        )

    return SimpleNamespace(AUTO_CLASS=auto, examples=examples)
