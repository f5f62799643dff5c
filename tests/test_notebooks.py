"""The notebooks run from the top and print what is stored in them."""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SPEC = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
execute = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(execute)


@pytest.mark.parametrize("path", execute.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_is_stored_in_it(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert execute.executed(stored) == stored


def test_the_steps_of_the_naive_bpe_are_there_and_were_executed():
    names = [path.stem for path in execute.NOTEBOOKS]
    assert names == ["01_the_algorithm", "02_naive_bpe", "03_with_punctuation"]
    for path in execute.NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert any(cell.get("outputs") for cell in cells)


def test_another_output_is_seen():
    cell = {"cell_type": "code", "source": ["print('a')\n", "1 + 1"], "outputs": []}
    (ran,) = execute.executed({"cells": [cell]})["cells"]
    assert ran["outputs"][0]["text"] == ["a\n"]
    assert ran["outputs"][1]["data"] == {"text/plain": ["2"]}
    assert cell["outputs"] == []
