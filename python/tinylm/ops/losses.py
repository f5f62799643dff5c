"""The loss of language models, from logits or from the vectors before the head."""

import torch.nn.functional as F
from torch import Tensor

from tinylm.ops.dtypes import widened
from tinylm.ops.products import linear

# torch's own default for a target that does not count; the loader pads with the same number.
IGNORED = -100


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] in nats over the targets that are not -100.

    logits [..., V] of any float dtype, targets [...] int64; a scalar, float32 at least.
    """
    # bfloat16 keeps 8 significant bits, too few for a sum over a vocabulary.
    flat = widened(logits.reshape(-1, logits.size(-1)))
    return F.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORED)


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`cross_entropy` of the logits x W^T, which need not all exist at once.

    x [..., D], weight [V, D], targets [...] int64; a scalar, float32 at least.
    """
    # A function of its own although it has one line: a kernel that fuses head and loss belongs here
    # (docs/design.md, Planned).
    return cross_entropy(linear(x, weight), targets)
