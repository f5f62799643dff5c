"""`prepare` in jobs: the same shards however many processes share them and whatever ends one."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.bytes_tokenizer import Bytes
from tinylm import corpus, disk
from tinylm.corpus.documents import Section
from tinylm.data import Dataset, prepare, prepare_share
from tinylm.data.jobs import plan
from tinylm.data.manifest import NAME

JOB = 300


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Twenty files, some of one document, some of rows, one larger than a job."""
    folder = tmp_path_factory.mktemp("texts")
    for k in range(14):
        (folder / f"{k:02}.txt").write_text(f"{k} \u00e9\u4e16 words\n" * (k % 7 + 1), "utf-8")
    for k in range(14, 20):
        rows = [json.dumps({"text": f"row {k} {n}" * (n % 5)}) for n in range(10 if k < 19 else 99)]
        (folder / f"{k:02}.jsonl").write_text("\n".join(rows))
    return folder


def opened(texts):
    return corpus.open(str(texts), val_fraction=0.3)


def contents(folder):
    """Every file of a folder, by its path in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory):
    """The shards that one process makes in one go."""
    folder = tmp_path_factory.mktemp("whole")
    prepare(opened(texts), Bytes(), folder, job_bytes=JOB)
    found = contents(folder)
    assert len(found) > 20
    return found


class Counting(Bytes):
    """Counts its calls and may end at one of them."""

    def __init__(self, end_at=-1, error=KeyboardInterrupt):
        super().__init__()
        self.calls, self.end_at, self.error = 0, end_at, error

    def encode_batch(self, texts, *, special="raise"):
        self.calls += 1
        if self.calls == self.end_at:
            raise self.error
        return super().encode_batch(texts, special=special)


@given(st.lists(st.integers(0, 50)), st.integers(1, 60))
def test_a_plan_has_every_section_once_and_in_order(sizes, job_bytes):
    sections = [Section(size, list) for size in sizes]
    jobs = plan(sections, job_bytes)
    assert [job.number for job in jobs] == list(range(len(jobs)))
    assert [id(s) for job in jobs for s in job.sections] == list(map(id, sections))
    for job, following in zip(jobs, [*jobs[1:], None], strict=True):
        assert job.bytes == sum(section.bytes for section in job.sections)
        assert job.bytes <= job_bytes or len(job.sections) == 1
        # None could take the next section too.
        assert following is None or job.bytes + following.sections[0].bytes > job_bytes


def test_documents_and_counts_do_not_depend_on_the_jobs(texts, whole, tmp_path):
    one, many = tmp_path / "one", tmp_path / "many"
    first = prepare(opened(texts), Bytes(), one)
    second = prepare(opened(texts), Bytes(), many, job_bytes=JOB)
    assert contents(many) == whole
    assert [len(split.shards) for split in first.splits.values()] == [1, 1]
    for name in ("train", "val"):
        a, b = first.splits[name], second.splits[name]
        assert (a.tokens, a.documents, a.bytes) == (b.tokens, b.documents, b.bytes)
        a, b = Dataset.open(one, split=name), Dataset.open(many, split=name)
        assert a.read(0, a.n_tokens).tolist() == b.read(0, b.n_tokens).tolist()
        assert a.lengths().tolist() == b.lengths().tolist()
        list(b.verify())


@pytest.mark.parametrize(("world", "backwards"), [(2, False), (3, True), (12, False)])
def test_the_bytes_are_those_of_one_process_for_every_world(
    world, backwards, texts, whole, tmp_path
):
    ranks = list(range(world))[:: -1 if backwards else 1]
    made = [
        prepare_share(opened(texts), Bytes(), tmp_path, rank=rank, world=world, job_bytes=JOB)
        for rank in ranks
    ]
    # The last one that has a job writes the manifest; those after it find it.
    assert made[-1] is not None
    assert contents(tmp_path) == whole
    assert prepare(opened(texts), Bytes(), tmp_path) == made[-1]


@pytest.mark.parametrize(
    ("end_at", "error"), [(1, ValueError("bad")), (8, KeyboardInterrupt), (12, OSError(5, "disk"))]
)
def test_what_was_done_is_not_done_again(end_at, error, texts, whole, tmp_path):
    count = Counting()
    prepare(opened(texts), count, tmp_path / "count", job_bytes=JOB)
    broken = Counting(end_at, error)
    with pytest.raises((KeyboardInterrupt, ValueError, OSError)):
        prepare(opened(texts), broken, tmp_path / "shards", job_bytes=JOB)
    left = contents(tmp_path / "shards")
    rows = [name for name in left if name.endswith(".json")]
    assert not [name for name in left if name.endswith(".part") or name == NAME]
    assert bool(left) == bool(rows) == (end_at > 1)
    # Another process may do the rest.
    rest = Counting()
    share = prepare_share(opened(texts), rest, tmp_path / "shards", rank=0, world=1, job_bytes=JOB)
    assert share is not None
    assert contents(tmp_path / "shards") == whole
    # At most the calls of one job were lost.
    assert count.calls <= broken.calls - 1 + rest.calls <= count.calls + 2


def begun(texts, folder):
    """A folder in which all jobs of rank 0 of 2 are done; the rows."""
    share = prepare_share(opened(texts), Bytes(), folder, rank=0, world=2, job_bytes=JOB)
    assert share is None
    return sorted(folder.glob("jobs/*/*.json"))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("fraction", r"val_fraction 0.3, not 0.4\)"),
        ("tokenizer", r"tokenizer b{16}, not c{16}\)"),
        ("file", r"text 20 files, [\d,]+ bytes, \w{16}, not 19 files, [\d,]+ bytes, \w{16}\)"),
        ("job_bytes", r"job_bytes 300, not 900\)"),
        ("no plan", "it does not say which"),
    ],
)
def test_a_rank_leaves_jobs_of_another_plan_and_names_the_difference(
    change, difference, texts, tmp_path
):
    tokenizers = [Bytes(), Bytes()]
    for tokenizer, digit in zip(tokenizers, "bc", strict=True):
        tokenizer.sha256 = digit * 64
    source, job_bytes = tmp_path / "texts", JOB
    shutil.copytree(texts, source)
    out = tmp_path / "out"
    prepare_share(opened(source), tokenizers[0], out, rank=0, world=2, job_bytes=JOB)
    if change == "file":
        (source / "03.txt").unlink()
    if change == "job_bytes":
        job_bytes = 900
    if change in ("no plan", "fraction"):
        other = corpus.open(str(source), val_fraction=0.4)
    else:
        other = opened(source)
    if change == "no plan":
        next(out.glob("jobs/*/plan")).unlink()
    before = contents(out)
    tokenizer = tokenizers[change == "tokenizer"]
    with pytest.raises(
        FileExistsError, match=f"done jobs of another plan .{difference}.*every rank"
    ):
        prepare_share(other, tokenizer, out, rank=1, world=2, job_bytes=job_bytes)
    assert contents(out) == before


@pytest.mark.parametrize("damage", ["row", "cut row", "shard", "lengths", "cut shard"])
def test_a_job_whose_row_or_files_are_damaged_is_done_again(damage, texts, whole, tmp_path):
    row = begun(texts, tmp_path)[1]
    job = row.with_suffix("")
    if damage == "row":
        row.write_text(row.read_text().replace("train", "brain"))
    elif damage == "cut row":
        row.write_bytes(row.read_bytes()[:50])
    elif damage == "shard":
        next(job.glob("*.bin")).unlink()
    elif damage == "lengths":
        path = next(job.glob("*.doc"))
        path.write_bytes(bytes(len(path.read_bytes())))
    else:
        path = next(job.glob("*.bin"))
        path.write_bytes(path.read_bytes()[:-2])
    prepare(opened(texts), Bytes(), tmp_path, job_bytes=JOB)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("alone", [True, False])
def test_a_shard_of_a_done_job_with_a_changed_byte_is_made_again(alone, texts, whole, tmp_path):
    row = begun(texts, tmp_path)[1]
    path = next(row.with_suffix("").glob("*.bin"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    finish = prepare if alone else partial(prepare_share, rank=1, world=2)
    with pytest.warns(UserWarning, match=rf"{path.name}: corrupt at byte .*: job 2 is done again"):
        finish(opened(texts), Bytes(), tmp_path, job_bytes=JOB)
    assert contents(tmp_path) == whole


def test_shards_that_are_moving_when_the_process_ends_move_on(texts, whole, tmp_path, monkeypatch):
    moves, rename = [], Path.rename

    def counted(path, target):
        moves.append(path)
        if len(moves) == 9:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted)
        with pytest.raises(KeyboardInterrupt):
            prepare(opened(texts), Bytes(), tmp_path, job_bytes=JOB)
    count = Counting()
    prepare(opened(texts), count, tmp_path, job_bytes=JOB)
    assert count.calls == 0
    assert contents(tmp_path) == whole


def test_jobs_of_another_text_make_room(texts, whole, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(texts, other)
    (other / "03.txt").write_text("something else")
    row = begun(other, tmp_path / "shards")[0]
    # Not while somebody is at one of them.
    with (
        disk.Lock(row.with_suffix("")),
        pytest.raises(BlockingIOError, match="wait for it, or name another folder"),
    ):
        prepare(opened(texts), Bytes(), tmp_path / "shards", job_bytes=JOB)
    removed = r"removed \d+ done jobs of another plan .text 20 files, "
    with pytest.warns(UserWarning, match=removed):
        prepare(opened(texts), Bytes(), tmp_path / "shards", job_bytes=JOB)
    assert contents(tmp_path / "shards") == whole


def test_a_process_killed_after_the_manifest_leaves_jobs_that_the_next_removes(
    texts, whole, tmp_path, monkeypatch
):
    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tinylm.data.jobs.Jobs.end", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(opened(texts), Bytes(), tmp_path, job_bytes=JOB)
    assert (tmp_path / "jobs").exists()
    prepare(opened(texts), Bytes(), tmp_path)
    assert contents(tmp_path) == whole
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_outside_of_its_world_is_refused(rank, world, texts, tmp_path):
    with pytest.raises(ValueError, match=f"rank {rank} must be at least 0 and below world {world}"):
        prepare_share(opened(texts), Bytes(), tmp_path / "x", rank=rank, world=world)
    with pytest.raises(ValueError, match="job_bytes=0 must be at least 1"):
        prepare(opened(texts), Bytes(), tmp_path / "x", job_bytes=0)
    assert not (tmp_path / "x").exists()
