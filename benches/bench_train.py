"""Training beside nanoGPT: the time to its loss, steps per second, and the same losses.

    python benches/bench_train.py --nanogpt FOLDER                 all sections
    python benches/bench_train.py --nanogpt FOLDER throughput      one of them
    OMP_NUM_THREADS=1 python benches/bench_train.py --nanogpt FOLDER recipe --seeds 0

FOLDER is a checkout of github.com/karpathy/nanoGPT. The texts come from the folder `TINYLM_DATA`
(corpora/tinyshakespeare.txt and english.txt). The sections:

    recipe      nanoGPT's CPU command and the recipe nanogpt-cpu, each from the start of its process
                to its end, on tinyshakespeare; the loss of both on nanoGPT's whole validation split
    english     the same on the characters of english.txt
    throughput  tokens per second of the same mathematics, plain and compiled; each contender has a
                process of its own, and they take turns
    parity      the same weights give the same logits; from the same weights and batches both reach
                the same loss
    muon        a step with Muon and one with AdamW
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nanogpt
import torch
from race import check

from tinylm import checkpoint, device, model, optim
from tinylm.config import ModelConfig, OptimConfig
from tinylm.model import Model

RECIPE = "nanogpt-cpu"
# name: T, B, layers, heads, width.
SHAPES = {"T64 B12 4x128": (64, 12, 4, 4, 128), "T256 B8 6x384": (256, 8, 6, 6, 384)}
VOCABULARY = 65
MOST_PARAMETERS = 800_000
# What the two may differ by: logits, and the loss at the last step.
LOGITS, LOSS = 1e-5, 0.02
ADAMW = OptimConfig(
    name="adamw", lr=1e-3, betas=(0.9, 0.99), schedule="cosine", warmup=0.05, min_lr=0.1
)


def spread(values: list[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def timed(command: list[str], folder: Path) -> float:
    """Seconds of a command from the start of its process to its end; ends the bench if it fails."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"error: {shlex.join(command)}:\n{done.stdout}\n{done.stderr}")
    return seconds


