"""Dynamic batching: the items of all requests to one model, in one thread that predicts them together."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal

Kind = Literal["predict", "explain", "stream"]


class QueueFullError(Exception):
    """More items wait for the model than are allowed."""


class StoppedError(Exception):
    """The server shuts down, or the thread has ended."""


class Job:
    """One item that waits for its answer.

    Args:
        kind: "predict": in a batch with others; "explain" or "stream": alone.
        item: The item.
        options: Options of `predict` or `explain`; only items with the same options share a batch.
        send: Of "stream": takes each piece of the text.
    """

    def __init__(
        self, kind: Kind, item: Any, options: Mapping[str, Any], send: Callable[[str], None] | None = None
    ) -> None:
        self.kind, self.item, self.options, self.send = kind, item, dict(options), send
        self.key = (kind, json.dumps(self.options, sort_keys=True)) if kind == "predict" else (kind, id(self))
        self.future: Future[Any] = Future()  # a prediction, or what `explained` returns


class Worker:
    """Answers the jobs of one model, in their order, in a thread of its own.

    Whatever a predictor raises is the answer to the item that caused it: after an error in a batch each of its items
    is predicted alone.

    Args:
        predictor: The predictor; it is used by this thread alone.
        batch_size: Most items of a batch; None: the predictor's own.
        wait: Seconds for which a batch waits for the items of the clients that were there before.
        most: Most items that may wait.
        explained: What is kept of an explanation.
        seen: Called with the size of each batch.
    """

    def __init__(
        self,
        predictor: Any,
        *,
        batch_size: int | None = None,
        wait: float = 0.005,
        most: int = 256,
        explained: Callable[[Any], Any] = lambda explanation: explanation,
        seen: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.predictor, self.batch_size = predictor, batch_size or predictor.batch_size
        self.wait, self.most, self.explained, self.seen = wait, most, explained, seen
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        # How many clients there are: those that were answered last, and those that waited meanwhile. A batch waits for
        # as many, since those answered soon ask again; while clients come one by one, none waits for others.
        self._expected = 1
        self._thread = threading.Thread(target=self._run, name=f"mmattn {predictor.task}", daemon=True)
        self._thread.start()

    @property
    def size(self) -> int:
        """The number of items that wait."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether jobs are answered."""
        return self._thread.is_alive() and not self._stopped

    def submit(self, jobs: Sequence[Job]) -> None:
        """Add jobs, all or none.

        Raises:
            QueueFullError: Too many wait.
            StoppedError: The worker has stopped.
        """
        with self._changed:
            if not self.alive:
                raise StoppedError
            if len(self._waiting) + len(jobs) > self.most:
                # Those whose clients have left take no place.
                self._waiting = deque(job for job in self._waiting if not job.future.cancelled())
            if len(self._waiting) + len(jobs) > self.most:
                raise QueueFullError
            self._waiting.extend(jobs)
            self._changed.notify()

    def stop(self, seconds: float = 5.0) -> None:
        """Answer no additional jobs: those that wait fail, and the current batch is finished."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    for job in self._waiting:
                        if job.future.set_running_or_notify_cancel():
                            job.future.set_exception(StoppedError())
                    self._waiting.clear()
                    return
                end = time.monotonic() + self.wait
                while len(self._waiting) < min(self._expected, self.batch_size) and not self._stopped:
                    if (left := end - time.monotonic()) <= 0:
                        break
                    self._changed.wait(left)
                batch = self._next()
            if batch:
                self._answer(batch)
            self._expected = max(len(batch) + len(self._waiting), 1)

    def _next(self) -> list[Job]:
        """The jobs of the next batch, without those whose clients have left."""
        batch: list[Job] = []
        while self._waiting and len(batch) < self.batch_size:
            if batch and self._waiting[0].key != batch[0].key:
                break
            job = self._waiting.popleft()
            if job.future.set_running_or_notify_cancel():
                batch.append(job)
        return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        try:
            if batch[0].kind == "predict":
                self.seen(len(batch))
                found = self.predictor.stream([job.item for job in batch], None, "skip", **batch[0].options)
                answers = list(found)
                if len(answers) != len(batch):
                    raise RuntimeError(f"expected {len(batch)} predictions, found {len(answers)}")
            else:
                answers = [self._alone(batch[0])]
        except Exception as error:
            if len(batch) > 1:
                for job in batch:  # whose fault it is shows when each is predicted alone
                    self._answer([job])
                return
            answers = [error] * len(batch)
        for job, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                job.future.set_exception(answer)
            else:
                job.future.set_result(answer)

    def _alone(self, job: Job) -> Any:
        if job.kind == "explain":
            return self.explained(self.predictor.explain(job.item, **job.options))
        assert job.send is not None
        pieces = self.predictor.stream_text(job.item, **job.options)
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                return end.value  # the prediction, if there is one
            job.send(piece)  # raises an exception once the client has left
