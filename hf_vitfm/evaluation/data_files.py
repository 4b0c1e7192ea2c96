"""Single small files that lie beside a data set, in a folder or on the Hub."""

from pathlib import Path

from ..data.sources.stream import HUB_ID


def find_data_file(source: str | Path, file_name: str, revision: str | None = None) -> Path:
    """Find one file of a data set.

    Args:
        source: folder, or the id of a data set on the Hub, "namespace/name". What exists here is a folder.
        file_name: the file in it, also "folder/file".
        revision: branch, tag or commit on the Hub.

    Returns:
        Its path; of a file on the Hub, that of the copy in the Hub's cache.

    Raises:
        FileNotFoundError: if there is no such folder, data set or file.
        ConnectionError: if the Hub cannot be reached and the file is not in its cache.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / file_name).is_file():
            raise FileNotFoundError(f"{folder} holds no {file_name!r}.")
        return folder / file_name
    if not isinstance(source, str) or HUB_ID.fullmatch(source) is None:
        raise FileNotFoundError(
            f'`source` must be a folder or the id of a data set on the Hub, "namespace/name"; got {str(source)!r}.'
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(source, file_name, repo_type="dataset", revision=revision))
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{source!r} is no folder here, and {file_name!r} of the data set of that name is not in the Hub's cache, while "
            f"the Hub cannot be reached. Connect, or fetch it elsewhere with `hf download {source} {file_name} "
            "--repo-type dataset` and name the folder."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"The data set {source!r} on the Hub holds no {file_name!r}.") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{source!r} is no folder here and no data set on the Hub that can be read; a private or gated one needs "
            "`hf auth login`."
        ) from error
