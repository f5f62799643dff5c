"""Packed rows: whole documents, each target once, exact resumes, and gradients as if alone."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bytes_tokenizer import VOCAB, Bytes, flat, take
from tests.test_train import SMALL, assert_same_weights, stop_after, workplace
from tinylm import config, model
from tinylm.data import Dataset, Loader, ShardWriter
from tinylm.data.__main__ import main
from tinylm.train import Interrupted, train

__all__ = ["workplace"]


def written(folder, lengths, vocab_size=VOCAB):
    """Documents of so many tokens, eos included, in several shards."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, tokenizer=Bytes(vocab_size), shard_tokens=3_000) as writer:
        for length in lengths:
            writer.add(rng.integers(0, vocab_size - 1, length - 1), n_bytes=1)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    lengths = np.random.default_rng(1).lognormal(3, 1.2, 300).astype(int) + 1
    return written(tmp_path_factory.mktemp("shards"), lengths.tolist())


@pytest.mark.parametrize("order", ["shuffle", "sequential"])
def test_every_token_but_the_first_is_a_target_once_and_no_short_document_is_cut(dataset, order):
    loader = Loader(dataset, batch_size=7, context_length=128, order=order, pack=True)
    ids = dataset.read(0, dataset.n_tokens).tolist()
    ends = np.cumsum(dataset.lengths()) - 1
    found, whole = [], 0
    for batch in loader.epoch(2):
        assert batch.positions is not None
        assert batch.documents is not None
        for row in range(7):
            for document in range(int(batch.documents[row].max()) + 1):
                at = batch.documents[row] == document
                tokens, targets = (x[row][at].tolist() for x in (batch.tokens, batch.targets))
                assert batch.positions[row][at].tolist() == list(range(len(tokens)))
                assert tokens[1:] == targets[:-1]
                found += targets
                whole += targets[-1] == dataset.eos_id
            padding = batch.documents[row] == -1
            assert (batch.targets[row][padding] == -100).all()
    assert sorted(found) == sorted(ids[1:])
    # Each piece but those in the middle of a long document ends with an eos.
    inputs = np.diff([0, *ends])
    assert whole == len(ends) - int(ends[0] == 0)
    rows = sum(-(-int(n) // 128) for n in inputs)
    pieces = sum(int(b.documents[r].max()) + 1 for b in loader.epoch() for r in range(7))
    assert pieces == rows
    assert 0 < loader.padding < 0.05


def test_resumes_and_ranks_see_one_order(dataset):
    arguments = {"batch_size": 6, "context_length": 64, "seed": 3, "pack": True}
    whole = take(Loader(dataset, **arguments, threads=3, prefetch=4), 60)
    assert flat(take(Loader(dataset, **arguments), 60)) == flat(whole)
    for step in (0, 1, 29, 59):
        first = Loader(dataset, **arguments, threads=2)
        take(first, step)
        state = json.loads(json.dumps(first.state()))
        ranks = [Loader(dataset, **arguments, rank=rank, world_size=4) for rank in range(4)]
        for loader in ranks:
            loader.restore(state)
        for expected in whole[step:]:
            parts = [next(loader) for loader in ranks]
            for rank, part in enumerate(parts):
                for name in ("tokens", "targets", "positions", "documents", "ends"):
                    assert torch.equal(getattr(part, name), getattr(expected, name)[rank::4]), name
        for loader in ranks:
            loader.close()


def test_a_state_is_small_and_of_its_kind_of_rows(dataset):
    common = {"batch_size": 4, "context_length": 32}
    packed = Loader(dataset, **common, pack=True, mask_eos=True, seed=2**64 - 1)
    state = {**packed.state(), "rows": 2**62 - 1}
    assert len(json.dumps(state)) < 256
    plain = Loader(dataset, **common, seed=2**64 - 1)
    for one, other in ((packed, plain), (plain, packed)):
        with pytest.raises(ValueError, match=r"the state has (mask_eos|mask_after_eos)"):
            one.restore(other.state())
    with pytest.raises(ValueError, match="the state has pack=True, this loader None"):
        Loader(dataset, **common, mask_eos=True, seed=2**64 - 1).restore(
            {**plain.state(), "mask_eos": True, "pack": True}
        )


def test_the_lengths_of_pieces_have_one_size_and_follow_cuts(dataset):
    loader = Loader(dataset, batch_size=4, context_length=64, pack=True)
    batches = take(loader, 6)
    sizes = set()
    for batch in batches:
        ends = batch.cu_seqlens
        sizes.add(ends.numel())
        assert ends.dtype == torch.int32
        assert (int(ends[0]), int(ends[-1])) == (0, batch.tokens.numel())
        assert (ends.diff() >= 0).all()
        # Between two ends everything is one document.
        runs = batch.documents.flatten().tensor_split(ends[1:-1].tolist())
        assert all(run.unique().numel() <= 1 for run in runs)
        changes = (batch.documents[:, 1:] != batch.documents[:, :-1]).nonzero()
        assert {int(r) * 64 + int(c) + 1 for r, c in changes} <= set(ends.tolist())
        assert batch.max_seqlen == 64
    assert len(sizes) == 1
    part = batches[0].rows(slice(1, 3))
    assert part.cu_seqlens[-1] == 128
    cut = type(batches[0]).joined(batches[:2]).cut(16, 2, torch.randperm(8))
    runs = cut.documents.flatten().tensor_split(cut.cu_seqlens[1:-1].tolist())
    assert all(run.unique().numel() <= 1 for run in runs)
    with pytest.raises(ValueError, match="not packed: use Loader"):
        _ = next(Loader(dataset, batch_size=1, context_length=8)).cu_seqlens


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12).filter(lambda x: sum(x) > 1))
@settings(max_examples=8, deadline=None)
def test_gradients_are_those_of_each_document_alone(tmp_path_factory, lengths):
    dataset = written(tmp_path_factory.mktemp("shards"), lengths, 40)
    torch.manual_seed(0)
    run = config.load(
        overrides=["model=tiny", *(f"model.{x}" for x in ("context_length=24", "vocab_size=40"))]
    )
    tiny = model.build(run.model).double()
    loader = Loader(dataset, batch_size=3, context_length=24, order="sequential", pack=True)
    total = 0.0
    for batch in loader.epoch():
        loss = tiny.loss(
            batch.tokens, batch.targets, positions=batch.positions, documents=batch.documents
        )
        total = total + loss * (batch.targets != -100).sum()
    total.backward()
    packed = [weight.grad.clone() for weight in tiny.parameters() if weight.grad is not None]
    tiny.zero_grad()
    ids, begin = torch.from_numpy(dataset.read(0, dataset.n_tokens).astype(np.int64)), 0
    for end in np.cumsum(lengths).tolist():
        if end - 1 > begin:
            document = ids[None, begin:end]
            inputs, targets = document[:, :-1].contiguous(), document[:, 1:].contiguous()
            (tiny.loss(inputs, targets) * targets.numel()).backward()
        begin = end - 1
    alone = [weight.grad for weight in tiny.parameters() if weight.grad is not None]
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_the_ends_of_documents_can_be_left_out(dataset):
    for pack in (False, True):
        loader = Loader(dataset, batch_size=5, context_length=50, pack=pack, mask_eos=True)
        plain = Loader(dataset, batch_size=5, context_length=50, pack=pack)
        for one, other in zip(take(loader, 5), take(plain, 5), strict=True):
            expected = other.targets.masked_fill(other.targets == dataset.eos_id, -100)
            assert torch.equal(one.targets, expected)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"order": "random"}, "order=random draws windows"),
        ({"stride": 3}, "stride has no meaning with pack=True: leave it out"),
        ({"mask_after_eos": True}, "mask_after_eos has no meaning with pack=True"),
        ({"documents": True}, "documents has no meaning with pack=True"),
        ({"context_length": 0}, "context_length=0 must be between 1 and"),
        ({"mask_eos": True, "mask_after_eos": True, "pack": False}, "choose one"),
    ],
)
def test_arguments_that_do_not_go_together_are_named(dataset, change, problem):
    with pytest.raises(ValueError, match=problem):
        Loader(dataset, **{"batch_size": 2, "context_length": 8, "pack": True, **change})


