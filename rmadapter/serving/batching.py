"""One thread that owns the model: it answers what waits, as many requests at a time as there are."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class BatchWorker(Generic[Asked, Answered]):
    """Gathers what is asked from any thread into batches for ``answer``, which is called in one thread alone.

    It does not wait for a batch to fill: what comes while one is computed is the next. A lone request is answered at
    once.

    Args:
        answer: what is asked -> the answer to each, in their order, or an exception in its place.
        most: most of them in one batch.
    """

    def __init__(self, answer: Callable[[Sequence[Asked]], Sequence[Answered | Exception]], most: int):
        self._answer, self._most = answer, most
        self._waiting: queue.SimpleQueue[tuple[Asked, Future[Answered]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive() and not self._closed

    def submit(self, asked: Asked) -> Future[Answered]:
        """The answer to come. Cancelled before its batch begins, it is not computed.

        Raises:
            RuntimeError: it is closed.
        """
        future: Future[Answered] = Future()
        with self._lock:  # nothing comes behind the end
            if self._closed:
                raise RuntimeError("the model's thread has ended")
            self._waiting.put((asked, future))
        return future

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        going = True
        while going:
            found = [self._waiting.get()]
            while found[-1] is not None and len(found) < self._most:
                try:
                    found.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            going = found[-1] is not None
            batch = [one for one in found if one is not None and one[1].set_running_or_notify_cancel()]
            if batch:
                self._settle([asked for asked, _ in batch], [future for _, future in batch])

    def _settle(self, asked: list[Asked], futures: list[Future[Answered]]) -> None:
        try:
            answers = self._answer(asked)
        except Exception as error:  # the thread outlives whatever one batch meets
            answers = [error] * len(asked)
        for future, answer in zip(futures, answers, strict=True):
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
