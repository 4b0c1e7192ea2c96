"""The section of a card on how to use the model, which depends on how its repository holds it."""

from dataclasses import dataclass
from types import ModuleType

from .markdown import as_code


OWN = "hf_vitfm"
_TRANSFORMERS = ("transformers", "dinov2")
_TITLES = {
    OWN: "hf_vitfm's own format",
    "transformers": "transformers' format",
    "dinov2": "transformers' DINOv2 format",
    "timm": "timm's format",
    "open_clip": "open_clip's format",
    "openai": "the format of OpenAI's CLIP",
    "mae": "the format of MAE's code",
    "jax": "the format of the Vision Transformer's code for JAX",
}
_INSTALL = "```bash\npip install hf-vitfm\n```"
_CODE = """The code of the model lies beside its weights, so that transformers loads it where hf_vitfm is not installed. \
`trust_remote_code=True` says that this code from the repository may run on your machine, with all that you may do \
there: read it first, and add `revision=` with the commit that you have read, so that no later code runs. Where \
hf_vitfm is installed, `import hf_vitfm` first: its classes are used then, no code of the repository runs, and the \
argument is needless."""


@dataclass(frozen=True)
class Published:
    """How a repository holds a model.

    Attributes:
        formats: the first lies at the root, the others in folders of their names.
        remote_code: whether the code lies beside the weights at the root.
    """

    formats: tuple[str, ...] = (OWN,)
    remote_code: bool = False

    def __post_init__(self):
        if not self.formats or set(self.formats) - set(_TITLES) or len(set(self.formats)) < len(self.formats):
            raise ValueError(f"`formats` must be different ones of {', '.join(_TITLES)}; got {self.formats!r}.")
        if self.remote_code and self.root != OWN:
            raise ValueError(f"`remote_code` goes with {OWN!r} at the root; got {self.root!r}. Name {OWN!r} first.")

    @property
    def root(self) -> str:
        return self.formats[0]

    @property
    def library(self) -> str:
        """What the Hub is told to load the root with."""
        if self.remote_code or self.root in _TRANSFORMERS:
            return "transformers"
        return self.root if self.root in ("timm", "open_clip") else OWN

    @property
    def needs_library(self) -> bool:
        """Whether the examples need this library."""
        return self.root == OWN and not self.remote_code

    @property
    def imports(self) -> str:
        """The first line of an example that goes on with transformers' Auto classes."""
        return "import hf_vitfm  # registers the model classes with transformers\n" if self.needs_library else ""

    @property
    def trust(self) -> str:
        """The last argument of what loads the model."""
        return ", trust_remote_code=True" if self.remote_code else ""


def usage_section(kind: ModuleType, repo_id: str | None, config: dict, run: dict, published: Published) -> str:
    """The section, for what the root holds and for each of the other formats.

    Args:
        kind: the module of the card's kind.
        repo_id: owner and name; None if the model is in a folder.
        config: of this library's or transformers' configuration.
        run: of run.json; the fields that `kind.examples` needs.
        published: how the repository holds the model.
    """
    target = f'"{repo_id}"' if repo_id else '"path/to/this/folder"  # or the Hub id of this repository'
    parts = ["## How to use it"]
    if published.root == OWN or published.root in _TRANSFORMERS:
        parts.append(_CODE if published.remote_code else _INSTALL if published.needs_library else "")
        parts.append(kind.examples(target, config, run, published))
    else:
        parts += [f"The files are in {_TITLES[published.root]}.", _snippet(kind, published.root, repo_id, None)]
    for name in published.formats[1:]:
        parts.append(f"The folder {as_code(name)} holds the model in {_TITLES[name]}:")
        parts.append(_snippet(kind, name, repo_id, name))
    return "\n\n".join(part for part in parts if part)


def _snippet(kind: ModuleType, name: str, repo_id: str | None, folder: str | None) -> str:
    """Code that loads one format, from the root or a folder; for code that reads bare files, what fetches them."""
    target, inside = f'"{repo_id or "path/to/this/folder"}"', f', subfolder="{folder}"' if folder else ""
    if name in ("timm", "open_clip"):
        lines = _fetched(name, repo_id, folder)
    elif name == OWN or name in _TRANSFORMERS:
        lines = ["import hf_vitfm  # pip install hf-vitfm"] if name == OWN else []
        lines += [f"from transformers import {kind.AUTO_CLASS}", ""]
        lines.append(f"model = {kind.AUTO_CLASS}.from_pretrained({target}{inside})")
    else:
        chosen = f' --include "{folder}/*"' if folder else ""
        return f"```bash\nhf download {repo_id}{chosen} --local-dir .\n```" if repo_id else ""
    return "\n".join(["```python", *lines, "```"])


def _fetched(name: str, repo_id: str | None, folder: str | None) -> list[str]:
    """Code for libraries that read the root of a repository, or a folder of this machine."""
    lines, inside = [f"import {name}", ""], f"/{folder}" if folder else ""
    if not repo_id:
        place = f'"local-dir:path/to/this/folder{inside}"'
    elif name == "timm" and not folder:
        place = f'"hf-hub:{repo_id}"'
    else:
        reason = "no folder of a repository" if folder else "no tokenizer of a repository"
        chosen = f', allow_patterns="{folder}/*"' if folder else ""
        lines[1:] = [
            "from huggingface_hub import snapshot_download",
            "",
            f'files = snapshot_download("{repo_id}"{chosen})  # {name} itself reads {reason}',
        ]
        place = f'f"local-dir:{{files}}{inside}"'
    if name == "timm":
        return [*lines, f"model = timm.create_model({place}, pretrained=True)"]
    return [
        *lines,
        f"model, _, preprocess = open_clip.create_model_and_transforms({place})",
        f"tokenizer = open_clip.get_tokenizer({place})",
    ]
