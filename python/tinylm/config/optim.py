"""The settings of the optimizer and of the rates that it follows."""

from dataclasses import dataclass

from tinylm.config.checks import check
from tinylm.config.courses import Course, course
from tinylm.config.fields import Optimizer, Orthogonal, Schedule, setting
from tinylm.config.limits import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, require


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and the schedules of its numbers."""

    name: str = setting(
        "muon",
        "Optimizer. muon updates the matrices with Muon and all other parameters with AdamW.",
        choices=Optimizer,
    )
    lr: float = setting(
        5e-3,
        "Peak learning rate; for muon, that of the parameters that are not matrices.",
        POSITIVE,
    )
    matrix_lr: float = setting(0.02, "Muon's peak learning rate, for the matrices.", POSITIVE)
    embedding_lr: float | None = setting(
        None,
        "Peak learning rate of the embeddings; a tied head is one of them. Default lr.",
        POSITIVE,
    )
    head_lr: float | None = setting(
        None, "Peak learning rate of an untied head. Default lr.", POSITIVE
    )
    scalar_lr: float | None = setting(
        None,
        "Peak learning rate of the scalars, such as the weights of a shortcut. Default lr.",
        POSITIVE,
    )
    momentum: float | str = setting(0.95, "Muon's momentum.", {"ge": 0, "lt": 1}, course=float)
    orthogonal: str = setting(
        "polar_express",
        "How Muon makes its updates orthogonal: by the polynomials of Polar Express or of "
        "Newton-Schulz.",
        choices=Orthogonal,
    )
    orthogonal_steps: int | None = setting(
        None,
        "Number of these polynomials; default 2 for polar_express and 5 for newton_schulz.",
        COUNT,
    )
    betas: tuple[float, float] = setting(
        (0.9, 0.95),
        "Decay rates of AdamW's two moments. For sgd, the first one is the momentum.",
        {"ge": 0, "lt": 1},
    )
    eps: float = setting(
        1e-8, "Number added to the square root of AdamW's second moment.", POSITIVE
    )
    weight_decay: float | str = setting(
        0.1,
        "Weight decay of the matrices. It is decoupled; for sgd it is added to the gradient.",
        NOT_NEGATIVE,
        off=0.0,
        course=float,
    )
    cautious: bool = setting(
        False, "Decay a weight only in steps whose update moves it towards zero as well."
    )
    clip: float = setting(
        1.0,
        "Largest norm of the gradient of the parameters that AdamW or SGD updates; 0 turns "
        "clipping off.",
        NOT_NEGATIVE,
        off=0.0,
    )
    schedule: str = setting(
        "wsd",
        "Schedule of the learning rate after the warm-up. wsd ends with a straight fall, wsd_sqrt "
        "with one that is steep at first.",
        choices=Schedule,
    )
    warmup: float = setting(
        0.03, "Fraction of the run in which the learning rate rises from zero.", SHARE, off=0.0
    )
    decay: float = setting(
        0.6,
        "Fraction of the run, at its end, in which wsd and wsd_sqrt lower the rate.",
        SHARE,
        off=0.0,
    )
    min_lr: float = setting(
        0.02, "Learning rate at the end of the run, as a fraction of its peak.", SHARE
    )

    def __post_init__(self) -> None:
        check("optim", self)
        # wsd does not know of the warm-up: if the two overlapped, the rate would jump.
        fits = not self.schedule.startswith("wsd") or self.warmup + self.decay <= 1
        limit = f"with warmup={self.warmup} it passes the whole run; their sum must be at most 1"
        require(fits, "optim.decay", self.decay, limit)
        limit = "sgd adds the decay to the gradient: set optim.name=adamw or muon"
        require(not self.cautious or self.name != "sgd", "optim.cautious", "true", limit)

    @property
    def momenta(self) -> Course:
        """Muon's momentum over the run."""
        return course(self.momentum)

    @property
    def decays(self) -> Course:
        """The weight decay over the run."""
        return course(self.weight_decay)
