"""The threads of a search: numpy's matrix library kept on one, and one aside that decomposes covariances.

How many threads numpy's matrix routines run on changes their last bits. The eigenvectors of a covariance that is still
nearly round turn by any angle on these, and a run could then be resumed only with as many threads as it began with.
One is also the faster: the engine's threads want the same cores.
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
    """Keeps numpy's matrix library, and no engine's, on one thread while anyone holds it.

    The library's limit is the process's, not the thread's: the first to enter sets it, and the last to leave lifts it.
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
                        "numpy's OpenBLAS does not keep to one thread, so this search may not come out the same again, "
                        "nor be resumed. Set the environment variable OPENBLAS_NUM_THREADS=1."
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
    """Have numpy's matrix routines run on one thread, in all threads of the process."""
    _limit().enter()
    try:
        yield
    finally:
        _limit().leave()


@contextmanager
def background() -> Iterator[Executor]:
    """Lend the strategies of a search a thread to decompose on; it ends, with what it has to do, when the search does.

    The caller's thread sets the limit of ``one_thread`` before the other one starts, and lifts it after that has
    ended: OpenBLAS does not heed a limit that is set while another thread computes.
    """
    with one_thread():
        aside = ThreadPoolExecutor(1, "bbt-fast-eigh")
        try:
            yield aside
        finally:
            aside.shutdown(cancel_futures=True)
