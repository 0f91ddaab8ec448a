"""Worker processes that end with the process that started them, however it ends."""

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from transformer.files import UserError


class WorkerDied(UserError):
    """A worker ended unexpectedly; running the same command again continues."""


def map_in_workers(work, chunks, num_workers):
    """Yield (chunk, work(chunk)) in the order of the chunks, from one or several processes. Raises WorkerDied."""
    if num_workers == 1:
        yield from ((chunk, work(chunk)) for chunk in chunks)
        return
    # Forked processes share the data that `work` holds; forking is safe on Linux only.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool, pending = ProcessPoolExecutor(num_workers, context, _start, (work,)), deque()
    try:
        for chunk in chunks:
            pending.append((chunk, pool.submit(_run, chunk)))
            if len(pending) > 2 * num_workers:  # few at a time, so that memory stays bounded
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()
    except BrokenProcessPool:
        raise WorkerDied("a worker process died (out of memory?); fewer --num_workers may help") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work):
    """Prepare a new worker: the main process handles Ctrl-C, and no worker outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # collecting the main process's objects again and again would take 5% of the time
    _run.work = work
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _run(chunk):
    return _run.work(chunk)


def _end_with_parent():
    # A killed process cannot stop its workers: they would wait for chunks, and hold its terminal, forever.
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
