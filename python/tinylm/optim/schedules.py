"""The learning rate as a function of the progress of a run."""

import math
from collections.abc import Callable

from tinylm.config import OptimConfig, choose


def wsd(progress: float, config: OptimConfig) -> float:
    """Warm-up, stable, decay: 1, then a straight fall to min_lr in the last `decay` of the run."""
    left = 1 - progress
    fall = 1 - config.min_lr
    # With decay=0 the first branch always holds, so nothing is divided by 0.
    return 1.0 if left >= config.decay else config.min_lr + fall * left / config.decay


def wsd_sqrt(progress: float, config: OptimConfig) -> float:
    """As `wsd`, but the fall is 1 - sqrt(its progress): steep at first. Haegele et al. 2024."""
    left = 1 - progress
    if left >= config.decay:
        return 1.0
    return config.min_lr + (1 - config.min_lr) * (1 - math.sqrt(1 - left / config.decay))


def _after_warmup(progress: float, config: OptimConfig) -> float:
    """Progress from the end of the warm-up (0) to that of the run (1)."""
    # In whole steps the warm-up may end a little before its share of the run.
    past = max(0.0, progress - config.warmup)
    return past / (1 - config.warmup) if config.warmup < 1 else 1.0


def cosine(progress: float, config: OptimConfig) -> float:
    """Half a cosine from 1 to min_lr over the run after the warm-up."""
    after = _after_warmup(progress, config)
    wave = 0.5 * (1 + math.cos(math.pi * after))
    return config.min_lr + (1 - config.min_lr) * wave


def linear(progress: float, config: OptimConfig) -> float:
    """A straight line from 1 to min_lr over the run after the warm-up."""
    after = _after_warmup(progress, config)
    return 1 - (1 - config.min_lr) * after


def constant(progress: float, config: OptimConfig) -> float:
    """1 throughout."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, OptimConfig], float]] = {
    "wsd": wsd,
    "wsd_sqrt": wsd_sqrt,
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
}


def schedule(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of step `step` (0 to steps - 1) as a share of its peak: warm-up, then the course."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        # Begins at 1 / warmup: a step at rate 0 would change nothing.
        return (step + 1) / warmup
    course = choose(SCHEDULES, "optim.schedule", config.schedule)
    return float(course(step / steps, config))
