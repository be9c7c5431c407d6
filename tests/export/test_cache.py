"""The graph cache: whole entries or none, and nothing damaged is ever used."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bbt_fast.export import cache
from bbt_fast.export.errors import ArtifactError

KEY = {"model": "m", "mode": "add"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    monkeypatch.setenv("BBT_FAST_CACHE", str(tmp_path))
    return tmp_path


class Builder:
    """Writes an entry, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "a.onnx").write_bytes(b"graph")
        (folder / "a.onnx.data").write_bytes(b"weights" * 100)


def test_an_entry_is_built_once_and_found_again() -> None:
    build = Builder()
    first = cache.entry(KEY, build)
    assert cache.entry(dict(reversed(KEY.items())), build) == first
    assert build.calls == 1
    assert (first / "a.onnx").read_bytes() == b"graph"


def test_another_key_is_another_entry() -> None:
    build = Builder()
    assert cache.entry(KEY, build) != cache.entry(KEY | {"mode": "cat"}, build)
    assert build.calls == 2


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["a.onnx", "a.onnx.data", cache.MANIFEST])
def test_a_damaged_entry_is_built_again_with_a_warning(
    damage: Callable[[Path], object], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    build = Builder()
    damage(cache.entry(KEY, build) / name)
    folder = cache.entry(KEY, build)
    assert build.calls == 2
    assert f"damaged ({name}" in caplog.text
    assert (folder / "a.onnx").read_bytes() == b"graph"


def test_a_manifest_of_another_model_is_not_trusted() -> None:
    build = Builder()
    folder = cache.entry(KEY, build)
    manifest = cache.read_json(folder / cache.MANIFEST)
    cache.write_json(folder / cache.MANIFEST, manifest | {"key": {"model": "foreign"}})
    cache.entry(KEY, build)
    assert build.calls == 2


def test_a_measurement_comes_back_as_it_was_kept_or_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "parity.json"
    assert cache.read_record(path) is None
    assert caplog.text == ""
    cache.write_record(path, {"spearman": 0.99, "error": 1e-310})
    assert cache.read_record(path) == {"spearman": 0.99, "error": 1e-310}
    for damaged in (b"", path.read_bytes()[:-3], path.read_bytes().replace(b"0.99", b"0.98"), b"[]", b"{}"):
        path.write_bytes(damaged)
        caplog.clear()
        assert cache.read_record(path) is None
        assert f"{path} is damaged: measuring again" in caplog.text


def test_what_a_killed_build_left_is_removed(folder: Path) -> None:
    whole = cache.entry(KEY, Builder())
    left = whole.rename(whole.with_suffix(".killed")) / "entry"
    left.mkdir()
    assert cache.entry(KEY, Builder()) == whole
    assert not left.parent.exists()


SOURCES = sorted(path.name for path in Path(cache.__file__).parent.glob("*.py"))


def test_code_with_any_file_edited_builds_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [cache.entry(KEY, Builder())]
    for edited in (None, *SOURCES):
        copy = shutil.copytree(Path(cache.__file__).parent, tmp_path_factory.mktemp("code") / "export")
        if edited is not None:
            (copy / edited).write_text((copy / edited).read_text() + "edited = True\n")
        with monkeypatch.context() as patch:
            patch.setattr(cache, "__file__", str(copy / "cache.py"))
            entries.append(cache.entry(KEY, Builder()))
    assert entries[0] == entries[1]
    assert len(set(entries)) == 1 + len(SOURCES)


def test_a_failed_build_leaves_nothing_behind(folder: Path) -> None:
    def fail(scratch: Path) -> None:
        (scratch / "half.onnx").write_bytes(b"half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        cache.entry(KEY, fail)
    assert [path for path in folder.rglob("*") if path.suffix != ".lock"] == []


def test_two_builders_of_one_entry_do_not_meet() -> None:
    build, together, met = Builder(), threading.Barrier(4), threading.Event()

    def slowly(scratch: Path) -> None:
        build(scratch)
        if build.calls > 1:
            met.set()
        met.wait(timeout=0.2)  # time for another to enter

    def find(_: int) -> Path:
        together.wait(timeout=60)
        return cache.entry(KEY, slowly)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(find, range(4)))
    assert build.calls == 1
    assert len(set(found)) == 1


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BBT_FAST_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ArtifactError, match=r"cannot write the graph cache .* set BBT_FAST_CACHE"):
        cache.entry(KEY, Builder())
