"""A trained model to one whose matrices have 8 or 4 bits, without training.

    net, tokenizer = checkpoint.load("runs/a")
    quantise(net, Settings("int4"))
    checkpoint.save("runs/a-int4", net, tokenizer)

`python -m tinylm.quant RUN method=int4 out=FOLDER` is the command. `layers.packed` holds the
weights, `checkpoint.quantised` describes the folder. Importing this package imports no torch: the
command answers `--help` at once.
"""

from typing import TYPE_CHECKING

from tinylm.lazy import on_first_use
from tinylm.quant.settings import Settings

if TYPE_CHECKING:
    from tinylm.quant.methods import quantise

__all__ = ["Settings", "quantise"]
__getattr__ = on_first_use(__name__, {"quantise": "tinylm.quant.methods"})
