"Long work is never lost: places are tried first, what cannot be written is kept, who dies costs little, and nothing is done twice."

import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
import soak
import torch

from robustlit import files
from robustlit.command import main
from robustlit.experiments import experiment
from robustlit.files import NotWritten, _give_lock, check_writable, write_atomically
from robustlit.models import load_or_train
from robustlit.plots import save_figure
from robustlit.records import _claim, adopt, recorded, records
from robustlit.store import Store
from robustlit.sweeps import _claims, _job, open_notebook, plan
from robustlit.training import save_atomically

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    "Where records lie, and where what cannot be written is kept."
    for name, folder in dict(ROBUSTLIT_RUNS="runs", ROBUSTLIT_RESULTS="results", XDG_STATE_HOME="state").items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path


def kept_in(said):
    return Path(re.search(r"is kept as (\S+?)(;|$)", str(said))[1])


@pytest.fixture
def full(tmp_path, monkeypatch):
    "A folder on a disk that is full."
    (tmp_path / "full").mkdir()
    sync = os.fsync

    def fsync(fd):
        if str(tmp_path / "full") in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(fd)

    monkeypatch.setattr(files.os, "fsync", fsync)
    return tmp_path / "full"


# What cannot be written


@needs_proc
def test_what_a_full_disk_does_not_take_is_kept_elsewhere(full, places, monkeypatch):
    with pytest.raises(NotWritten, match=f"{full}/a.txt could not be written .No space left on device.: ") as e:
        write_atomically(full / "a.txt", lambda f: f.write(b"one"))
    assert e.value.kept.read_text() == "one" == kept_in(e.value).read_text() and not [*full.iterdir()]
    assert places / "state" in e.value.kept.parents
    monkeypatch.setenv("ROBUSTLIT_CACHE", str(full / "cache"))
    for name, keep in (("b.txt", False), ("cache/b.txt", True)):
        with pytest.raises(OSError, match="No space left") as e:
            write_atomically(full / name, lambda f: f.write(b"one"), keep=keep)
        assert not isinstance(e.value, NotWritten)


@needs_proc
def test_where_home_cannot_be_written_either_the_folder_of_temporary_files_serves(full, places, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(full / "home"))
    monkeypatch.setattr(files.tempfile, "tempdir", str(places))
    with pytest.raises(NotWritten) as e:
        write_atomically(full / "a.txt", lambda f: f.write(b"one"))
    assert e.value.kept.read_text() == "one" and e.value.kept.parent.parent == places
    monkeypatch.setattr(files.tempfile, "tempdir", str(full))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(full / "a.txt", lambda f: f.write(b"one"))


def test_an_error_of_the_writer_is_no_full_disk(tmp_path):
    for error in (ValueError("odd"), RuntimeError("odd"), FileNotFoundError("odd")):

        def write(f, error=error):
            raise error

        with pytest.raises(type(error), match="^odd$"):
            write_atomically(tmp_path / "a.txt", write)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@needs_proc
def test_figures_and_networks_are_kept(full):
    fig, _ = plt.subplots()
    with pytest.raises(NotWritten) as e:
        save_figure(fig, "one", full)
    assert e.value.kept.name == "one.png" and e.value.kept.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(NotWritten) as e:
        save_atomically(dict(weights=torch.ones(3)), full / "net.pt")
    assert torch.load(e.value.kept)["weights"].tolist() == [1, 1, 1]


@needs_proc
def test_places_are_tried(full, tmp_path):
    (tmp_path / "file").touch()
    for bad in (full, full / "new", tmp_path / "file", tmp_path / "file" / "below", "/proc/new"):
        with pytest.raises(NotWritten, match=f"`folder` must be one that files can be written to, got {bad} .*nothing"):
            check_writable(bad)
    check_writable(tmp_path / "a" / "b")
    assert [*(tmp_path / "a" / "b").iterdir()] == []


def counted(seed: int = 0, spoil: str = ""):
    with open(Path(os.environ["HERE"], "ran"), "a") as f:
        f.write("x")
    if spoil:
        shutil.rmtree(os.environ["ROBUSTLIT_RUNS"])
        Path(os.environ["ROBUSTLIT_RUNS"]).touch()
    return pd.DataFrame(dict(y=[seed, 1]))


@pytest.fixture
def count():
    return experiment(smoke={})(counted)


def ran(places):
    return len((places / "ran").read_text()) if (places / "ran").exists() else 0


@pytest.mark.parametrize("blocked", ["runs", "runs/local", "runs/local/counted", "runs/networks"])
def test_nothing_runs_where_its_record_could_not_be_filed(blocked, count, places):
    (places / blocked).parent.mkdir(parents=True, exist_ok=True)
    (places / blocked).touch()
    with pytest.raises(NotWritten, match="nothing was run"):
        recorded(count)
    assert ran(places) == 0


