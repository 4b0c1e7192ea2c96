"""Checkpoints that survive a crash at any moment.

A checkpoint is written into a hidden folder beside its place, synced to the disk, and renamed: a folder called
`checkpoint-N` is complete or was not written here. It is deleted in the same way, the other way round.
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open


_NAME = re.compile(r"checkpoint-(\d+)")
_WRITING, _DELETING = ".writing-", ".deleting-"
RUN_FILE = "run_state.json"


def checkpoint_path(output_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return Path(output_dir) / f"checkpoint-{step}"


def staging_path(checkpoint: Path) -> Path:
    """Where a checkpoint or a file is written before it gets its name."""
    return checkpoint.with_name(f"{_WRITING}{checkpoint.name}")


def commit(checkpoint: Path) -> None:
    """Bring what was written to `staging_path(checkpoint)` to the disk, then give it its name."""
    staging = staging_path(checkpoint)
    for folder, _, files in os.walk(staging):
        for name in files:
            _sync(Path(folder) / name)
        _sync(Path(folder))
    delete(checkpoint)  # of the same step, from an earlier attempt
    staging.rename(checkpoint)
    _sync(checkpoint.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small file in one step: a kill leaves the old content or the new, never a part."""
    staging = staging_path(path)
    staging.write_text(text, encoding="utf-8")
    _sync(staging)
    os.replace(staging, path)


def delete(checkpoint: Path) -> None:
    """Remove a checkpoint so that no half of it can be taken for a whole one."""
    if not checkpoint.exists():
        return
    hidden = checkpoint.with_name(f"{_DELETING}{checkpoint.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_leftovers(output_dir: str | Path) -> None:
    """Remove what a run that was killed left of checkpoints that it was writing or deleting."""
    for prefix in (_WRITING, _DELETING):
        for folder in Path(output_dir).glob(f"{prefix}checkpoint-*"):
            shutil.rmtree(folder, ignore_errors=True)


def numbered_checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders called `checkpoint-N`, whole or not, in the order of their steps."""
    if not Path(output_dir).is_dir():
        return []
    found = [(int(match[1]), path) for path in Path(output_dir).iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a folder from which a run can go on, in the order of their steps."""
    return [path for path in numbered_checkpoints(output_dir) if what_is_missing(path) is None]


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The complete checkpoint with the highest step, whatever else lies beside it."""
    return next(reversed(complete_checkpoints(output_dir)), None)


def rotate(output_dir: str | Path, limit: int | None, keep: Collection[Path]) -> None:
    """Delete checkpoints beyond `limit`, first what no run can go on from, then the oldest, but none of `keep`."""
    if limit is None or limit <= 0:
        return
    kept = {path.resolve() for path in keep}
    others = [path for path in numbered_checkpoints(output_dir) if path.resolve() not in kept]
    others.sort(key=lambda path: what_is_missing(path) is None)  # stable: by step within both kinds
    for path in others[: max(0, len(others) + len(kept) - max(limit, len(kept)))]:
        delete(path)


def read_step(checkpoint: str | Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]


def what_is_missing(checkpoint: str | Path) -> str | None:
    """Say why a run cannot go on from a folder, or None if it can.

    Files are looked at, not only for: a truncated one, which a crash or a full disk leaves, counts as missing.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "it is no folder"
    try:
        read_step(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return "trainer_state.json is missing or broken"
    names = {path.name for path in folder.iterdir()}
    if not any(
        re.fullmatch(r"(model|pytorch_model|adapter_model).*(\.safetensors|\.bin|_fsdp_0)", name) for name in names
    ):
        return "the weights are missing"
    if not names & {"optimizer.pt", "optimizer.bin", "optimizer_0"} or "scheduler.pt" not in names:
        return "the state of the optimizer or the schedule is missing (was it saved with `save_only_model`?)"
    for index in folder.glob("*.index.json"):
        lost = _shards(index) - names
        if lost:
            return f"{', '.join(sorted(lost))} is missing"
    broken = next((path.name for path in sorted(folder.iterdir()) if not _is_whole(path)), None)
    return f"{broken} is broken" if broken else None


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return {index.name.removesuffix(".index.json")}


def _is_whole(path: Path) -> bool:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return True
        except (SafetensorError, OSError):
            return False
    if path.suffix in (".pt", ".pth", ".bin") and path.name != "training_args.bin":  # which nothing here reads
        return zipfile.is_zipfile(path)  # the directory of a zip archive stands at its end
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
