"""Learning-rate schedules of the papers: linear warm-up, then constant, linear or cosine."""

import math
from collections.abc import Callable


DECAYS = ("constant", "linear", "cosine")


def warmup_decay(decay: str, warmup_steps: int, total_steps: int, min_ratio: float = 0.0) -> Callable[[int], float]:
    """Factor on the peak learning rate for each update, counted from 0 (for torch's `LambdaLR`).

    The first update counts as step 1, as in the ViT paper's code, so that no update has a learning rate of 0 during
    warm-up; the decay is measured from the end of the warm-up to `total_steps`.

    Args:
        decay: "constant", "linear" or "cosine".
        warmup_steps: updates of linear warm-up.
        total_steps: updates of the whole run.
        min_ratio: final learning rate over the peak, in [0, 1].
    """
    if decay not in DECAYS:
        raise ValueError(f"`decay` must be one of {', '.join(DECAYS)}; got {decay!r}.")
    if not 0 <= min_ratio <= 1:
        raise ValueError(f"`min_ratio` (final over peak learning rate) must be in [0, 1]; got {min_ratio}.")

    def factor(update: int) -> float:
        step = update + 1
        if step < warmup_steps:
            return step / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        if decay == "constant":
            return 1.0
        shape = 1 - progress if decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return min_ratio + (1 - min_ratio) * shape

    return factor
