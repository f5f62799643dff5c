"""The wrong lines of `make mutants` in the methods that quantise a trained model."""

from tests.support.wrong_lines import Mutant

QUANT = [
    Mutant(
        "python/tinylm/quant/gptq.py",
        "errors[:, k - start] = (weight[:, k] - done[:, k]) / factor[k, k]",
        "errors[:, k - start] = weight[:, k] - done[:, k]",
        "gptq",
    ),
    Mutant(
        "python/tinylm/quant/gptq.py",
        "weight[:, stop:] -= errors @ factor[start:stop, stop:]",
        "weight[:, stop:] += 0",
        "blocks_of_columns",
        tests="tests/test_quant.py",
    ),
    Mutant(
        "python/tinylm/ops/rounding.py",
        "total = (error if weights is None else error * weights).sum(-1)",
        "total = error.sum(-1)",
        "search_of_a_scale",
    ),
    Mutant(
        "python/tinylm/quant/awq.py",
        "change = on_grid(enlarged, searched(enlarged, group)) / tried - whole",
        "change = on_grid(enlarged, searched(enlarged, group)) - enlarged",
        "awq_factors",
    ),
    Mutant(
        "python/tinylm/quant/turning.py",
        "o.weight.copy_((heads @ turn.to(heads).T).reshape(o.weight.shape))",
        "o.weight.copy_((heads @ turn.to(heads)).reshape(o.weight.shape))",
        "turns_and_folds",
        tests="tests/test_quant.py",
    ),
]
