"""The GPU benchmark on the CPU: a section, the watchdog, the table of README.md, the demands."""

import contextlib
import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch

from benches.gpu import machine, musts, runner, table
from benches.gpu.job import Job, Order
from benches.gpu.runner import SECTIONS, Runner, Section
from tests.support import hanging, interpreter

if not interpreter.missing():
    from benches.gpu import case, measure

ROOT = Path(__file__).parents[1]


def dry(folder, *sections, seconds):
    """A dry run by the script itself; returns its output and the files it wrote, by section."""
    command = ["bash", "benches/gpu/run.sh", "--dry", "--results", str(folder), *sections]
    environment = {**os.environ, "OUT": str(folder), "BUDGET": str(seconds)}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return done.stdout, {content["section"]: content for content in files}


def check_section(content):
    """A whole file: every row of ours was right and timed, and no peer failed."""
    assert content["complete"]
    assert content["machine"]["torch"]
    assert content["machine"]["sdpa_order"]
    assert content["ceilings"].keys() == {"gbps", "tflops"}
    assert content["rows"]
    for row in content["rows"]:
        assert "failed" not in row, row
        if row["family"] not in ("test", "machine") and "missing" not in row:
            assert row["ms"] > 0, row
            assert row["error"] >= 0, row


needs_kernels = pytest.mark.skipif(bool(interpreter.missing()), reason=interpreter.missing())


@pytest.mark.slow
@needs_kernels
def test_a_section_runs_dry_and_packs_its_results(tmp_path):
    output, files = dry(tmp_path, "loss", seconds=100)
    assert files.keys() == {"ceilings", "loss"}
    for content in files.values():
        check_section(content)
    assert "unchunked compiled" in output
    names = table.unpack(tmp_path / "dry.tar", tmp_path / "again")
    assert sorted(names) == ["dry-ceilings.json", "dry-loss.json"]


@needs_kernels
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_section_and_case_runs_dry(tmp_path):
    _, files = dry(tmp_path, seconds=840)
    assert files.keys() == {"ceilings", *SECTIONS}
    for content in files.values():
        check_section(content)
    # Every demand has a case that shows it, with the names that the demand expects.
    (results,) = table.load(tmp_path).values()
    for must in musts.MUSTS:
        (rows, *_) = musts.cases_of(results, must.section, must.family)
        names = [row["name"] for row in rows]
        for name in (must.ours, must.peer):
            assert any(found.startswith(name) for found in names), must.words
        assert not must.base or musts.cases_of(results, must.section, must.base), must.words


def test_a_row_that_hangs_or_dies_costs_only_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SECTIONS, "hanging", Section("tests.support.hanging", 60))
    run = Runner(dry=True, budget=60, folder=tmp_path, spare=False)
    rows = {row["name"]: row for row in run.section("hanging", SECTIONS["hanging"])}
    assert tuple(rows) == hanging.ROWS
    assert rows["hangs"]["failed"] == "hung: no progress for 0.5 s"
    assert rows["dies"]["failed"] == "the process died, exit code 3"
    assert rows["hangs"]["at"] == {"size": 1}
    assert all(rows[name]["ms"] == 1.0 for name in ("good", "after it", "last"))
    content = json.loads((tmp_path / "unknown-hanging.json").read_text())
    assert content["complete"]
    assert len(content["rows"]) == len(hanging.ROWS)
    assert "FAILED: hung" in capsys.readouterr().out


def test_a_section_that_has_no_time_left_says_so(tmp_path):
    run = Runner(dry=True, budget=0, folder=tmp_path, spare=False)
    rows = run.section("hanging", Section("tests.support.hanging", 60))
    assert [row["failed"] for row in rows] == ["not finished"]


