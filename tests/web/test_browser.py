"""The pages in a real browser: a search is submitted, watched, and its winner's YAML downloaded; every page in both themes.

Trials are those of a stub worker, so that a search takes seconds. `AUTOFIT_BROWSER_REAL=1` runs real ones on a tiny model, and
then three steps of the downloaded YAML under LLaMA-Factory. `AUTOFIT_SCREENSHOTS=DIR` keeps a picture of every page.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from served_database import fill
from test_tradeoffs import store_study

from autofit.config.model import ModelRef, resolve_model

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: make browser installs it"),
]
ROOT = Path(__file__).parents[2]
REAL = bool(os.environ.get("AUTOFIT_BROWSER_REAL"))
SHOTS = os.environ.get("AUTOFIT_SCREENSHOTS")
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
PAGES = {
    "studies": "/",
    "study": "/studies/first",
    "many": "/studies/many",
    "running": "/studies/second",
    "trial": "/studies/first/trials/1",
    "trial-oom": "/studies/first/trials/2",
    "compare": "/studies/first/compare",
    "plan": "/plan",
    "new": "/new",
    "ask": "/ask",
    "login": "/login",
    "api": "/api/docs",
}


@dataclass
class Served:
    """A server process and what its pages asked for."""

    url: str
    folder: Path
    asked: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def page(self, browser: "playwright.Browser", viewport: dict[str, int], scheme: str) -> "playwright.Page":
        page = browser.new_context(viewport=viewport, color_scheme=scheme, accept_downloads=True).new_page()
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.faults.append(f"{page.url}: {error}"))
        page.on("console", lambda said: self._console(page.url, said))
        return page

    def _console(self, url: str, said: "playwright.ConsoleMessage") -> None:
        if said.type == "error" and "status of 4" not in said.text:  # a refusal that the page tells in words
            self.faults.append(f"{url}: {said.text}")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    fill(folder / "autofit.db")
    store_study(folder / "autofit.db", 1, "samples_per_second", "cuda")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = sys.executable if REAL else _stub(folder)
    _model(folder)
    command = [sys.executable, "-m", "autofit.cli", "--db", str(folder / "autofit.db"), "serve", "--port", str(port)]
    command += ["--root", str(folder), "--runs", str(folder / "runs"), "--python", python]
    env = {**os.environ, "AUTOFIT_STUB_SECONDS": "0.6", "AUTOFIT_LEASE_DIR": str(folder / "leases")}
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, folder)
        yield Served(url, folder)
    finally:
        process.terminate()
        process.wait(timeout=30)
        _end_supervisor(folder)


def _end_supervisor(folder: Path) -> None:
    """It outlives the server; told to stop, it stops its searches too."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "supervise" in words and f"--db={folder / 'autofit.db'}" in words:
            process.terminate()
            process.wait(timeout=90)


def _wait_for(url: str, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/api/health").read()
            return
        except OSError:
            assert time.monotonic() < deadline, (folder / "serve.log").read_text()
            time.sleep(0.1)


def _stub(folder: Path) -> str:
    file = folder / "stub" / "python"
    file.parent.mkdir()
    file.write_text(f"#!{sys.executable} -S\n{(ROOT / 'tests' / 'stub_worker.py').read_text()}")
    file.chmod(0o755)
    return str(file)


def _model(folder: Path) -> None:
    if REAL:
        subprocess.run([sys.executable, str(ROOT / "examples" / "make_tiny.py"), str(folder)], check=True)
        return
    made = folder / "tiny-qwen2.5-vl"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(resolve_model(ModelRef(preset="tiny-qwen2.5-vl")).config))
    (made / "model.safetensors").touch()


@pytest.fixture(scope="module")
def browser() -> "Iterator[playwright.Browser]":
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


def settled(page: "playwright.Page") -> None:
    """Until pictures are drawn: pages listen for ever, so that the network never rests."""
    page.wait_for_timeout(700)


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_every_page_is_accessible_fits_its_window_and_asks_nobody_else(
    served: Served, browser: "playwright.Browser", look: str
) -> None:
    scheme = "dark" if look == "dark" else "light"
    page = served.page(browser, PHONE if look == "phone" else WIDE, scheme)
    for name, path in PAGES.items():
        page.goto(served.url + path)
        settled(page)
        if SHOTS:
            page.screenshot(path=str(Path(SHOTS) / f"{name}-{look}.png"), full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than its window"
        if name == "api":
            continue  # Swagger UI's own markup
        page.evaluate(AXE)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [
            f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:160]}"
            for one in found
            if one["impact"] in {"serious", "critical"}
        ]
        assert serious == [], f"{name}, {look}"
    page.context.close()
    foreign = {url for url in served.asked if urlsplit(url).scheme in {"http", "https"} and not url.startswith(served.url)}
    assert foreign == set()
    assert served.faults == []


