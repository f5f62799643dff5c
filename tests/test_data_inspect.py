"""`inspect`: documents from all over a split, and a picture of their lengths."""

import re

import pytest

from tests.support.bytes_tokenizer import Bytes
from tinylm.data import ShardWriter, __main__


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "shards", tokenizer=Bytes()) as writer:
        for k in range(26):
            writer.add([97 + k] * (k * k), n_bytes=k * k)
    return str(tmp_path / "shards")


def test_samples_come_from_all_over_the_split(folder, monkeypatch, capsys):
    __main__.main(["inspect", folder, "--samples", "3"])
    found = re.findall(r"document (\d+) of (\d+) tokens: (.*)", capsys.readouterr().out)
    ids = [(int(n), int(size), [int(id) for id in shown.split()]) for n, size, shown in found]
    assert ids == [(0, 1, [256]), (12, 145, [109] * 16), (25, 626, [122] * 16)]
    monkeypatch.setattr("tinylm.data.inspection.load_tokenizer", lambda *_: Bytes())
    __main__.main(["inspect", folder, "--samples", "99", "--tokenizer", "x"])
    out = capsys.readouterr().out
    assert "document 2 of 5 tokens: 'cccc'" in out
    assert len(re.findall(r"^document ", out, re.MULTILINE)) == 26
    with pytest.raises(ValueError, match="--samples -1 must be at least 0"):
        __main__.main(["inspect", folder, "--samples", "-1"])
