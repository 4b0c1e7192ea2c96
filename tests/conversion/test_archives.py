"""Single weight files: nested dictionaries, harmless arguments, programs, bombs, and shapes without tensors."""

import argparse
import io
import logging
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_vitfm.conversion.archives import read_shapes, read_tensors


@pytest.fixture
def tensors():
    return {"layer.weight": torch.randn(3, 4), "layer.bias": torch.randn(3).half()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def prefixed(tensors, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


NESTED = {
    "plain": lambda tensors: tensors,
    "with numbers": lambda tensors: {**tensors, "epoch": 3, "name": "x"},
    "model": lambda tensors: {"model": tensors, "epoch": 3, "optimizer": {"state": {0: torch.zeros(9)}}},
    "state_dict": lambda tensors: {"state_dict": tensors, "best": torch.tensor(0.5)},
    "twice": lambda tensors: {"model": {"state_dict": tensors}},
    "arguments": lambda tensors: {"model": tensors, "args": argparse.Namespace(lr=0.1, output_dir="out")},
    "DDP": lambda tensors: {"model_state_dict": prefixed(tensors, "module.")},
    "compiled DDP": lambda tensors: prefixed(tensors, "module._orig_mod."),
    "average beside": lambda tensors: {"model": tensors, "model_ema": prefixed(tensors, "other.")},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", NESTED)
def test_weights_are_found_in_what_training_scripts_save(tmp_path, tensors, name, legacy):
    torch.save(NESTED[name](tensors), tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    assert_same(read_tensors(tmp_path / "x.pth"), tensors)
    assert read_shapes(tmp_path / "x.pth") == {"layer.weight": (3, 4), "layer.bias": (3,)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda tensors: {"model": tensors, "model_ema": tensors}, "also holds averaged weights, under 'model_ema'"),
        (lambda tensors: {"state_dict_ema": tensors}, "only averaged weights, under 'state_dict_ema'"),
    ],
)
def test_averaged_weights_are_said(tmp_path, tensors, caplog, content, said):
    torch.save(content(tensors), tmp_path / "x.pth")
    with caplog.at_level(logging.WARNING):
        assert_same(read_tensors(tmp_path / "x.pth"), tensors)
    assert said in caplog.text


@pytest.mark.parametrize("content", [{}, [], 3, {"model": {}}, {"epoch": 3, "teacher": {"a": torch.zeros(1)}}])
def test_file_without_weights_says_what_it_holds(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="x.pth holds no weights that can be found: .*alone or under 'model'"):
        read_tensors(tmp_path / "x.pth")


def test_dictionary_in_itself_ends(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="no weights"):
        read_tensors(tmp_path / "x.pth")


class Arguments(argparse.Namespace):
    """A subclass may hold code, so it is not the class that is allowed."""


def test_only_the_plain_namespace_is_allowed(tmp_path, tensors):
    torch.save({"model": tensors, "args": Arguments(lr=0.1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="never loaded because they can run code"):
        read_tensors(tmp_path / "x.pth")
    torch.save({"args": argparse.Namespace(lr=0.1)}, tmp_path / "y.pth")
    with pytest.raises(Exception, match="argparse.Namespace"):  # the allowance ended with the reading
        torch.load(tmp_path / "y.pth", weights_only=True)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused_naming_where_the_weights_can_be_had(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(ValueError, match="TorchScript archive, a program.*'openai/clip-vit-base-patch32'"):
        read_tensors(tmp_path / "ViT-B-32.pt")


def test_sparse_tensors_are_refused(tmp_path):
    torch.save({"weight": torch.eye(3).to_sparse()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="'weight' as a sparse"):
        read_tensors(tmp_path / "x.pth")


# Bombs: small files that describe much.


def test_tensor_that_repeats_one_number_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1).expand(10**11)}, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < 10_000
    for read in (read_tensors, read_shapes):
        with pytest.raises(ValueError, match=r"describes 400,000,000,000"):
            read(tmp_path / "x.pth")


def test_compressed_torch_archive_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(10**5)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as plain, zipfile.ZipFile(tmp_path / "y.pth", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match="compressed archive"):
        read_tensors(tmp_path / "y.pth")


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_npz(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)


def test_npz_of_zeros_that_fill_memory_is_refused(tmp_path):
    write_npz(tmp_path / "x.npz", {"a": npy(np.zeros(6 * 10**6, np.float32))})
    for read in (read_tensors, read_shapes):
        with pytest.raises(ValueError, match="describes 24,000,"):
            read(tmp_path / "x.npz")


def test_npz_whose_shape_is_not_its_size_is_refused_before_memory_is_taken(tmp_path):
    content = npy(np.zeros((11, 11), np.float32)).replace(b"(11, 11)", b"(99, 99)")
    write_npz(tmp_path / "x.npz", {"a": content})
    for read in (read_tensors, read_shapes):
        with pytest.raises(ValueError, match=r"'a.npy' takes 612 bytes, and its shape \(99, 99\) needs"):
            read(tmp_path / "x.npz")


def pickled(call: bytes, is_zip: bool) -> bytes:
    """A file whose pickle is one call."""
    if not is_zip:
        magic = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
        return b"".join(pickle.dumps(part, 2) for part in magic) + call + pickle.dumps([], 2)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"data.pkl": call, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    "name", ["builtins\nbytearray", "torch._utils\n_rebuild_device_tensor_from_cpu_tensor", "__builtin__\nbytearray"]
)
def test_calls_that_fill_memory_are_refused_before_they_are_made(tmp_path, is_zip, name):
    call = b"\x80\x02c" + name.encode() + b"\nJ\x00\x00\x00\x01\x85R."
    (tmp_path / "x.bin").write_bytes(pickled(call, is_zip))
    for read in (read_tensors, read_shapes):
        with pytest.raises(ValueError, match="pickled with calls that no weights need"):
            read(tmp_path / "x.bin")


def test_threads_do_not_take_the_allowed_class_from_each_other(tmp_path, tensors):
    torch.save({"model": tensors, "args": argparse.Namespace(lr=0.1)}, tmp_path / "x.pth")
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(read_tensors, [tmp_path / "x.pth"] * 200):
            assert_same(found, tensors)


# What is read


def test_npz_is_read_with_all_number_types_and_without_text(tmp_path):
    arrays = {
        "params/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "big/endian": np.arange(3, dtype=">f4"),
        "scalar": np.float64(3.5),
        "half": np.ones(2, np.float16),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    np.savez_compressed(tmp_path / "x.npz", **arrays, text=np.array("hello"))
    found = read_tensors(tmp_path / "x.npz")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), array)
    assert read_shapes(tmp_path / "x.npz") == {name: np.shape(array) for name, array in arrays.items()}


def test_bfloat16_of_jax_is_read(tmp_path):
    values = torch.tensor([1.5, -2.0, 3.25]).bfloat16()
    np.savez(tmp_path / "x.npz", a=values.view(torch.int16).numpy().view("V2"))
    assert_same(read_tensors(tmp_path / "x.npz"), {"a": values})


def test_objects_in_npz_are_never_loaded(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"b": 1}], dtype=object), weight=np.ones(2, np.float32))
    assert set(read_tensors(tmp_path / "x.npz")) == {"weight"}


def test_shapes_of_safetensors_are_read_from_the_header(tmp_path, tensors):
    save_file(tensors, tmp_path / "x.safetensors")
    assert read_shapes(tmp_path / "x.safetensors") == {"layer.weight": (3, 4), "layer.bias": (3,)}
