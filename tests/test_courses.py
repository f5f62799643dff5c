"""Numbers that change over a run: how they are written, and that training follows them."""

from pathlib import Path

import pytest
import torch

from tests.support.models import build, tokens
from tests.test_train import SMALL, assert_same_weights, stop_after, workplace
from tinylm import checkpoint, config
from tinylm.config import ConfigError, ModelConfig, OptimConfig, TrainConfig, courses
from tinylm.data import Batch, Dataset, Loader
from tinylm.data.cutting import Cuts
from tinylm.model import Model
from tinylm.train import Interrupted, train

__all__ = ["workplace"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("0.9", 0.9),
        (0, 0.0),
        ("0.85@0 0.95@0.1", "0.85@0 0.95@0.1"),
        ("  .5@0.0   5e-1@1 ", "0.5@0 0.5@1"),
        ("0.7@0.3", 0.7),
    ],
)
def test_a_course_is_kept_in_one_form(given, kept):
    found = OptimConfig(momentum=given).momentum
    assert (found, type(found)) == (kept, type(kept))
    assert OptimConfig(momentum=found).momentum == found


def test_a_course_goes_through_a_file(tmp_path):
    run = config.load(None, ["optim.momentum=0.123456789@0.1 0.5@0.333333333333", "train.window=8"])
    (tmp_path / "run.yaml").write_text(config.to_yaml(run))
    assert config.load(tmp_path / "run.yaml") == run


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.momentum=0.5@0 1@0.5", "optim.momentum=1.0@0.5: must be at least 0 and below 1"),
        ("optim.momentum=0.5@0 0.6@2", "0.6@2.0: progress must be between 0 and 1"),
        ("optim.momentum=0.5@0.5 0.6@0.5", "progress must grow, but 0.5 follows 0.5"),
        ("optim.momentum=0.5@0.5 0.6@nan", "0.6@nan: progress must be between 0 and 1"),
        ("optim.momentum=0.5 0.6", "expected a number, at least 0 and below 1, or a course"),
        ("optim.weight_decay=fast", "or a course of them such as '0.85@0 0.95@0.1', or null"),
        ("train.batch_size=4@0 6.5@1", "expected a whole number, at least 1 and below 2^31, or a"),
        ("train.batch_size=4@0 0@1", "train.batch_size=0@1: must be at least 1"),
        ("train.sequence_length=48", "must divide model.context_length=256"),
        ("train.window=0", "must be at least 1"),
    ],
)
def test_a_wrong_course_is_refused_with_its_point(setting, message):
    with pytest.raises(ConfigError) as refused:
        config.load(None, [setting])
    assert message in str(refused.value)


def test_micro_batches_divide_every_batch():
    assert TrainConfig(batch_size="4@0 6@0.5", micro_batch_size=2).micro_batch_size == 2
    with pytest.raises(ValueError, match=r"micro_batch_size=4: must divide batch_size=6"):
        TrainConfig(batch_size="4@0 6@0.5", micro_batch_size=4)


def test_the_rows_of_a_run_are_counted():
    settings = TrainConfig(batch_size="2@0 4@0.5 6@0.75", steps=8)
    assert [settings.rows(steps) for steps in (0, 4, 6, 8)] == [0, 8, 16, 28]
    assert TrainConfig(batch_size=5).rows(3) == 15
    assert courses.stairs("2@0.5 3@1").at(0) == 2


SETTINGS = (
    "train.batch_size=2@0 4@0.5 6@0.75",
    "train.micro_batch_size=2",
    "train.sequence_length=8@0 16@0.5 32@0.75",
    "train.window=4@0 16@0.5 32@0.75",
)


def test_batches_rows_and_windows_follow_their_courses(monkeypatch):
    seen, counted = [], []

    def loss(self, tokens, targets, *, positions, documents, dtype, window=None):
        assert (positions, documents) == (None, None)
        seen.append((tokens, targets, window))
        return self.embedding(tokens).sum() * 0

    monkeypatch.setattr(Model, "loss", loss)
    monkeypatch.setattr(Model, "flops_per_token", lambda self, length: counted.append(length) or 1)
    folder = train(config.load(None, [*SMALL, *SETTINGS, "train.steps=8", "checkpoint.every=0"]))
    # A window as long as the row hides nothing.
    wanted = [(8, 8, 4)] * 4 + [(4, 16, None)] * 4 + [(2, 32, None)] * 6
    assert [(*tokens.shape, window) for tokens, _, window in seen] == wanted
    # A record says how well the hardware is used by the operations of the rows as they are cut.
    assert tuple(sorted({*counted})) == (8, 16, 32)
    state = checkpoint.load_training(checkpoint.latest(folder)).state
    assert state["loader"]["rows"] == 28
    assert "cut" not in state
    # The pieces of the rows that are cut together are theirs, each once.
    pairs = [torch.stack((tokens, targets)) for tokens, targets, _ in seen]
    in_order = torch.stack([torch.stack(pair) for pair in row_pairs(folder, 28)], 1)
    assert pieces(8, *pairs[:4]) == pieces(8, in_order[:, :8])
    assert pieces(16, *pairs[4:8]) == pieces(16, in_order[:, 8:16])
    assert torch.equal(torch.cat(pairs[8:], 1), in_order[:, 16:])