def test_a_dataset_of_one_token_cannot_be_packed(tmp_path):
    with pytest.raises(ValueError, match="has no two tokens: prepare more text"):
        Loader(written(tmp_path, [1]), batch_size=1, context_length=8, pack=True)


def test_a_stopped_run_of_packed_rows_goes_on_to_the_same_weights(workplace, monkeypatch):
    packed = ["data.pack=true", "data.mask_eos=true"]
    whole = train(config.load(None, [*SMALL, "out=whole", *packed]))
    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        with pytest.raises(Interrupted):
            train(config.load(None, [*SMALL, "out=cut", *packed]))
    again = train(config.load(None, [*SMALL, "out=cut", "train.resume=auto", *packed]))
    assert_same_weights(whole, again)


def test_inspect_tells_how_documents_fill_rows(dataset, capsys):
    assert main(["inspect", str(dataset.folder), "--context-length", "128"]) == 0
    said = capsys.readouterr().out
    loader = Loader(dataset, batch_size=1, context_length=128, pack=True)
    assert f"packed into rows of 128: {loader.n_rows} rows, {loader.padding:.3%} padding" in said
    assert "of the documents that fit into a row are cut" in said
    with pytest.raises(ValueError, match="--context-length 0 must be"):
        main(["inspect", str(dataset.folder), "--context-length", "0"])
    assert pickle.loads(pickle.dumps(dataset)).fingerprint == dataset.fingerprint
