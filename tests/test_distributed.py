"""Training in several processes: the same rows, gradients, updates and checkpoints as in one."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import ranks
from tests.support.bytes_tokenizer import Bytes
from tinylm import config, model, optim
from tinylm.checkpoint import parts
from tinylm.checkpoint.files import Draft
from tinylm.checkpoint.tensors import pieces
from tinylm.config import ConfigError
from tinylm.data import Batch, Dataset, Loader, ShardWriter
from tinylm.ops import IGNORED
from tinylm.train import distributed, processes
from tinylm.train.nonfinite import NonFiniteError
from tinylm.train.session import Session
from tinylm.train.state import Progress
from tinylm.train.step import Stepper

ROWS, T, VOCAB = 8, 16, 50
SMALL = [
    "model.d_model=12",
    "model.n_layers=2",
    "model.n_heads=2",
    f"model.context_length={T}",
    f"model.vocab_size={VOCAB}",
    f"train.batch_size={ROWS}",
    "train.steps=3",
]
# Close to nothing, a gradient's sign is rounding: a large eps keeps it from being a whole step.
EPS = "optim.eps=1e-3"


def whole_batch(step: int) -> Batch:
    """A batch in which the rows, and so the ranks, have very different numbers of targets."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCAB, (ROWS, T), generator=generator)
    targets = torch.randint(VOCAB, (ROWS, T), generator=generator)
    for row in range(ROWS):
        targets[row, : (row * T) // ROWS] = IGNORED
    return Batch(tokens, targets)


def stepper_of(run, net, spread, optimizer, session) -> Stepper:
    """What takes the steps of a rank, as the pipeline makes it."""
    return Stepper(
        run=run,
        context_length=net.config.context_length,
        loss=spread.loss,
        spread=spread,
        optimizer=optimizer,
        session=session,
        say=session.say,
    )


def train(session: Session, overrides: list[str]) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """Three steps of this process: the gradients of each and the weights after them; the losses."""
    eps = [] if "optim.name=sgd" in overrides else [EPS]
    run = config.load(None, [*SMALL, *eps, *overrides])
    net = model.build(run.model, seed=1)
    # A head and branches that start at zero would leave most gradients zero.
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    net.activation_checkpointing = run.train.activation_checkpointing
    compiled = run.train.compile is True and session.mode == "fsdp"
    spread = distributed.spread(net, net.loss, session, compiled=compiled)
    weights = net if spread.shards is None else spread.shards
    optimizer = optim.build(weights, run.optim, spread.shards)
    stepper = stepper_of(run, net, spread, optimizer, session)
    seen: list[dict[str, Tensor]] = []
    move = optimizer.step

    def watched(*arguments, **settings):
        seen.append({name: p.grad.clone() for p, name in optimizer.names.items()})
        move(*arguments, **settings)

    optimizer.step = watched
    progress, losses = Progress(), []
    for step in range(3):
        batch = whole_batch(step)
        losses.append(stepper(batch.rows(slice(session.rank, None, session.world)), progress).loss)
    assert progress.tokens == 3 * ROWS * T
    seen.append({name: p.detach().clone() for p, name in optimizer.names.items()})
    return seen, losses


def compare(world: int, mode: str, overrides: list[str], close: float, before=None) -> None:
    """Train in one process with accumulation and in `world`, and compare."""
    alone = [*overrides, f"train.micro_batch_size={ROWS // world}"]
    expected, losses = train(ranks.session(processes.Place()), alone)
    given = [*overrides, "train.micro_batch_size=2"]
    results = ranks.spawn(world, mode, train, given, before=before)
    for rank, (_, theirs) in enumerate(results):
        torch.testing.assert_close(theirs, losses, rtol=0, atol=close, msg=f"losses of {rank}")
    # A rank of FSDP has its rows of every tensor.
    found = [
        {
            name: torch.cat([seen[i][name] for seen, _ in results])
            if mode == "fsdp"
            else results[-1][0][i][name]
            for name in expected[i]
        }
        for i in range(len(expected))
    ]
    assert max(float(g.abs().max()) for g in expected[0].values()) > 0.01
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)
    # The gradients of later steps are those of weights that moved.
    torch.testing.assert_close(found[1:], expected[1:], rtol=0, atol=close)


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_ranks_have_the_gradients_and_updates_of_one_process(mode):
    # With parts through which one block leaves something for others, or for the loss.
    shared = ["model.value_residual=true", "model.shortcut=true", "model.exits=true"]
    compare(2, mode, ["optim.name=adamw", *shared], 1e-6)


def compile_without_code() -> None:
    """Let torch trace and differentiate what is compiled, and make no C++ of it."""
    real = torch.compile
    torch.compile = lambda function, **ways: real(function, backend="aot_eager", **ways)


