"""`trace`: what it says that a step read is what the step read, in every order."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.bytes_tokenizer import Bytes
from tinylm import config
from tinylm.data import Dataset, Loader, ShardWriter, __main__, mixture
from tinylm.data.cutting import Cuts
from tinylm.data.loader import of_settings
from tinylm.data.trace import Trace

SMALL = ["model.context_length=16", "train.batch_size=4", "train.steps=90", "train.seed=3"]
RUNS = {
    "shuffle": [],
    "sequential": ["data.order=sequential"],
    "random": ["data.order=random"],
    "stride": ["data.stride=5"],
    "packed": ["data.pack=true"],
    "packed in order": ["data.pack=true", "data.order=sequential"],
    "growing batches": ["train.batch_size=2@0 6@0.4"],
    "mixture": ["data.sources=[a:1@0 3@1,b:2]"],
    "packed mixture": ["data.sources=[a:1,b:2]", "data.pack=true"],
    "cut rows": ["train.sequence_length=4@0 16@0.3 8@0.7", "train.batch_size=2@0 4@0.5"],
}


def run_of(folder, *overrides):
    """The folder of a run as trace needs it, and its shards: documents of 0 to 60 ids."""
    run = config.load(None, [*SMALL, *overrides])
    names = [f"shards{number or ''}" for number in range(len(run.data.texts))]
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        with ShardWriter(folder / name, tokenizer=Bytes(), shard_tokens=500) as writer:
            for size in rng.integers(0, 60, 60):
                writer.add(rng.integers(97, 123, size), n_bytes=1)
    (folder / "config.yaml").write_text(config.to_yaml(run))
    shards = [str(folder / name) for name in names]
    (folder / "run.json").write_text(
        json.dumps({"shards": shards if len(shards) > 1 else shards[0]})
    )
    return run, [Dataset.open(path) for path in shards]


def cuts_of(run, datasets):
    weights, train = run.data.weights, run.train
    if weights is not None:
        weights = mixture.staged(weights, lambda p: train.rows(round(p * train.steps)))
    loader = Loader(
        datasets[0] if weights is None else datasets,
        weights=weights,
        batch_size=1,
        context_length=run.model.context_length,
        seed=run.train.seed,
        **of_settings(run.data),
    )
    return Cuts(loader, run.train)


def save(folder, cuts, step):
    """A checkpoint's state after so many steps."""
    place, cut = cuts.state()
    home = folder / "checkpoints" / f"step-{step:08}"
    home.mkdir(parents=True)
    state = {"loader": place} | ({} if cut is None else {"cut": cut})
    (home / "state.json").write_text(json.dumps({"step": step, "state": state}))


def targets_of(trace, row):
    parts = [
        trace.datasets[span.source].read(span.place, span.last - span.first) for span in row.spans
    ]
    return np.concatenate(parts).tolist()


@pytest.mark.parametrize(
    "name", [*list(RUNS)[::3], *(pytest.param(n, marks=pytest.mark.slow) for n in RUNS)]
)
def test_the_rows_of_every_step_are_those_that_it_reads(tmp_path, name):
    run, datasets = run_of(tmp_path, *RUNS[name])
    cuts, begun = cuts_of(run, datasets), Trace(tmp_path)
    with cuts.loader:
        for step in range(1, 91):
            batch = cuts.take(step - 1)
            if step % 9 not in (0, 1, 4):
                continue
            rows = begun.rows(step)
            read = [[id for id in row if id != -100] for row in batch.targets.tolist()]
            assert [targets_of(begun, row) for row in rows] == read
            if step in (13, 40):
                save(tmp_path, cuts, step)
                # From the checkpoint on, and before it.
                again = Trace(tmp_path)
                assert again.rows(step) == rows
                assert again.rows(step + 1) == begun.rows(step + 1)
                assert again.rows(60) == begun.rows(60)


def test_spans_name_the_documents_of_their_tokens(tmp_path):
    _, (dataset,) = run_of(tmp_path, "data.pack=true")
    documents = [[*ids.tolist(), 256] for ids in dataset.documents()]
    trace = Trace(tmp_path)
    seen = set()
    for step in range(1, 40):
        for row in trace.rows(step):
            for span in row.spans:
                seen.add(span.document)
                assert span.length == len(documents[span.document])
                ids = dataset.read(span.place, span.last - span.first).tolist()
                assert ids == documents[span.document][span.first : span.last]
    # All but a first document of eos alone, which is no target.
    assert len(seen) >= len(documents) - 1


def test_passing_over_steps_is_taking_them(tmp_path):
    run, datasets = run_of(tmp_path, *RUNS["cut rows"])
    taken = cuts_of(run, datasets)
    batches = [taken.take(step).tokens for step in range(90)]
    for stops in ([0, 1, 89], [30, 31, 62, 63], [5, 88]):
        jumping, at = cuts_of(run, datasets), 0
        for stop in stops:
            jumping.pass_over(at, stop)
            assert jumping.take(stop).tokens.equal(batches[stop])
            at = stop + 1
        jumping.loader.close()
    taken.loader.close()


def test_the_command_shows_rows_documents_and_text(tmp_path, monkeypatch, capsys):
    _, (dataset,) = run_of(tmp_path)
    monkeypatch.setattr("tinylm.data.trace.load_tokenizer", lambda path, manifest: Bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    __main__.main(["trace", str(tmp_path), "step=7", "rows=2", "text=5"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"step 7 of {tmp_path}: 4 rows, 64 targets")
    assert [line for line in lines if line.startswith("row ")] == [
        "row 24 (epoch 0)",
        "row 25 (epoch 0)",
    ]
    assert lines[-1] == "and 2 more rows: rows=4 shows all"
    begins = np.concatenate([[0], np.cumsum(dataset.lengths())])
    for line in lines[3:5]:
        if found := re.match(r"  document ([\d,]+): tokens (\d+) to (\d+) of \d+  '(.*)'", line):
            place = int(begins[int(found[1].replace(",", ""))]) + int(found[2])
            n = min(5, int(found[3]) + 1 - int(found[2]))
            text = Bytes().decode_bytes(dataset.read(place, n)).decode()
            assert text == found[4]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rows=3"], "which step"),
        (["step=0"], "the first step of a run is 1"),
        (["step=91"], "step=91: the last step of .* is 90"),
        ([f"step={10**20}"], "the last step of .* is 90"),
        (["step=-1"], "step=-1: must be a whole number"),
        (["step=1", "row=3"], "row: trace RUN takes"),
        (["step=1", "step=2"], "step: given twice"),
    ],
)
def test_wrong_arguments_are_told(tmp_path, words, says):
    run_of(tmp_path)
    with pytest.raises(ValueError, match=says):
        __main__.main(["trace", str(tmp_path), *words])


def test_a_run_without_its_shards_or_with_others_is_told(tmp_path):
    run, datasets = run_of(tmp_path)
    cuts = cuts_of(run, datasets)
    save(tmp_path, cuts, 1)
    path = tmp_path / "checkpoints" / "step-00000001" / "state.json"
    path.write_text(path.read_text().replace(datasets[0].fingerprint, "0" * 16))
    with pytest.raises(ValueError, match="other tokens than the run was trained on"):
        Trace(tmp_path)
    (tmp_path / "shards" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"the shards that its run\.json names are gone"):
        Trace(tmp_path)
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        Trace(Path(tmp_path / "shards"))
