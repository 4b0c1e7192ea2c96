"""Opening one weight file so that no code in it runs and no more memory is used than its size allows.

Knows safetensors, PyTorch's two pickled layouts and NumPy's .npz. What a file says of itself (shapes, sizes) is checked
against its size before the tensors are touched.
"""

import io
import pickle
import threading
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from mmap import ACCESS_READ
from mmap import mmap as memory_map
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .nested import unwrap
from .pickles import BombError, check_pickle


# A file may describe this many times its own size (tied weights, zeros that compress well), and a little more.
_MAX_GROWTH, _SLACK = 16, 2**22
_CHUNK = 2**20  # bytes read at once
_ADVICE = "Fetch it again."
_POINTER = b"version https://git-lfs"
_LEGACY_PICKLES = 5  # of torch's older layout: two numbers, the machine, the content, the names of its storages
_allowing = threading.Lock()  # the classes that torch allows in pickles are the process's


class _Arguments:
    """Stands in for argparse.Namespace, which training scripts save beside the weights: holds values, does nothing."""


def read_tensors(path) -> dict[str, Tensor]:
    """Read all tensors of a file to the CPU, out of the dictionaries that training scripts nest them in.

    Args:
        path: a file whose name ends in .safetensors, .npz, or anything else for PyTorch's format.

    Raises:
        ValueError: if the file is damaged, describes much more than it holds, or could run code.
        OSError: if it cannot be read.
    """
    return _guarded(path, lambda: _READERS.get(Path(path).suffix, _read_pickled)(path))


def read_shapes(path) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a file's tensors, read without the tensors where the layout allows it.

    Raises:
        ValueError: as `read_tensors`.
        OSError: if it cannot be read.
    """
    return _guarded(path, lambda: _SHAPES.get(Path(path).suffix, _pickled_shapes)(path))


def read_whole_numbers(path) -> list[str]:
    """The names of a file's tensors that are no floating-point numbers.

    Raises:
        ValueError: as `read_tensors`.
        OSError: if it cannot be read.
    """
    return _guarded(path, lambda: _WHOLE.get(Path(path).suffix, _whole_numbers)(path))


def _guarded(path, read: Callable):
    name = Path(path).name
    _check_pointer(path)
    try:
        return read()
    except (_RefusedError, OSError) as error:
        if isinstance(error, zipfile.BadZipFile):
            raise ValueError(f"{name} is damaged or cut off ({error}). {_ADVICE}") from error
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name} is damaged, or holds pickled objects other than tensors, which are never loaded because they can "
            "run code. Fetch it again, or use a copy in safetensors format."
        ) from error
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"{name} is damaged or cut off ({reason}). {_ADVICE}") from error


def _check_pointer(path) -> None:
    """Say that a file is what `git clone` leaves in the place of a large one."""
    with open(path, "rb") as file:
        is_pointer = file.read(len(_POINTER)) == _POINTER
    if is_pointer:
        raise ValueError(
            f"{Path(path).name} is a pointer of Git LFS and holds no weights: the repository was cloned without them. Run "
            "`git lfs pull` in it, or fetch the repository with `hf download`."
        )


class _RefusedError(ValueError):
    """A file that is whole and is not read; the message says why."""


# safetensors


def _safetensors_shapes(path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _safetensors_whole_numbers(path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return [name for name in names if not file.get_slice(name).get_dtype().startswith(("F", "BF"))]


# PyTorch


def _read_pickled(path) -> dict[str, Tensor]:
    """The tensors in memory of their own: mapped ones would crash the process when somebody saves to the file's name."""
    if not _is_zip(path):
        return _open_pickled(path)
    _check_torch_archive(path)
    with ThreadPoolExecutor(1) as pool:  # summing takes a third of the time of reading
        sums = pool.submit(_check_sums, path)
        tensors = _open_pickled(path)
        sums.result()
    return tensors


def _open_pickled(path, mmap: bool = False) -> dict[str, Tensor]:
    is_zip = _is_zip(path)
    if is_zip:
        _check_torch_archive(path)
    _check_pickles(path, is_zip)
    with _allowing, torch.serialization.safe_globals([(_Arguments, "argparse.Namespace")]):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip)
    try:
        tensors = unwrap(content, Path(path).name)
    except ValueError as error:
        raise _RefusedError(str(error)) from error
    _check_tensors(path, tensors)
    return tensors


