"""What somebody does who has transformers but not this library, in a process of their own (see `client`)."""

import importlib.abc
import os
import re
import sys

import huggingface_hub
import torch
import transformers


class _Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_vitfm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide_library() -> None:
    """From now on hf_vitfm cannot be imported; it must not have been before."""
    assert "hf_vitfm" not in sys.modules
    sys.meta_path.insert(0, _Hidden())


@torch.no_grad()
def computed(source: str, auto_class: str, inputs: dict, names: list[str], **kwargs) -> dict:
    """Named outputs of a model that an Auto class loads."""
    model = getattr(transformers, auto_class).from_pretrained(source, **kwargs).eval()
    output = model(**inputs)
    return {name: output[name] for name in names}


def loaded_class(source: str, auto_class: str, **kwargs) -> str:
    return str(type(getattr(transformers, auto_class).from_pretrained(source, **kwargs)))


def answers(task: str, source: str, picture: str, call: dict | None = None, **kwargs):
    """What a pipeline says of a picture."""
    return transformers.pipeline(task, model=source, **kwargs)(picture, **(call or {}))


def saved_again(source: str, auto_class: str, folder: str) -> None:
    """Load remote code, and save what came of it."""
    getattr(transformers, auto_class).from_pretrained(source, trust_remote_code=True).save_pretrained(folder)


def failures(sources: list[str], auto_class: str) -> list[str]:
    """The exception, or "none", of loading each of these folders."""
    found = []
    for source in sources:
        try:
            getattr(transformers, auto_class).from_pretrained(source, trust_remote_code=True)
            found.append("none")
        except (ImportError, OSError) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def run_snippets(card: str, folder: str, images: torch.Tensor) -> list[dict]:
    """Run the Python code of a card in a folder with picture.jpg, but for what imports the library.

    Returns:
        The tensors that each block leaves behind, by name, and what a model that it leaves makes of the images.
    """
    found, before = [], os.getcwd()
    os.chdir(folder)
    try:
        for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
            if "import hf_vitfm" in block or "from hf_vitfm" in block:
                continue
            names = {}
            exec(block, names)
            kept = {name: value for name, value in names.items() if isinstance(value, torch.Tensor)}
            if isinstance(names.get("model"), torch.nn.Module):
                model = names["model"].eval()
                with torch.no_grad():
                    output = getattr(model, "encode_image", model)(images)
                kept["output"] = getattr(output, "logits", output)
            found.append(kept)
    finally:
        os.chdir(before)
    return found


def validate(card: str) -> None:
    """Ask the Hub whether it takes a card."""
    huggingface_hub.ModelCard(card).validate()


def library_modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "hf_vitfm"]
