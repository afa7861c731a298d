"Many machines: a real scheduler and two real workers, which share no folder with the sweep, and what happens when they die."

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest

from robustlit import cluster
from robustlit.command import main
from robustlit.execution import Job
from robustlit.records import records

pytest.importorskip("dask.distributed")

ROOT = Path(__file__).parents[1]
MODULE = """
import os, time
from pathlib import Path
import pandas as pd
from robustlit.records import experiment
from beside import twice

@experiment(smoke=dict(size=2))
def camped(seed: int = 0, size: int = 3):
    shared, ran = Path(os.environ["HERE"]), Path(os.environ["HERE"], "ran")
    with open(ran, "a") as f:
        f.write(f"{seed} {os.environ['CAMP']} {os.getpid()}\\n")
    if (shared / f"lack{seed}").exists():
        (shared / f"lack{seed}").unlink()
        from robustlit.data import load
        load("mnist", download=False)
    while (shared / f"hold{seed}").exists():
        time.sleep(0.05)
    return pd.DataFrame(dict(y=[twice(seed)] * size))
"""
CELLS = [
    ("#| default_exp camped", None),
    ("from robustlit.records import recorded\nfrom camped import camped", None),
    ("seed: int = 0", "parameters"),
    ("rows = recorded(camped, seed=seed)\nrows.y.sum()", None),
]


def until(condition, seconds=150):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    "The folder of the sweep: a notebook, its module, a module beside it, and records to be."
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "camped.py").write_text(MODULE)
    (folder / "beside.py").write_text("def twice(x):\n    return 2 * x\n")
    made = [nbformat.v4.new_code_cell(text, metadata=dict(tags=[tag] if tag else [])) for text, tag in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=made), folder / "10_camped.ipynb")
    for name in ("runs", "results"):
        monkeypatch.setenv(f"ROBUSTLIT_{name.upper()}", str(folder / name))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def camp(tmp_path):
    "Start a process of Dask in a folder of its own, with its own records and no data; at the end all are killed."
    started = {}

    def start(name, *words):
        folder = tmp_path / name
        folder.mkdir()
        env = {k: v for k, v in os.environ.items() if not k.startswith("ROBUSTLIT_")}
        env |= dict(HERE=str(tmp_path), CAMP=name, PYTHONPATH=str(ROOT), XDG_DATA_HOME=str(folder / "data"))
        env |= dict(ROBUSTLIT_RUNS=str(folder / "runs"))
        with open(folder / "log", "w") as log:
            command = [sys.executable, "-m", "dask", *words]
            started[name] = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        return started[name]

    yield start
    for process in started.values():
        process.kill()
        process.wait()