def _is_zip(path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_pickles(path, is_zip: bool) -> None:
    """Refuse a file whose pickles make much memory, or endless work, of a few bytes."""
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                for entry in _summed(archive):
                    if entry.filename.lower().endswith("data.pkl"):  # torch looks for it in either case
                        check_pickle(io.BytesIO(archive.read(entry)))
        else:
            with open(path, "rb") as file, memory_map(file.fileno(), 0, access=ACCESS_READ) as content:
                for _ in range(_LEGACY_PICKLES):
                    check_pickle(content)
    except BombError as error:
        raise _RefusedError(
            f"{Path(path).name} is pickled with {error}; it is not read. Use a copy in safetensors format."
        ) from error


def _check_sums(path) -> None:
    """Refuse an archive whose bytes are not those that were written, which `torch.load` does not look at."""
    with zipfile.ZipFile(path) as archive:
        for entry in _summed(archive):
            with archive.open(entry) as file:
                while file.read(_CHUNK):  # the last read compares the sum
                    pass


def _summed(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The entries; those without a sum (`torch.serialization.set_crc32_options(False)`) so that zipfile asks for none."""
    entries = archive.infolist()
    for entry in entries:
        entry.CRC = entry.CRC or None
    return entries


def _pickled_shapes(path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in _open_pickled(path, mmap=True).items()}


def _whole_numbers(path) -> list[str]:
    if _is_zip(path):
        _check_sums(path)  # the reading that follows is transformers', which does not
    tensors = _open_pickled(path, mmap=True)
    return [name for name, tensor in tensors.items() if not tensor.is_floating_point()]


def _check_torch_archive(path) -> None:
    name = Path(path).name
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    _check_names(path, [entry.filename.lower() for entry in entries])
    if any(entry.filename.partition("/")[2] in ("constants.pkl", "model.json") for entry in entries):
        raise _RefusedError(
            f"{name} is a TorchScript archive, a program, and is not run. Where it is one of OpenAI's CLIP files, the "
            "same weights are on the Hub: 'openai/clip-vit-base-patch32', 'openai/clip-vit-base-patch16', "
            "'openai/clip-vit-large-patch14' and 'openai/clip-vit-large-patch14-336'. Else save the model's "
            "`state_dict()` with safetensors."
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _RefusedError(f"{name} is a compressed archive, which `torch.save` never writes. {_ADVICE}")
    _check_growth(path, sum(entry.file_size for entry in entries))


def _check_names(path, names: list[str]) -> None:
    """Refuse an archive with two entries of one name, of which readers take one or the other."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise _RefusedError(f"{Path(path).name} is damaged: it holds {twice[0]!r} twice. {_ADVICE}")


def _check_tensors(path, tensors: dict[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
            raise _RefusedError(
                f"{Path(path).name} holds {key!r} as a sparse, quantised or empty tensor, not a dense one."
            )
    _check_growth(path, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))


def _check_growth(path, described: int) -> None:
    size = Path(path).stat().st_size
    if described > _MAX_GROWTH * size + _SLACK:
        raise _RefusedError(
            f"{Path(path).name} holds {size:,} bytes and describes {described:,}: it is not read, for weights do not "
            "compress like that. Fetch it again from a source that you trust."
        )


# NumPy


def _npz_headers(path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Names, shapes and types of the arrays; those of text and objects are left out.

    Raises:
        ValueError: if an array's size is not what its entry in the archive says, or all are far above the file's.
    """
    headers = {}
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        _check_names(path, [entry.filename.removesuffix(".npy") for entry in entries])
        _check_growth(path, sum(entry.file_size for entry in entries))  # before the first header, which may be a bomb
        for entry in entries:
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(file)
                header_size = file.tell()
            if dtype.hasobject or dtype.kind in "OSUMm" or dtype.names:
                continue
            size = header_size + int(np.prod(shape, dtype=object)) * dtype.itemsize
            if size != entry.file_size:
                raise _RefusedError(
                    f"{Path(path).name} is damaged: {entry.filename!r} takes {entry.file_size:,} bytes, and its shape "
                    f"{shape} needs {size:,}. {_ADVICE}"
                )
            headers[entry.filename.removesuffix(".npy")] = (tuple(shape), dtype)
    return headers


def _read_npz(path) -> dict[str, Tensor]:
    headers = _npz_headers(path)
    with np.load(path, allow_pickle=False) as archive:
        return {name: _from_numpy(archive[name]) for name in headers}


def _from_numpy(array: np.ndarray) -> Tensor:
    array = np.asarray(array)
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # JAX's bfloat16, of which NumPy knows only the size
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _npz_shapes(path) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, (shape, _) in _npz_headers(path).items()}


_READERS = {".safetensors": load_file, ".npz": _read_npz}
_SHAPES = {".safetensors": _safetensors_shapes, ".npz": _npz_shapes}
_WHOLE = {".safetensors": _safetensors_whole_numbers}
