"""Reports as a user meets them: written by runs, written anew, compared, and seen by a browser."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """Folders of finished runs on the digits: `three` levels, `five`, and the paper's way with a layer left `float`."""
    from tests.commands.conftest import call

    folder = tmp_path_factory.mktemp("runs")
    options = {
        "three": ["--preset", "fast", "--kbits", 3],
        "five": ["--preset", "fast", "--kbits", 5],
        "float": ["--preset", "paper", "--no-training", "--skip", "3", "--scale", "channel"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(trained.folder)
        for name, words in options.items():
            network = ("--model", "tiny_network:build", "--checkpoint", trained.weights, "--dataset", "digits")
            result = call("quantize", *network, "--samples", 50, *words, "--output", name)
            assert result.code == 0, result.err
            assert f"{name}/report.html" in result.out
    return SimpleNamespace(**{name: folder / name for name in options})


class Page(HTMLParser):
    """The tags of a page, the links from it, and its words; opened tags must be closed in order."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append((tag, values))
        self.links += [values[name] for name in ("src", "href") if name in values]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        """The attributes of all tags called so."""
        return [values for name, values in self.tags if name == tag]


def _page(path):
    return Page(path.read_text(encoding="utf-8"))


def test_every_run_has_a_report_that_needs_nothing_else(runs):
    page = _page(runs.three / "report.html")
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not page.of("script")
    assert "http" not in (runs.three / "report.html").read_text()
    assert all(image["alt"] for image in page.of("img"))
    assert all(chart["aria-label"] for chart in page.of("svg"))
    ids = {values["id"] for _, values in page.tags if "id" in values}
    assert {link[1:] for link in page.links if link.startswith("#")} <= ids
    assert (runs.three / "report.html").stat().st_size < 300_000


def test_a_report_says_what_the_run_measured(runs):
    page, metrics = _page(runs.three / "report.html"), json.loads((runs.three / "metrics.json").read_text())
    for name in ("teacher_top1", "quantized_top1", "bits_per_weight", "agreement"):
        assert f"{metrics[name]:.2f}" in page.text, name
    assert f"{metrics['packed_bytes']:,} of {metrics['float_bytes']:,} bytes" in page.text
    assert metrics["command"].startswith("ldnq quantize --model tiny_network:build --checkpoint")
    assert metrics["command"] in page.text
    assert page.text.count("12×3×5×5") == 1
    changed = round((100 - metrics["agreement"]) / 100 * 450)
    assert f"{changed} of 450 test images changed class" in page.text
    assert len(page.of("img")) == min(changed, 18)


def test_layers_that_stay_float_are_named_with_the_reason(runs):
    page = _page(runs.float / "report.html")
    assert "--skip 3" in page.text
    assert "All 3 layers" in page.text


def test_a_report_is_written_anew_from_the_folder_alone(ldnq, runs, workdir):
    folder = shutil.copytree(runs.three, workdir / "moved")
    (folder / "report.html").unlink()
    (folder / "model.h5").unlink()
    result = ldnq("report", "moved")
    assert (result.code, result.out) == (0, "moved/report.html\n")
    assert (folder / "report.html").read_text() == (runs.three / "report.html").read_text()
    assert ldnq("report", "moved", "-o", "else/where.html").out == "else/where.html\n"
    assert (workdir / "else/where.html").read_text() == (folder / "report.html").read_text()


def test_a_run_of_before_there_were_details_has_a_shorter_report(ldnq, runs, workdir):
    folder = shutil.copytree(runs.three, workdir / "old")
    (folder / "details.h5").unlink()
    rows = (folder / "layers.csv").read_text()
    (folder / "layers.csv").write_text(rows.replace(",sqnr_db", ",other"))
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["command"], metrics["agreement"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    result = ldnq("report", "old")
    assert result.code == 0, result.err
    page = _page(folder / "report.html")
    assert "All 4 layers" in page.text
    assert not page.of("img")
    assert ldnq("report", "old", runs.five).code == 0


def test_a_run_without_test_images_has_a_report(ldnq, tiny, workdir, digit_files):
    shutil.copytree(digit_files / "train", workdir / "mine" / "train")
    words = [*tiny[:4], "--dataset", "folder", "--data-root", "mine", "--preset", "fast", "--output", "run"]
    result = ldnq("quantize", *words)
    assert result.code == 0, result.err
    page = _page(workdir / "run" / "report.html")
    assert "not measured" in page.text
    assert "changed class" not in page.text
    assert ldnq("report", "run", shutil.copytree("run", "copy")).code == 0


def test_runs_stand_side_by_side(ldnq, runs, workdir):
    result = ldnq("report", runs.three, runs.five, runs.float)
    assert (result.code, result.out) == (0, "comparison.html\n")
    text = (workdir / "comparison.html").read_text()
    page = Page(text)
    for folder in vars(runs).values():
        metrics = json.loads((folder / "metrics.json").read_text())
        assert f"{metrics['quantized_top1']:.2f}%" in page.text
        assert f"{metrics['packed_bytes']:,}" in page.text
    for label in ("fast, 3 levels", "fast, 5 levels", "paper, 3 levels"):
        assert label in page.text
    # What differs is listed, what does not is not.
    settings = page.text.split("Settings that differ")[-1]
    assert all(word in settings for word in ("kbits", "preset", "skip", "coordinate-descent"))
    assert "quantize bias" not in settings
    assert all(link.startswith("#") for link in page.links)
    # One line through the two fast runs, one point of the paper's.
    against_levels = re.search(r"<svg[^>]*against levels;.*?</svg>", text, re.DOTALL).group()
    assert against_levels.count("<circle") == 3
    assert against_levels.count('class="line"') == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "expected a finished run in nowhere, found no config.json"),
        (["RUN", "nowhere"], "expected a finished run in nowhere"),
        (["RUN", "RUN"], "got one twice"),
        (["RUN", "-o", "."], "expected a file for --output"),
        (["broken"], "found other files"),
        (["damaged"], "does not hold the details of a run"),
    ],
)
def test_bad_input_is_one_line(ldnq, runs, words, message, workdir):
    (shutil.copytree(runs.three, workdir / "broken") / "metrics.json").write_text("{}")
    (shutil.copytree(runs.three, workdir / "damaged") / "details.h5").write_text("nothing")
    result = ldnq("report", *[runs.three if word == "RUN" else word for word in words])
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err


def _browse(page, profile, *words):
    """What the browser says when it opens `page`: standard output, standard error."""
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    words = [BROWSER, *common, f"--user-data-dir={profile}", *words, page.as_uri()]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in result.stderr
    return result.stdout


needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs a browser such as chromium")


@needs_browser
@pytest.mark.parametrize(
    ("words", "paper"), [([], (255, 255, 255)), (["--force-dark-mode"], (15, 19, 25))], ids=["light", "dark"]
)
def test_a_screenshot_is_light_or_dark_and_not_empty(runs, workdir, words, paper):
    size = "--window-size=1280,1600"
    _browse(runs.three / "report.html", workdir / "profile", size, f"--screenshot={workdir / 'page.png'}", *words)
    image = Image.open(workdir / "page.png").convert("RGB")
    assert image.size == (1280, 1600)
    assert image.getpixel((2, 2)) == paper
    pixels = np.asarray(image)
    drawn = (pixels != paper).any(2)
    assert 0.02 < drawn.mean() < 0.5
    # Down to its end, and on both halves.
    assert all(part.any() for part in (drawn[:200], drawn[-200:], drawn[:, :640], drawn[:, 640:]))


@needs_browser
def test_a_browser_shows_pages_of_a_phones_width_without_an_error(ldnq, runs, workdir):
    assert ldnq("report", *vars(runs).values(), "-o", "several.html").code == 0
    pages = [runs.three / "report.html", runs.float / "report.html", workdir / "several.html"]
    frames = "".join(
        f'<iframe width=390 height=800 srcdoc="{html.escape(path.read_text())}"></iframe>' for path in pages
    )
    measure = """<script>
    onload = () => {
      const found = [...document.querySelectorAll("iframe")].map(frame => {
        const page = frame.contentDocument;
        const images = [...page.images].every(image => image.naturalWidth > 0);
        const charts = [...page.querySelectorAll("svg[role=img]")].every(chart => chart.getBBox().width > 50);
        const {scrollWidth, clientWidth} = page.documentElement;
        return [scrollWidth <= clientWidth, images, charts];
      });
      document.body.innerHTML = "found" + JSON.stringify(found) + "end";
    };
    </script>"""
    (workdir / "frames.html").write_text(f"<!doctype html><body>{frames}{measure}", encoding="utf-8")
    answer = _browse(workdir / "frames.html", workdir / "profile", "--dump-dom")
    found = json.loads(re.search("found(.*)end", answer).group(1))
    assert found == [[True, True, True]] * 3
