"""A process for what is not measured but needs jax and Orbax: making sources, checking results."""

from __future__ import annotations

import logging
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from benchmarks.measure import Failed


class Aside:
    """Calls functions there, one at a time. It imports the libraries once."""

    def __init__(self) -> None:
        self._pool = _start()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result.

        Raises:
          Failed: it raised, or the process was killed.
        """
        try:
            return self._pool.submit(function, *args).result()
        except BrokenProcessPool:
            self._pool = _start()
            raise Failed(f"{function.__name__} was killed, perhaps for want of memory") from None
        except Exception as error:
            raise Failed(f"{function.__name__}: {error}") from error

    def close(self) -> None:
        self._pool.shutdown()


def _start() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_be_quiet)


def _be_quiet() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("absl").setLevel(logging.ERROR)
