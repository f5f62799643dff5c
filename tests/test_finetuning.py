"""Fine-tuning: what is frozen, what grows, what the best checkpoint is."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.models import build
from tinylm import checkpoint, commands, config, optim
from tinylm.config import ConfigError, ModelConfig
from tinylm.evaluate.__main__ import main as evaluate_main
from tinylm.layers.freezing import freeze
from tinylm.tokenizer import Tokenizer, chat
from tinylm.train import finetuning, train

TEXT = "".join(f"the {i % 7} cats of house {i % 13} sleep on {i % 5} mats\n" for i in range(2000))
SMALL = [
    "data.source=cats.txt",
    "data.val_fraction=0.1",
    "tokenizer.kind=byte",
    "model.d_model=16",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.context_length=32",
    "train.batch_size=4",
    "train.steps=8",
    "train.compile=false",
    "evaluate.every=0",
    "sample.max_tokens=8",
    "track.names=[jsonl]",
]
TINY = ModelConfig(vocab_size=257, d_model=8, n_layers=2, n_heads=2, context_length=8)
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cats.txt").write_text(TEXT)


def run(*overrides):
    return train(config.load(None, [*SMALL, *overrides]))


def tensors(folder, part="model"):
    return load_file(checkpoint.latest(folder) / f"{part}.safetensors")


ENTRIES = [
    ("embedding", {"embedding.weight"}),
    ("gain", {"norm.weight", "blocks.0.attention_norm.weight", "blocks.1.attention_norm.weight"}),
    ("blocks.1", {"blocks.1.attention.q.weight", "blocks.1.feedforward.up.weight"}),
    ("blocks.0-1", {"blocks.0.attention.q.weight", "blocks.1.attention.q.weight"}),
    ("*.attention.q.weight", {"blocks.0.attention.q.weight", "blocks.1.attention.q.weight"}),
    ("norm", {"norm.weight"}),
]


@pytest.mark.parametrize(("entry", "expected"), ENTRIES)
def test_an_entry_freezes_what_it_names(entry, expected):
    net = build(TINY)
    freeze(net, [entry])
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert expected <= frozen
    roles = {role for name, p, role in net.named_roles() if name in frozen}
    assert entry != "gain" or roles == {"gain"}
    assert not entry.startswith("blocks") or all(name.startswith("blocks.") for name in frozen)
    assert finetuning.trainable(net) == sum(
        p.numel() for name, p in net.named_parameters() if name not in frozen
    )


@pytest.mark.parametrize("entry", ["blocks.2", "blocks", "haed", "head"])
def test_an_entry_that_matches_nothing_is_an_error_with_what_there_is(entry):
    if entry == "blocks":
        with pytest.raises(ConfigError, match="nothing to train"):
            freeze(build(TINY), ["*"])
        return
    with pytest.raises(ConfigError, match=r"roles embedding, .*blocks.0 to blocks.1") as caught:
        freeze(build(TINY), [entry])
    assert f"train.freeze={entry}" in str(caught.value)


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_frozen_weights_have_no_gradient_no_state_and_no_decay(name):
    net = build(TINY, dtype=torch.float32)
    freeze(net, ["embedding", "blocks.0"])
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    made = optim.build(net, config.load(None, [f"optim.name={name}"]).optim)
    tokens = torch.randint(257, (2, 8))
    net.loss(tokens, tokens).backward()
    made.step(1.0)
    frozen = [n for n, p in net.named_parameters() if not p.requires_grad]
    assert "embedding.weight" in frozen
    for n, p in net.named_parameters():
        assert torch.equal(p, before[n]) == (n in frozen), n
        assert p.grad is None
    assert not [key for key in made.state() if key.startswith(tuple(frozen))]


@pytest.mark.slow
def test_a_run_on_another_text_keeps_what_is_frozen_and_resumes_exactly(capsys):
    base = run("out=base")
    Path("dogs.txt").write_text(TEXT.replace("cats", "dogs"))
    more = ["train.init=base", "data.source=dogs.txt", "train.freeze=[embedding,blocks.0]"]
    whole = run("out=whole", *more, "checkpoint.every=4", "track.names=[console,jsonl]")
    assert "are trained" in capsys.readouterr().out
    old, new = tensors(base), tensors(whole)
    same = {name for name in old if torch.equal(old[name], new[name])}
    kept = {n for n in old if "embed" in n or ".layers.0." in n}
    assert same == kept
    assert not [k for k in tensors(whole, "optimizer") if k.startswith(("embedding", "blocks.0"))]
    again = run("out=again", *more, "train.resume=whole/checkpoints/step-00000004")
    assert all(torch.equal(new[name], tensor) for name, tensor in tensors(again).items())
    with pytest.raises(ConfigError, match=r"train.freeze differs"):
        run("out=whole", *more[:2], "train.resume=auto")


def test_more_than_a_run_froze_is_refused_when_it_goes_on():
    net = build(TINY)
    state = [f"{name}.exp_avg" for name, _ in net.named_parameters()]
    freeze(net, ["blocks.0"])
    with pytest.raises(ConfigError) as caught:
        finetuning.refuse_state(net, ["blocks.0"], Path("base/checkpoints/step-1"), state)
    found = str(caught.value)
    assert re.match(r"train.freeze=\[blocks.0\]: freezes blocks.0\.\S+ and 8 more, which", found)
    assert "start from its weights alone with train.init=base/checkpoints/step-1" in found
    # What trains again begins without moments.
    finetuning.refuse_state(net, ["blocks.0"], Path(), [n for n in state if "blocks.0" not in n])


@pytest.mark.slow
def test_a_run_that_goes_on_may_freeze_less_and_not_more():
    run("out=base", "train.steps=2", "checkpoint.every=1")
    with pytest.raises(ConfigError, match=r"train.freeze=\[blocks.0\]: freezes blocks.0"):
        run("out=more", "train.resume=base/checkpoints/step-00000001", "train.freeze=[blocks.0]")
    assert not Path("more").exists()
    run("out=part", "train.init=base", "train.freeze=[blocks.0]", "checkpoint.every=4")
    run("out=less", "train.init=base", "train.resume=part/checkpoints/step-00000004")


@pytest.mark.slow
def test_the_tables_grow_by_the_marks_and_the_old_rows_stay(capsys):
    run("out=base", "train.steps=2", "model.tied=false")
    rows = ({"messages": [dict(turn, content=f"{turn['content']} {i}") for turn in TURNS]}
            for i in range(200))  # fmt: skip
    Path("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = run(
        "out=chat", "train.init=base", "data.source=chat.jsonl", "train.freeze=[embedding]",
        "train.micro_batch_size=1", "track.names=[console,jsonl]",
    )  # fmt: skip
    assert "has 261 rows now, 257 before" in capsys.readouterr().out
    net, tokenizer = checkpoint.load(out)
    base, _ = checkpoint.load("base")
    assert chat.marks(tokenizer).end == 260
    assert torch.equal(net.embedding.weight[:257], base.embedding.weight)
    fresh, mean = net.embedding.weight[257:], base.embedding.weight.mean(0)
    assert 0 < (fresh - mean).norm(dim=1).max() < base.embedding.weight.std() * 4
    assert net.head.weight.shape == (261, 16)
    beside = json.loads((checkpoint.latest(out) / "tokenizer_config.json").read_text())
    assert beside["chat_template"] == chat.TEMPLATE


def test_a_model_with_rows_to_spare_does_not_grow():
    net = build(ModelConfig(vocab_size=300, d_model=8, n_layers=1, n_heads=2, context_length=8))
    said = []
    bytes_alone = Tokenizer.train(["x"], vocab_size=257, kind="byte")
    grown, tokenizer = finetuning.with_marks(net, bytes_alone, 0, said.append)
    assert grown.embedding.num_embeddings == 300
    assert torch.equal(grown.weight[261:], net.weight[261:])
    assert not torch.equal(grown.weight[257:261], net.weight[257:261])
    assert finetuning.with_marks(grown, tokenizer, 0, said.append) == (grown, tokenizer)
    assert len(said) == 1


def test_best_stands_for_the_best_checkpoint(tmp_path):
    net = build(TINY)
    for step in (1, 2):
        with torch.no_grad():
            net.norm.weight.fill_(step)
        checkpoint.save(tmp_path / f"run/checkpoints/step-{step:08d}", net, None)
    record = tmp_path / "run/best.json"
    assert config.best(tmp_path / "run/best") == tmp_path / "run/best"
    record.write_text('{"checkpoint": "checkpoints/step-00000001"}')
    found, _ = checkpoint.load(tmp_path / "run/best")
    assert found.norm.weight.eq(1).all()
    assert checkpoint.load(tmp_path / "run")[0].norm.weight.eq(2).all()
    assert commands.path(f"{tmp_path}/run/best").endswith("checkpoints/step-00000001")
    assert commands.path("~/best") == str(Path("~/best").expanduser())
    record.write_text('{"step": 1}')
    with pytest.raises(ValueError, match=r"best.json: names no checkpoint"):
        checkpoint.load(tmp_path / "run/best")


@pytest.mark.slow
def test_fine_tuning_that_gets_worse_ends_early_and_keeps_the_best(capsys):
    run("out=base", "train.steps=60", "optim.matrix_lr=0.05")
    # The rate rises from 0 to one that ruins the model on the way.
    out = run(
        "out=worse", "train.init=base", "optim.name=adamw", "optim.lr=3",
        "optim.schedule=constant", "optim.warmup=1", "train.steps=200", "evaluate.every=2",
        "evaluate.patience=3", "checkpoint.keep=1", "track.names=[console,jsonl]",
        "train.nonfinite=skip",
    )  # fmt: skip
    said = capsys.readouterr().out
    best = json.loads((out / "best.json").read_text())
    assert "no better validation loss in 3 evaluations: stopping" in said
    assert f"best       step {best['step']}" in said
    assert checkpoint.latest(out) != config.best(out / "best")
    evaluate_main([str(out / "best")])
    scored = capsys.readouterr().out.split()
    assert float(scored[scored.index("loss") + 1]) == pytest.approx(best["val_loss"], rel=2e-2)
