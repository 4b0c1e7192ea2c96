"""The towers of CLIP among the weights of a file: parts, prefixes, and the names that our classes give them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..models.configuration_base import as_pair
from ..models.modeling_clip_towers import CLIPTextModel, CLIPTextPreTrainedModel, CLIPVisionModel
from .rules import Rule, to_ours, to_theirs


@dataclass(frozen=True)
class Tower:
    """One tower in a foreign format.

    Attributes:
        name: its prefix among the weights of a whole, without the dot.
        projection: the name of our projection to the joint space.
        ours: our configuration class.
        theirs: the format's configuration class.
        fields: names of fields that mean the same, ours -> theirs.
        rules: names of weights.
        leading: our weights that have axes of length 1 in front which theirs lack, and how many.
    """

    name: str
    projection: str
    ours: type
    theirs: type
    fields: Mapping[str, str]
    rules: Sequence[Rule]
    leading: Mapping[str, int] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """Its name among the fields of a whole configuration."""
        return self.name.replace("model", "config")

    @property
    def prefix(self) -> str:
        """What the names of its weights begin with in a whole."""
        return f"{self.name}."


def is_text(model_class: type) -> bool:
    """Whether one of our classes of a single tower is a text tower."""
    return issubclass(model_class, CLIPTextPreTrainedModel)


def check_pixels(name: str, size) -> None:
    """Refuse what is no size of an image or a patch: neither one number nor (height, width).

    Raises:
        ValueError: naming the field.
    """
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
    if not all(isinstance(side, int) for side in sides):
        raise ValueError(f"The configuration's `{name}` must be pixels, one number or (height, width); got {size!r}.")


def image_fields(image_size, patch_size) -> dict:
    """Our fields for images that another library cuts into whole patches, whether any pixels are left over or not."""
    check_pixels("image_size", image_size)
    check_pixels("patch_size", patch_size)
    height, width = as_pair(image_size)
    patch_height, patch_width = as_pair(patch_size)
    rest = height % patch_height, width % patch_width
    if not any(rest):
        return {"image_size": image_size, "patch_size": patch_size}
    left = height - rest[0], width - rest[1]
    image_size = left[0] if isinstance(image_size, int) and left[0] == left[1] else left
    return {"image_size": image_size, "patch_size": patch_size, "trim_images": True}


def prefixed(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights with a prefix to their names."""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def part(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights with a prefix, without it, and without the numbered positions that old files hold."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state_dict.items()
        if name.startswith(prefix) and not name.endswith("embeddings.position_ids")
    }


def projection_of(tower: Tower, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a tower's projection, under their names in a whole."""
    return {name: tensor for name, tensor in state_dict.items() if name.startswith(f"{tower.projection}.")}


def our_weights(tower: Tower, weights: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Convert the weights of a tower, named without its prefix."""
    weights = to_ours(weights, tower.rules, num_layers)
    return {name: tensor[(None,) * tower.leading.get(name, 0)] for name, tensor in weights.items()}


def their_weights(tower: Tower, weights: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Convert the weights of one of our towers, named without its prefix."""
    weights = {name: tensor[(0,) * tower.leading.get(name, 0)] for name, tensor in weights.items()}
    return to_theirs(weights, tower.rules, num_layers)


def assemble(
    model_class: type, tower: Tower, weights: dict[str, Tensor], projection: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of a tower as one of our classes names them; those of the projection have their names already."""
    if issubclass(model_class, CLIPTextModel | CLIPVisionModel):
        return weights
    return {**prefixed(weights, tower.prefix), **projection}
