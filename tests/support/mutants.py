"""A deliberate wrong line at a time in the fast code: does the ladder see each?

    make mutants                      all of them; ARGS=python or ARGS=rust one half

Each mutant is one line changed in a copy of the package, with the rungs that must fail on it.
The Rust ones build the extension in a copy of the tree, about 20 s each after the first.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """One line of a file, what stands there instead, and a pytest -k expression."""

    path: str
    line: str
    instead: str
    rungs: str


PYTHON = [
    Mutant(
        "python/tinylm/ops.py",
        "wide.square().mean(-1, keepdim=True) + eps)",
        "wide.square().mean(-1, keepdim=True)) + eps",
        "rms_norm-tensors-ops",
    ),
    Mutant(
        "python/tinylm/ops.py",
        "torch.cat((first * cos - second * sin, second * cos + first * sin), -1)",
        "torch.cat((first * cos + second * sin, second * cos - first * sin), -1)",
        "rope-tensors-ops",
    ),
    Mutant(
        "python/tinylm/ops.py",
        "if mask is None and 1 < queries < keys:",
        "if mask is None and 1 < queries < keys - 1:",
        "attention-tensors-ops or decode_with",
    ),
    Mutant(
        "python/tinylm/ops.py",
        'F.gelu(x, approximate="tanh")',
        "F.gelu(x)",
        "gelu-tensors-ops",
    ),
    Mutant(
        "python/tinylm/ops.py",
        "k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)",
        "k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)",
        "manual_attention",
    ),
    Mutant(
        "python/tinylm/layers.py",
        "v = self._split(self.v(x), self.kv_heads)",
        "v = rotate(self._split(self.v(x), self.kv_heads))",
        "transformer-tensors-model",
    ),
    Mutant(
        "python/tinylm/model.py",
        "start = cache.length",
        "start = 0",
        "decode_with",
    ),
    Mutant(
        "python/tinylm/cache.py",
        "return self.k[:, :, :end], self.v[:, :, :end]",
        "return self.k, self.v",
        "decode_with",
    ),
    Mutant(
        "python/tinylm/optim.py",
        "ahead = torch._foreach_lerp(gradients, momenta, beta)",
        "ahead = momenta",
        "muon",
    ),
    Mutant(
        "python/tinylm/optim.py",
        '"weight_decay": config.weight_decay}',
        '"weight_decay": 0.0}',
        "adamw or sgd or muon",
    ),
    Mutant(
        "python/tinylm/optim.py",
        "past = max(0.0, progress - config.warmup)",
        "past = progress - config.warmup",
        "schedule",
    ),
    Mutant(
        "python/tinylm/data/loader.py",
        'self._row += self._slice["batch_size"]',
        'self._row += self._slice["batch_size"] // self._slice["world_size"]',
        "batches_resumed",
    ),
    Mutant(
        "python/tinylm/tokenizer/contents.py",
        "for end in range(1, len(content))}",
        "for end in range(2, len(content))}",
        "added_tokens",
    ),
    Mutant(
        "kernels/fused/rms_norm.py",
        "gradient = (scaled - normed * shared) * r",
        "gradient = scaled * r",
        "rms_norm-ops-kernels",
    ),
    Mutant(
        "kernels/fused/rms_norm.py",
        "inside = (row < rows) & (column < D)\n    w",
        "inside = (row <= rows) & (column < D)\n    w",
        "rms_norm-ops-kernels",
    ),
]
RUST = [
    Mutant(
        "rust/tokenizer/src/train.rs",
        "Ties::Ids => (a.left, a.right) < (b.left, b.right),",
        "Ties::Ids => (a.right, a.left) < (b.right, b.left),",
        "train_ties",
    ),
    Mutant(
        "rust/tokenizer/src/bpe.rs",
        "heap.extend(entry(&before.part, node.previous));",
        "heap.extend(entry(&before.part, at));",
        "encode-lists",
    ),
    Mutant(
        "rust/tokenizer/src/scan.rs",
        ".or_else(|| try_at(at, inside, lower_word))\n            "
        ".or_else(|| try_at(at + width, before, upper_word))",
        ".or_else(|| try_at(at + width, before, upper_word))\n            "
        ".or_else(|| try_at(at, inside, lower_word))",
        "split_o200k",
    ),
    Mutant(
        "rust/tokenizer/src/count.rs",
        "self.add_short(old.key, old.count);",
        "self.add_short(old.key, 1);",
        "train_many_words",
    ),
    Mutant(
        "rust/tokenizer/src/vocab.rs",
        "out.resize(out.len().max(end + token.len() + 16 * BLOCK), 0);",
        "out.resize(out.len().max(end + token.len()), 0);",
        "decode",
    ),
    Mutant(
        "rust/tokenizer/src/frequent.rs",
        ".sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| b.0.cmp(&a.0)));",
        ".sort_unstable_by_key(|word| std::cmp::Reverse(word.1));",
        "train_whole",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "text.len().saturating_sub(unsure.max(1))",
        "text.len().saturating_sub(1)",
        "cut",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "Policy::Only(ids) => !token.special || ids.contains(&token.id),",
        "Policy::Only(_) => true,",
        "some",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "MatchKind::LeftmostLongest",
        "MatchKind::LeftmostFirst",
        "special_tokens",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "Policy::Raise => !token.special,",
        "Policy::Raise => false,",
        "added_tokens",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "Policy::Text => &self.plain,",
        "Policy::Text => &self.all,",
        "added_tokens",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "let unsure = self.longest * self.all.len();",
        "let unsure = self.longest;",
        "cut_of_added",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "self.divide(text, before, later, policy, each)?;",
        "self.divide(text, before, &[], policy, each)?;",
        "added_tokens",
    ),
    Mutant(
        "rust/dataloader/src/order.rs",
        "if *e == epoch)",
        "if true || *e == epoch)",
        "batches",
    ),
    Mutant(
        "rust/dataloader/src/order.rs",
        "key(&[self.seed, 0, epoch])",
        "key(&[self.seed, 1, epoch])",
        "order",
    ),
    Mutant(
        "rust/dataloader/src/shard.rs",
        "self.pread(self.offset(block) + from as u64, bytes)",
        "self.pread(self.offset(block), bytes)",
        "tokens-lists",
    ),
    Mutant(
        "rust/dataloader/src/shard.rs",
        'if found != expected {\n                let problem =\n                    format!("block',
        'if false {\n                let problem =\n                    format!("block',
        "damage-lists",
    ),
    Mutant(
        "rust/dataloader/src/shard.rs",
        "self.entry.payload + block as u64 * BLOCK_BYTES as u64",
        "HEADER_BYTES as u64 + block as u64 * BLOCK_BYTES as u64",
        "tokens_of_other_files",
    ),
    Mutant(
        "rust/dataloader/src/plan.rs",
        "last.min(self.shuffle.row(epoch, i) * self.stride)",
        "self.shuffle.row(epoch, i) * self.stride",
        "order",
    ),
    Mutant(
        "rust/dataloader/src/plan.rs",
        "anywhere(self.seed, epoch, i, last + 1)",
        "anywhere(self.seed, epoch, i, last.max(1))",
        "order",
    ),
    Mutant(
        "rust/dataloader/src/plan.rs",
        "length: self.context_length.min(left) as usize,",
        "length: self.context_length.min(left.saturating_sub(1)) as usize,",
        "epoch",
    ),
    Mutant(
        "rust/dataloader/src/batch.rs",
        "let after = usize::from(left > length as u64);",
        "let after = usize::from(left > length as u64 + 1);",
        "row or batches or epoch",
    ),
    Mutant(
        "rust/dataloader/src/batch.rs",
        "let mut after = piece.iter_mut().skip_while(|id| **id != eos);\n    after.next();",
        "let mut after = piece.iter_mut().skip_while(|id| **id != eos);\n    after.by_ref();",
        "row or batches",
    ),
    Mutant(
        "rust/dataloader/src/batch.rs",
        "is_some_and(|end| row >= end)",
        "is_some_and(|end| row > end)",
        "epoch",
    ),
    Mutant(
        "rust/dataloader/src/order.rs",
        "low ^= mix(high ^ pair[1]) & low_mask;",
        "low ^= mix(high ^ pair[0]) & low_mask;",
        "order",
    ),
]


def copied(to: Path) -> Path:
    """A tree like this one, with the parts that are changed as copies."""
    for name in ("python", "kernels", "rust", "tests"):
        shutil.copytree(ROOT / name, to / name, symlinks=True, dirs_exist_ok=True)
    for name in ("Cargo.toml", "Cargo.lock", "pyproject.toml"):
        shutil.copy2(ROOT / name, to / name)
    return to


def change(tree: Path, mutant: Mutant) -> None:
    """Put the wrong line in the place of the right one, which stands there once."""
    file = tree / mutant.path
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.line) != 1:
        sys.exit(f"error: {mutant.path}: {mutant.line!r} stands {text.count(mutant.line)} times")
    file.write_text(text.replace(mutant.line, mutant.instead), encoding="utf-8")


def build(tree: Path) -> None:
    """The extension of a copied tree, in its place."""
    command = ["cargo", "build", "--quiet", "--release", "-p", "tinylm-bindings"]
    subprocess.run(command, cwd=tree, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", tree / "target"))
    (library,) = (p for p in (target / "release").glob("lib_rust.*") if p.suffix != ".d")
    for old in (tree / "python/tinylm").glob("_rust.*.so"):
        old.unlink()
    shutil.copy2(library, tree / "python/tinylm/_rust.abi3.so")


def failures(tree: Path, rungs: str) -> list[str]:
    """The rungs that fail in a tree."""
    environment = os.environ | {"PYTHONPATH": str(tree / "python"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "tests/test_ladder.py", "-q", "--tb=no", "-k", rungs]
    command += [
        "--hypothesis-profile=ci",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestWarning",
    ]
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    # 0: all passed, 1: some failed. Anything else is no answer.
    if done.returncode not in (0, 1):
        sys.exit(f"error: pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return re.findall(r"^FAILED .*\[(.*?)\]", done.stdout, re.MULTILINE)


def main(arguments: list[str]) -> int:
    """Try each mutant; 1 if one lives."""
    which = {"python": PYTHON, "rust": RUST}
    # The Rust ones last: each leaves its extension behind.
    chosen = [m for name in which if name in (arguments or which) for m in which[name]]
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))
        # A rung that fails anyway would see every mutant.
        if failed := failures(tree, " or ".join(f"({mutant.rungs})" for mutant in chosen)):
            sys.exit(f"error: {', '.join(failed)} fail without any wrong line")
        for mutant in chosen:
            original = (tree / mutant.path).read_bytes()
            change(tree, mutant)
            if mutant in RUST:
                build(tree)
            failed = failures(tree, mutant.rungs)
            (tree / mutant.path).write_bytes(original)
            alive += not failed
            verdict = f"seen by {', '.join(failed)}" if failed else "NOT SEEN"
            line = mutant.instead.splitlines()[0].strip()
            print(f"{mutant.path}: {line}\n    {verdict}", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} wrong lines were seen")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
