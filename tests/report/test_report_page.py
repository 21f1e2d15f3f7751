"""page.py: what a report's folder holds, and that its page is whole in itself."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from judged import FP32, answered, images, network

from densekit.config import UserError
from densekit.data.config import Task
from densekit.report.page import ReportSource, claim_report, write_report
from runs import densekit

TASKS = ("multiclass", "multilabel", "binary")


class Loaded(HTMLParser):
    """What a browser would fetch for a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        names = ("src", "href", "xlink:href", "data", "srcset")
        self.fetched += [value or "" for name, value in attrs if name in names]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("task", TASKS)
def test_a_report(tmp_path: Path, task: Task) -> None:
    of, folder = answered(tmp_path, task), tmp_path / "report"
    claim_report(folder)
    said = write_report(folder, of, FP32, ReportSource("runs/<u>x</u>", None))
    assert said == json.loads((folder / "report.json").read_text())
    figures = {"roc", "precision-recall", "calibration", "confusion", "balance"}
    assert set(said["figures"]) == figures
    names = {"index.html", "report.json", "predictions.npz", *(f"{name}.png" for name in figures)}
    assert {file.name for file in folder.iterdir()} == names
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = Loaded(text)
    assert all(url.startswith(("data:", "#")) for url in page.fetched), "of the page alone"
    assert not re.search(r"url\((?!#|data:)|@import", text)
    assert not page.tags & {"u", "script", "link"}
    assert "runs/<u>x</u>" in page.text
    assert all(name in page.text for name in of.opened.classes)
    assert f"{of.found['auroc']:.3f}" in page.text
    assert "these numbers flatter" in page.text


@pytest.mark.parametrize("task", TASKS)
def test_scikit_learn_finds_the_same_from_the_saved_answers(tmp_path: Path, task: Task) -> None:
    of, folder = answered(tmp_path, task), tmp_path / "report"
    claim_report(folder)
    write_report(folder, of, FP32, ReportSource("net", "list"))
    saved = np.load(folder / "predictions.npz")
    assert saved["files"].tolist() == [f"{i}.png" for i in range(len(of.examples))]
    assert saved["classes"].tolist() == list(of.opened.classes)
    labels, logits = saved["labels"], saved["logits"].astype(np.float64)
    scores = scipy.special.softmax(logits, 1) if labels.ndim == 1 else scipy.special.expit(logits)
    for k, row in enumerate(json.loads((folder / "report.json").read_text())["per_class"]):
        true, own = (labels == k, scores[:, k]) if labels.ndim == 1 else (
            labels[labels[:, k] >= 0, k], scores[labels[:, k] >= 0, k])  # fmt: skip
        assert row["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(true, own))
        low, high = row["intervals"]["auroc"]
        assert low <= row["auroc"] <= high


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    left = tmp_path / "new" / "report" / ".report.json.densekit-1.tmp"
    left.parent.mkdir(parents=True)
    left.touch()  # all that a killed process came to
    claim_report(tmp_path / "new" / "report")
    assert not left.exists()
    claim_report(tmp_path / "new" / "report")  # an earlier report's
    own = tmp_path / "new" / "report" / "my.png"
    own.write_text("mine")
    with pytest.raises(UserError, match=r"holds my\.png, which is not of an earlier report"):
        claim_report(tmp_path / "new" / "report")
    assert own.read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("mine")  # a name that a report has, and no report
    with pytest.raises(UserError, match=r"holds index\.html"):
        claim_report(other)
    assert (other / "index.html").read_text() == "mine"


def test_the_command(tmp_path: Path) -> None:
    network(tmp_path / "net", "multilabel")
    place = images(tmp_path / "images", "multilabel")
    words = ("evaluate", "net", "--data", place, "--report", "report", "--bootstrap", "20",
             "--group", r"^(\d)")  # fmt: skip
    result = densekit(*words, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "report/index.html: the report" in result.stderr
    printed = json.loads(result.stdout)
    written = json.loads((tmp_path / "report/report.json").read_text())
    assert {key: written[key] for key in printed} == printed
    assert (printed["group"], printed["groups"]) == (r"^(\d)", 10)
    saved = np.load(tmp_path / "report/predictions.npz")
    assert saved["groups"].tolist() == [int(name[0]) for name in saved["files"]]
    assert "over 10 groups" in Loaded((tmp_path / "report/index.html").read_text("utf-8")).text
    compared = densekit("compare", "report", "report", "--bootstrap", "5", cwd=tmp_path)
    assert "on the same 30 images, resampled by their 10 groups" in compared.stdout
    refused = densekit("compare", "report", "report", "--group", "a", cwd=tmp_path)
    assert "--group=a: needs --evaluate or --data" in refused.stderr
    again = densekit(*words, cwd=tmp_path)
    assert r"95 % intervals by ^(\d) (10 groups): AUROC" in again.stdout
    (tmp_path / "report/mine.txt").write_text("mine")
    result = densekit(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert "report: holds mine.txt" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_browser_shows_it_at_any_width(tmp_path: Path, task: Task) -> None:
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium")
    of, folder = answered(tmp_path, task), tmp_path / "report"
    claim_report(folder)
    write_report(folder, of, FP32, ReportSource("net", "list"))
    wrong: list[str] = []
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        for width in (320, 390, 1280):
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda message: wrong.append(message.text))
            page.on("request", lambda sent: wrong.append(sent.url)
                    if not sent.url.startswith(("file:", "data:")) else None)  # fmt: skip
            page.goto((folder / "index.html").as_uri())
            size = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            whole, seen = page.evaluate(size)
            assert whole <= seen, f"{width}: the page is wider than the window"
            broken = "[...document.images].filter(i => !i.naturalWidth).length"
            assert page.evaluate(broken) == 0
            assert page.locator("svg").count() == 5
            page.close()
        browser.close()
    assert wrong == []