def test_a_record_that_cannot_be_filed_afterwards_is_kept_and_can_be_adopted(count, places):
    with pytest.raises(NotWritten, match=r"could not be written .*robustlit.records.adopt\('.*'\) files it") as e:
        recorded(count, seed=3, spoil="all")
    (places / "runs").unlink()
    (record,) = adopt(kept_in(e.value))
    assert record.frame().y.tolist() == [3, 1]
    assert recorded(count, seed=3, spoil="all").y.tolist() == [3, 1] and ran(places) == 1


def test_the_page_of_a_stress_test_is_tried_first(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("robustlit.report.named_model", lambda *a: pytest.fail("it began"))
    assert main(["stress", "mynet:make", "--out", str(tmp_path / "file" / "page.html")]) == 2
    assert "nothing was run" in capsys.readouterr().err


def test_rows_of_a_page_that_cannot_be_written_are_kept(places, capsys, monkeypatch):
    (places / "tinynet.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(places)
    (places / "page.csv").mkdir()
    words = "stress tinynet:make --images 5 --suite noise_blur --no-audit --out page.html".split()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "page.html could not be written: " in said and "the rows are kept in page.partial.csv" in said
    assert len((places / "page.partial.csv").read_text().splitlines()) > 5
    (places / "page.csv").rmdir()
    assert main(words) == 0 and (places / "page.html").exists()


# Nothing is done twice


def in_another(work):
    "Start a function in a process of its own, which is forked from this one."
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def slow(seed: int = 0):
    with open(Path(os.environ["HERE"], "ran"), "a") as f:
        f.write("x")
    time.sleep(1.5)
    if os.environ.get("DIE"):
        os.kill(os.getpid(), signal.SIGKILL)
    return pd.DataFrame(dict(y=[seed]))


def until(condition, seconds=150):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_two_processes_that_want_one_record_run_it_once(places, capsys):
    exp = experiment(smoke={})(slow)
    other = in_another(lambda: recorded(exp))
    until(lambda: ran(places))
    assert recorded(exp).y.tolist() == [0] and ran(places) == 1
    other.join()
    assert other.exitcode == 0 and "another process is at it" in capsys.readouterr().out
    assert [p.name for p in (places / "runs/local/slow").iterdir() if p.suffix == ".lock"] == []


def test_the_claim_of_a_process_that_died_is_free(places, monkeypatch):
    exp = experiment(smoke={})(slow)
    monkeypatch.setenv("DIE", "1")
    other = in_another(lambda: recorded(exp))
    until(lambda: ran(places))
    monkeypatch.delenv("DIE")
    assert recorded(exp).y.tolist() == [0] and ran(places) == 2
    other.join()
    assert other.exitcode == -signal.SIGKILL


def test_force_runs_again_although_another_has_just_done_it(count, places):
    recorded(count), recorded(count, force=True)
    assert ran(places) == 2 and len(Store().run_paths("local/counted")) == 2


# Sweeps


MODULE = """
import os, signal, time
from pathlib import Path
import pandas as pd
from robustlit.records import experiment

@experiment(smoke=dict(size=2))
def frail(seed: int = 0, size: int = 3):
    here = Path(os.environ["HERE"])
    with open(here / "started", "a") as f:
        f.write(f"{seed}\\\\n")
    until = time.monotonic() + 200
    while (here / f"hold{seed}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    if (here / f"kernel{seed}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (here / f"worker{seed}").exists():
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if (here / f"full{seed}").exists():
        (here / "runs/local/frail/notebooks").rename(here / "gone")
        (here / "runs/local/frail/notebooks").touch()
    return pd.DataFrame(dict(y=[seed] * size))
"""
CELLS = [
    ("#| default_exp frail", None),
    ("from robustlit.records import recorded\nfrom frail import frail", None),
    ("seed: int = 0", "parameters"),
    ("rows = recorded(frail, seed=seed)", None),
    ("print(f'sum {rows.y.sum():g}')", "report"),
]


@pytest.fixture
def frail(tmp_path):
    (tmp_path / "frail.py").write_text(MODULE.replace("\\\\n", "\\n"))
    made = [nbformat.v4.new_code_cell(text, metadata=dict(tags=[tag] if tag else [])) for text, tag in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=made), tmp_path / "10_frail.ipynb")
    return str(tmp_path / "10_frail.ipynb")


def started(places):
    return sorted(map(int, (places / "started").read_text().split())) if (places / "started").exists() else []


def test_a_sweep_does_not_begin_where_nothing_can_be_filed(frail, places, capsys):
    for blocked in ("runs", "runs/local/frail/notebooks"):
        (places / blocked).parent.mkdir(parents=True, exist_ok=True)
        (places / blocked).touch()
        for words in (["sweep", frail, "-g", "seed", "0:2"], ["run", frail]):
            assert main(words) == 2 and "nothing was run" in capsys.readouterr().err
        (places / blocked).unlink()
    assert started(places) == []


def test_a_record_is_reported_without_running_again(frail, places, capsys):
    assert main(["run", frail, "-p", "seed", "3"]) == 0 and "sum 6" in capsys.readouterr().out
    assert main(["run", frail, "-p", "seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "sum 6" in out and "its record is" in out and started(places) == [3]


@needs_proc
def test_a_worker_or_a_kernel_that_dies_costs_its_own_run(frail, places, capsys):
    (places / "worker0").touch(), (places / "kernel1").touch(), (places / "full2").touch()
    assert main(["sweep", frail, "-g", "seed", "0:3", "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert "1 of 3 runs recorded, 2 failed" in out and started(places) == [0, 1, 2]
    assert "seed=0" in out and "FAILED, its worker process died (SIGKILL), perhaps for lack of memory; see" in out
    assert re.search(r"seed=1: .* FAILED, DeadKernelError: Kernel died", out)
    assert re.search(r"seed=2: .* recorded as ", out)  # although its notebook could not be written
    assert [*(places / "state").rglob("*.ipynb")], "the executed notebook is kept"
    until(lambda: not any(soak.processes(places / "runs").values()), 30)


@needs_proc
def test_two_sweeps_of_one_grid_share_the_work(frail, places, capsys):
    (places / "hold0").touch()
    words = ["sweep", frail, "-g", "seed", "0:3", "--jobs", "1"]
    with open(places / "log", "w") as log:
        other = subprocess.Popen([*soak.ROBUSTLIT, *words], stdout=log, stderr=log)
    until(lambda: started(places) == [0])
    until_done = in_another(lambda: (until(lambda: len(started(places)) == 3), (places / "hold0").unlink()))
    assert main(words) == 0
    out = capsys.readouterr().out
    until_done.join()
    assert other.wait(60) == 0, (places / "log").read_text()
    assert started(places) == [0, 1, 2] and "seed=0: 0.0 s, recorded by another process as" in out
    assert (places / "log").read_text().count("recorded by another process as") == 2
    assert len(records("local/frail").key) == 6


def test_a_claim_is_put_back_until_it_is_free(frail, places):
    notebook, store = open_notebook(frail), Store()
    runs = plan(notebook, grid=dict(seed=[0, 1]))
    (store.runs / "local/frail").mkdir(parents=True)
    claim, job = _claims(notebook, runs, store, []), _job(notebook, runs[0], store, 1)
    lock = _claim(store, "local/frail", runs[0].key)
    assert claim(job) is False and "ROBUSTLIT_CLAIMED" not in job.env
    _give_lock(lock)
    free = claim(job)
    assert job.env["ROBUSTLIT_CLAIMED"] == runs[0].key and claim(job) is False
    free()
    recorded(notebook.experiment, store=store, seed=0)
    again = _claims(notebook, runs, store, [runs[0].key])
    assert claim(job) is True and callable(free := again(job))
    free()
    recorded(notebook.experiment, store=store, seed=0, force=True)
    assert again(job) is True  # another process has run it again meanwhile


@needs_proc
@pytest.mark.parametrize("kind", ["worker", "kernel"])
def test_a_sweep_that_is_killed_as_it_begins_leaves_no_orphan(kind, frail, places):
    (places / "hold0").touch()
    with open(places / "log", "w") as log:
        sweep = subprocess.Popen([*soak.ROBUSTLIT, "sweep", frail, "--jobs", "1"], stdout=log, stderr=log)
    try:
        until(lambda: sweep.poll() is not None or soak.processes(places / "runs")[kind])
    finally:
        sweep.kill()
    assert sweep.wait() == -signal.SIGKILL, (places / "log").read_text()
    until(lambda: not any(soak.processes(places / "runs").values()), 30)


def test_a_process_without_its_parent_ends():
    code = "import time\nfrom robustlit.execution import _follow\n_follow(1)\ntime.sleep(60)"
    assert subprocess.run([sys.executable, "-c", code], timeout=50).returncode == 1


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_that_two_runs_need_is_trained_once(places, capsys, fails):
    path, trained, met = places / "networks" / "a.pt", [], threading.Event()

    def train(model):
        trained.append(model)
        if len(trained) == 1:
            assert met.wait(30)
            if fails:
                raise FloatingPointError("the first one")
        torch.nn.init.constant_(model.weight, 7.0)

    def run(model):
        try:
            load_or_train(model, train, path)
        except FloatingPointError:
            pass

    models = [torch.nn.Linear(2, 2) for _ in range(2)]
    first, second = (threading.Thread(target=run, args=[m]) for m in models)
    first.start()
    until(lambda: trained)
    second.start()
    said = []
    until(lambda: said.append(capsys.readouterr().out) or "waiting for it" in "".join(said))
    met.set()
    first.join(), second.join()
    assert len(trained) == 1 + fails and float(models[1].weight.mean()) == 7
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]
