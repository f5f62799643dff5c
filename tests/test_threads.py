"""How torch's threads wait: briefly beside other work, and with the same results."""

import time
from collections.abc import Iterator

import pytest
import torch

from tinylm import threads

LIBRARY = threads.libgomp()
needs_libgomp = pytest.mark.skipif(LIBRARY is None, reason="torch runs without libgomp here")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two OpenMP threads, whatever the tests were started with."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nothing_chosen(monkeypatch) -> None:
    for name in threads.CHOSEN_BY:
        monkeypatch.delenv(name, raising=False)


def cores_used() -> float:
    """Processor seconds per second of loops with pauses of 2 ms: the waiting, for the most part."""
    x = torch.ones(1 << 17)
    start, used = time.perf_counter(), time.process_time()
    for _ in range(100):
        x.add_(1)
        time.sleep(0.002)
    return (time.process_time() - used) / (time.perf_counter() - start)


@needs_libgomp
def test_a_crowd_makes_waiting_threads_sleep_until_it_leaves(two_threads, nothing_chosen):
    spinning = cores_used()
    if spinning < 0.2:
        pytest.skip("threads do not spin here: the environment was set before torch was loaded")
    crowd = threads.Crowd(LIBRARY)
    sleeping = cores_used()
    crowd.leave()
    assert sleeping < spinning / 2
    assert cores_used() > 2 * sleeping


@needs_libgomp
def test_results_are_the_same_bits_with_a_crowd(two_threads):
    a = torch.randn(300, 400, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def results() -> list[torch.Tensor]:
        loss = (a @ a.T).softmax(-1).square().sum()
        return [loss.detach(), *torch.autograd.grad(loss, a)]

    alone = results()
    crowd = threads.Crowd(LIBRARY)
    crowded = results()
    crowd.leave()
    for one, other in zip(alone, crowded, strict=True):
        assert torch.equal(one, other)


@needs_libgomp
def test_the_watch_lets_a_crowd_come_while_threads_wait_and_go_when_it_is_calm(monkeypatch):
    clock = [0.0]
    step = [0.0]

    def waited() -> float:
        clock[0] += step[0]
        return clock[0]

    monkeypatch.setattr(threads, "PERIOD", 0.01)
    monkeypatch.setattr(threads, "waited", waited)
    watch = threads.Watch(LIBRARY)
    watch.start()
    step[0] = 0.005
    wait_until(lambda: watch.crowd is not None)
    # Between the two limits nothing changes.
    step[0] = 0.0005
    time.sleep(0.2)
    assert watch.crowd is not None
    step[0] = 0.0
    wait_until(lambda: watch.crowd is None)
    step[0] = 0.005
    wait_until(lambda: watch.crowd is not None)
    watch.stop()
    assert watch.crowd is None
    assert watch.times == 2


@needs_libgomp
def test_the_watch_ends_with_its_block_also_by_an_error(two_threads, nothing_chosen):
    def fail_in_the_block() -> None:
        with threads.sharing(2) as watch:
            watches.append(watch)
            assert watch.is_alive()
            raise ZeroDivisionError

    watches: list[threads.Watch] = []
    with pytest.raises(ZeroDivisionError):
        fail_in_the_block()
    (watch,) = watches
    assert not watch.is_alive()


def test_nothing_watches_where_nothing_can_be_won(monkeypatch, nothing_chosen):
    with threads.sharing(1) as watch:
        assert watch is None
    assert threads.policy(1) == "default"
    monkeypatch.setattr(threads, "libgomp", lambda: None)
    with threads.sharing(2) as watch:
        assert watch is None
    assert threads.policy(2) == "default"


@pytest.mark.parametrize("setting", ["OMP_WAIT_POLICY=ACTIVE", "GOMP_SPINCOUNT=1000"])
def test_a_users_own_setting_wins(monkeypatch, nothing_chosen, setting):
    monkeypatch.setenv(*setting.split("="))
    with threads.sharing(2) as watch:
        assert watch is None
    assert threads.policy(2) == setting


def test_a_system_that_does_not_count_waiting_is_left_alone(tmp_path, monkeypatch, nothing_chosen):
    monkeypatch.setattr(threads, "TASKS", tmp_path / "absent")
    assert threads.waited() is None
    assert threads.policy(2) == "default"
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "schedstat").write_text("")
    monkeypatch.setattr(threads, "TASKS", tmp_path)
    assert threads.waited() is None


def wait_until(condition) -> None:
    """Return once `condition` holds; fail after 10 seconds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
