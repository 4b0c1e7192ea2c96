"""Writing a folder's files so that all of them appear, whole and together, or none."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path


try:
    import fcntl
except ImportError:  # Windows, where a folder cannot be locked
    fcntl = None

# One set of weights: a file, or shards and their index. A loader takes the file first, so an old one must not stay.
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def check_directory(directory) -> None:
    """Refuse to write where a file is in the way.

    Args:
        directory: the folder to write into; it may be absent.

    Raises:
        NotADirectoryError: if it, or what it would be made in, is no folder.
        ValueError: if its name is empty.
    """
    if not str(directory):
        raise ValueError(
            "`directory` must name a folder to write into; got an empty text. The working directory is '.'."
        )
    directory = Path(directory)
    for path in (directory, *directory.parents):
        if os.path.lexists(path):
            if not path.is_dir():
                raise NotADirectoryError(
                    f"`directory` must be a folder to write into; {str(path)!r} is a file, or a link to nothing. Name "
                    "another folder, or move that away."
                )
            return


@contextlib.contextmanager
def staged(directory) -> Iterator[Path]:
    """A folder to write into; what it holds when the block ends moves to the directory, one process at a time.

    Files of the same names are replaced, others stay. After an error or an interrupt, on the way or while files move,
    the directory is as it was.

    Args:
        directory: where the files go; made if absent.

    Raises:
        NotADirectoryError: if a file is in the way.
    """
    directory = Path(directory)
    check_directory(directory)
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=directory) as staging:
            folder, replaced = Path(staging, "new"), Path(staging, "replaced")
            folder.mkdir()
            yield folder
            with _locked(directory):
                _publish(folder, directory, replaced)
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: somebody else writes there
            for path in made:
                path.rmdir()
        raise


def _publish(folder: Path, directory: Path, replaced: Path) -> None:
    """Move old files away and new ones to their names.

    Configurations go first and come last: even if the process is killed, a folder with one has its weights.
    """
    new = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    new.sort(key=lambda path: (path.suffix == ".json", path))
    old = [path for path in new if _is_file(directory / path)]
    if any(_WEIGHTS.fullmatch(path.name) for path in new):
        names = {path.name for path in new}
        old += [
            Path(path.name)
            for path in sorted(directory.iterdir())
            if _WEIGHTS.fullmatch(path.name) and path.name not in names and _is_file(path)
        ]
    old.sort(key=lambda path: (path.suffix != ".json", path))
    moves = [(directory / path, replaced / path) for path in old]
    moves += [(folder / path, directory / path) for path in new]
    begun = []
    try:
        for source, target in moves:
            begun.append((source, target))
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    except BaseException:
        for source, target in reversed(begun):
            if not os.path.lexists(source):
                os.replace(target, source)
        raise


def _is_file(path: Path) -> bool:
    return os.path.lexists(path) and (path.is_symlink() or not path.is_dir())


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep others from moving files into the directory meanwhile."""
    if fcntl is None:
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
