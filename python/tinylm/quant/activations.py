"""How large the inputs of each matrix are, and the one scale by which each rounds them to 8 bits.

    minmax       the largest magnitude: nothing is cut off
    percentile   99.9% of the magnitudes are below: the rest is cut off
    histogram    the least squared error, of rounding and of what is cut off

All three read one histogram of magnitudes, which is filled batch by batch.
"""

import torch
from torch import Tensor, nn

from tinylm.layers.packed import PackedHead, PackedLinear
from tinylm.model import Model, inference

# Bins of a histogram, and the thresholds that `histogram` tries.
BINS, TRIED = 2048, 256
PERCENTILE = 0.999
# Tokens that go through the model at once.
TOKENS = 2**12


class Histogram:
    """Counts of magnitudes in `BINS` equal bins from 0 to `top`, a power of two that grows.

    Where it doubles, two neighbouring bins become one: the counts are those that all numbers
    together would give, whatever the batches (a rung).
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.top, self.largest = 2.0**-20, 0.0

    def add(self, x: Tensor) -> None:
        """Count the magnitudes of x; `ValueError` if one is not finite."""
        x = x.detach().float().abs().flatten().cpu()
        if not x.isfinite().all():
            raise ValueError("the model has inputs that are not finite: take another checkpoint")
        self.largest = max(self.largest, float(x.max()))
        while self.top <= self.largest:
            halves = self.counts.view(-1, 2).sum(-1)
            self.counts = torch.cat([halves, torch.zeros_like(halves)])
            self.top *= 2
        # A power of two: the product is exact.
        places = (x * (BINS / self.top)).long()
        self.counts += torch.bincount(places, minlength=BINS)

    def scale(self, how: str) -> float:
        """The step of the 8 bits by a method of the module's table, above 0."""
        if self.largest == 0:
            return 1.0
        return {"minmax": self._minmax, "percentile": self._percentile, "histogram": self._best}[
            how
        ]() / 127

    def _minmax(self) -> float:
        return self.largest

    def _percentile(self) -> float:
        """The upper end of the first bin up to which `PERCENTILE` of the numbers are."""
        below = self.counts.cumsum(0)
        place = int((below >= PERCENTILE * below[-1]).nonzero()[0])
        return min((place + 1) * self.top / BINS, self.largest)

    def _best(self) -> float:
        """The threshold with the least expected squared error, of `TRIED` equal parts of the top.

        A number below it has the error of a uniform remainder, step^2 / 12, one above what is cut
        off. Every number counts as the middle of its bin.
        """
        middles = (torch.arange(BINS) + 0.5).double() * (self.top / BINS)
        tried = torch.arange(1, TRIED + 1).double()[:, None] * (self.top / TRIED)
        error = torch.where(middles < tried, (tried / 127) ** 2 / 12, (middles - tried) ** 2)
        place = int((error * self.counts).sum(-1).argmin())
        return min(float(tried[place]), self.largest)


def measure(model: Model, calibration: Tensor) -> dict[str, Histogram]:
    """The inputs of each packed matrix of a model over rows [N, T] of ids, by its name."""
    found: dict[str, Histogram] = {}
    handles = []
    for name, part in model.named_modules():
        if not isinstance(part, PackedLinear) or isinstance(part, PackedHead):
            continue
        mine = found[name] = Histogram()

        def count(_: nn.Module, inputs: tuple[Tensor, ...], mine: Histogram = mine) -> None:
            mine.add(inputs[0])

        handles.append(part.register_forward_pre_hook(count))
    try:
        with inference(model):
            for part in torch.split(calibration, max(1, TOKENS // calibration.size(1))):
                ids = part.to(model.weight.device)
                model.hidden(
                    model.embed(ids, torch.float32), model.context(ids.size(1), tokens=ids)
                )
    finally:
        for handle in handles:
            handle.remove()
    return found