class Pretended:
    """What the measuring asks of torch.cuda, without a GPU."""

    def __init__(self, **options):
        self.calls = 0

    def record(self):
        self.calls += 1

    def elapsed_time(self, end):
        assert self.calls == end.calls == 1
        return 2.0

    def wait_stream(self, other):
        self.calls += 1

    def replay(self):
        self.calls += 1


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A GPU of which nothing is true: the lines that only a GPU reaches can run."""
    for name in ("Event", "Stream", "CUDAGraph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Pretended)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda of: contextlib.nullcontext())
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(measure, "SCRATCH", 8)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**22)
    monkeypatch.setattr(case.Place, "device", torch.device("cpu"))


class Lines(list):
    """A job that keeps what it would send."""

    write = list.append

    def flush(self):
        pass


def rows_of(contest, done=()):
    """The rows of a case, measured as on a GPU."""
    lines = Lines()
    order = Order("section", False, list(done), {"gbps": 4.0})
    one = case.Case("family", {"size": 8}, lambda: contest)
    measure.run(Job(order, lines), lambda place: iter([one]))
    found = [json.loads(line) for line in lines]
    return {line["row"]["name"]: line["row"] for line in found if "row" in line}


@needs_kernels
def test_a_gpu_row_has_its_time_rate_memory_and_repeats(pretended_gpu):
    x = torch.ones(2**18)
    contest = case.Contest(
        {
            "tinylm": lambda: x + 1,
            "wrong": lambda: x + 1.5,
            "unfinished": lambda: x * math.nan,
            "broken": lambda: 1 / 0,
            "other shape": lambda: x[:1],
            "absent": case.Missing("not there"),
        },
        lambda: x.double() + 1,
        1e-3,
        bytes=4e6,
        graph=True,
        memory=True,
        repeats=2,
        notes=lambda name: {"note": name},
    )
    rows = rows_of(contest, done=[["family", "size=8", "absent"]])
    assert rows["tinylm"].pop("host_ms") >= 0
    assert rows["tinylm"] == {
        "family": "family",
        "at": {"size": 8},
        "name": "tinylm",
        "error": 0.0,
        "repeats": 2,
        "equal": True,
        # 4 MiB at the peak, less 1 before and 1 of the result.
        "mib": 2.0,
        "graph": True,
        "ms": 2.0,
        "p20": 2.0,
        "p80": 2.0,
        "gbps": 2.0,
        "percent": 50.0,
        "note": "tinylm",
    }
    for name in ("wrong", "unfinished"):
        assert rows[name]["failed"].startswith("wrong: relative error"), name
        assert "ms" not in rows[name]
    assert rows["broken"]["failed"] == "ZeroDivisionError: division by zero"
    assert "shape [1], not [262144]" in rows["other shape"]["failed"]
    assert "absent" not in rows


def test_unknown_sections_and_dry_figures_among_the_results_are_refused(capsys):
    with pytest.raises(SystemExit):
        runner.main(["normz"])
    assert "no section normz" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        runner.main(["--dry"])
    assert "--results FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("", "gpu"),
    ],
)
def test_a_card_has_a_short_name(name, short):
    assert machine.card(name) == short


def row(family, at, name, ms, **figures):
    return {"family": family, "at": at, "name": name, "ms": ms, "p20": ms, "p80": ms, **figures}


def written(folder, section, rows, complete=True):
    """A file of results of a card that does not exist."""
    content = {
        "section": section,
        "complete": complete,
        "machine": {
            "card": "x1",
            "gpu": "Card X1",
            "torch": "2.13.0",
            "triton": "3.7.1",
            "date": "2026-01-02",
        },
        "ceilings": {"gbps": 3000.0, "tflops": 700.0},
        "rows": rows,
    }
    folder.mkdir(exist_ok=True)
    (folder / f"x1-{section}.json").write_text(json.dumps(content))


def forward(width, ms, percent):
    at = {"rows": 32768, "width": width}
    return [
        row("rms_norm forward", at, "tinylm", ms, gbps=30 * percent, percent=percent),
        row("rms_norm forward", at, "F.rms_norm", 3 * ms, gbps=10 * percent, percent=percent / 3),
        {"family": "rms_norm forward", "at": at, "name": "Liger", "missing": "not there"},
    ]


def test_the_table_has_a_line_per_family_with_the_range_over_sizes(tmp_path):
    written(tmp_path, "norms", forward(1024, 0.1, 90.0) + forward(4096, 0.2, 95.0))
    written(tmp_path, "tests", [{"family": "test", "at": {}, "name": "a", "seconds": 1.0}])
    text = table.text_of(tmp_path)
    assert "Card X1, torch 2.13.0, triton 3.7.1, 2026-01-02" in text
    assert "1 tests passed on it and 0 failed" in text
    assert (
        "| rms_norm forward | rows 32768, width 1,024 to 4,096 | 0.1 to 0.2 ms, "
        "2,700 to 2,850 GB/s | 90 to 95% | 3.00x F.rms_norm |"
    ) in text


def test_a_demand_is_reached_not_reached_or_not_measured(tmp_path):
    must = musts.MUSTS[0]
    assert musts.verdict(must, {}) == ("not measured", [])
    for percent, said in ((93.0, "reached"), (90.0, "not reached")):
        written(tmp_path, "norms", forward(1024, 0.1, 95.0) + forward(4096, 0.2, percent))
        (results,) = table.load(tmp_path).values()
        verdict, found = musts.verdict(must, results)
        assert verdict == said
        assert [f.value for f in found] == [95.0, percent]
        assert any(said in line for line in musts.lines(results))
    written(tmp_path, "norms", forward(1024, 0.1, 95.0), complete=False)
    assert musts.verdict(must, *table.load(tmp_path).values())[0] == "reached so far"


def test_a_kernel_that_failed_at_one_size_has_not_reached_a_demand(tmp_path):
    at = {"rows": 32768, "width": 4096}
    broken = {"family": "rms_norm forward", "at": at, "name": "tinylm", "failed": "hung"}
    written(tmp_path, "norms", [*forward(1024, 0.1, 95.0), broken])
    assert musts.verdict(musts.MUSTS[0], *table.load(tmp_path).values())[0] == "not reached"


def test_demands_compare_with_a_peer_and_with_another_family(tmp_path):
    at = {"tokens": 16384, "head": 128}
    rows = [
        row("documents forward", at, "tinylm", 2.0, tflops=380.0),
        row("documents forward", at, "FlexAttention", 3.0, tflops=250.0),
        row("equal rows forward", at, "tinylm", 2.0, tflops=400.0),
    ]
    written(tmp_path, "packed", rows)
    (results,) = table.load(tmp_path).values()
    found = {must.words: list(must.find(results)) for must in musts.MUSTS}
    values = [f.value for words, some in found.items() if "documents" in words for f in some]
    # 0.95 of the rate of equal rows, 1.5 times as fast as FlexAttention.
    assert values == [0.95, 1.5]


def test_the_readme_has_the_table_of_the_committed_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    expected = table.replaced(readme, table.text_of(table.RESULTS))
    assert readme == expected, "run: python -m benches.gpu.table"


def test_a_readme_without_marks_is_refused():
    with pytest.raises(ValueError, match="must have the lines"):
        table.replaced("# TinyLM", "text")


def test_the_page_of_the_method_lists_every_demand_and_section():
    page = (ROOT / "benches/gpu/METHOD.md").read_text(encoding="utf-8")
    for must in musts.MUSTS:
        aim = "Aim: " if must.aim else ""
        assert f"| {aim}{must.words} | {must.section} | {must.family} |" in page
    assert not [name for name in SECTIONS if f"| {name} |" not in page and name != "tests"]
