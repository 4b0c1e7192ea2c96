"""Several runs of one recipe: learning rates compared on held-out training images, then seeds with the best of them."""

import gc
import hashlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..cards.redact import redact_command
from .checkpoints import last_checkpoint, staging_path, write_text


START_FILE = "started.json"  # in the folder of a run: which command it was started with
RESULT_FILES = ("all_results.json", "run.json")  # what a run leaves; the last of them is written last of all
NEW, INTERRUPTED, FINISHED, FOREIGN = "new", "interrupted", "finished", "foreign"


@dataclass
class SweepArguments:
    """The protocol of the ViT paper's Table 4: a grid of learning rates, then several seeds."""

    learning_rates: list[float] = field(
        default_factory=list, metadata={"help": "compared on held-out training images; a single one is taken as it is"}
    )
    grid_holdout: float = field(
        default=0.1, metadata={"help": "share of the training images, or number, that is held out for the comparison"}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of the final runs"})

    def __post_init__(self):
        rates, seeds = self.learning_rates, self.seeds
        if not rates or not all(isinstance(rate, (int, float)) and 0 < rate < math.inf for rate in rates):
            raise ValueError(f"`learning_rates` must be one or more numbers above 0; got {rates!r}.")
        if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
            raise ValueError(f"`seeds` must be one or more integers, 0 or above; got {seeds!r}.")
        if len(set(rates)) < len(rates) or len(set(seeds)) < len(seeds):
            raise ValueError(f"`learning_rates` and `seeds` must differ among themselves; got {rates} and {seeds}.")
        if not self.grid_holdout > 0:
            raise ValueError(f"`grid_holdout` must be a share in (0, 1) or a number of rows; got {self.grid_holdout}.")


def choose_learning_rate(scores: Mapping[float, float | None]) -> float:
    """The learning rate with the highest score; of equal ones the smallest.

    Args:
        scores: by learning rate; None for a run that diverged.

    Raises:
        ValueError: if all diverged.
    """
    finite = {rate: score for rate, score in scores.items() if score is not None}
    if not finite:
        raise ValueError(
            f"Training diverged with every learning rate of {', '.join(map(str, scores))}. Add smaller ones to "
            "`learning_rates`."
        )
    return max(finite, key=lambda rate: (finite[rate], -rate))


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep, in a folder of its own, which can be found again after a kill.

    Args:
        directory: the run's output folder.
        script: path of the recipe's script.
        argv: its command line, without the output folder.
        settings: everything else that the run depends on (the content of its configuration file).
    """

    directory: Path
    script: str
    argv: tuple[str, ...]
    settings: Mapping

    @property
    def arguments(self) -> list[str]:
        """The whole command line of the script."""
        return [*self.argv, "--output_dir", str(self.directory)]

    @property
    def command(self) -> str:
        """The command as typed, without private paths."""
        return redact_command(shlex.join(["python", self.script, *self.arguments]))

    def find_state(self) -> str:
        """NEW, INTERRUPTED (a checkpoint is there), FINISHED, or FOREIGN: the folder holds something else."""
        start = self.directory / START_FILE
        if not self.directory.exists() or set(self.directory.iterdir()) <= {staging_path(start)}:
            return NEW
        # What a full disk or a crash cut short is a beginning of it.
        if not start.is_file() or not self._start().startswith(start.read_text(encoding="utf-8", errors="replace")):
            return FOREIGN
        if all(_read_json(self.directory / name) is not None for name in RESULT_FILES):
            return FINISHED
        return INTERRUPTED if last_checkpoint(self.directory) else NEW

    def mark_start(self) -> None:
        """Note in the folder which run it belongs to, and remove results that were cut short: a Trainer reads them."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_text(self.directory / START_FILE, self._start())
        for path in (self.directory / name for name in RESULT_FILES):
            if _read_json(path) is None:
                path.unlink(missing_ok=True)

    def _start(self) -> str:
        # A digest, since options may hold private paths, and to notice a configuration file that was changed.
        content = json.dumps([list(self.argv), dict(self.settings)], sort_keys=True, default=str)
        digest = hashlib.sha256(content.encode()).hexdigest()
        return json.dumps({"command": self.command, "settings": digest}, indent=2) + "\n"

    def read_results(self) -> dict:
        """What a finished run left: numbers of all_results.json under their names, and its `dataset`."""
        results, run = (json.loads((self.directory / name).read_text(encoding="utf-8")) for name in RESULT_FILES)
        return {**results, "dataset": run["dataset"]}


def on_first_process(function: Callable[[], Any]) -> Any:
    """What a function returns on the first process, the only one to run it, on all of them."""
    answer = [function() if PartialState().is_main_process else None]
    return broadcast_object_list(answer)[0]


def say(text: str) -> None:
    """Write a line once, at once."""
    if PartialState().is_main_process:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def perform(run: SweepRun, main: Callable[[list[str]], dict], title: str) -> dict:
    """Do a run, or what is left of it, and say so; every process calls it.

    Args:
        run: which one.
        main: of the recipe's script: command line -> metrics.
        title: what to call the run.

    Returns:
        Its results, as `SweepRun.read_results` gives them.

    Raises:
        FileExistsError: if the run's folder holds something else.
    """
    state = on_first_process(run.find_state)
    if state == FOREIGN:
        raise FileExistsError(
            f"{run.directory} holds something else than this run: another command, or a configuration that was changed "
            f"since. Move it away, or choose another --output_dir. The run is: {run.command}"
        )
    if state == FINISHED:
        say(f"{title}: already there")
    else:
        say(f"{title}: {'goes on' if state == INTERRUPTED else 'begins'} in {run.directory}")
        on_first_process(run.mark_start)
        main([*run.arguments, *(["--resume_from_checkpoint", "true"] if state == INTERRUPTED else [])])
        gc.collect()  # a Trainer and its model refer to each other; the next model needs the memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    results = on_first_process(run.read_results)
    if "eval_top1" in results:
        say(f"{title}: {100 * results['eval_top1']:.2f} % top-1 on {results['dataset']['evaluation_split']}")
    return results


def _read_json(path: Path) -> dict | None:
    """The object in a file; None if there is no whole one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
