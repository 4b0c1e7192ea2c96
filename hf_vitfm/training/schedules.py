"""Learning-rate schedules of the papers: linear warm-up, then constant, linear, cosine or inverse square root."""

import math
from collections.abc import Callable


DECAYS = ("constant", "linear", "cosine", "inverse_sqrt")
DEFAULT_TIMESCALE = 10_000  # updates; of the ViT papers' code


def warmup_decay(
    decay: str,
    warmup_steps: int,
    total_steps: int,
    min_ratio: float = 0.0,
    cooldown_steps: int = 0,
    timescale: int = DEFAULT_TIMESCALE,
) -> Callable[[int], float]:
    """Factor on the peak learning rate for each update, counted from 0 (for torch's `LambdaLR`).

    The first update counts as step 1, as in the ViT paper's code, so that no update has a learning rate of 0 during
    warm-up; the decay is measured from the end of the warm-up to `total_steps`.

    Args:
        decay: "constant", "linear", "cosine", or "inverse_sqrt" (1 / sqrt(1 + steps after the warm-up / timescale),
            Zhai et al. 2022, which need not know the end of the run before the cool-down).
        warmup_steps: updates of linear warm-up.
        total_steps: updates of the whole run.
        min_ratio: final learning rate over the peak, in [0, 1]; for linear and cosine.
        cooldown_steps: updates at the end over which the rate falls linearly to 0; for constant and inverse_sqrt.
        timescale: updates in which inverse_sqrt falls to 1 / sqrt(2).
    """
    if decay not in DECAYS:
        raise ValueError(f"`decay` must be one of {', '.join(DECAYS)}; got {decay!r}.")
    if not 0 <= min_ratio <= 1:
        raise ValueError(f"`min_ratio` (final over peak learning rate) must be in [0, 1]; got {min_ratio}.")
    has_end = decay in ("linear", "cosine")
    if has_end and cooldown_steps:
        raise ValueError(f"`cooldown_steps` go with constant and inverse_sqrt; {decay} already falls to its end.")
    if not has_end and min_ratio:
        raise ValueError(f"A final learning rate goes with linear and cosine; got it with {decay}.")
    if not 0 <= cooldown_steps <= total_steps:
        raise ValueError(
            f"`cooldown_steps` must be between 0 and the run's {total_steps} steps; got {cooldown_steps}."
        )

    def factor(update: int) -> float:
        step = update + 1
        if step < warmup_steps:
            rate = step / warmup_steps
        elif has_end:
            progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
            shape = 1 - progress if decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
            rate = min_ratio + (1 - min_ratio) * shape
        else:
            rate = 1.0 if decay == "constant" else 1 / math.sqrt(1 + (step - warmup_steps) / timescale)
        left = max(0, total_steps - step)
        return rate * min(1.0, left / cooldown_steps) if cooldown_steps else rate

    return factor
