"""What MAE's training leaves out: that it is left out, and that nothing else changes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_vitfm.models.modeling_embeddings import as_pair
from hf_vitfm.models.modeling_encoder import Encoder
from hf_vitfm.models.modeling_masking import invert_order
from tests.tiny import random_images, randomize, tiny_config, tiny_mae


def step(model, return_logits: bool, dtype=torch.float64):
    """Loss and gradients of one step on three images."""
    model = model.to(dtype).train()
    model.zero_grad()
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(2))
    height, width = as_pair(model.config.image_size)
    output = model(random_images(3, height, width).to(dtype), noise, return_logits=return_logits)
    output.loss.backward()
    assert (output.logits is not None) == return_logits
    return output.loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm_pix_loss": True, "mask_ratio": 0.4},
        {"num_register_tokens": 2, "qkv_bias": False},
        {"decoder_num_hidden_layers": 1, "image_size": (16, 64)},
    ],
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_loss_and_gradients_do_not_depend_on_whether_logits_are_wanted(fields, implementation):
    model = tiny_mae(**fields)
    model.set_attn_implementation(implementation)
    (loss, found), (expected_loss, expected) = step(model, False), step(model, True)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12, msg=name)


def test_the_visible_patches_cost_nothing_behind_the_last_keys_and_values():
    model, flops = tiny_mae(), []
    for return_logits in (True, False):
        with FlopCounterMode(display=False) as counter:
            step(model, return_logits, torch.float32)
        flops.append(counter.get_total_flops())
    config = model.config
    width, hidden, values = config.decoder_hidden_size, config.decoder_intermediate_size, 8 * 8 * 3
    visible, tokens = 3 * 4, 17
    products = width**2 + 2 * width * hidden + width * values  # proj, fc1 and fc2, pixel head
    matrices = 3 * 2 * visible * products  # forward and both gradients
    attention = (2 + 5) * 2 * visible * tokens * width  # scores and weighted sums; five products backward
    assert flops[0] - flops[1] == matrices + attention


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("num_outputs", [1, 5, 9])
def test_an_encoder_gives_the_last_outputs_alone(implementation, num_outputs):
    config = tiny_config(layer_scale_init_value=0.5)
    config._attn_implementation = implementation
    model, x = randomize(Encoder(config)).double(), torch.randn(2, 9, 32, dtype=torch.float64)
    expected = model(x, output_attentions=True, output_hidden_states=True)
    found = model(x, output_attentions=True, output_hidden_states=True, num_outputs=num_outputs)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state[:, -num_outputs:])
    torch.testing.assert_close(found.attentions[-1], expected.attentions[-1][:, :, -num_outputs:])
    for name in ("hidden_states", "attentions"):
        torch.testing.assert_close(getattr(found, name)[:-1], getattr(expected, name)[:-1], rtol=0, atol=0)


def test_a_mask_and_fewer_outputs_are_refused():
    for model, mask in ((Encoder(tiny_config()), torch.ones(2, 9)), (Encoder(tiny_config(), is_causal=True), None)):
        with pytest.raises(ValueError, match="num_outputs"):
            model(torch.randn(2, 9, 32), mask, num_outputs=3)


def test_an_order_and_its_inverse():
    order = torch.stack([torch.randperm(7) for _ in range(4)])
    assert torch.equal(invert_order(order), order.argsort(dim=1))
    assert torch.equal(invert_order(invert_order(order)), order)


def test_chosen_patches_are_those_of_all():
    model, images = tiny_mae(image_size=(16, 64)), random_images(2, 16, 64)
    indices = torch.tensor([[3, 0, 15], [8, 7, 9]])
    every = model.patchify(images)
    assert torch.equal(model.patchify(images, indices), torch.stack([every[0, indices[0]], every[1, indices[1]]]))


def test_without_masking_and_logits_the_decoder_does_not_run():
    model = tiny_mae(mask_ratio=0).train()
    model.decoder.register_forward_hook(lambda *_: pytest.fail("the decoder ran"))
    output = model(random_images())
    assert output.loss is None and output.logits is None
