"""Scores against their definition."""

import dataclasses
import math
import subprocess
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tinylm
from tests.support.fakes import ByteTokenizer, ListDataset
from tests.support.models import build
from tinylm import config
from tinylm.config import ConfigError, ModelConfig
from tinylm.evaluate import evaluate, scoring
from tinylm.evaluate.__main__ import main

TOKENIZER = ByteTokenizer()
SMALL = ModelConfig(
    vocab_size=257, d_model=12, n_layers=1, n_heads=2, context_length=5, tied=False
)  # fmt: skip
IDS = st.lists(st.integers(0, 256), min_size=2, max_size=40)


@pytest.fixture(scope="module")
def small():
    return build(SMALL, dtype=torch.float32)


def nats(model, ids, context):
    """Each target by itself: what its window says before it."""
    found = []
    for target in range(1, len(ids)):
        start = (target - 1) // context * context
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:target]]))[0, -1].double()
        found.append(float(torch.logsumexp(logits, 0) - logits[ids[target]]))
    return found


@settings(max_examples=40, deadline=None)
@given(ids=IDS, batch_size=st.integers(1, 4))
def test_every_target_is_scored_once(small, ids, batch_size):
    wanted = nats(small, ids, 5)
    text_bytes = sum(token != 256 for token in ids)
    scores = evaluate(small, ListDataset(ids), tokenizer=TOKENIZER, batch_size=batch_size)
    assert scores.tokens == len(ids) - 1
    assert scores.bytes == text_bytes
    assert scores.loss == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)
    assert scores.perplexity == pytest.approx(math.exp(scores.loss))
    if text_bytes:
        bits = sum(wanted) / math.log(2) / text_bytes
        assert scores.bits_per_byte == pytest.approx(bits, rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(ids=IDS, limit=st.integers(1, 45), batch_size=st.integers(1, 4))
def test_a_limit_scores_the_first_targets_over_their_bytes(small, ids, limit, batch_size):
    data = ListDataset(ids, n_bytes=10**6)
    scores = evaluate(
        small, data, tokenizer=TOKENIZER, batch_size=batch_size, max_tokens=limit
    )  # fmt: skip
    count = min(limit, len(ids) - 1)
    wanted = sum(nats(small, ids, 5)[:count])
    assert scores.tokens == count
    assert scores.loss == pytest.approx(wanted / count, rel=1e-5)
    if count < len(ids) - 1:
        assert scores.bytes == sum(token != 256 for token in ids[1 : count + 1])
    else:
        assert scores.bytes == 10**6


def test_the_bytes_that_the_dataset_counted_are_taken(small):
    scores = evaluate(small, ListDataset([1, 2, 3], n_bytes=7), tokenizer=TOKENIZER)
    assert scores.bytes == 7
    assert scores.bits_per_byte == pytest.approx(scores.loss * 2 / math.log(2) / 7)


@given(batch_size=st.integers(1, 30))
@settings(max_examples=15, deadline=None)
def test_the_batch_size_changes_rounding_alone(small, batch_size):
    data = ListDataset([n * n % 257 for n in range(101)])
    one, other = (evaluate(small, data, tokenizer=TOKENIZER, batch_size=n) for n in (7, batch_size))
    assert one.bits_per_byte == pytest.approx(other.bits_per_byte, rel=1e-6)
    assert (one.tokens, one.bytes) == (other.tokens, other.bytes)


def test_a_model_that_knows_nothing_has_the_perplexity_of_the_vocabulary():
    from tinylm import model

    scores = evaluate(model.build(SMALL), ListDataset(list(range(30))), tokenizer=TOKENIZER)
    assert scores.perplexity == pytest.approx(257)
    assert scores.bits_per_byte == pytest.approx(math.log2(257) * 29 / 30)


def test_nats_are_added_in_float64(small):
    ids = [n * n % 257 for n in range(501)]
    scores = evaluate(small, ListDataset(ids), tokenizer=TOKENIZER, batch_size=1)
    exact = build(SMALL, dtype=torch.float32).double()
    assert scores.loss == pytest.approx(math.fsum(nats(exact, ids, 5)) / 500, rel=1e-6)


def test_autocast_is_used_where_asked_for(small):
    seen = []
    hook = small.head.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    data = ListDataset(list(range(40)))
    narrow = evaluate(small, data, tokenizer=TOKENIZER, dtype=torch.bfloat16)
    wide = evaluate(small, data, tokenizer=TOKENIZER, dtype=torch.float32)
    hook.remove()
    assert seen == [torch.bfloat16, torch.float32]
    assert narrow.loss == pytest.approx(wide.loss, rel=0.05)
    assert narrow.loss != wide.loss


def test_progress_counts_up_to_all_targets(small):
    told = []
    data = ListDataset(list(range(24)))
    evaluate(
        small, data, tokenizer=TOKENIZER, batch_size=2, progress=lambda *count: told.append(count)
    )
    assert told == [(10, 23), (20, 23), (23, 23)]


def test_the_model_goes_on_in_the_mode_it_was_in():
    model = build(dataclasses.replace(SMALL, dropout=0.5), dtype=torch.float32).train()
    data = ListDataset(list(range(24)))
    one, two = (evaluate(model, data, tokenizer=TOKENIZER) for _ in range(2))
    assert one == two
    assert model.training


@pytest.mark.parametrize(("tokens", "logits"), [(1, 1), (7, 257 * 3), (2**14, 257 * 4 + 1)])
def test_a_budget_of_memory_changes_rounding_alone(small, monkeypatch, tokens, logits):
    data = ListDataset([n * n % 257 for n in range(101)])
    whole = evaluate(small, data, tokenizer=TOKENIZER, batch_size=30)
    made = []
    hook = small.head.register_forward_hook(lambda module, args, out: made.append(out.numel()))
    monkeypatch.setattr(scoring, "TOKENS", tokens)
    monkeypatch.setattr(scoring, "LOGITS", logits)
    parts = evaluate(small, data, tokenizer=TOKENIZER, batch_size=30)
    hook.remove()
    assert max(made) <= max(logits, 257)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (parts.tokens, parts.bytes) == (whole.tokens, whole.bytes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("value", [6e4, math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_is_an_error_with_its_place(dtype, value):
    model = build(SMALL, dtype=torch.float32)
    with torch.no_grad():
        model.head.weight.fill_(value)
        model.norm.weight.fill_(2e2)
        model.head.weight[::2] *= -1
    model = model.to(dtype)
    data = ListDataset(list(range(24)))
    if value == 6e4 and dtype == torch.float32:
        assert evaluate(model, data, tokenizer=TOKENIZER).loss > 1e4
        return
    cause = "float16 ends at 65504" if value == 6e4 else r"weights are not finite \(head.weight"
    message = rf"the loss of target 1 of the split is (inf|nan) in {str(dtype)[6:]}: .*{cause}"
    with pytest.raises(ValueError, match=message):
        evaluate(model, data, tokenizer=TOKENIZER)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (ListDataset([1]), {}, "the split has 1 tokens: scoring takes at least 2"),
        (ListDataset([1, 2]), {"batch_size": 0}, "batch_size=0: must be at least 1"),
        (ListDataset([1, 2]), {"max_tokens": 0}, "max_tokens=0: must be at least 1"),
        (ListDataset([300, 2]), {}, "token 300 of the dataset: the model's vocabulary has 257"),
        (ListDataset([1, 2], tokenizer_sha256="ab" * 32), {}, "made by tokenizer abababababab"),
    ],
)
def test_bad_input_is_named(small, data, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(small, data, tokenizer=TOKENIZER, **options)


def test_a_hopeless_model_has_an_infinite_perplexity():
    model = build(SMALL, dtype=torch.float32)
    model.head.weight.data.mul_(1e5)
    scores = evaluate(model, ListDataset(list(range(24))), tokenizer=TOKENIZER)
    assert scores.loss > 709
    assert scores.perplexity == math.inf


@pytest.fixture
def run(small, monkeypatch, tmp_path):
    """A folder that `checkpoint.load` takes for a run, whose text is text.txt."""
    pytest.importorskip("tinylm.data")

    def load(path, *, device="cpu", dtype=None):
        return small.to(device), TOKENIZER

    fake = types.SimpleNamespace(load=load)
    monkeypatch.setitem(sys.modules, "tinylm.checkpoint", fake)
    monkeypatch.setattr(tinylm, "checkpoint", fake, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Some words. " * 100)
    (tmp_path / "other.txt").write_text("Other words, and more of them. " * 100)
    folder = tmp_path / "run"
    folder.mkdir()
    text = ["data.source=text.txt", "data.folder=shards", "data.val_fraction=0.25"]
    settings = config.load(overrides=[*text, "train.device=cpu"])
    (folder / "config.yaml").write_text(config.to_yaml(settings))
    return folder


def printed(capsys):
    lines = capsys.readouterr().out.splitlines()
    return {line[:15].strip(): line[15:] for line in lines}


def test_the_command_prints_the_scores_of_the_validation_text(run, small, capsys):
    from tinylm.data import Dataset

    assert main([str(run)]) == 0
    scores = evaluate(small, Dataset.open("shards", split="val"), tokenizer=TOKENIZER)
    assert printed(capsys) == {
        "part": "300 of 1,200 bytes of text.txt, held out by data.val_fraction=0.25",
        "loss": f"{scores.loss:.4f}",
        "perplexity": f"{scores.perplexity:.4f}",
        "bits per byte": f"{scores.bits_per_byte:.4f}",
        "tokens": str(scores.tokens),
        "bytes": str(scores.bytes),
    }
    assert scores.bytes == 300


def test_the_run_is_scored_though_its_source_is_gone(run, tmp_path, capsys):
    main([str(run)])
    first = printed(capsys)
    (tmp_path / "text.txt").unlink()
    main([str(run)])
    assert printed(capsys) == first


def test_another_text_is_scored_without_a_trace(run, tmp_path, capsys):
    main([str(run)])
    own = printed(capsys)
    before = sorted(tmp_path.rglob("*"))
    main([str(run), "data.source=other.txt"])
    other = printed(capsys)
    assert int(other["bytes"]) == 775
    main([str(run), "data.val_fraction=0.5"])
    assert int(printed(capsys)["bytes"]) == 600
    assert sorted(tmp_path.rglob("*")) == before
    main([str(run)])
    assert printed(capsys) == own


def test_another_text_is_scored_without_the_filters_of_the_run(run, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{"a" * k}"}}\n' for k in range(40)))
    settings = config.load(run / "config.yaml", ["data.filters=[min_chars:20]"])
    (run / "config.yaml").write_text(config.to_yaml(settings))
    sizes = []
    for filters in ([], ["data.filters=[min_chars:20]"]):
        main([str(run), "data.source=rows.jsonl", "data.val_fraction=1", *filters])
        sizes.append(int(printed(capsys)["bytes"]))
    assert sizes == [sum(range(40)), sum(range(20, 40))]


def test_the_command_says_what_part_of_another_text_it_scores_and_how_to_score_all(run, capsys):
    other = "data.source=other.txt"
    main([str(run), other])
    part = "775 of 3,100 bytes of other.txt, held out by data.val_fraction=0.25"
    assert printed(capsys)["part"] == f"{part}; 1 scores all"
    main([str(run), other, "data.val_fraction=1"])
    whole = printed(capsys)
    assert whole["part"] == "3,100 of 3,100 bytes of other.txt"
    assert (whole["bytes"], whole["tokens"]) == ("3100", "3100")
    with pytest.raises(ConfigError, match=r"data\.val_fraction=2"):
        main([str(run), other, "data.val_fraction=2"])


def test_a_folder_without_settings_needs_a_text(run, tmp_path, capsys):
    bare = tmp_path / "model"
    bare.mkdir()
    with pytest.raises(ConfigError, match=r"no config\.yaml: say what to score, data\.source=FILE"):
        main([str(bare)])
    assert main([str(bare), "data.source=other.txt"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.sorce=a"], "unknown key 'data.sorce': did you mean 'data.source'"),
        (["train.steps=3"], "train.steps: has no part in a score; these have: data.source"),
        (["max_tokens=3"], "unknown key 'max_tokens': evaluate takes data.source, data.folder"),
        (["batch_size=3"], "unknown key 'batch_size': did you mean 'train.batch_size'"),
        (["sample.top_k=3"], "sample.top_k: has no part in a score"),
        (["more"], "which run"),
        (["--steps"], "which run"),
    ],
)
def test_a_bad_argument_is_one_line(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        main([str(tmp_path), *arguments])


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run, checkpoint or model folder"):
        main([str(tmp_path / "none")])
    with pytest.raises(ConfigError, match="which run"):
        main([])


def test_a_run_in_bfloat16_is_scored_in_float32_unless_asked(run, monkeypatch):
    asked = []
    load = sys.modules["tinylm.checkpoint"].load

    def watched(path, *, device="cpu", dtype=None):
        asked.append(dtype)
        return load(path, device=device, dtype=dtype)

    monkeypatch.setattr(sys.modules["tinylm.checkpoint"], "load", watched)
    for arguments in ([], ["train.dtype=float32"], ["train.dtype=bfloat16"]):
        assert main([str(run), *arguments]) == 0
    assert asked == [torch.float32] * 3


def test_help_needs_no_torch():
    code = (
        "import sys; from tinylm.evaluate.__main__ import main; main(['--help']);"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "data.source: " in done.stdout
