"""The settings of a run of several processes."""

from dataclasses import dataclass

from tinylm.config.checks import check
from tinylm.config.fields import Mode, setting


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How the processes that torchrun starts train one model together."""

    mode: Mode = setting(
        "none",
        "none is one process. ddp keeps the whole model in every process of torchrun and adds up "
        "the gradients; fsdp also spreads weights, gradients and optimizer state over them, once "
        "each process has made the whole model in the CPU's memory. Start both with: "
        "torchrun --nproc-per-node N -m tinylm.train distributed.mode=ddp",
    )

    def __post_init__(self) -> None:
        check("distributed", self)
