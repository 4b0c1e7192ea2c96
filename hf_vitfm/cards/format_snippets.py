"""How to load each of the formats that a repository holds."""

from .markdown import as_code


_TITLES = {
    "hf_vitfm": "hf_vitfm's own",
    "transformers": "transformers'",
    "dinov2": "transformers' DINOv2",
    "timm": "timm's",
    "open_clip": "open_clip's",
    "openai": "OpenAI CLIP's",
    "mae": "MAE's code",
    "jax": "vision_transformer's (JAX)",
}


def formats_section(formats: dict[str, str], repo_id: str | None, auto_class: str | None = None) -> str:
    """The section on formats, empty where there is only this library's without code.

    Args:
        formats: the name of the model's class by the name of the format; the first lies at the root, others in folders
            of their names.
        repo_id: owner and name.
        auto_class: what loads the code that lies beside the weights, "AutoModel" for instance; None without code.
    """
    root, *others = formats
    if root == "hf_vitfm" and not others and auto_class is None:
        return ""
    target = repr(repo_id).replace("'", '"') if repo_id else '"path/to/this/folder"'
    parts = ["## Formats", f"The files at the root are in {_TITLES[root]} format."]
    if auto_class is not None:
        parts.append("The code beside them loads them where hf_vitfm is not installed:")
        parts.append(
            _code(
                f"from transformers import {auto_class}",
                f"{auto_class}.from_pretrained({target}, trust_remote_code=True)",
            )
        )
    elif root != "hf_vitfm":
        parts.append(_snippet(root, formats[root], target, None))
    for name in others:
        parts.append(f"The folder {as_code(name)} holds the model in {_TITLES[name]} format:")
        parts.append(_snippet(name, formats[name], target, name))
    return "\n\n".join(parts)


def _snippet(name: str, class_name: str, target: str, folder: str | None) -> str:
    inside = f', subfolder="{folder}"' if folder else ""
    if name in ("transformers", "dinov2"):
        return _code(f"from transformers import {class_name}", f"{class_name}.from_pretrained({target}{inside})")
    if name in ("timm", "open_clip"):
        only = f', allow_patterns="{folder}/*"' if folder else ""
        place = f"{{folder}}/{folder}" if folder else "{folder}"
        build = f'create_model(f"local-dir:{place}"{", pretrained=True" if name == "timm" else ""})'
        fetch = f"from huggingface_hub import snapshot_download\n\nfolder = snapshot_download({target}{only})"
        return f"```python\nimport {name}\n{fetch}\nmodel = {name}.{build}\n```"
    return _code(f"from hf_vitfm import {class_name}", f"{class_name}.from_pretrained({target}{inside})")


def _code(first: str, value: str) -> str:
    return f"```python\n{first}\n\nmodel = {value}\n```"
