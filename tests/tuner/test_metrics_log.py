"""The curves: what earlier parts of a run wrote stays, as far as it is whole."""

from __future__ import annotations

import json
import math
from contextlib import closing

import pytest

from bbt_fast.export.errors import ArtifactError
from bbt_fast.tuner.metrics_log import MetricsLog

LINES = [{"generation": i, "loss": 1 / (i + 1), "seconds": 0.5 * i} for i in range(4)]
TEXT = "".join(json.dumps(line) + "\n" for line in LINES)


def test_lines_come_back_and_more_are_added(tmp_path):
    (tmp_path / "m").write_text(TEXT)
    with closing(MetricsLog(tmp_path / "m")) as log:
        assert [log.known(i) for i in range(5)] == [*LINES, None]
        log.append({"generation": 4, "loss": 0.1, "seconds": 2.0})
    assert (tmp_path / "m").read_text().startswith(TEXT)
    assert len((tmp_path / "m").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    "tail",
    [
        '{"generation": 4, "sec',
        "null\n",
        '{"generation": 7, "seconds": 1}\n',
        '{"generation": 4}\n',
        "[" * 10**5,
        '{"generation": 4, "seconds": NaN}\n',
        '{"generation": 4, "seconds": "x"}\n',
        '{"generation": 4, "seconds": 1, "a": NaN}\n',
    ],
)
def test_a_damaged_tail_is_dropped(tail, tmp_path):
    (tmp_path / "m").write_text(TEXT + tail)
    with closing(MetricsLog(tmp_path / "m")) as log:
        assert log.known(3) == LINES[3]
        assert log.known(4) is None
    assert (tmp_path / "m").read_text() == TEXT


def test_what_is_not_known_is_null(tmp_path):
    with closing(MetricsLog(tmp_path / "m")) as log:
        log.append({"generation": 0, "train": math.nan, "seconds": 1.0})
    assert json.loads((tmp_path / "m").read_text()) == {"generation": 0, "train": None, "seconds": 1.0}


def test_a_folder_that_is_gone_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*gone"):
        MetricsLog(tmp_path / "gone" / "m")
