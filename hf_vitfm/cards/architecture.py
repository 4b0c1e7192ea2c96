"""The section on the model itself: its sizes, and how pictures are prepared for it."""

from .markdown import as_pair, as_size, as_table


PROPERTIES = {
    "num_hidden_layers": "Layers",
    "hidden_size": "Width",
    "num_attention_heads": "Attention heads",
    "intermediate_size": "Width of the MLP",
    "decoder_num_hidden_layers": "Layers of the decoder",
    "decoder_hidden_size": "Width of the decoder",
    "decoder_num_attention_heads": "Attention heads of the decoder",
    "decoder_intermediate_size": "Width of the decoder's MLP",
    "num_channels": "Channels",
}
RESAMPLING = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}


def architecture_section(text: str, config: dict, processor: dict, run: dict) -> str:
    """The section, with a text of how the model works (empty where that is not known)."""
    rows = [(label, config[key]) for key, label in PROPERTIES.items() if key in config]
    sizes = {"image_size": "Image size, pixels", "patch_size": "Patch size, pixels"}
    rows += [(label, as_size(config[key])) for key, label in sizes.items() if key in config]
    rows.append(("Parameters", f"{run['parameters']:,}"))
    parts = ["## The model", text, as_table(("Property", "Value"), rows), _preprocessing(processor)]
    return "\n\n".join(part for part in parts if part)


def count_patches(config: dict) -> int:
    """Patches of an image of the configuration's size."""
    (height, width), (patch_height, patch_width) = as_pair(config["image_size"]), as_pair(config["patch_size"])
    return (height // patch_height) * (width // patch_width)


def cutting(config: dict) -> str:
    """The sentence on how an image becomes patches."""
    return (
        f"An image of {as_size(config['image_size'])} pixels is cut into {count_patches(config)} patches of "
        f"{as_size(config['patch_size'])} pixels."
    )


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