def peer_run(folder: Path, home: Path, characters: nanogpt.Characters, seed: int) -> Any:
    """Seconds and whole-split loss of nanoGPT's command."""
    place = nanogpt.checkout(folder, home / "peer", characters, seed)
    seconds = timed(nanogpt.COMMAND, place)
    saved = torch.load(place / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
    net = nanogpt.ours_from(saved["model"], saved["model_args"])
    return seconds, nanogpt.loss_of(net, characters.val), saved["iter_num"]


def our_run(text: Path, home: Path, characters: nanogpt.Characters, seed: int) -> Any:
    """Seconds, whole-split loss and parameters of our recipe, which prepares its data too."""
    place = home / "ours"
    place.mkdir()
    run = place / "run"
    given = [f"data.source={text.resolve()}", f"out={run}", f"train.seed={seed}"]
    seconds = timed(["-m", "tinylm.train", RECIPE, *given], place)
    net, tokenizer = checkpoint.load(run, dtype=torch.float32)
    check(tokenizer is not None, "the run has no tokenizer")
    assert tokenizer is not None
    ids = tokenizer.encode_array(characters.held_out)
    check(len(ids) == len(characters.held_out), "the recipe's tokens are not characters")
    record = json.loads((run / "run.json").read_text())
    held_out = json.loads((place / record["shards"] / "manifest.json").read_text())
    check_held_out(held_out, len(characters.val))
    return seconds, nanogpt.loss_of(net, ids), net.n_parameters()


def check_held_out(manifest: dict[str, Any], wanted: int) -> None:
    """End unless the run held out at least the part of the text that it is scored on."""
    tokens = sum(shard["tokens"] for shard in manifest["splits"]["val"]["shards"])
    check(tokens >= wanted, f"the recipe held out {tokens} characters, the split has {wanted}")


def against(name: str, text: Path, options: argparse.Namespace) -> None:
    """Both from the start of their process to the end, taking turns, one seed after another."""
    characters = nanogpt.Characters(text.read_text())
    ratios = []
    print(f"\n{name}: {len(characters.letters)} characters, {len(characters.val):,} held out")
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            theirs, bound, at = peer_run(options.nanogpt, home, characters, seed)
            ours, loss, parameters = our_run(text, home, characters, seed)
        print(f"  seed {seed}  nanoGPT {theirs:7.1f} s to {bound:.4f} (step {at})")
        print(f"          tinylm  {ours:7.1f} s to {loss:.4f} ({parameters:,} parameters)")
        check(loss <= bound, f"the recipe ends at {loss:.4f}, nanoGPT at {bound:.4f}")
        check(parameters <= MOST_PARAMETERS, f"the recipe has {parameters:,} parameters")
        ratios.append(theirs / ours)
    print(f"  tinylm is {spread(ratios)} times as fast")


def recipe(options: argparse.Namespace) -> None:
    """The recipe on tinyshakespeare."""
    against("recipe", options.data / "tinyshakespeare.txt", options)


def english(options: argparse.Namespace) -> None:
    """The same recipe on another text."""
    against("english", options.data / "english.txt", options)


def ours_step(sizes: tuple[int, ...], optimizer: OptimConfig, compiled: bool) -> Callable[[], None]:
    """One step as `tinylm.train` takes it: loss, gradients, their norm, clipping, update."""
    length, rows, layers, heads, width = sizes
    net = model.build(
        ModelConfig(
            architecture="gpt2",
            vocab_size=VOCABULARY,
            context_length=length,
            n_layers=layers,
            n_heads=heads,
            d_model=width,
        )
    )
    device.keep_memory()
    mover = optim.build(net, optimizer)
    tokens, targets = batch(length, rows)
    loss_of = torch.compile(net.loss, dynamic=False) if compiled else net.loss
    places: dict[str, Any] = {"positions": None, "documents": None}

    def step() -> None:
        with device.repeatable(torch.device("cpu"), compiled=compiled):
            loss = loss_of(tokens, targets, **places)
            loss.backward()
            norms = mover.gradient_norms()
            finite = loss.detach().isfinite() & torch.linalg.vector_norm(norms).isfinite()
            mover.step(1.0, ok=finite, norms=norms)

    return step


def peer_step(folder: Path, sizes: tuple[int, ...], compiled: bool) -> Callable[[], None]:
    """One step of the loop of nanoGPT's train.py."""
    length, rows, layers, heads, width = sizes
    peer = nanogpt.module(folder)
    given = {"block_size": length, "vocab_size": VOCABULARY, "n_layer": layers, "n_head": heads}
    # With biases, as our preset has them.
    net = peer.GPT(peer.GPTConfig(n_embd=width, dropout=0.0, bias=True, **given))
    mover = net.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    tokens, targets = batch(length, rows)
    forward = torch.compile(net) if compiled else net

    def step() -> None:
        _, loss = forward(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        mover.step()
        mover.zero_grad(set_to_none=True)

    return step


def batch(length: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets [B, T] of chance."""
    ids = torch.randint(VOCABULARY, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def work(options: argparse.Namespace) -> None:
    """A contender in a process of its own: each line read is a number of steps to time."""
    who, shape, compiled = options.work
    sizes, graph = SHAPES[shape], compiled == "compiled"
    if who == "nanoGPT":
        step = peer_step(options.nanogpt, sizes, graph)
    else:
        muon = OptimConfig(name="muon")
        step = ours_step(sizes, muon if who == "muon" else ADAMW, graph)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        # Its code prints too.
        print(f"seconds {time.perf_counter() - start}", flush=True)


class Contender:
    """A `work` process."""

    def __init__(self, who: str, shape: str, compiled: bool, folder: Path) -> None:
        kind = "compiled" if compiled else "plain"
        command = [sys.executable, __file__, "--nanogpt", str(folder), "--work", who, shape, kind]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, steps: int) -> float:
        """Seconds of `steps` more steps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise SystemExit("error: a contender ended early")

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def race(names: tuple[str, str], shape: str, compiled: bool, options: argparse.Namespace) -> None:
    """Milliseconds of a step of both, and how many times as fast the first is."""
    length, rows = SHAPES[shape][:2]
    steps = max(2, 20 * 768 // (length * rows))
    contenders = [Contender(name, shape, compiled, options.nanogpt) for name in names]
    # The first steps are not counted: they compile, and fill the caches.
    first = [contender.seconds(2) for contender in contenders]
    taken = [[c.seconds(steps) / steps for c in contenders] for _ in range(options.rounds)]
    for contender in contenders:
        contender.close()
    print(f"\n{shape}, {'compiled' if compiled else 'plain'}")
    for name, column, begun in zip(names, zip(*taken, strict=True), first, strict=True):
        each = statistics.median(column)
        speed = length * rows / each
        print(f"  {name:<8} {1e3 * each:8.1f} ms  {speed:9.0f} tokens/s  first two {begun:.1f} s")
    print(f"  {names[0]} is {spread([b / a for a, b in taken])} times as fast as {names[1]}")


def throughput(options: argparse.Namespace) -> None:
    """The same mathematics, in float32 with AdamW."""
    for compiled in (False, True):
        for shape in SHAPES:
            race(("tinylm", "nanoGPT"), shape, compiled, options)


def muon(options: argparse.Namespace) -> None:
    """Muon against AdamW in our step."""
    for shape in SHAPES:
        race(("adamw", "muon"), shape, False, options)


def parity(options: argparse.Namespace) -> None:
    """Logits of the same weights, then both trained on the same batches and scored."""
    peer = nanogpt.module(options.nanogpt)
    characters = nanogpt.Characters((options.data / "tinyshakespeare.txt").read_text())
    length, rows, layers, heads, width = SHAPES["T64 B12 4x128"]
    sizes = {
        "block_size": length,
        "vocab_size": len(characters.letters),
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
    }
    torch.manual_seed(options.seeds[0])
    theirs = peer.GPT(peer.GPTConfig(dropout=0.0, bias=False, **sizes))
    net = nanogpt.ours_from(theirs.state_dict(), sizes)
    print("\nparity")
    compare(net, theirs, "before training")
    # Its groups: every parameter of two axes decays. Ours decays the matrices between the tables.
    mover = theirs.configure_optimizers(0.1, ADAMW.lr, ADAMW.betas, "cpu")
    ours = optim.build(net, ADAMW)
    data = torch.from_numpy(characters.train.astype("int64"))
    draws = torch.Generator().manual_seed(options.seeds[0])
    for step in range(options.steps):
        starts = torch.randint(len(data) - length, (rows,), generator=draws)
        x, y = (torch.stack([data[i + k : i + k + length] for i in starts]) for k in (0, 1))
        rate = optim.schedule(step, options.steps, ADAMW)
        net.loss(x, y).backward()
        ours.step(rate)
        for group in mover.param_groups:
            group["lr"] = rate * ADAMW.lr
        theirs(x, y)[1].backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        mover.step()
        mover.zero_grad(set_to_none=True)
    both = [
        nanogpt.loss_of(each, characters.val)
        for each in (net, nanogpt.ours_from(theirs.state_dict(), sizes))
    ]
    print(f"  whole split after {options.steps} steps: {both[0]:.4f}, nanoGPT {both[1]:.4f}")
    check(abs(both[0] - both[1]) <= LOSS, f"the losses differ by {abs(both[0] - both[1]):.4f}")
    trained = nanogpt.ours_from(theirs.state_dict(), sizes)
    compare(trained, theirs, "with its weights after training")


def compare(net: Model, theirs: Any, when: str) -> None:
    """The largest difference of the logits of one batch; ends the bench if it is too large."""
    tokens, targets = batch(net.config.context_length, 12)
    with torch.no_grad():
        # With targets it returns the logits of every token.
        apart = (net(tokens) - theirs(tokens, targets)[0]).abs().max().item()
    print(f"  logits {when}: at most {apart:.1e} apart")
    check(apart <= LOGITS, f"logits {when} differ by {apart:.1e}")


SECTIONS = {f.__name__: f for f in (recipe, english, throughput, parity, muon)}


def main() -> None:
    """Run the sections named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--rounds", type=int, default=9, help="of throughput and muon; default 9")
    parser.add_argument("--steps", type=int, default=2000, help="of parity; default 2000")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.nanogpt = options.nanogpt.resolve()
    if options.work:
        work(options)
        return
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]!r}: {', '.join(SECTIONS)}")
    options.data = Path(os.environ.get("TINYLM_DATA", "shared")) / "corpora"
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {cores}, torch {torch.__version__}")
    for name in options.sections or SECTIONS:
        SECTIONS[name](options)


if __name__ == "__main__":
    main()
