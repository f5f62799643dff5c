"""What the tests against transformers share."""

import warnings

import pytest
import torch

from tinylm import cache


def transformers():
    """The library, silent: it logs, draws progress bars and warns while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("transformers")
        # Each of these names imports its module when it is first asked for.
        for name in (
            "AutoModelForCausalLM",
            "AutoTokenizer",
            "GPT2LMHeadModel",
            "LlamaForCausalLM",
        ):
            getattr(library, name)
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def randomise(model):
    """Weights that leave no branch at zero, as those of `build` do."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@torch.no_grad()
def greedy(model, prompt, count):
    """The `count` likeliest next ids, one after the other, by the cache."""
    keys = cache.build(model, 1, len(prompt) + count)
    new, tokens = [], torch.tensor([prompt])
    for _ in range(count):
        new.append(int(model(tokens, cache=keys)[0, -1].argmax()))
        tokens = torch.tensor([[new[-1]]])
    return new
