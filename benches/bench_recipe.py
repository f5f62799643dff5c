"""What each part of a recipe is worth: the recipe without it, over several seeds.

    python benches/bench_recipe.py speedrun                           every part, three seeds
    python benches/bench_recipe.py nanogpt-cpu --data FILE --only qk_norm --seeds 5
    python benches/bench_recipe.py speedrun train.steps=400           a shorter run of every row

A row changes one setting of the recipe, and each of its runs is `python -m tinylm.train RECIPE` in
a process of its own, so that anyone can repeat a row by hand. Reported are the mean loss over the
seeds and its range, the difference to the recipe as it is with the same seeds, and the processor
time per step, which other work on the machine changes less than the wall time. The table is
Markdown, as docs/log.md has it.

The gate before a row is printed: all its runs took the same steps and tokens as those of the recipe
as it is, and scored the same validation text.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from race import check

from tinylm import config
from tinylm.config import ConfigError
from tinylm.layers import copying

BASE = "as it is"
# A part of a recipe by name, and the settings that take it away or put the usual one in its place.
PARTS: dict[str, list[str]] = {
    BASE: [],
    "position: learned, not rotary": ["model.position=learned"],
    "norm: RMSNorm with gain": ["model.norm=rmsnorm"],
    "norm: LayerNorm with gain": ["model.norm=layernorm"],
    "embedding_norm: none": ["model.embedding_norm=false"],
    "qk_norm: none": ["model.qk_norm=false"],
    "feedforward: SwiGLU, not ReLU^2": ["model.feedforward=swiglu"],
    "tied: head and embedding": ["model.tied=true"],
    "logit_softcap: none": ["model.logit_softcap=null"],
    "value_residual: none": ["model.value_residual=false"],
    "value_embeddings: none": ["model.value_embeddings=0"],
    "bigrams: none": ["model.bigrams=0"],
    "shortcut: none": ["model.shortcut=false"],
    "token_shift: none": ["model.token_shift=false"],
    "key_mix: none": ["model.key_mix=false"],
    "parallel: one after the other": ["model.parallel=false"],
    "windows: none": ["model.windows=[]"],
    "start: heads that copy, no bigrams": ["model.start=copying"],
    "start: plain": ["model.start=plain"],
    "orthogonal: Newton-Schulz": ["optim.orthogonal=newton_schulz"],
    "optimizer: AdamW alone": ["optim.name=adamw"],
    "cautious: weight decay everywhere": ["optim.cautious=false"],
    "momentum: 0.95 throughout": ["optim.momentum=0.95"],
    "schedule: cosine": ["optim.schedule=cosine"],
    "sequence_length: full throughout": ["train.sequence_length=null"],
}


def run(recipe: str, settings: list[str], folder: Path) -> dict[str, Any]:
    """The record of one run, with the processor seconds that its process took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "tinylm.train", recipe, *settings, f"out={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**record["results"], "processor": spent}


def differs(recipe: str, settings: list[str], part: list[str]) -> bool:
    """Whether the part changes the recipe: what it lacks, or cannot be without, has no row."""
    try:
        changed = resolved(recipe, [*settings, *part])
    except ConfigError:
        return False
    begins = changed.model.start == "plain" or copying.refusal(changed.model) is None
    return begins and changed != resolved(recipe, settings)


def resolved(recipe: str, settings: list[str]) -> config.Run:
    """The settings of a run, with those of the model that its architecture decides."""
    run = config.load(recipe, settings)
    chosen = {name: v for name, v in run.model.components().items() if name != "bias"}
    return replace(run, model=replace(run.model, **chosen))


def main() -> None:
    """Run every row and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*", help="settings of every run")
    parser.add_argument("--data", help="the text of every run, as data.source")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    given = parser.parse_args()
    common = list(given.settings) + ([f"data.source={given.data}"] if given.data else [])
    chosen = {name: part for name, part in PARTS.items() if name == BASE or given.only in name}
    cpus = platform.processor() or platform.machine()
    print(f"{given.recipe}, {given.seeds} seeds, {cpus}, torch {torch.__version__}\n")
    print("| change | loss, nats per token | range | against the recipe | processor ms/step |")
    print("|---|---|---|---|---|", flush=True)
    base: list[dict[str, Any]] = []
    for name, part in chosen.items():
        if part and not differs(given.recipe, common, part):
            continue
        found = []
        for seed in range(given.seeds):
            with tempfile.TemporaryDirectory() as folder:
                settings = [*common, *part, f"train.seed={seed}"]
                found.append(run(given.recipe, settings, Path(folder) / "run"))
        base = base or found
        for ours, theirs in zip(base, found, strict=True):
            same = all(ours[key] == theirs[key] for key in ("step", "tokens"))
            check(same, f"{name} took other steps or tokens than the recipe")
        losses = [result["val_loss"] for result in found]
        changes = [r["val_loss"] - b["val_loss"] for r, b in zip(found, base, strict=True)]
        spent = statistics.median(result["processor"] / result["step"] for result in found)
        print(
            f"| {name} | {statistics.mean(losses):.4f} | {min(losses):.4f} to {max(losses):.4f} "
            f"| {statistics.mean(changes):+.4f} | {1e3 * spent:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
