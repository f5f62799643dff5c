"""Reading a prompt and decoding, against transformers with the same weights, in one run.

    python benches/bench_sample.py                     prefill and decode
    python benches/bench_sample.py prefill --rounds 9

Prefill: 512 tokens through 6 layers of width 384 with a vocabulary of 50,304, up to the logits
that the next token is drawn from. "all logits" is the whole forward pass, of which sampling needs
the last row alone. Decode: 128 greedy tokens of the default run's model with its first weights.
Before anything is timed, every contender must give the same logits, or the same ids.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from race import OURS, Race, check, measure, report
from torch import Tensor

from tinylm import cache, checkpoint, model, sample
from tinylm.config import ModelConfig, SampleConfig
from tinylm.model import Model, inference
from tinylm.sample.reader import Reader

PREFILL = ModelConfig(vocab_size=50_304, d_model=384, n_heads=6, n_layers=6, context_length=1024)
PROMPT, NEW = 512, 128


def built(config: ModelConfig) -> Model:
    """A model with weights that say something: as built, its branches end in zeros."""
    net = model.build(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def twin(net: Model, folder: Path) -> Any:
    """The same model in transformers, by way of a checkpoint."""
    checkpoint.save(folder / "model", net, None)
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()


def prefill(folder: Path) -> Iterator[Race]:
    """A prompt to the logits after its last token."""
    net = built(PREFILL)
    theirs = twin(net, folder)
    ids = torch.randint(PREFILL.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(2))
    prompt = ids[0].tolist()

    def ours(_: None) -> Tensor:
        with inference(net):
            return Reader(net, [prompt], NEW, vocab_size=net.embedding.num_embeddings).last[0]

    def whole(_: None) -> Tensor:
        with inference(net):
            held = cache.build(net, 1, PROMPT + NEW)
            return net(ids, cache=held)[0, -1].double()

    def peer(_: None) -> Tensor:
        with torch.inference_mode():
            found = theirs(ids, use_cache=True, logits_to_keep=1)
            return found.logits[0, -1].double()

    runs = {OURS: ours, "tinylm, all logits": whole, "transformers, last logits": peer}
    wanted = ours(None)
    for name, run in runs.items():
        check(torch.allclose(run(None), wanted, rtol=0, atol=1e-3), f"logits of {name}")
    yield Race(f"prefill {PROMPT} tokens", PROMPT, "tokens/s", runs, dict.fromkeys(runs, nothing))


def decode(folder: Path) -> Iterator[Race]:
    """Greedy tokens, one at a time."""
    net = built(ModelConfig(vocab_size=2048))
    theirs = twin(net, folder)
    settings = SampleConfig(temperature=0, max_tokens=NEW)
    prompt = list(range(100, 116))

    def ours(_: None) -> list[int]:
        return sample.generate(net, [prompt], settings)[0]

    def peer(_: None) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            found = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return found[0, len(prompt) :].tolist()

    check(ours(None) == peer(None), "ids of transformers")
    runs: dict[str, Callable[[Any], object]] = {OURS: ours, "transformers": peer}
    yield Race(f"decode {NEW} tokens", NEW, "tokens/s", runs, dict.fromkeys(runs, nothing))


def nothing() -> None:
    """There is nothing to make anew between rounds."""


PARTS = {part.__name__: part for part in (prefill, decode)}


def main() -> None:
    """Run the parts named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}: {', '.join(PARTS)}")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {cores}, {versions}")
    for name in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            for race in PARTS[name](Path(folder)):
                report(race, measure(race, options.rounds))


if __name__ == "__main__":
    main()