# torch's compiler looks whether a tensor has a gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_blocks_that_are_sharded_may_be_computed_again(compiled):
    shared = ["model.value_residual=true", "model.shortcut=true"]
    again = ["train.activation_checkpointing=true", f"train.compile={compiled}"]
    compare(2, "fsdp", ["optim.name=adamw", *shared, *again], 1e-6, before=compile_without_code)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("world", "mode"), [(2, "ddp"), (2, "fsdp"), (4, "fsdp")])
@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_ranks_have_the_gradients_and_updates_of_one_process(world, mode, tied, name):
    # Muon makes a matrix orthogonal in bfloat16, where rounding shows in the third digit.
    close = {"muon": 4e-3, "adamw": 1e-5, "sgd": 1e-5}[name]
    compare(world, mode, [f"optim.name={name}", f"model.tied={tied}"], close)


def spread_matrices(session: Session) -> float:
    """The greatest difference of `Shards.update` from the whole; of matrices that share nothing."""
    net = model.build(config.load(None, SMALL).model)
    shards = distributed.spread(net, net.loss, session).shards
    worst = 0.0
    for count, shape in ((5, (7, 3)), (1, (2, 6)), (4, (3, 2, 5)), (2, (1, 4))):
        generator = torch.Generator().manual_seed(count)
        whole = [torch.randn(shape, generator=generator) for _ in range(count)]
        begin, end = parts.row_bounds(shape[0], session.world)[session.rank]

        def function(matrices: Tensor) -> Tensor:
            return matrices @ matrices.mT @ matrices

        own = [matrix[begin:end].clone() for matrix in whole]
        found = shards.update(own, torch.Size(shape), function)
        for matrix, update in zip(whole, found, strict=True):
            assert update.shape == (end - begin, *shape[1:])
            if update.numel():
                expected = function(matrix.view(-1, *shape[-2:])).view(shape)[begin:end]
                worst = max(worst, float((update - expected).abs().max()))
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_muon_sees_whole_matrices_and_each_rank_gets_its_rows(world):
    assert max(ranks.spawn(world, "fsdp", spread_matrices)) < 1e-4


def stop_at_nan(session: Session) -> str:
    """What a run says whose gradient is not finite in the rows of the last rank alone."""
    run = config.load(None, [*SMALL, "optim.name=adamw"])
    net = model.build(run.model, seed=1)
    spread = distributed.spread(net, net.loss, session)
    optimizer = optim.build(spread.shards, run.optim, spread.shards)
    stepper = stepper_of(run, net, spread, optimizer, session)
    take = spread.shards.take_gradients

    def poisoned():
        take()
        if session.rank == session.world - 1:
            part = spread.shards.parts["blocks.0.feedforward.down.weight"]
            part.grad[-1, -1] = float("nan")

    spread.shards.take_gradients = poisoned
    progress = Progress()
    stepper(whole_batch(0).rows(slice(session.rank, None, session.world)), progress)
    with pytest.raises(NonFiniteError) as error:
        stepper.settle(progress, wait=True)
    return str(error.value)


@pytest.mark.slow
def test_all_ranks_name_the_bad_gradient_that_only_one_has():
    words = ranks.spawn(2, "fsdp", stop_at_nan)
    assert words == ["step 0: the gradient of blocks.0.feedforward.down.weight is not finite"] * 2


def test_the_rows_read_are_the_same_for_1_2_and_4_ranks(tmp_path):
    with ShardWriter(tmp_path, tokenizer=Bytes(256), split="train") as writer:
        writer.add(np.arange(3000) % 250)
    data = Dataset.open(tmp_path)

    def rows(world: int, batches: int, states: list) -> list:
        loaders = [
            Loader(data, batch_size=8, context_length=T, seed=3, rank=rank, world_size=world)
            for rank in range(world)
        ]
        for loader in loaders if states else ():
            loader.restore(states[-1])
        read = []
        for _ in range(batches):
            one = torch.empty(8, T, dtype=torch.int64)
            for rank, loader in enumerate(loaders):
                one[rank::world] = next(loader).tokens
            read.append(one)
        states.append(loaders[-1].state())
        for loader in loaders:
            loader.close()
        return read

    whole = rows(1, 60, [])
    assert torch.equal(torch.stack(rows(2, 60, [])), torch.stack(whole))
    # A run that goes on with other numbers of ranks goes on in the same order.
    states: list = []
    cut = rows(2, 20, states) + rows(4, 20, states) + rows(1, 20, states)
    assert torch.equal(torch.stack(cut), torch.stack(whole))


