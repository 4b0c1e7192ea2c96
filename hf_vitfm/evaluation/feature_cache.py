"""Tensors on disk under a key of everything that they depend on: features of images, classifiers made of texts.

A file is written under another name, synced and renamed, so that whatever has its name is whole; several processes may
write one at the same time. What it holds is checked against a digest when it is read.
"""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import PIL
import torch
import torch.distributed as dist
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..version import __version__
from .fingerprint import fingerprint_values


logger = logging.getLogger(__name__)

FORMAT = 1  # to be raised when the same request means other numbers
_DIGEST, _REQUEST = "digest", "request"
_VERSIONS = {  # of what computes; another may compute something else
    "hf_vitfm": __version__,
    "pillow": PIL.__version__,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
}


class CacheFile:
    """The place of one result in a folder.

    Args:
        folder: is made where it does not exist.
        kind: first part of the file's name.
        request: everything that the result depends on, as JSON can write it. The versions of the libraries come on top.

    Raises:
        OSError: if there is no such folder and it cannot be made.
    """

    def __init__(self, folder: str | Path, kind: str, request: Mapping[str, Any]):
        folder = Path(folder).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise NotADirectoryError(f"`cache_dir` must be a folder; {folder} is a file, or lies in one.") from error
        self.request = json.dumps({"format": FORMAT, **_VERSIONS, **request}, sort_keys=True)
        self.path = folder / f"{kind}-{hashlib.sha256(self.request.encode()).hexdigest()[:40]}.safetensors"

    def read(self) -> dict[str, Tensor] | None:
        """The tensors, on the CPU; None if there are none, or (with a warning) if the file is damaged."""
        try:
            if not self.path.exists():
                return None
            with safe_open(self.path, framework="pt") as file:
                notes = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        except (OSError, SafetensorError) as error:
            logger.warning("%s cannot be read, so it is computed again: %s", self.path, error)
            return None
        if notes.get(_REQUEST) != self.request or notes.get(_DIGEST) != fingerprint_values(tensors):
            logger.warning("%s is damaged, so it is computed again.", self.path)
            return None
        return tensors

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors; where the folder takes no file (it is full, say), a warning says so and nothing is kept."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            write_whole(self.path, tensors, {_REQUEST: self.request, _DIGEST: fingerprint_values(tensors)})
        except OSError as error:
            logger.warning("%s cannot be written, so the next run computes it again: %s", self.path, error)


def write_whole(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """Write a safetensors file that is whole or absent, also after a crash.

    Args:
        path: takes the place of what is there.
        tensors: contiguous, on the CPU.
        notes: the file's metadata.

    Raises:
        OSError: if it cannot be written.
    """
    partial = path.with_name(f".{path.stem}-{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "wb") as file:  # `save_file` would make it readable for its owner alone
            file.write(save(tensors, notes))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def recall(
    file: CacheFile | None,
    compute: Callable[[], dict[str, Tensor]],
    device: torch.device,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """What a file holds; or else what is computed, which it holds from then on.

    Args:
        file: the same on all processes; None computes.
        compute: is called by all processes, or by none, and gives all of them the whole.
        device: of the model.
        group: processes that all call this; None = this process alone.
    """
    found = read_together(file, device, group) if file else None
    if found is None:
        found = compute()
        if file and (group is None or dist.get_rank(group) == 0):
            file.write(found)
    return found


def read_together(file: CacheFile, device: torch.device, group: dist.ProcessGroup | None) -> dict[str, Tensor] | None:
    """What the first process finds, on all of them; the folder may be one that only the first one sees.

    Args:
        file: the same on all processes.
        device: of the models, where the group can communicate.
        group: processes that all call this; None = this process alone.

    Returns:
        Tensors on the CPU, or None on all processes.

    Raises:
        ValueError: if the processes ask for different things.
    """
    if group is None:
        return file.read()
    requests = [None] * dist.get_world_size(group)
    dist.all_gather_object(requests, file.request, group=group)
    if len(set(requests)) > 1:
        names = sorted(
            {name for name, _ in set.union(*map(_items, requests)) - set.intersection(*map(_items, requests))}
        )
        raise ValueError(
            f"The processes of the group ask for different features: {', '.join(names)} differ. Give all of them the same "
            "model, rows and settings."
        )
    first = dist.get_global_rank(group, 0)
    found = file.read() if dist.get_rank(group) == 0 else None
    shapes = [found and {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()}]
    dist.broadcast_object_list(shapes, src=first, group=group)
    if shapes[0] is None:
        return None
    tensors = {}
    for name, (shape, dtype) in shapes[0].items():
        tensor = torch.empty(shape, dtype=dtype, device=device) if found is None else found[name].to(device)
        if tensor.numel():
            dist.broadcast(tensor, src=first, group=group)
        tensors[name] = tensor.cpu()
    return tensors


def precision_of(device: torch.device, dtype: torch.dtype) -> str:
    """What a computation on a device is rounded to: a type, and how float32 is multiplied.

    Args:
        device: of the model.
        dtype: that it computes in; where autocast is on, that of autocast counts.
    """
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    # Each part of torch has a setting of its own; `torch.get_float32_matmul_precision` raises where they differ.
    backends = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    settings = (part.fp32_precision.replace("none", "ieee") for part in parts)  # nothing set is the same
    return f"{dtype}, float32 products {' '.join(settings)}"


def _items(request: str) -> set[tuple[str, str]]:
    return {(name, json.dumps(value)) for name, value in json.loads(request).items()}
