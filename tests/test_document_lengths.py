"""What shards hold in numbers, and the picture of it."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.bytes_tokenizer import Bytes
from tests.support.calling import call
from tinylm.data import ShardWriter, __main__, document_lengths
from tinylm.data.document_lengths import Lengths
from tinylm.data.manifest import Split

SHARDS = st.lists(st.lists(st.integers(1, 300), max_size=40), max_size=5)


@given(SHARDS, st.sampled_from([1, 10, 50, 90, 99, 100]))
def test_counts_and_percentiles_are_those_of_all_lengths_together(shards, percent):
    lengths = Lengths(np.array(shard, np.uint32) for shard in shards)
    every = sorted(n for shard in shards for n in shard)
    assert dict(zip(lengths.values.tolist(), lengths.counts.tolist(), strict=True)) == {
        length: every.count(length) for length in every
    }
    assert lengths.documents == len(every)
    assert lengths.mean * max(1, len(every)) == pytest.approx(sum(every))
    # The definition in words: the shortest that so many do not exceed.
    expected = next(
        (n for n in every if sum(m <= n for m in every) * 100 >= percent * len(every)), 0
    )
    assert lengths.percentile(percent) == expected


def test_columns_and_bars_are_powers_of_two():
    lengths = Lengths([np.array([4] * 90 + [7] * 10 + [9] + [40] * 50)])
    assert lengths.powers().tolist() == [0, 0, 100, 1, 0, 50]
    assert document_lengths.spark(lengths) == "4 [@. +] 63 tokens, by powers of two"
    assert [line.split() for line in document_lengths.bars(lengths)] == [
        ["4-7", "100", "#" * 40],
        ["8-15", "1", "#"],
        ["32-63", "50", "#" * 20],
    ]


def test_of_few_documents_nothing_is_said_but_their_number():
    few = Lengths([np.arange(1, 10)])
    assert list(document_lengths.lines("val", Split(45, 9, None, []), few)) == [
        "val: 45 tokens, 9 documents"
    ]
    more = Lengths([np.arange(1, 11)])
    first, second, _ = document_lengths.lines("train", Split(55, 10, 110, []), more)
    assert first == "train: 55 tokens, 10 documents, 110 bytes of text"
    assert second == (
        "  2.00 bytes per token; tokens per document: mean 6, 50% up to 5, 90% up to 9, "
        "99% up to 10, longest 10"
    )


def test_the_command_draws_a_picture(tmp_path, capsys, monkeypatch):
    with ShardWriter(tmp_path / "shards", tokenizer=Bytes()) as writer:
        for n in range(40):
            writer.add(list(range(n)))
    for name in ("a.png", "a.svg"):
        lengths = Lengths([np.arange(1, 41)])
        document_lengths.draw(tmp_path / name, "shards", {"train": lengths, "val": Lengths()})
        assert (tmp_path / name).stat().st_size > 5000
    with pytest.raises(ValueError, match="xyz"):
        document_lengths.draw(tmp_path / "a.xyz", "shards", {"train": lengths})
    given = ["inspect", str(tmp_path / "shards"), "--picture", str(tmp_path / "of shards.png")]
    assert call(__main__.main, given) == 0
    assert (tmp_path / "of shards.png").stat().st_size > 5000
    assert "tokens per document: mean 20, 50% up to 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("picture", "problem"),
    [
        ("q.xyz", r"--picture .*q\.xyz: its ending must be one of .*png.*svg"),
        ("q", r"its ending must be one of"),
        ("missing/q.png", r"missing: no such folder: make it first"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_told_before_the_text_is_read(
    picture, problem, tmp_path, capsys
):
    given = ["prepare", "no text", "--tokenizer", "no tokenizer", "--out", str(tmp_path / "out")]
    assert call(__main__.main, [*given, "--picture", str(tmp_path / picture)]) == 1
    assert re.search(problem, capsys.readouterr().err)
    assert not [*tmp_path.iterdir()]