def write_parts(folder: Path, tensors: dict[str, Tensor], world: int) -> None:
    """The state of an optimizer in the files of `world` ranks."""
    draft = Draft(folder)
    for rank in range(world):
        own = {}
        for name, tensor in tensors.items():
            if tensor.dim():
                begin, end = parts.row_bounds(len(tensor), world)[rank]
                own[name] = tensor[begin:end]
            elif rank == 0:
                own[name] = tensor
        draft.add(parts.part_name(rank), pieces(own))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.dim()}
    draft.add(parts.INDEX, [json.dumps(parts.index_of(world, shapes)).encode()])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_the_state_of_any_number_of_ranks_opens_in_any_other(tmp_path, world):
    tensors = {
        "a.exp_avg": torch.randn(7, 3),
        "b.momentum": torch.randn(2, 4, 5).bfloat16(),
        "c.exp_avg": torch.randn(1),
        "a.step": torch.tensor(4.0),
    }
    write_parts(tmp_path, tensors, world)
    whole = parts.read_state(tmp_path)
    assert whole.keys() == tensors.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in tensors.items())
    for other in (1, 2, 4):
        own = [parts.read_state(tmp_path, (rank, other)) for rank in range(other)]
        for name, tensor in tensors.items():
            if tensor.dim():
                assert torch.equal(torch.cat([state[name] for state in own]), tensor)
            else:
                assert all(torch.equal(state[name], tensor) for state in own)


def test_parts_of_different_checkpoints_are_refused(tmp_path):
    write_parts(tmp_path, {"a.exp_avg": torch.randn(7, 3)}, 2)
    (tmp_path / parts.part_name(1)).unlink()
    Draft(tmp_path).add(parts.part_name(1), pieces({"a.exp_avg": torch.randn(5, 3)}))
    with pytest.raises(ValueError, match=r"a.exp_avg has shape \[7, 3\].* \[9, 3\]"):
        parts.read_state(tmp_path)


TORCHRUN = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_a_process_knows_its_place_and_says_how_to_start():
    run = config.load(None, ["distributed.mode=fsdp", "train.batch_size=8"])
    place = processes.place(run, TORCHRUN)
    assert (place.rank, place.world, place.mode, place.leads) == (1, 4, "fsdp", False)
    with pytest.raises(ConfigError, match=r"mode=fsdp and no RANK .* torchrun .*mode=fsdp"):
        processes.place(run, {})
    alone = config.load(None, [])
    assert processes.place(alone, {}) == processes.Place()
    assert processes.place(alone, {"WORLD_SIZE": "1"}).leads
    with pytest.raises(ConfigError, match=r"mode=none in one of 4 processes.*mode=ddp"):
        processes.place(alone, TORCHRUN)
    odd = config.load(None, ["distributed.mode=ddp", "train.batch_size=6"])
    with pytest.raises(ConfigError, match="batch_size=6: must be a multiple of the 4 processes"):
        processes.place(odd, TORCHRUN)
    keys = ["distributed.mode=ddp", "train.batch_size=24", "train.micro_batch_size=4"]
    with pytest.raises(ConfigError, match="micro_batch_size=4: must divide the 6 rows"):
        processes.place(config.load(None, keys), TORCHRUN)
    one = config.load(None, ["distributed.mode=ddp", "train.device=cuda:1"])
    with pytest.raises(ConfigError, match=r"device=cuda:1: .* set train.device=cuda, .*VISIBLE"):
        processes.place(one, TORCHRUN)


def fail_or_wait(session: Session, heard: Path) -> None:
    """Rank 1 fails, while rank 0 is where no exception reaches it; its words go to a file."""
    if session.rank == 1:
        raise OSError(28, "No space left on device", "shard-1.bin")
    sys.stderr = heard.open("w", buffering=1)
    time.sleep(60)


def look_often_at_the_store_alone() -> None:
    """Not at whether a process is gone, which on another machine nobody sees."""
    processes.SECONDS_BETWEEN_LOOKS = processes.SECONDS_TO_FAIL = 0.05
    processes.is_alive = lambda process: True


def test_an_error_of_one_rank_ends_the_others_and_is_named(tmp_path):
    heard, began = tmp_path / "heard", time.monotonic()
    with pytest.raises(EOFError):
        ranks.spawn(2, "ddp", fail_or_wait, heard, before=look_often_at_the_store_alone)
    assert time.monotonic() - began < 30
    words = heard.read_text()
    assert "error: rank 1 has failed (OSError: [Errno 28] No space left on device" in words
    assert words.endswith("so this run cannot go on\n")


def test_a_store_that_has_no_second_connection_tells_nothing():
    # As that of torch 2.7.
    failures = distributed.Failures(SimpleNamespace(), 0)
    failures.tell(OSError("full"))
    assert failures.first() == ""


def test_a_process_that_has_ended_is_not_alive_also_before_it_is_reaped():
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert processes.is_alive(os.getpid())
    watch = processes.Watch({3: child})
    assert watch.dead(seconds=10) == f"rank 3 (process {child}) has ended"
    os.waitpid(child, 0)
    assert not processes.is_alive(child)
