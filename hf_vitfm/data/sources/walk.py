"""The files below a folder."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path


logger = logging.getLogger(__name__)


def walk_files(folder: str | Path) -> Iterator[Path]:
    """List the files below a folder: those of each folder by name, then those of its subfolders.

    Hidden files and folders are left out, and so are pipes, sockets and devices, which reading would wait for. Links
    are followed, except those back to a folder that they lie in. A link that leads nowhere is listed, so that whoever
    opens it says so.
    """
    return _walk(os.fspath(folder), ())


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            entries = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:  # a "lost+found" of the system, say
        logger.warning("The files of %s are left out, since it cannot be listed: %s", folder, error)
        return
    folders = [entry.path for entry in entries if entry.is_dir()]
    yield from (Path(entry.path) for entry in entries if entry.is_file() or _leads_nowhere(entry))
    for path in folders:
        yield from _walk(path, (*above, real))


def _leads_nowhere(entry: os.DirEntry) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)
