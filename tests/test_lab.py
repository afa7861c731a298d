"The explorers in JupyterLab in a real browser: every cell runs, and moving a slider draws another picture."

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BROWSER = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)")
TOKEN = "robustlit"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url, process, log, seconds=240):
    "Until the server answers."
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            return urllib.request.urlopen(url, timeout=2)
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab of its own, with a copy of the notebooks."
    work = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "nbs", work / "nbs", ignore=shutil.ignore_patterns("_quarto.yml"))
    port, log = free_port(), work / "log"
    env = os.environ | {
        f"JUPYTER{name}_DIR": str(work / name)
        for name in ("_CONFIG", "_DATA", "_RUNTIME", "LAB_SETTINGS", "LAB_WORKSPACES")
    }
    env["OMP_NUM_THREADS"] = "1"
    env.pop("MPLBACKEND", None)  # kernels inherit it, and one without a picture draws none
    options = dict(port=port, ip="127.0.0.1", root_dir=work, open_browser=False, allow_root=True)
    words = [f"--ServerApp.{k}={v}" for k, v in options.items()] + [f"--IdentityProvider.token={TOKEN}"]
    settings = {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},  # else cells out of sight are not in the page
    }
    for name, values in settings.items():
        file = work / "LAB_SETTINGS" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    quiet = ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *words, *quiet], env=env, cwd=work, stdout=out, stderr=out
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/api?token={TOKEN}", server, log)
        yield url
    finally:
        server.terminate()
        server.wait(120)


@pytest.fixture(scope="module")
def browser():
    flags = "--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --disable-sync --no-first-run".split()
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request):
    "A page of its own for each test; `ROBUSTLIT_SCREENSHOT=a.png` keeps how it ended as a-name_of_the_test.png."
    page = browser.new_page(viewport=dict(width=1400, height=1100))
    page.set_default_timeout(600_000)
    yield page
    if shot := os.environ.get("ROBUSTLIT_SCREENSHOT"):
        shot = Path(shot)
        page.screenshot(path=shot.with_stem(f"{shot.stem}-{request.node.name}"))
    page.close()


def run_all(page, url):
    "Open a notebook and run every cell."
    page.goto(url)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    idle = "() => /Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText || '')"
    page.wait_for_function(idle)  # a click before the kernel is there asks which kernel to take
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def explorer(page, lab, notebook):
    "Run a notebook; its last cell, with the knobs and the picture."
    run_all(page, f"{lab}/lab/tree/nbs/{notebook}?token={TOKEN}&reset")
    last = page.locator(".jp-Notebook .jp-CodeCell").last
    last.scroll_into_view_if_needed()
    last.locator(".widget-slider").first.wait_for()
    assert page.locator(".jp-OutputArea-output[data-mime-type*='stderr'] >> text=Traceback").count() == 0
    last.locator("img").first.wait_for()
    return last


def redraws(page, cell, change):
    "Whether `change` makes another picture; waits for it."
    picture = cell.locator("img").first
    before = picture.get_attribute("src")
    old = picture.element_handle()
    change()
    page.wait_for_function("([el, src]) => el.isConnected === false || el.src !== src", arg=[old, before])
    cell.locator("img").first.wait_for()
    return cell.locator("img").first.get_attribute("src") != before


def push(page, cell, name):
    "Move a slider by one step; what it shows before and after."
    slider = cell.locator(".widget-slider", has_text=name)
    shown = slider.locator(".widget-readout")
    before = shown.inner_text()
    assert redraws(page, cell, lambda: slider.locator(".noUi-handle").press("ArrowRight"))
    return before, shown.inner_text()


def choose(page, cell, name, value):
    "Take a value of a dropdown."
    select = cell.locator(".widget-dropdown", has_text=name).locator("select")
    assert redraws(page, cell, lambda: select.select_option(value))


def test_two_readers_that_forget(lab, page):
    cell = explorer(page, lab, "metaplasticity/90_explore.ipynb")
    choose(page, cell, "corruption", "gaussian_noise")
    assert push(page, cell, "severity") == ("1", "2")


def test_a_reader_asleep(lab, page):
    cell = explorer(page, lab, "sleep/90_explore.ipynb")
    before, after = map(float, push(page, cell, "threshold"))
    assert before < after
    choose(page, cell, "stress", "noise")


def test_weights_filtered_out(lab, page):
    cell = explorer(page, lab, "filtering/90_explore.ipynb")
    before, after = map(float, push(page, cell, "threshold"))
    assert before < after
    choose(page, cell, "filter", "pulse")
    choose(page, cell, "layer", "conv1")


def test_an_image_under_attack(lab, page):
    cell = explorer(page, lab, "dropen/90_explore.ipynb")
    assert push(page, cell, "image") == ("0", "1")
    before, after = map(float, push(page, cell, "eps"))
    assert before < after
    assert push(page, cell, "mask") == ("0", "1")
    choose(page, cell, "network", "madry")
    choose(page, cell, "attack", "fgsm")
