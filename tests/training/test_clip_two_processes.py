"""CLIP's training on two processes is that on one, with and without gradient caching."""

import pytest
import torch
from transformers import Dinov2Config

from tests.process_pool import WorkerError
from tests.tiny import relative_error
from tests.training.clip_runs import train


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
@pytest.mark.parametrize("chunk", [None, 1, 2], ids=["at once", "four chunks", "two chunks"])
def test_two_processes_equal_one(two_processes, tmp_path, objective, chunk):
    fields = {"objective": objective}
    expected = train(tmp_path, fields)
    options = {"per_device_train_batch_size": 4, "grad_cache_chunk_size": chunk, "max_steps": 3}
    for found in two_processes.run(train, str(tmp_path), fields, **options):
        assert relative_error(found["losses"], expected["losses"]) < 1e-10  # the same on each, not their mean only
        assert relative_error(found["logged"], expected["losses"]) < 1e-4
        for name, weight in expected["weights"].items():
            assert relative_error(found["weights"][name], weight) < 1e-10, name


def train_locked(directory, **options):
    from tests.training.clip_runs import make_model, make_trainer

    model = make_model()
    model.lock_towers(vision=True)
    make_trainer(directory, model, **options).train()
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_two_processes_equal_one_with_a_locked_tower(two_processes, tmp_path):
    expected = train_locked(str(tmp_path))
    options = {"per_device_train_batch_size": 4, "grad_cache_chunk_size": 2}
    for found in two_processes.run(train_locked, str(tmp_path), **options):
        for name, weight in expected.items():
            assert relative_error(found[name], weight) < 1e-10, name


def train_foreign(directory, **options):
    from hf_vitfm import CLIPConfig, CLIPModel
    from tests.training.clip_runs import TEXT, TOWER, make_pairs, make_trainer

    sizes = {name: TOWER[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    vision = Dinov2Config(**sizes, image_size=8, patch_size=4, mlp_ratio=2)
    torch.manual_seed(0)
    fields = {"text_config": TEXT, "vision_config": vision, "vision_pooling": "cls", "projection_dim": 8}
    model = CLIPModel(CLIPConfig(**fields)).double().train()
    make_trainer(directory, model, make_pairs(), **options).train()
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("chunk", [None, 2], ids=["at once", "cached"])
def test_two_processes_equal_one_with_a_tower_that_was_pretrained_with_masks(two_processes, tmp_path, chunk):
    expected = train_foreign(str(tmp_path))
    options = {"per_device_train_batch_size": 4, "grad_cache_chunk_size": chunk}
    for found in two_processes.run(train_foreign, str(tmp_path), **options):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)  # biases of keys stay 0 but for rounding


def test_a_search_for_unused_weights_is_refused(two_processes, tmp_path):
    with pytest.raises(WorkerError, match="`ddp_find_unused_parameters` cannot be True for CLIP"):
        two_processes.run(train, str(tmp_path), per_device_train_batch_size=4, ddp_find_unused_parameters=True)