def pieces(length, *pairs):
    """All rows of tokens and targets in pieces, in any order but one."""
    cut = torch.cat([pair.unflatten(2, (-1, length)).flatten(1, 2) for pair in pairs], 1)
    return sorted(map(str, cut.transpose(0, 1).tolist()))


class Rows:
    """A loader of rows of 8 tokens that are all different."""

    batch_size, row, context_length = 1, 0, 8

    def __init__(self, rank=0, world=1):
        self.rank, self.world = rank, world

    def __next__(self):
        rows = torch.arange(self.row, self.row + self.batch_size)[self.rank :: self.world]
        self.row += self.batch_size
        tokens = rows[:, None] * 8 + torch.arange(8)
        return Batch(tokens, tokens + 1)

    def state(self):
        return {"rows": self.row}

    def restore(self, place):
        self.row = place["rows"]


@pytest.mark.parametrize("steps", [20, 60])
@pytest.mark.parametrize("stop", range(1, 20))
def test_rows_that_were_begun_are_finished_also_by_a_longer_run(stop, steps):
    def cuts(steps):
        courses = {"batch_size": "2@0 4@0.5", "sequence_length": "2@0 4@0.5 8@0.9"}
        return Cuts(Rows(), TrainConfig(steps=steps, **courses))

    whole, before, after = cuts(20), cuts(20), cuts(steps)
    wanted = [whole.take(step).tokens for step in range(20)]
    seen = [before.take(step).tokens for step in range(stop)]
    after.restore(*before.state())
    seen += [after.take(step).tokens for step in range(stop, steps)]
    if steps == 20:
        assert all(map(torch.equal, seen, wanted))
    ids = torch.cat([tokens.flatten() for tokens in seen])
    assert len(ids) == len(ids.unique())


def test_steps_get_pieces_from_far_apart_and_the_same_ones_in_any_number_of_processes():
    settings = TrainConfig(steps=200, batch_size=2, sequence_length="2@0 4@0.5")
    whole = Cuts(Rows(), settings)
    halves = [Cuts(Rows(rank, 2), settings) for rank in (0, 1)]
    seen = []
    for step in range(200):
        batch = whole.take(step)
        mine = {tuple(row) for row in batch.tokens.tolist()}
        theirs = [tuple(row) for half in halves for row in half.take(step).tokens.tolist()]
        assert mine == {*theirs}
        assert len(theirs) == len(mine) == (8 if step < 100 else 4)
        assert torch.equal(batch.targets, batch.tokens + 1)
        seen += theirs
    # 64 steps' rows are mixed, then the 36 up to the next length.
    assert max(row[0] // 8 for row in seen[: 64 * 8]) == 127
    assert {row[0] // 8 for row in seen[: 100 * 8]} == {*range(200)}
    assert len({*seen}) == len(seen)


def test_a_run_that_ends_with_cut_rows_reads_no_more_than_it_trains_on():
    cuts = Cuts(Rows(), TrainConfig(steps=10, batch_size=2, sequence_length=4))
    seen = torch.cat([cuts.take(step).tokens for step in range(10)])
    assert cuts.loader.row == 20
    assert seen.flatten().sort().values.tolist() == list(range(160))


def row_pairs(folder, count):
    """The first rows of a run's text, as a loader without batches gives them."""
    shards = next(Path("data/processed").iterdir())
    with Loader(Dataset.open(shards, split="train"), batch_size=1, context_length=32) as loader:
        return [loader.row(*divmod(i, loader.n_rows)) for i in range(count)]


@pytest.mark.slow
def test_a_run_with_courses_goes_on_bit_for_bit(monkeypatch):
    moving = ("optim.momentum=0.8@0 0.95@0.5", "optim.weight_decay=0.2@0 0@1", "model.dropout=0.1")
    given = [*SMALL, *SETTINGS, *moving, "train.steps=8", "optim.cautious=true"]
    whole = train(config.load(None, [*given, "out=whole"]))
    for steps in (3, 7):
        with monkeypatch.context() as patched:
            stop_after(patched, steps)
            with pytest.raises(Interrupted):
                train(config.load(None, [*given, f"out=cut{steps}"]))
        again = train(config.load(None, [*given, f"out=cut{steps}", "train.resume=auto"]))
        assert_same_weights(whole, again)


def test_a_window_hides_what_is_further_back():
    model = build(ModelConfig(vocab_size=11, d_model=16, n_layers=1, n_heads=2, context_length=12))
    ids = tokens(model.config, 1, 13)
    # Nothing that one layer of window 3 can show the last target's token was changed.
    other = ids.clone()
    other[0, :9] = (other[0, :9] + 1) % 11
    targets = torch.full((1, 12), -100)
    targets[0, 11] = 4

    def loss(given, **settings):
        return model.loss(given[:, :-1], targets, **settings).item()

    assert loss(ids, window=3) == loss(other, window=3)
    assert loss(ids) != loss(other)
    assert loss(ids, window=12) == pytest.approx(loss(ids))
