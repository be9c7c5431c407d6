"""Disks that are full or read-only, and folders that vanish: a clear error, no torn file, what was finished stays."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bbt_fast import tune
from bbt_fast.export import cache
from bbt_fast.export.cache import MANIFEST
from bbt_fast.export.errors import ArtifactError
from bbt_fast.export.traces import FILE as TRACE
from bbt_fast.tuner.run.driver import Search

Options = Callable[..., dict[str, Any]]
Figures = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(options: Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    tune(**options(), output_dir=str(folder))
    return folder


def check_whole(folder: Path) -> None:
    """Make sure that no file of a run is torn."""
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
    for name in ("journal.jsonl", "metrics.jsonl"):
        path = folder / name
        assert not path.exists() or path.read_bytes() == b"" or path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("share", [pytest.param(0.6, marks=pytest.mark.slow), 0.9])
def test_a_run_that_fills_the_disk_stops_whole_and_goes_on_when_there_is_room(
    share: float, options: Options, whole: Path, nursery: Callable[..., Any], figures: Figures, tmp_path: Path
) -> None:
    asked = options(output_dir=str(tmp_path / "full"))
    room = int(share * (whole / "journal.jsonl").stat().st_size)
    ended = nursery(asked, tmp_path / "cache", file_bytes=room)
    assert ended["status"] == 2
    assert ended["message"].startswith(f"ArtifactError: cannot write {tmp_path / 'full'}")
    assert "All finished work is kept; free space" in ended["message"]
    check_whole(tmp_path / "full")
    assert nursery(asked, tmp_path / "cache") == {"status": 0, "message": ""}
    assert figures(tmp_path / "full") == figures(whole)


@pytest.mark.slow
def test_an_export_that_fills_the_disk_leaves_no_entry(
    options: Options, nursery: Callable[..., Any], tmp_path: Path
) -> None:
    asked = options(engine="ort", output_dir=str(tmp_path / "run"))
    ended = nursery(asked, tmp_path / "cache", file_bytes=20_000)
    assert ended["status"] == 2
    assert "cannot write the graph cache" in ended["message"]
    assert "Free disk space there, or set BBT_FAST_CACHE" in ended["message"]
    entries = [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
    assert all((path / MANIFEST).exists() and (path / TRACE).exists() for path in entries), (
        "no graph, and no half trace"
    )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 kB that can be filled and made read-only, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(place)], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("needs the right to mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_real_disk_that_is_full_is_told_by_the_file_that_did_not_fit(
    disk: Path, options: Options, whole: Path, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Search._take

    def fill(self: Search, generation: Any, log: Any, replayed: bool) -> str | None:
        if generation.index == 4 and not replayed:
            (disk / "large").write_bytes(b"0" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        return taken(self, generation, log, replayed)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "_take", fill)
        with pytest.raises(ArtifactError, match=r"cannot write .*disk/run/.*: No space left on device"):
            tune(**options(), output_dir=str(disk / "run"))
    check_whole(disk / "run")
    (disk / "large").unlink()
    tune(resume=str(disk / "run"))
    assert figures(disk / "run") == figures(whole)


def test_a_read_only_disk_is_told_before_any_work(
    disk: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(ArtifactError, match=r"cannot write .*disk/run: Read-only file system"):
        tune(**options(), output_dir=str(disk / "run"))
    monkeypatch.setenv("BBT_FAST_CACHE", str(disk / "cache"))
    with pytest.raises(ArtifactError, match=r"cannot write the graph cache .*disk/cache: Read-only file system"):
        tune(**options(engine="ort"), output_dir="run")


@pytest.fixture
def no_override() -> Iterator[None]:
    """Take from root, in this thread, the right to read and write whatever a file's mode says."""
    if not sys.platform.startswith("linux"):
        if os.geteuid() == 0:
            pytest.skip("needs Linux to take rights from root")
        yield
        return
    libc, header, rights = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, rights) == 0
    effective = rights[0]
    rights[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, rights) == 0
    yield
    rights[0] = effective
    assert libc.capset(header, rights) == 0


@pytest.mark.usefixtures("no_override")
def test_a_folder_without_the_right_to_write_is_told_before_any_work(options: Options, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ArtifactError, match=r"cannot write .*locked/run: Permission denied"):
        tune(**options(), output_dir=str(tmp_path / "locked" / "run"))


def test_a_run_folder_that_is_removed_while_it_runs_is_an_error_that_names_it(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Search._take

    def remove(self: Search, generation: Any, log: Any, replayed: bool) -> str | None:
        if generation.index == 4:
            shutil.rmtree(tmp_path / "run")
        return taken(self, generation, log, replayed)

    monkeypatch.setattr(Search, "_take", remove)
    with pytest.raises(ArtifactError, match=r"cannot write .*run/prompt\.safetensors: No such file or directory"):
        tune(**options(), output_dir=str(tmp_path / "run"))


def test_a_cache_that_is_removed_while_it_is_built_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BBT_FAST_CACHE", str(tmp_path / "cache"))

    def build(folder: Path) -> None:
        (folder / "graph").write_bytes(b"graph")
        shutil.rmtree(tmp_path / "cache")

    with pytest.raises(ArtifactError, match=r"cannot write the graph cache .*cache: No such file or directory"):
        cache.entry({"model": "m"}, build)


@pytest.mark.slow
def test_a_run_whose_cache_is_removed_under_it_ends_as_any_other(
    options: Options,
    traces: Callable[[Path], None],
    figures: Figures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = options(engine="ort")
    traces(tmp_path / "cache")
    monkeypatch.setenv("BBT_FAST_CACHE", str(tmp_path / "cache"))
    tune(**asked, output_dir=str(tmp_path / "whole"))
    taken = Search._take

    def remove(self: Search, generation: Any, log: Any, replayed: bool) -> str | None:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        return taken(self, generation, log, replayed)

    monkeypatch.setattr(Search, "_take", remove)
    tune(**asked, output_dir=str(tmp_path / "run"))
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_a_measurement_that_cannot_be_kept_is_said_and_not_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_record(tmp_path / "gone" / "parity.json", {"spearman": 1.0})
    assert "parity.json (No such file or directory): the next run will measure again" in caplog.text
