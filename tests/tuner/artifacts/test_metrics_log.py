"""The curves: what earlier parts of a run wrote stays, as far as it is whole."""

from __future__ import annotations

import json
import math
from contextlib import closing

import pytest

from bbt_fast.export.errors import ArtifactError
from bbt_fast.tuner.artifacts.metrics_log import MetricsLog

LINES = [{"generation": i, "loss": 1 / (i + 1), "seconds": 0.5 * i} for i in range(4)]


@pytest.fixture
def text(tmp_path):
    """What a log of LINES holds; it stands in the file m."""
    with closing(MetricsLog(tmp_path / "m")) as log:
        for line in LINES:
            log.append(line)
    return (tmp_path / "m").read_text()


def test_lines_come_back_and_more_are_added(tmp_path, text):
    with closing(MetricsLog(tmp_path / "m")) as log:
        assert [log.known(i) for i in range(5)] == [*LINES, None]
        log.append({"generation": 4, "loss": 0.1, "seconds": 2.0})
    assert (tmp_path / "m").read_text().startswith(text)
    assert len((tmp_path / "m").read_text().splitlines()) == 5


def test_a_line_of_an_earlier_generation_replaces_what_follows(tmp_path, text, caplog):
    with closing(MetricsLog(tmp_path / "m")) as log:
        log.append(LINES[2])
        assert log.known(3) is None
    assert (tmp_path / "m").read_text() == "".join(text.splitlines(keepends=True)[:3])
    assert "holds generations that the journal has lost: the run repeats them from 2 on" in caplog.text


def test_a_changed_figure_is_not_taken_for_a_measured_one(tmp_path, text):
    (tmp_path / "m").write_text(text.replace('"loss": 0.5', '"loss": 0.4'))
    with closing(MetricsLog(tmp_path / "m")) as log:
        assert [log.known(i) for i in range(4)] == [LINES[0], None, None, None]


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
def test_a_damaged_tail_is_dropped(tail, tmp_path, text):
    (tmp_path / "m").write_text(text + tail)
    with closing(MetricsLog(tmp_path / "m")) as log:
        assert log.known(3) == LINES[3]
        assert log.known(4) is None
    assert (tmp_path / "m").read_text() == text


def test_what_is_not_known_is_null(tmp_path):
    with closing(MetricsLog(tmp_path / "m")) as log:
        log.append({"generation": 0, "train": math.nan, "seconds": 1.0})
    line = json.loads((tmp_path / "m").read_text())
    del line["sum"]
    assert line == {"generation": 0, "train": None, "seconds": 1.0}


def test_a_folder_that_is_gone_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*gone"):
        MetricsLog(tmp_path / "gone" / "m")
