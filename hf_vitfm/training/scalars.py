"""Parameters of one element, such as CLIP's temperature, used outside the model's forward pass and under FSDP2."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial


def flatten_scalars(model: nn.Module) -> list[str]:
    """Give parameters without a dimension one, of one element: `fully_shard` takes no scalars.

    The model computes the same. Call it before `fully_shard` and before the optimizer is made.

    Returns:
        The names of those parameters, whose files should hold scalars (`restore_scalars`).
    """
    names = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    for name in names:
        parent, _, last = name.rpartition(".")
        parameter = model.get_parameter(name)
        flat = nn.Parameter(parameter.detach().view(1), requires_grad=parameter.requires_grad)
        setattr(model.get_submodule(parent), last, flat)
    return names


def restore_scalars(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The state of a model as it was before `flatten_scalars`, which gave the names."""
    return state | {name: state[name].view(()) for name in names if name in state}


def whole_scalar(parameter: Tensor) -> Tensor:
    """A parameter of one element as a plain tensor, wherever it is sharded.

    Its gradient is reduced as FSDP and DDP do: to the mean over the processes. All of them have to call this.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    mesh = parameter.device_mesh
    value = parameter.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if value.requires_grad:
        value.register_hook(lambda gradient: gradient / mesh.size())
    return value


@torch.no_grad()
def limit(parameter: Tensor, maximum: float) -> None:
    """Put a parameter that is trained back to a maximum, where it has passed it."""
    if parameter.requires_grad:
        (parameter.to_local() if isinstance(parameter, DTensor) else parameter).clamp_(max=maximum)
