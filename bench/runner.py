"""The workers of the benchmark."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from bench import jobs
from bench.jobs import Cache, Job, Outcome


class OutOfTime(Exception):
    """The time box is over."""


class Runner:
    """Runs jobs on all workers, out of the cache where they were run before, and says how long it will take."""

    def __init__(self, cache: Cache, workers: int, minutes: float):
        self.cache = cache
        self.expected: dict[str, float] = {}
        """Estimated cost of the stages still to come, in evaluations of single images."""

        self.calls = 0
        """Jobs that were run, not found."""

        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._started = time.monotonic()
        self._deadline = self._started + 60 * minutes
        self._paid, self._work_started, self._reported = 0.0, 0.0, 0.0

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool:
            for worker in multiprocessing.active_children() if kind else []:
                worker.terminate()
            self._pool.shutdown(cancel_futures=True)

    def run(self, stage: str, wanted: Iterable[Job]) -> dict[str, Outcome]:
        """Outcomes by key.

        Raises:
            OutOfTime: when the time box ends before the work.
        """
        by_key = {job.key: job for job in wanted}
        todo = [job for key, job in by_key.items() if key not in self.cache]
        self._begin(stage, sum(job.cost for job in by_key.values()))
        left = sum(job.cost for job in todo)
        for done, job in enumerate(self._finish(todo), 1):
            left -= job.cost
            self.calls += 1
            self._paid += job.cost
            self._report(stage, done, len(todo), left, last=done == len(todo))
        return {key: self.cache.load(key) for key in by_key}

    def _begin(self, stage: str, cost: float) -> None:
        """Correct what is expected: the stages before this one are over, and part of this one is known."""
        stages = list(self.expected)
        if stage in stages:
            self.expected = {name: self.expected[name] for name in stages[stages.index(stage) :]}
            self.expected[stage] = max(self.expected[stage] - cost, 0)

    def _finish(self, todo: list[Job]) -> Iterator[Job]:
        """The jobs, each once it is done. Two for each worker are handed out, so that none waits for the next."""
        if todo and not self._work_started:
            self._work_started = time.monotonic()
        if self._workers <= 1:
            for job in todo:
                self._check_time()
                jobs.perform(job, self.cache)
                yield job
            return
        running: dict[Future[Any], Job] = {}
        waiting = iter(todo)
        while True:
            for job in itertools.islice(waiting, 2 * self._workers - len(running)):
                self._check_time()
                running[self._workers_pool().submit(work, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                yield running.pop(future)

    def _workers_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            os.environ["OMP_NUM_THREADS"] = "1"
            self._pool = ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), start_worker, (self.cache.folder,)
            )
        return self._pool

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise OutOfTime

    def _report(self, stage: str, done: int, count: int, left: float, *, last: bool) -> None:
        now = time.monotonic()
        if now - self._reported < 5 and not last:
            return
        self._reported = now
        seconds = (left + sum(self.expected.values())) * (now - self._work_started) / self._paid
        over = "; the time limit comes first" if now + seconds > self._deadline else ""
        print(
            f"{stage}: {done} of {count} runs, {_minutes(now - self._started)} min so far, "
            f"about {_minutes(seconds)} left{over}",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


# A process of its own


def start_worker(folder: Path) -> None:
    """Each worker has one thread: two of them do more than one with two threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
    torch.set_num_threads(1)
    global _worker_cache
    _worker_cache = Cache(folder)


_worker_cache: Cache


def work(job: Job) -> None:
    jobs.perform(job, _worker_cache)
