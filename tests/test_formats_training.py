"""Training on a folder of shards: imported from another program, with its tokenizer beside it."""

from pathlib import Path

import numpy as np
import pytest

from tinylm import config
from tinylm.data import Dataset
from tinylm.data import __main__ as data_command
from tinylm.evaluate.__main__ import main as evaluate
from tinylm.tokenizer import Tokenizer
from tinylm.train import train

SMALL = [
    "data.source=ours",
    "model.d_model=16",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.context_length=32",
    "train.batch_size=4",
    "train.steps=4",
    "checkpoint.every=2",
    "evaluate.every=2",
    "sample.max_tokens=4",
    "track.names=[jsonl]",
]


@pytest.fixture(autouse=True)
def theirs(tmp_path, monkeypatch):
    """A text as nanoGPT keeps it: one stream of uint16."""
    monkeypatch.chdir(tmp_path)
    text = [f"the {i % 7} cats of house {i % 13} sleep on {i % 5} mats\n" for i in range(300)]
    tokenizer = Tokenizer.train(text, vocab_size=270)
    tokenizer.save("tokenizer.json")
    ids = [[*tokenizer.encode(line), tokenizer.eos_id] for line in text]
    np.concatenate(ids).astype("<u2").tofile("all.bin")
    return tokenizer


def imported(*words):
    data_command.main(["import", "nanogpt", "all.bin", "--out", "ours", *words])


def test_a_run_trains_goes_on_and_is_scored_on_imported_shards(capsys):
    imported("--tokenizer=tokenizer.json", "--val-fraction=0.1")
    # No tokenizer is named: the folder has the one that made its tokens.
    folder = train(config.load(None, [*SMALL, "name=a"]))
    assert (folder / "checkpoints" / "step-00000004").is_dir()
    train(config.load(None, [*SMALL, "name=a", "train.steps=6", "train.resume=runs/a"]))
    evaluate([str(folder)])
    first = capsys.readouterr().out
    evaluate([str(folder), "data.source=ours"])
    score = "bits per byte"
    lines = [line for line in first.splitlines() if line.startswith(score)]
    assert lines[0] in capsys.readouterr().out
    # Its bytes were counted by the tokenizer: the file does not say them.
    assert Dataset.open("ours", split="val").n_bytes is None


def test_what_is_missing_is_told():
    settings = config.load(None, SMALL)
    imported("--vocab-size=270", "--eos-id=269", "--val-fraction=0")
    with pytest.raises(ValueError, match=r"tokenizer\.path: name the tokenizer"):
        train(settings)
    with pytest.raises(ValueError, match="tokens are those of another tokenizer"):
        train(config.load(None, [*SMALL, "tokenizer.path=tokenizer.json"]))
    for path in Path("ours").iterdir():
        path.unlink()
    imported("--tokenizer=tokenizer.json", "--val-fraction=0")
    with pytest.raises(ValueError, match="has no split val: import it with"):
        train(settings)


@pytest.mark.parametrize(
    "setting", ["folder=other", "text_field=content", "filters=[fineweb]", "shuffle_documents=1"]
)
def test_settings_of_a_text_are_refused_beside_shards(setting):
    imported("--tokenizer=tokenizer.json")
    with pytest.raises(ValueError, match=rf"data\.{setting[:6]}.*=[^()]*: has no meaning"):
        train(config.load(None, [*SMALL, f"data.{setting}"]))
