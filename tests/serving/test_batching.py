"""One thread answers, in batches of what has come together."""

from __future__ import annotations

import threading

import pytest

from rmadapter.serving.batching import BatchWorker


class Held:
    """Answers with the double, and keeps the batches; the first one waits until it is let go."""

    def __init__(self):
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.began, self.let_go = threading.Event(), threading.Event()

    def __call__(self, several):
        self.batches.append(list(several))
        self.threads.add(threading.get_ident())
        self.began.set()
        assert self.let_go.wait(60)
        return [ValueError("three") if one == 3 else 2 * one for one in several]


@pytest.fixture
def held():
    return Held()


@pytest.fixture
def worker(held):
    worker = BatchWorker(held, most=4)
    yield worker
    held.let_go.set()
    worker.close()


def test_what_comes_meanwhile_is_one_batch(worker, held):
    first = worker.submit(0)
    assert held.began.wait(60)
    futures = [worker.submit(number) for number in range(1, 7)]
    assert futures[1].cancel()
    held.let_go.set()
    assert first.result(60) == 0
    assert [futures[place].result(60) for place in (0, 3, 4, 5)] == [2, 8, 10, 12]
    with pytest.raises(ValueError, match="three"):
        futures[2].result(60)
    assert held.batches == [[0], [1, 3, 4], [5, 6]]
    assert held.threads == {worker._thread.ident}


def test_it_outlives_a_batch_that_fails(held):
    def fail_once(several):
        if several == ["bad"]:
            raise RuntimeError("no memory")
        return several

    worker = BatchWorker(fail_once, most=4)
    with pytest.raises(RuntimeError, match="no memory"):
        worker.submit("bad").result(60)
    assert worker.submit("good").result(60) == "good"
    assert worker.alive
    worker.close()


def test_what_waits_at_the_end_is_answered_and_nothing_after_it(worker, held):
    waiting = [worker.submit(1)]
    assert held.began.wait(60)
    waiting.append(worker.submit(2))
    closing = threading.Thread(target=worker.close)
    closing.start()
    held.let_go.set()
    closing.join(60)
    assert [future.result(0) for future in waiting] == [2, 4]
    assert not worker.alive
    with pytest.raises(RuntimeError, match="has ended"):
        worker.submit(3)