def test_a_theme_that_was_chosen_stays(served: Served, browser: "playwright.Browser") -> None:
    page = served.page(browser, WIDE, "light")
    page.goto(served.url)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Switch between light and dark").click()
    page.goto(served.url + "/ask")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.context.close()


def test_points_are_reached_by_keyboard_and_tell_themselves(served: Served, browser: "playwright.Browser") -> None:
    page = served.page(browser, WIDE, "light")
    page.goto(served.url + "/studies/first")
    point = page.locator("#pareto a[aria-label^='trial 3']")
    point.focus()
    assert "2.50 samples/s" in page.locator("#pareto .tip").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_url("**/trials/3")
    page.context.close()


def test_sql_is_asked_and_a_fault_is_told(served: Served, browser: "playwright.Browser") -> None:
    page = served.page(browser, WIDE, "light")
    page.goto(served.url + "/ask")
    page.get_by_role("button", name="Ask").click()
    page.locator("#answer td").first.wait_for()
    assert "first" in page.locator("#answer").inner_text()
    page.locator("textarea").fill("DELETE FROM trials")
    page.get_by_role("button", name="Ask").click()
    page.locator("#fault:not([hidden])").wait_for()
    assert "only SELECT" in page.locator("#fault").inner_text()
    page.context.close()


def test_a_search_is_submitted_watched_and_its_winner_downloaded(served: Served, browser: "playwright.Browser") -> None:
    page = served.page(browser, WIDE, "light")
    patience = 600_000 if REAL else 60_000
    page.set_default_timeout(patience)
    page.goto(served.url + "/new")
    page.locator("[name=study]").fill("from-the-browser")
    page.get_by_label("Memory of the card").fill("206MB" if not REAL else "220MB")
    page.get_by_label("Search space").select_option("tiny_qwen2_5_vl")
    page.locator("[name=model]").fill("../outside")
    page.get_by_label("Devices to run on").select_option("cpu")
    page.locator("[name=trials]").fill("2" if REAL else "4")
    page.get_by_role("button", name="Put it into the queue").click()
    page.locator("#fault:not([hidden])").wait_for()
    assert "--root" in page.locator("#fault").inner_text()
    page.locator("[name=model]").fill(str(served.folder / "tiny-qwen2.5-vl"))
    if REAL:
        page.locator("[name=dataset]").fill("data/tiny_vl.json")
    page.get_by_role("button", name="Put it into the queue").click()
    page.wait_for_url("**/studies/from-the-browser")
    page.locator("#running:not([hidden])").wait_for()
    page.locator("#running-where", has_text="step").wait_for()
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / "live.png"), full_page=True)
    page.locator("#state", has_text="finished").wait_for()
    assert page.locator("#rows tr").count() >= 3, "the rows came without a reload"
    page.locator("#pareto a:has(.ring)").wait_for()
    with page.expect_download() as waiting:
        page.locator("#download-yaml:not([hidden])").click()
    yaml = served.folder / "train.yaml"
    waiting.value.save_as(yaml)
    assert "model_name_or_path:" in yaml.read_text()
    assert "llamafactory-cli train" in page.locator("#command").inner_text()
    page.locator("#pareto a:has(.ring) .hit").click()
    page.wait_for_url(re.compile(r"/trials/\d+$"))
    assert page.locator("h1").inner_text().endswith("winner")
    page.context.close()
    assert served.faults == []
    if REAL:
        _train(yaml)


def _train(yaml: Path) -> None:
    """Three steps of the downloaded file, as a user runs it."""
    tool = ROOT / ".venv-llamafactory" / "bin" / "llamafactory-cli"
    env = {**os.environ, "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    env["PATH"] = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"  # torchrun is found there
    env.pop("PYTHONPATH", None)
    text = re.sub(r"(?m)^(max_steps|num_train_epochs):.*\n", "", yaml.read_text()) + "\nmax_steps: 3\nuse_cpu: true\n"
    yaml.write_text(text)
    done = subprocess.run(
        [str(tool), "train", str(yaml)], cwd=yaml.parent, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "train_loss" in done.stdout + done.stderr
