"""The report in a browser: three demo runs, a page in headless Chromium. Skipped where there is no Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from io import BytesIO

import pytest
from matplotlib import image

from bbt_fast import tune
from bbt_fast.tuner.cli.main import main

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
MEASURE = """<script>addEventListener("load", () => {
  const box = element => element.getBoundingClientRect();
  const texts = [...document.querySelectorAll("svg text")].filter(text => box(text).width);
  const sticksOut = text => {
    const a = box(text), b = box(text.closest("svg"));
    return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1;
  };
  parent.document.title = JSON.stringify({
    asked: performance.getEntriesByType("resource").map(entry => entry.name),
    screen: innerWidth,
    width: document.documentElement.scrollWidth,
    outside: texts.filter(sticksOut).length,
    smallest: Math.min(...texts.map(text => box(text).height)),
  });
})</script>"""


@pytest.fixture(scope="module")
def browser():
    """The path of a browser; skips if there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    return found


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """The page about three runs of the demo, every run opened."""
    folder = tmp_path_factory.mktemp("report")
    for name, options in {"a": {"seed": 8}, "b": {"seed": 13}, "c": {"algorithm": "bbtv2"}}.items():
        small = {"engine": "torch", "device": "cpu", "budget": 120, "max_test_examples": 20, "plots": False}
        tune(task_name="demo", output_dir=str(folder / name), **small, **options)
    assert main(["report", str(folder), "--out", str(folder / "report.html")]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8").replace("<details>", "<details open>")
    (folder / "report.html").write_text(text, encoding="utf-8")
    return folder / "report.html"


@pytest.fixture
def browse(browser, tmp_path):
    """A function(page, *flags) -> what headless Chromium prints; fails if the page's console says anything."""

    def run(page, *flags):
        command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    return run


@pytest.fixture
def measure(browse, tmp_path):
    """A function(text of a page, width) -> what ``MEASURE`` finds in it.

    The page is put into a frame, since Chromium's own windows are no narrower than 500 pixels.
    """

    def run(text, width):
        (tmp_path / "inner.html").write_text(text.replace("</head>", MEASURE + "</head>"), encoding="utf-8")
        outer = tmp_path / "outer.html"
        outer.write_text(f'<iframe src="inner.html" width="{width}" height="900" style="border:0"></iframe>')
        flags = ("--window-size=1400,1000", "--allow-file-access-from-files", "--virtual-time-budget=5000")
        dom = browse(outer, *flags, "--dump-dom")
        return json.loads(unescape(re.search(r"<title>(.*?)</title>", dom)[1]))

    return run


@pytest.mark.parametrize("name", ["desktop", "phone", "dark"])
def test_the_page_shows_without_a_word_on_the_console(name, page, browse, tmp_path):
    picture = tmp_path / f"{name}.png"
    size = "500" if name == "phone" else "1200"
    dark = ["--blink-settings=preferredColorScheme=0"] if name == "dark" else []
    browse(page, f"--window-size={size},1500", *dark, f"--screenshot={picture}")
    pixels = image.imread(BytesIO(picture.read_bytes()), format="png")[..., :3]
    assert len({tuple(pixel) for pixel in (255 * pixels[::3, ::3]).astype(int).reshape(-1, 3)}) > 30
    assert (pixels[5, 5].mean() > 0.9) == (name != "dark")


@pytest.mark.parametrize("width", [360, 500, 1200])
def test_the_page_asks_for_nothing_and_nothing_sticks_out(width, page, measure):
    found = measure(page.read_text(encoding="utf-8"), width)
    assert found["asked"] == []
    assert found["screen"] == width
    assert found["width"] <= width
    assert found["outside"] == 0
    assert found["smallest"] >= 9, "too small to read"


@pytest.mark.parametrize(
    "guest",
    ['<img src="https://example.com/x.png">', "<style>@import url(https://example.com/x.png);</style>"],
)
def test_a_page_that_asked_for_something_would_be_noticed(guest, page, measure):
    text = page.read_text(encoding="utf-8").replace("<h1>", guest + "<h1>")
    assert measure(text, 500)["asked"] == ["https://example.com/x.png"]


def test_a_word_on_the_console_would_be_noticed(page, browse, tmp_path):
    other = tmp_path / "other.html"
    other.write_text(page.read_text(encoding="utf-8") + "<script>nothing.there</script>", encoding="utf-8")
    with pytest.raises(AssertionError, match="nothing is not defined"):
        browse(other, f"--screenshot={tmp_path / 'other.png'}")
