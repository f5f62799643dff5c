"""The settings of low-rank adapters."""

from dataclasses import dataclass

from tinylm.config.checks import check
from tinylm.config.fields import setting
from tinylm.config.limits import COUNT, POSITIVE, require


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA): only small additions to the model of train.init are trained."""

    rank: int | None = setting(None, "Rank of each adapter; null trains the model itself.", COUNT)
    alpha: float = setting(16.0, "An adapter's output is multiplied by alpha / rank.", POSITIVE)
    dropout: float = setting(
        0.0, "Dropout on the input of the adapters.", {"ge": 0, "lt": 1}, off=0.0
    )
    targets: tuple[str, ...] = setting(
        (),
        "Matrices that get an adapter, by name: q, k, v, o, gate, up, down. Default all matrices "
        "of the blocks.",
    )

    def __post_init__(self) -> None:
        check("lora", self)
        if self.rank is None:
            # A setting that would do nothing is a slip.
            for name, default in (("alpha", 16.0), ("dropout", 0.0), ("targets", ())):
                value = getattr(self, name)
                require(value == default, f"lora.{name}", value, "has no effect without lora.rank")
