"""The threads of a search: a limit of one thread for numpy's matrix library, and one thread for decompositions.

The last bits of numpy's matrix products depend on the number of threads. The eigenvectors of a nearly round covariance
turn by any angle on these bits, so a run could only be resumed with the same number of threads. One thread is also
faster, since the engine's threads need the same cores.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

logger = logging.getLogger(__name__)


class _OneThread:
    """Limits numpy's matrix library, but no engine's, to one thread while it has holders.

    The limit is per process, not per thread: the first holder sets it, and the last one lifts it.
    """

    def __init__(self) -> None:
        self._library = ThreadpoolController().select(internal_api="openblas")
        self._lock = threading.Lock()
        self._holders = 0
        self._limit: Any = None

    def enter(self) -> None:
        with self._lock:
            if not self._holders:
                self._limit = self._library.limit(limits=1)
                if any(library["num_threads"] != 1 for library in self._library.info()):
                    logger.warning(
                        "numpy's OpenBLAS ignores its limit of one thread, so this search may be neither reproducible "
                        "nor resumable. Set the environment variable OPENBLAS_NUM_THREADS=1."
                    )
            self._holders += 1

    def leave(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._limit.restore_original_limits()


@cache
def _limit() -> _OneThread:
    return _OneThread()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit numpy's matrix routines to one thread, in all threads of the process."""
    _limit().enter()
    try:
        yield
    finally:
        _limit().leave()


@contextmanager
def background() -> Iterator[Executor]:
    """Yield a thread for the decompositions of a search; it finishes its current task at the end of the block.

    The caller's thread sets the limit of ``one_thread`` before this thread starts, and lifts it after this thread has
    ended: OpenBLAS ignores a limit that is set while another thread computes.
    """
    with one_thread():
        aside = ThreadPoolExecutor(1, "bbt-fast-eigh")
        try:
            yield aside
        finally:
            aside.shutdown(cancel_futures=True)
