"""Single weight files: nested dictionaries, harmless arguments, programs, bombs, and shapes without tensors."""

import argparse
import io
import logging
import pickle
import time
import tracemalloc
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


def test_numbers_that_changed_on_the_way_are_refused(tmp_path, tensors):
    path = tmp_path / "x.pth"
    torch.save({"model": tensors}, path)
    content = bytearray(path.read_bytes())
    content[content.index(tensors["layer.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.pth is damaged or cut off .*CRC"):
        read_tensors(path)


def test_archives_without_sums_are_read(tmp_path, tensors):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_tensors(tmp_path / "x.pth"), tensors)


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


def test_npz_whose_header_is_the_bomb_is_refused_before_it_is_read(tmp_path):
    header = b"\x93NUMPY\x02\x00" + (2**26).to_bytes(4, "little") + b" " * 2**26
    write_npz(tmp_path / "x.npz", {"a": header})
    assert (tmp_path / "x.npz").stat().st_size < 100_000
    for read in (read_tensors, read_shapes):
        tracemalloc.start()
        with pytest.raises(ValueError, match="describes 67,108,"):
            read(tmp_path / "x.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entry_that_is_twice_in_an_archive_is_an_error(tmp_path):
    entries = {"a": npy(np.zeros(3, np.float32)), "b": npy(np.ones(3, np.float32))}
    for names in (("a.npy", "a.npy"), ("a.npy", "a")):
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            for name, content in zip(names, entries.values(), strict=True):
                archive.writestr(name, content)
        for read in (read_tensors, read_shapes):
            with pytest.raises(ValueError, match="x.npz is damaged: it holds 'a' twice"):
                read(tmp_path / "x.npz")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth", "a") as archive:
        archive.writestr("x/DATA.pkl", b"\x80\x02}.")  # torch takes either
    with pytest.raises(ValueError, match="x.pth is damaged: it holds 'x/data.pkl' twice"):
        read_tensors(tmp_path / "x.pth")


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
    "name",
    [
        "builtins\nbytearray",
        "torch._utils\n_rebuild_device_tensor_from_cpu_tensor",
        "__builtin__\nbytearray",
        "_codecs\nencode",
    ],
)
def test_calls_that_fill_memory_are_refused_before_they_are_made(tmp_path, is_zip, name):
    call = b"\x80\x02c" + name.encode() + b"\nJ\x00\x00\x00\x01\x85R."
    (tmp_path / "x.bin").write_bytes(pickled(call, is_zip))
    for read in (read_tensors, read_shapes):
        with pytest.raises(ValueError, match="pickled with calls that no weights need"):
            read(tmp_path / "x.bin")


def doubled_tuple() -> bytes:
    """A tuple of the tuple before, twice, forty times, as the key of a dictionary: its hash takes years."""
    return b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(40)) + b"Ns."


def large_keys() -> bytes:
    """A tuple that is half of the file, as the key of each of very many entries."""
    return b"\x80\x02}(" + b"K\x01" * 200_000 + b"tq\x00Ns" + b"h\x00Ns" * 100_000 + b"."


def colliding_numbers() -> bytes:
    """Multiples of the modulus of Python's hash, which all fall into one place of a dictionary."""
    numbers = [(2**61 - 1) * i for i in range(100, 100 + 60_000)]
    return b"\x80\x02}" + b"".join(b"\x8a\x0a" + n.to_bytes(10, "little") + b"Ns" for n in numbers) + b"."


def many_steps() -> bytes:
    return b"\x80\x02](" + b"N" * (12 * 10**5) + b"e."


def long_text() -> bytes:
    """A text that is said to be far longer than the file."""
    return b"\x80\x02X\xff\xff\xff\x7fabc."


BOMBS = {
    "doubled tuple": (doubled_tuple, "more steps than the largest model needs"),
    "large keys": (large_keys, "more steps than the largest model needs"),
    "colliding numbers": (colliding_numbers, "more steps than the largest model needs"),
    "many steps": (many_steps, "more steps than the largest model needs"),
    "long text": (long_text, "is damaged"),
}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", BOMBS)
def test_pickles_that_take_endless_time_or_memory_are_refused_fast(tmp_path, is_zip, name):
    build, message = BOMBS[name]
    (tmp_path / "x.bin").write_bytes(pickled(build(), is_zip))
    begin = time.process_time()
    with pytest.raises(ValueError, match=message):
        read_shapes(tmp_path / "x.bin")
    assert time.process_time() - begin < 10


def test_storage_of_the_older_layout_that_is_not_in_the_file_is_an_error(tmp_path):
    storage = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    size = b"\x8a\x08" + (10**12).to_bytes(8, "little")
    call = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((" + storage + size + b"NtQK\x00"
    call += size + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs."
    (tmp_path / "x.bin").write_bytes(pickled(call, is_zip=False))
    with pytest.raises(ValueError, match="x.bin"):
        read_tensors(tmp_path / "x.bin")


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
