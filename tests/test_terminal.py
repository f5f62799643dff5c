"""Displays of progress on a terminal that has gone: the work goes on."""

import errno
import io
import sys

import pytest

from tinylm import terminal
from tinylm.data.encoding import Progress
from tinylm.evaluate.__main__ import _show_progress
from tinylm.tokenizer.training import draw


class Gone(io.StringIO):
    """A terminal whose other end is closed: each write is an `EIO`."""

    def isatty(self):
        return True

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.fixture(params=[Gone, closed, lambda: None], ids=["gone", "closed", "none"])
def gone(request, monkeypatch):
    monkeypatch.setattr(sys, "stderr", request.param())


def test_no_display_ends_the_work(gone, capsys):
    terminal.draw("words")
    _show_progress(1, 2)
    _show_progress(2, 2)
    draw(3, 3)
    progress = Progress(100)
    progress.add(10, 3)
    progress.end()
    # Nothing goes to standard output instead.
    assert capsys.readouterr().out == ""


def test_preparing_goes_on_without_its_terminal(tmp_path, gone):
    from tinylm import Tokenizer, corpus, data

    text = tmp_path / "a.txt"
    text.write_text("one two three\n" * 200)
    tokenizer = Tokenizer.train(["one two three"], vocab_size=260, progress=True)
    prepared = data.prepare(corpus.open(str(text), val_fraction=0.5), tokenizer, tmp_path / "out")
    assert prepared.splits["train"].tokens > 0


def test_a_terminal_that_is_there_is_drawn_on(monkeypatch):
    there = io.StringIO()
    monkeypatch.setattr(sys, "stderr", there)
    assert not terminal.watched()
    terminal.draw("\rhalf")
    assert there.getvalue() == "\rhalf"
    monkeypatch.setattr(sys, "stderr", Gone())
    assert terminal.watched()
