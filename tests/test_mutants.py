"""The wrong lines of `make mutants` can be put in: each right line is there, once."""

from pathlib import Path

import pytest

from tests.support.wrong_caches import CACHES
from tests.support.wrong_corpus import CORPUS
from tests.support.wrong_kernels import KERNELS
from tests.support.wrong_lines import PYTHON
from tests.support.wrong_quant import QUANT
from tests.support.wrong_rust import RUST

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "mutant",
    [*PYTHON, *CACHES, *CORPUS, *KERNELS, *QUANT, *RUST],
    ids=lambda mutant: mutant.instead[:40],
)
def test_a_right_line_stands_once_in_its_file(mutant):
    assert (ROOT / mutant.path).read_text(encoding="utf-8").count(mutant.line) == 1
    assert mutant.instead != mutant.line
    assert (ROOT / mutant.tests).is_file()