@pytest.fixture
def scheduler(camp, tmp_path):
    "The process of a scheduler with two workers, those, and its address."
    where = tmp_path / "scheduler.json"
    head = camp("head", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", where)
    words = [
        "worker",
        "--scheduler-file",
        where,
        "--host",
        "127.0.0.1",
        "--no-dashboard",
        "--no-nanny",
        "--nthreads",
        "1",
    ]
    workers = {name: camp(name, *words) for name in "ab"}
    for name in "ab":
        until(lambda name=name: "Registered to" in (tmp_path / name / "log").read_text())
    return head, workers, re.search(r"tcp://[\d.:]+", where.read_text())[0]


def ran(folder):
    "Who has run what, in order: pairs (seed, worker)."
    lines = (folder / "ran").read_text().splitlines() if (folder / "ran").exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def cut_short(folder, workers, head, kernels):
    "Let the first worker lack data, kill it at another run, and kill the scheduler at the last one."
    until(lambda: {1, 0} <= dict(ran(folder)).keys())
    first = dict(ran(folder))[1]
    until(lambda: (4, first) in ran(folder))  # it is given something else
    (folder / "hold0").unlink()
    until(lambda: sum(seed == 1 for seed, _ in ran(folder)) == 2)
    workers[first].kill()
    until(lambda: sum(seed == 4 for seed, _ in ran(folder)) == 2)
    (folder / "hold4").unlink()
    until(lambda: 5 in dict(ran(folder)))
    kernels.append(int((folder / "ran").read_text().split()[-1]))
    head.kill()


def test_a_sweep_on_two_machines(mine, scheduler, tmp_path, capsys):
    (head, workers, address), kernels = scheduler, []
    for name in ("lack1", "hold0", "hold4", "hold5"):
        (tmp_path / name).touch()
    plot = threading.Thread(target=cut_short, args=(tmp_path, workers, head, kernels), daemon=True)
    plot.start()
    words = ["sweep", "10_camped.ipynb", "-g", "seed", "1,0,4,5", "--scheduler", address]
    assert main(words) == 1 and kernels
    said = capsys.readouterr()
    assert f"4 to run, by 2 workers of {address}, 2 at a time" in said.out
    done = re.findall(
        r"^\[(\d)/4, (\d) workers?\] seed=(\d): \d.* s, recorded as runs/local/camped/\w+\.parquet", said.out, re.M
    )
    assert [n for n, _, _ in done] == ["1", "2", "3"] and {seed for _, _, seed in done} == {"1", "0", "4"}
    assert done[0][1] == "2" and done[-1][1:] == ("1", "4")

    # who lacks data, or died, had its run done by the other, which is told
    (lacked, once, again) = ([who for seed, who in ran(tmp_path) if seed == s] for s in (1, 0, 4))
    assert sorted(lacked) == sorted(again) == ["a", "b"] and len(once) == 1 and lacked == again
    told = re.search(
        r"worker tcp://\S+ on \S+, folder (\S+): FileNotFoundError: (.*); another worker is tried", said.err
    )
    assert told[1] == str(tmp_path / lacked[0]) and "no files for 'mnist'" in told[2]
    assert re.search(
        rf"worker tcp://\S+ on \S+, folder {tmp_path / lacked[0]} has left, its run is done by another", said.err
    )

    # the scheduler was lost: what was finished is here and nowhere else, and the command that goes on is told
    assert f"the scheduler {address} is lost; 3 of 4 runs are recorded" in said.err
    assert said.err.splitlines()[-1] == f"  {shlex.join(['robustlit', *words])}"
    kept = records("local/camped")
    assert dict(zip(kept.seed, kept.y)) == {0: 0, 1: 2, 4: 8} and len(kept) == 6
    made = sorted((mine / "runs/local/camped/notebooks").glob("*.ipynb"))
    shown = [nbformat.read(p, as_version=4).cells[-1].outputs[-1].data["text/plain"] for p in made]
    assert sorted(int(re.findall(r"\d+", text)[-1]) for text in shown) == [0, 4, 16]
    assert [*tmp_path.glob("[ab]/runs/local")] == [] and not [*mine.rglob(".*.lock")]
    until(lambda: not Path(f"/proc/{kernels[0]}").exists(), 60)  # its worker has ended, and it with it


def test_jobs_and_a_wrong_address_are_refused(mine, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "_patience", 0.5)
    assert main(["sweep", "10_camped.ipynb", "--scheduler", "tcp://127.0.0.1:1", "--jobs", "2"]) == 2
    assert "`--jobs` must be left out with --scheduler" in capsys.readouterr().err
    assert main(["sweep", "10_camped.ipynb", "--scheduler", "tcp://127.0.0.1:1"]) == 2
    assert "`--scheduler` must be the address of a Dask scheduler that answers" in capsys.readouterr().err


class Crew:
    "Stands for a client and for the workers that it reaches."

    status = "running"

    def __init__(self, answers):
        self.answers = answers

    def nthreads(self):
        return dict.fromkeys(self.answers, 1)

    def run(self, function, workers, on_error):
        return {w: self.answers[w] for w in workers}


def test_workers_without_this_code_are_named_and_left_out(capsys):
    right = dict(where="here, folder /x", source=cluster._source_digest(), version="1", home="/h")
    crew = cluster._Crew(
        Crew(
            dict(a=right, b=right | dict(source="0"), c=ModuleNotFoundError("No module named 'robustlit'"), d=OSError())
        ),
        "s",
    )
    crew.look(), crew.look()
    assert crew.threads == dict(a=1) and str(crew) == "1 worker of s, 1 at a time"
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "on here, folder /x: its robustlit 1 in /h is not the code of the caller's" in told[0]
    assert "worker c gets no runs, ModuleNotFoundError: No module named 'robustlit'" in told[1]


def test_a_run_that_costs_three_workers_has_failed(tmp_path, capsys):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "one.ipynb")
    crew = cluster._Crew(Crew({}), "s")
    crew.threads, crew.about = dict.fromkeys("wxyz", 1), {w: w for w in "wxyz"}
    crew.client.submit = lambda *a, **k: type("Future", (), dict(done=lambda s: False, cancel=lambda s: None))()
    work = cluster._Round([Job(str(tmp_path / "one.ipynb"), "", {}, {})], crew, None, print)
    results = []
    for _ in range(3):
        assert [*cluster._given_out(work)] == []
        del crew.threads[work.flying[0].worker]
        results += cluster._come_back(work)
    assert [r["error"][:14] for r in results] == ["3 workers died"] and not work.todo + work.flying
    assert capsys.readouterr().err.count("has left, its run is done by another") == 2


def test_what_travels(tmp_path, monkeypatch):
    (tmp_path / "package/inner").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    for name in ("one.py", "package/__init__.py", "package/inner/two.py", "data/three.py"):
        (tmp_path / name).touch()
    output = nbformat.v4.new_output("stream", text="x" * 99)
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])]), tmp_path / "n.ipynb"
    )
    job = Job(
        str(tmp_path / "n.ipynb"), "", {}, dict(ROBUSTLIT_RUNS="/mine", OMP_NUM_THREADS="3"), folder=str(tmp_path)
    )
    parcel = cluster._parcel(job)
    assert sorted(parcel["files"]) == ["n.ipynb", "one.py", "package/__init__.py", "package/inner/two.py"]
    assert b"xxx" not in parcel["files"]["n.ipynb"] and parcel["env"] == dict(OMP_NUM_THREADS="3")
    (tmp_path / "one.py").write_text("#" * (cluster._most + 1))
    with pytest.raises(ValueError, match="`notebook` must lie in a folder with at most 20 MB of modules"):
        cluster._parcel(job)
    job.folder = ""
    assert [*cluster._parcel(job)["files"]] == ["n.ipynb"]
