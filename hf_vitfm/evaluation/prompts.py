"""Prompts, the texts that name classes, and their embeddings."""

import warnings
from collections.abc import Iterator, Sequence
from string import Formatter
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.pair_collator import PairCollator
from ..data.tokenizers import check_tokenizer, longest_text
from ..models.configuration_clip import VitfmCLIPConfig, VitfmCLIPTextConfig
from .feature_pooling import joint_embeds
from .features import SILENT_SECONDS
from .modes import evaluating


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_POOLED_AT_THE_END = ("clip", VitfmCLIPConfig.model_type)  # the tokenizer has to end texts as the tower expects it


def write_prompts(classnames: Sequence[str], templates: Sequence[str]) -> dict[str, list[int]]:
    """Put every class name into every template.

    Args:
        classnames: in the order of the class ids.
        templates: each with one "{}" for the name.

    Returns:
        The prompts, each with the ids of its classes: one for every template that makes it.

    Raises:
        ValueError: if there are no names or templates, a prompt is empty, or a template has no place for the name, several,
            or other braces; doubled ones, "{{", stand for themselves.

    Warns:
        UserWarning: if a name is empty, as one of clip-benchmark's distances is in "{} shapes.", or classes have the same
            name, as two pairs of ImageNet's have in CLIP's list.
    """
    if isinstance(templates, str) or not isinstance(templates, Sequence) or not templates:
        raise ValueError(f'`templates` must be a list of texts such as "a photo of a {{}}."; got {templates!r}.')
    for template in templates:
        check_template(template)
    _check_classnames(classnames, any(not template.format("").strip() for template in templates))
    prompts: dict[str, list[int]] = {}
    for number, name in enumerate(classnames):
        for template in templates:
            prompts.setdefault(template.format(name), []).append(number)
    return prompts


def _check_classnames(classnames: Sequence[str], must_say_something: bool) -> None:
    if isinstance(classnames, str) or not isinstance(classnames, Sequence) or not classnames:
        raise ValueError(f"`classnames` must be a list of names, one per class; got {classnames!r}.")
    for number, name in enumerate(classnames):
        if not isinstance(name, str) or (must_say_something and not name.strip()):
            raise ValueError(f"`classnames` must be texts that are not empty; that of class {number} is {name!r}.")
        if not name.strip():
            warnings.warn(
                f"The name of class {number} is empty: its prompts are the templates with nothing in them. Check that no "
                "blank line has got among the names, which moves the later ones by a class.",
                stacklevel=3,
            )
    repeats = repeated_names(classnames)
    if repeats:
        pairs = ", ".join(f"{first} and {later} ({classnames[later]!r})" for later, first in repeats.items())
        plural = "classes" if len(repeats) > 1 else "class"
        warnings.warn(
            f"Some classes have the same name: {pairs}. No image can be told to be of the later {plural}; it counts as of "
            "the first. Say what tells them apart, unless a published list is to be followed.",
            stacklevel=3,
        )


def repeated_names(classnames: Sequence[str]) -> dict[int, int]:
    """The classes whose name an earlier class has, each with the first class of that name."""
    first: dict[str, int] = {}
    owners = {number: first.setdefault(name, number) for number, name in enumerate(classnames)}
    return {number: owner for number, owner in owners.items() if owner != number}


def check_template(template: str) -> None:
    """Check that a template has one place for the name of a class.

    Raises:
        ValueError: if it has none, several, or other braces.
    """
    try:
        places = [parts[1:] for parts in Formatter().parse(template) if parts[1] is not None]
    except (TypeError, ValueError) as error:
        places = [error]
    if places != [("", "", None)]:
        raise ValueError(
            f'a template must hold "{{}}" once, where the class name goes, as "a photo of a {{}}." does; got {template!r}. '
            'A brace that is part of the text is written twice: "{{" or "}}".'
        )


def tokenize_prompts(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]
) -> dict[str, Tensor]:
    """Tokenise texts as a model's text tower takes them.

    Args:
        model: has `get_text_features`.
        tokenizer: of the model. Texts that are longer than the text tower takes are cut; their end token stays.
        prompts: at least one.

    Returns:
        `input_ids`, `attention_mask` and whatever else the tokenizer gives, each (texts, length).

    Raises:
        ValueError: if the model has no text features, or the tokenizer does not fit it.
    """
    if not hasattr(model, "get_text_features"):
        raise ValueError(
            f"{type(model).__name__} has no `get_text_features`. Pass an image-text model, such as `AutoModel` loads from "
            "a CLIP checkpoint."
        )
    config = getattr(model.config, "text_config", model.config)
    if model.config.model_type in _POOLED_AT_THE_END:
        check_tokenizer(tokenizer, config)
    limit = longest_text(tokenizer, config)
    if not _reads_padding(model):
        return PairCollator(tokenizer, limit).tokenize(prompts)
    inputs = PairCollator(tokenizer, limit, padding="max_length").tokenize(prompts)
    return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}


@torch.no_grad()
def embed_prompts(
    model: nn.Module,
    inputs: dict[str, Tensor],
    batch_size: int = 256,
    group: dist.ProcessGroup | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Embed texts, those of one length together: without padding, each gives what it gives alone, whatever the tower.

    SigLIP's alone are filled up, as it was trained.

    Args:
        model: has `get_text_features`; it is used on its device, in evaluation mode, and left as it was.
        inputs: the texts, from `tokenize_prompts`.
        batch_size: texts per forward pass.
        group: processes that share the texts, all of which call this; None = this process alone.

    Yields:
        The places of some texts, and their embeddings (texts, dim) as the model gives them. With a group, each text
        comes on one process; all get equally many batches, some of which may be of no texts.
    """
    lengths = inputs["attention_mask"].sum(dim=1)
    batches = [
        batch for length in lengths.unique() for batch in (lengths == length).nonzero().flatten().split(batch_size)
    ]
    rank, processes = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    device = next(model.parameters()).device
    turns = range(rank, rank + len(batches), processes)
    with evaluating(model):
        for number in tqdm(turns, desc="prompts", delay=SILENT_SECONDS, disable=rank > 0 or None, leave=False):
            # They may share the weights too (`fully_shard`): who has nothing left to do runs with the others.
            rows = batches[min(number, len(batches) - 1)]
            is_text = inputs["attention_mask"][rows[0]].bool()
            batch = {name: values[rows][:, is_text].to(device) for name, values in inputs.items()}
            if _reads_padding(model):
                del batch["attention_mask"]
            embeds = joint_embeds(model.get_text_features(**batch))
            own = slice(None) if number < len(batches) else slice(0)
            yield rows[own].tolist(), embeds[own]


def _reads_padding(model: nn.Module) -> bool:
    """Whether the text tower looks at the padding and pools there, as SigLIP's does in whatever library."""
    text = getattr(model.config, "text_config", None)
    is_ours = isinstance(text, VitfmCLIPTextConfig) and text.pooling == "last"
    return is_ours or "siglip" in model.config.model_type
