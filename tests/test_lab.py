"The explorer in JupyterLab in a real browser: every cell runs, and moving a slider draws another picture."

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
PICTURE = ".jp-OutputArea-output img"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url, process, log, seconds=90):
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
    settings = work / "LAB_SETTINGS" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
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
        server.wait(30)


@pytest.fixture(scope="module")
def page(lab):
    flags = "--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --disable-sync --no-first-run".split()
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=flags)
        page = browser.new_page(viewport=dict(width=1400, height=1100))
        page.set_default_timeout(180_000)
        yield page
        if shot := os.environ.get("ROBUSTLIT_SCREENSHOT"):
            page.screenshot(path=shot)
        browser.close()


def run_all(page, url):
    "Open a notebook and run every cell."
    page.goto(url)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    idle = "() => /Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText || '')"
    page.wait_for_function(idle)  # a click before the kernel is there asks which kernel to take
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def test_moving_sliders_redraws(lab, page):
    run_all(page, f"{lab}/lab/tree/nbs/metaplasticity/20_explore.ipynb?token={TOKEN}&reset")
    slider = page.locator(".widget-slider", has_text="severity")
    last = page.locator(".jp-Notebook .jp-CodeCell").last
    last.scroll_into_view_if_needed()
    slider.wait_for()
    assert page.locator(".jp-OutputArea-output[data-mime-type*='stderr'] >> text=Traceback").count() == 0
    picture = last.locator("img").first
    picture.wait_for()
    assert slider.locator(".widget-readout").inner_text() == "1"

    def after(change):
        before = picture.get_attribute("src")
        change()
        page.wait_for_function(
            "([el, old]) => el.isConnected === false || el.src !== old", arg=[picture.element_handle(), before]
        )
        last.locator("img").first.wait_for()
        assert last.locator("img").first.get_attribute("src") != before

    after(
        lambda: (
            last.locator(".widget-dropdown", has_text="corruption").locator("select").select_option("gaussian_noise")
        )
    )

    def push():
        slider.locator(".noUi-handle").focus()
        page.keyboard.press("ArrowRight")

    after(push)
    assert slider.locator(".widget-readout").inner_text() == "2"
