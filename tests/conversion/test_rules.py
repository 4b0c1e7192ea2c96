"""Tables of weight names, in both directions."""

import pytest
import torch

from hf_vitfm.conversion.rules import Rule, to_ours, to_theirs, with_bias


RULES = [
    Rule("layers.{i}.qkv", ("block.{i}.q", "block.{i}.k", "block.{i}.v")),
    *with_bias("layers.{i}.norm", "block.{i}.ln"),
    Rule("token", ("cls",)),
    *with_bias("head", "fc", optional=True),
    Rule("joined", ("left", "right"), optional=True),
]


@pytest.fixture
def foreign():
    tensors = {"cls": torch.randn(1, 4), "fc.weight": torch.randn(2, 4), "fc.bias": torch.randn(2)}
    for i in range(12):
        for part in "qkv":
            tensors[f"block.{i}.{part}"] = torch.randn(4, 4)
        tensors |= {f"block.{i}.ln.weight": torch.randn(4), f"block.{i}.ln.bias": torch.randn(4)}
    return tensors


def test_every_layer_is_renamed_and_parts_are_joined_in_order(foreign):
    ours = to_ours(foreign, RULES, 12)
    assert torch.equal(ours["layers.11.qkv"], torch.cat([foreign[f"block.11.{part}"] for part in "qkv"]))
    assert torch.equal(ours["layers.1.norm.bias"], foreign["block.1.ln.bias"])
    assert torch.equal(ours["token"], foreign["cls"])
    assert len(ours) == 12 * 3 + 3


def test_both_directions_undo_each_other(foreign):
    back = to_theirs(to_ours(foreign, RULES, 12), RULES, 12)
    assert set(back) == set(foreign)
    assert all(torch.equal(back[name], foreign[name]) and back[name].is_contiguous() for name in foreign)


def test_optional_tensors_may_be_absent_altogether(foreign):
    del foreign["fc.weight"], foreign["fc.bias"]
    assert not any(name.startswith("head") for name in to_ours(foreign, RULES, 12))


def test_part_of_an_optional_tensor_is_not_enough(foreign):
    foreign["left"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 missing \(right\), 0 unexpected"):
        to_ours(foreign, RULES, 12)


def test_missing_and_left_over_names_are_counted_and_the_first_five_named(foreign):
    for i in range(6):
        del foreign[f"block.{i}.k"]
        foreign[f"more.{i}"] = torch.zeros(1)
    with pytest.raises(ValueError) as raised:
        to_ours(foreign, RULES, 12)
    message = str(raised.value)
    assert "6 missing (block.0.k, block.1.k, block.2.k, block.3.k, block.4.k)" in message
    assert "6 unexpected (more.0, more.1, more.2, more.3, more.4)" in message


@pytest.mark.parametrize("layers", [11, 13])
def test_wrong_number_of_layers_is_an_error(foreign, layers):
    with pytest.raises(ValueError, match="block.11.q" if layers == 11 else "block.12.q"):
        to_ours(foreign, RULES, layers)


def test_tensor_without_a_place_in_the_foreign_format_is_an_error_that_names_it(foreign):
    ours = {**to_ours(foreign, RULES, 12), "registers": torch.zeros(1), "layers.12.qkv": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"no place for 2 weights: layers.12.qkv, registers"):
        to_theirs(ours, RULES, 12)
