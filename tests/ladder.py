"""The ladder: lists -> arrays -> tensors -> metal. One table of everything that is fast.

Nothing fast exists without something slow that defines it. Each row names an operation, its
slow definition, the fast thing that must equal it, inputs to draw and one large example. From
`RUNGS` come the property tests (`tests/test_ladder.py`), the benchmarks (`benches/bench_ladder.py`)
and the page of the docs. To add a kernel or a Rust function, add a row to a file of
`tests/rungs/`: a public name of `tinylm._rust` or `tinylm.kernels` without one fails a test.
"""

from tests.rungs import (
    added,
    batches,
    caches,
    choice,
    duplicates,
    expressions,
    fake,
    inference,
    kernel_attention,
    kernel_attention_hopper,
    kernel_decode,
    kernel_losses,
    kernel_norms,
    kernel_products,
    kernel_rope,
    kernel_swiglu,
    learning,
    masks,
    media,
    mixture,
    models,
    offsets,
    packing,
    products,
    quantising,
    sampling,
    shards,
    speculation,
    stages,
    text,
    training,
    vocabulary,
)
from tests.rungs.rung import CHAPTERS, Rung, check

RUNGS: tuple[Rung, ...] = tuple(
    sorted(
        (
            *vocabulary.RUNGS,
            *learning.RUNGS,
            *text.RUNGS,
            *added.RUNGS,
            *expressions.RUNGS,
            *stages.RUNGS,
            *offsets.RUNGS,
            *models.RUNGS,
            *sampling.RUNGS,
            *media.RUNGS,
            *masks.RUNGS,
            *training.RUNGS,
            *shards.RUNGS,
            *duplicates.RUNGS,
            *speculation.RUNGS,
            *batches.RUNGS,
            *packing.RUNGS,
            *mixture.RUNGS,
            *inference.RUNGS,
            *choice.RUNGS,
            *caches.RUNGS,
            *kernel_attention.RUNGS,
            *kernel_attention_hopper.RUNGS,
            *kernel_decode.RUNGS,
            *kernel_losses.RUNGS,
            *kernel_norms.RUNGS,
            *kernel_products.RUNGS,
            *kernel_rope.RUNGS,
            *kernel_swiglu.RUNGS,
            *products.RUNGS,
            *quantising.RUNGS,
            *fake.RUNGS,
        ),
        key=lambda rung: CHAPTERS.index(rung.chapter),
    )
)

__all__ = ["CHAPTERS", "RUNGS", "Rung", "check"]
