"""The average, LARS, clipping and state dicts on parameters sharded by `fully_shard` equal the unsharded run."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_vitfm.models.modeling_losses import classification_loss
from hf_vitfm.training.ema import WeightAverage
from hf_vitfm.training.lars import LARS
from hf_vitfm.training.optimization import parameter_groups
from hf_vitfm.training.targets import TargetScale
from tests.training.runs import make_model, make_rows


WHOLE = StateDictOptions(full_state_dict=True)


def train_some(optimizer: str, max_norm: float | None, directory: str | None = None) -> dict[str, torch.Tensor]:
    """Three float64 steps on 8 rows; sharded over the processes where there are several."""
    is_sharded = dist.is_initialized()
    rank, processes = (dist.get_rank(), dist.get_world_size()) if is_sharded else (0, 1)
    model = make_model(torch.float64)
    if is_sharded:
        mesh = dist.init_device_mesh("cpu", (processes,))
        for layer in model.vit.encoder.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(weight, DTensor) for weight in model.parameters())
    groups = parameter_groups(model, 0.1, weight_decay=0.1, layer_decay=0.8)
    stepper = LARS(groups, lr=0.1) if optimizer == "lars" else torch.optim.AdamW(groups, lr=0.1)
    average = WeightAverage(model, 0.7)
    rows = make_rows(24, dtype=torch.float64)
    for step in range(3):
        mine = rows[8 * step : 8 * step + 8][rank::processes]
        labels = torch.tensor([row["label"] for row in mine])
        logits = model(torch.stack([row["pixel_values"] for row in mine])).logits
        (classification_loss(logits, labels, num_items_in_batch=8) * processes).backward()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        stepper.step()
        stepper.zero_grad()
        average.update()
    weights = get_model_state_dict(model, options=WHOLE)
    weights |= {f"average of {name}": tensor.clone() for name, tensor in average.state_dict().items()}
    with average.applied():
        weights |= {
            f"applied {name}": tensor.clone() for name, tensor in get_model_state_dict(model, options=WHOLE).items()
        }
    if directory is not None:
        check_round_trips(model, average, directory, rank)
    return weights


def check_round_trips(model, average: WeightAverage, directory: str, rank: int) -> None:
    before = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    average.save(directory, is_writer=rank == 0)
    dist.barrier()
    average.update()
    average.load(directory)
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    state = get_model_state_dict(model, options=WHOLE)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    set_model_state_dict(model, dict(state), options=WHOLE)  # which it changes
    for name, tensor in get_model_state_dict(model, options=WHOLE).items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(("optimizer", "max_norm"), [("adamw", None), ("adamw", 0.01), ("lars", 0.5)])
def test_sharded_training_equals_unsharded(two_processes, tmp_path, optimizer, max_norm):
    expected = train_some(optimizer, max_norm)
    for found in two_processes.run(train_some, optimizer, max_norm, str(tmp_path)):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            if name.endswith("qkv.bias") and optimizer == "adamw":  # the key third has no true gradient
                continue
            torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-11, msg=name)


def restore_scale() -> dict[str, torch.Tensor]:
    model = make_model(torch.float64)
    torch.nn.init.normal_(model.classifier.bias)
    if dist.is_initialized():
        fully_shard(model, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
        assert isinstance(model.classifier.weight, DTensor)
    TargetScale([1.0, -2.0, 3.0], [0.5, 20.0, 1e3]).restore(model)
    return get_model_state_dict(model, options=WHOLE)


def test_a_sharded_head_gets_the_unit_of_the_data(two_processes):
    expected = restore_scale()
    for found in two_processes.run(restore_scale):
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=0, msg=name)
