"""Starts runs in processes of their own without waiting for imports each time: imports once, then forks.

Reads one JSON object per line from standard input, answers with one per line:

    {"options": {...}, "cache": FOLDER,
     "kill": {"at": EVENT, "count": K, "share": S}, "after": SECONDS, "file_bytes": N}
    {"status": exit status, negative for a signal, "message": what the run raised}

``kill`` sends SIGKILL to the process in the midst of its K-th EVENT, of which the share S is done first; ``after`` does
so from outside after so many seconds; ``file_bytes`` is the size at which files stop growing, as on a full disk.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import cma  # noqa: F401 - what a search and an export import is imported here, once
import networkx  # noqa: F401
import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

import bbt_fast.engine.ort  # noqa: F401
from bbt_fast.engine import onnx_files
from bbt_fast.engine.session import Session
from bbt_fast.export.errors import BbtFastError
from bbt_fast.export.graphs import OPSET
from bbt_fast.tuner import tune
from bbt_fast.tuner.artifacts import files, journal
from bbt_fast.tuner.run import single

torch.set_num_threads(1)
# What each export would parse anew is parsed here, once.
from_torchlib = functools.cache(ONNXRegistry.from_torchlib)
ONNXRegistry.from_torchlib = staticmethod(from_torchlib)
from_torchlib(opset_version=OPSET)


def die() -> None:
    """Kill this process as the system would, without cleanup."""
    os.kill(os.getpid(), signal.SIGKILL)


def midst_of_export(original: Callable[..., Any], share: float, *args: Any) -> None:
    """Leave a graph's file written in part."""
    original(*args)
    os.truncate(args[1], int(share * Path(args[1]).stat().st_size))


def midst_of_line(original: Callable[..., Any], share: float, *args: Any, **others: Any) -> None:
    """Leave a journal's line written in part."""
    file, _, line = args
    file.write(line[: int(share * len(line))])


def midst_of_file(original: Callable[..., Any], share: float, *args: Any) -> None:
    """Leave a file written under its temporary name, or under its own if more than half is to be done."""
    if share > 0.5:
        original(*args)


def midst_of_answer(original: Callable[..., Any], share: float, *args: Any, **others: Any) -> None:
    """Have the engine answer, and nobody told."""
    if share > 0.5:
        original(*args, **others)


EVENTS: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "export": (onnx_files, "save_graph", midst_of_export),
    "journal": (journal, "append_line", midst_of_line),
    "file": (files.os, "replace", midst_of_file),
    "evaluate": (Session, "evaluate", midst_of_answer),
    "test": (single, "test_logits", midst_of_answer),
}
"""Where a process can be killed: whose function, its name, and how to do a share of what it does."""


def arm(at: str, count: int, share: float) -> None:
    """Let the process die in its ``count``-th call of an event's function."""
    owner, name, partly = EVENTS[at]
    original = getattr(owner, name)
    left = [count]

    def called(*args: Any, **others: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            partly(original, share, *args, **others)
            die()
        return original(*args, **others)

    setattr(owner, name, called)


def child(request: dict[str, Any], say: int) -> int:
    """Run what is asked for; write what goes wrong to a file descriptor and return the exit status."""
    os.environ["BBT_FAST_CACHE"] = request["cache"]
    if "kill" in request:
        arm(**request["kill"])
    if "file_bytes" in request:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # pytest keeps standard error in a file, which may be full already
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
    try:
        tune.tune(**request["options"])
    except BbtFastError as error:
        os.write(say, f"{type(error).__name__}: {error}".encode())
        return 2
    except BaseException:  # noqa: BLE001 - a forked child must not go on as its parent
        os.write(say, traceback.format_exc().encode())
        return 1
    return 0


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Fork a child, kill it in time if that is asked for, and return how it ended."""
    heard, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(heard)
        os._exit(child(request, say))
    os.close(say)
    if "after" in request:
        time.sleep(request["after"])
        os.kill(pid, signal.SIGKILL)  # a child that has ended stays a zombie until it is waited for
    with os.fdopen(heard, "rb") as pipe:
        message = pipe.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"status": status, "message": message}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=answers, flush=True)
