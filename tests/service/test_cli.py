"""``bbt-fast serve`` as a person runs it."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import httpx2 as httpx
import pytest

from bbt_fast.tuner.cli.main import main


def test_serve_says_where_it_listens_and_stops_in_order_at_ctrl_c(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, statuses = threading.Event(), []

    def call() -> None:
        try:
            ends, said = time.monotonic() + 60, None
            while said is None and not ended.is_set() and time.monotonic() < ends:
                said = re.search(r"serving at (\S+);", caplog.text)
                time.sleep(0.01)
            if said is not None:
                statuses.append(httpx.get(f"{said[1]}/v2/health/ready", trust_env=False).status_code)
        finally:
            if not ended.is_set():
                os.kill(os.getpid(), signal.SIGINT)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        status = main(["serve", "--model_name", "demo", "--engine", "torch", "--precision", "fp32", "--port", "0"])
    finally:
        ended.set()
        caller.join()
    assert statuses == [200]
    assert status == 0
    assert capsys.readouterr().out == "the server stopped after it finished the running requests.\n"
