"""Scores against their definition, and which samples count as Python."""

import ast
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
from tinylm.evaluate import evaluate, parse_share
from tinylm.evaluate.__main__ import main
from tinylm.evaluate.python import LONGEST_END

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


WHOLE = '''\
import re

class Point:
    """A place."""

    def __init__(self, x, y):
        self.x = x
        self.y = y
'''


@pytest.mark.parametrize(
    "end",
    [
        "    def norm(sel",
        "    def norm(self):\n        return ma",
        "    @property\n    def norm(self):\n        ret",
        "\ntry:\n    a = 1\n    b = 2\n    c",
        "\ntry:\n    with a:\n        try:\n            b()\n            c(",
        "\na = [\n    1,\n    2, (",
        '\n"""Some text\nthat does not end',
        "\na = (" + "\n    1 +" * 60,
    ],
)
def test_a_text_that_is_cut_counts_by_what_stands_before_the_cut(end):
    assert parse_share([WHOLE + end]) == 1
    assert parse_share(["a = = 1\n" + WHOLE + end]) == 0


def test_no_more_than_the_last_lines_are_left_out():
    assert parse_share([WHOLE + "(\n" * LONGEST_END]) == 1
    assert parse_share([WHOLE + "(\n" * (LONGEST_END + 1)]) == 0


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("a = 1\nb = 2\nc = 3\n", True),
        ("a = 1\nb = 2\nc", True),
        ("a = 1\nb = 2\nc(", False),
        ("a = 1\n\n# why\n\nb = 2\n", False),
        ('"""One\ntwo\nthree\nfour."""\na = 1\nb = 2\n', False),
        ("a = 1; b = 2; c = 3\n", False),
        ("def f(a,\n      b,\n      c):\n    return a\n", False),
        ("", False),
        ("\0", False),
        ("(" * 5000, False),
        ("-" * 20000 + "1", False),
    ],
)
def test_three_lines_of_code_are_the_least(text, counts):
    assert parse_share([text]) == counts


def test_the_share_is_a_share():
    assert parse_share([WHOLE, "a b c", WHOLE, "("]) == 0.5
    with pytest.raises(ValueError, match="no texts"):
        parse_share([])


def test_pythons_warnings_about_a_sample_are_not_heard():
    assert parse_share(["a = '\\d'\nb = 1 is 1\nc = 2\n"]) == 1


@settings(max_examples=300, deadline=None)
@given(st.text("ab \n#:@()[]'\"\\try", max_size=60))
def test_any_text_has_a_share(text):
    assert parse_share([text]) in (0, 1)


def test_the_standard_library_cut_anywhere_still_parses():
    source = ast.__file__
    with open(source, encoding="utf-8") as file:
        text = file.read()
    cuts = [text[:n] for n in range(3000, len(text), 997)]
    assert len(cuts) > 20
    assert parse_share(cuts) == 1


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


def test_help_needs_no_torch():
    code = (
        "import sys; from tinylm.evaluate.__main__ import main; main(['--help']);"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "data.source: stdlib" in done.stdout
