"""Where a checkpoint is, and what lies there: configurations and weight files, found but not yet understood."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, is_offline_mode, list_repo_files
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor

from .files import SUFFIXES, WEIGHT_FILES, Weights, check_link, check_source, shard_names
from .hide_tokens import hide_tokens


# Arguments of `from_pretrained` that say where files are.
WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# The weight files of each configuration file, in the order of preference.
_CONFIGS = {
    "config.json": WEIGHT_FILES,
    "open_clip_config.json": OPEN_CLIP_FILES + WEIGHT_FILES,
}
# What training leaves beside the weights, under the suffix of weights.
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*|ema)\.\w+")


class _DamagedError(OSError):
    """A file that cannot be read as what it is."""


class Shapes(Mapping):
    """Shapes of tensors by name; the files are opened when the first is asked for."""

    def __init__(self, candidate: "Candidate"):
        self._candidate = candidate

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._candidate.weights().shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._candidate.weights().shapes)

    def __len__(self) -> int:
        return len(self._candidate.weights().shapes)


@dataclass(frozen=True)
class Candidate:
    """One way to read a source: a configuration, and the weight files that belong to it.

    Attributes:
        source: where it was found.
        config_file: name of the configuration's file; None for weights without one.
        config: the configuration, {} without one.
    """

    source: "Source"
    config_file: str | None = None
    config: dict = field(default_factory=dict)

    @property
    def shapes(self) -> Shapes:
        """Names and shapes of the tensors."""
        return Shapes(self)

    def weights(self) -> Weights:
        """The weight files.

        Raises:
            FileNotFoundError: if there are none.
        """
        return self.source.weights(_CONFIGS.get(self.config_file, WEIGHT_FILES + OPEN_CLIP_FILES))

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU."""
        return self.weights().state_dict()


class Source:
    """A folder, a single weight file or a Hub repository.

    Args:
        name: path or Hub id.
        **where: `revision`, `token`, `subfolder`, `cache_dir`, ... as `from_pretrained` takes them.

    Attributes:
        damage: what is wrong with a configuration that `candidates` left out; None if nothing is.

    Raises:
        FileNotFoundError: if it can only be a path, and nothing is there.
    """

    damage: OSError | None = None

    def __init__(self, name, **where):
        check_source(name)
        self.name = os.fspath(name)
        self.where = where
        self.file = Path(name) if os.path.isfile(name) else None
        self.folder = self.name if self.file is None else str(self.file.parent)
        self._is_hub = not os.path.isdir(self.folder)
        self._failure: str | None = None  # of the Hub, in words
        self._paths: dict[str, str | None] = {}
        self._weights: dict[tuple, Weights] = {}

    def candidates(self) -> list[Candidate]:
        """The ways to read it: each configuration with its weights, and at last the weights alone.

        A configuration that is no JSON file is left out and noted as `damage`; weights count alone where all are whole.

        Raises:
            OSError: if a Hub repository cannot be reached.
        """
        found = []
        for file_name in _CONFIGS:
            path = self.find(file_name)
            try:
                found += [Candidate(self, file_name, _read_config(path))] if path is not None else []
            except _DamagedError as error:
                self.damage = error
        return found if self.damage else [*found, Candidate(self)]

    def find(self, file_name: str) -> str | None:
        """The path of a file, fetched if need be; None if there is none.

        Raises:
            OSError: if the repository is gated, private or not there.
        """
        if file_name not in self._paths:
            self._paths[file_name] = self._find(file_name)
        return self._paths[file_name]

    def _find(self, file_name: str) -> str | None:
        if self._is_hub:
            return self._fetch(file_name)
        subfolder = "" if self.file is not None else self.where.get("subfolder") or ""
        path = os.path.join(self.folder, subfolder, file_name)
        check_link(path)
        return path if os.path.isfile(path) else None

    def _fetch(self, file_name: str) -> str | None:
        """The path of a file of a Hub repository; where the Hub failed once, of one that is in the cache."""
        where = {**self.where, **self.cache_only(), "subfolder": self.where.get("subfolder") or None}
        try:
            return hf_hub_download(self.name, file_name, **where)
        except LocalEntryNotFoundError as error:
            self._note_failure(error.__cause__)
            return None
        except EntryNotFoundError:
            return None
        except Exception as error:  # the connection's errors have classes of the library below the client
            raise OSError(f"{self.name!r} cannot be read: {self._explain(error)}") from None

    def cache_only(self) -> dict:
        """Loading arguments that leave the Hub alone where it failed: its client tries for half a minute per file."""
        return {"local_files_only": True} if self._failure or self._is_offline() else {}

    def _note_failure(self, error: BaseException | None) -> None:
        """Keep in words why the Hub did not give something that it may have."""
        if self._failure or self._is_offline():
            return
        self._failure = "the Hub cannot be reached"
        if isinstance(error, HfHubHTTPError):
            self._failure = f"the Hub answered with an error ({error.response.status_code}); try again later"

    def _explain(self, error: Exception) -> str:
        """What is wrong with a repository, and what to do."""
        log_in = "log in with `hf auth login`, or pass `token=`"
        page = f"{constants.ENDPOINT}/{self.name}"
        if isinstance(error, GatedRepoError):
            return f"it is gated. Ask for access on {page}, and {log_in} of the account that has it."
        if isinstance(error, RepositoryNotFoundError):
            return (
                "it is no folder here, and the Hub has no such repository, or a private one. Check the name; for a private "
                f"one, {log_in} of an account that may read it."
            )
        if isinstance(error, RevisionNotFoundError):
            return f"it has no revision {self.where.get('revision')!r}. {page}/tree/main lists its branches and tags."
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
            return f"the Hub does not accept the token (it answers 401). To renew it, {log_in}."
        return self._without_tokens(error)

    def weights(self, preferred: tuple[str, ...]) -> Weights:
        """The weight files: those preferred, or else the only other one.

        Args:
            preferred: file names, the best first; an index stands for the files it names.

        Raises:
            FileNotFoundError: if there are none, or a shard is missing.
            ValueError: if an index is damaged, or several files could be meant.
        """
        if preferred not in self._weights:
            self._weights[preferred] = self._find_weights(preferred)
        return self._weights[preferred]

    def _find_weights(self, preferred: tuple[str, ...]) -> Weights:
        if self.file is not None:
            return Weights((str(self.file),))
        for file_name in preferred:
            path = self.find(file_name)
            if path is None:
                continue
            if not file_name.endswith(".json"):
                return Weights((path,))
            return Weights(tuple(self._shard(name) for name in shard_names(path)))
        others = self._other_files()
        if len(others) > 1:
            raise ValueError(
                f"{self.name!r} holds {len(others)} weight files: {', '.join(others[:5])}. Name one of them"
                + (" after fetching it with `hf download`." if self._is_hub else ", as the path of a file.")
            )
        path = self.find(others[0]) if others else None
        if path is None:
            raise FileNotFoundError(self._nothing_found(preferred))
        return Weights((path,))

    def _shard(self, file_name: str) -> str:
        path = self.find(file_name)
        if path is None:
            raise FileNotFoundError(f"The shard {file_name!r}, named in the index of {self.name!r}, is missing.")
        return path

    def _other_files(self) -> list[str]:
        """Names of weight files that no configuration of ours names."""
        subfolder = self.where.get("subfolder") or ""
        if self._is_hub:
            names = self._repository_files(subfolder)
        else:
            folder = Path(self.folder, subfolder)
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(name for name in names if name.endswith(SUFFIXES) and not _NO_WEIGHTS.fullmatch(name))

    def _repository_files(self, subfolder: str) -> list[str]:
        """Names of the files of one folder of a Hub repository; none if they cannot be had."""
        if self._is_offline() or self._failure:
            return []
        try:
            names = list_repo_files(self.name, revision=self.where.get("revision"), token=self.where.get("token"))
        except Exception as error:  # reported by whoever finds nothing
            self._note_failure(error)
            return []
        prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        names = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        return [name for name in names if "/" not in name]

    def _is_offline(self) -> bool:
        return is_offline_mode() or bool(self.where.get("local_files_only"))

    def why_absent(self) -> str | None:
        """Why nothing of a Hub repository can be had; None if something can, or the source is a path."""
        is_offline = self._is_offline()
        if not self._is_hub or not (is_offline or self._failure) or (is_offline and self._is_cached()):
            return None
        reason = self._failure or "this runs offline (HF_HUB_OFFLINE or `local_files_only`)"
        revision = self.where.get("revision")
        at_revision, option = (f" at revision {revision!r}", f" --revision {revision}") if revision else ("", "")
        return (
            f"{self.name!r} is no folder here and not in the cache of Hub repositories{at_revision}, and {reason}. Where "
            f"there is a network, `hf download {self.name}{option}` fetches it and prints the folder, which can be copied "
            "here and named by its path."
        )

    def _is_cached(self) -> bool:
        """Whether the cache has something of this revision."""
        revision = self.where.get("revision") or constants.DEFAULT_REVISION
        cache = Path(self.where.get("cache_dir") or constants.HF_HUB_CACHE)
        folder = cache / f"models--{self.name.replace('/', '--')}"
        return (folder / "snapshots" / revision).is_dir() or (folder / "refs" / revision).is_file()

    def _nothing_found(self, names: tuple[str, ...]) -> str:
        return self.why_absent() or (
            f"No weights in {self.name!r}: looked for {', '.join(names)}, and for one other file that ends in "
            f"{', '.join(SUFFIXES)}. Check the path, `subfolder` and `revision`."
        )

    def _without_tokens(self, error: Exception) -> str:
        """An error's text in one line, without the token."""
        return hide_tokens(" ".join(str(error).split()), self.where.get("token"))


def _read_config(path) -> dict:
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"), object_hook=_with_plain_dtype)
    except (ValueError, RecursionError) as error:
        raise _DamagedError(f"{Path(path).name} is not a valid JSON file ({error}). Fetch it again.") from error
    if not isinstance(config, dict):
        raise _DamagedError(f"{Path(path).name} holds no JSON object. Fetch it again.")
    return config


def _with_plain_dtype(fields: dict) -> dict:
    """A dictionary in which "torch.float16" is "float16", as configurations name it to transformers."""
    named = {name: fields[name] for name in ("dtype", "torch_dtype") if isinstance(fields.get(name), str)}
    return {**fields, **{name: value.removeprefix("torch.") for name, value in named.items()}}
