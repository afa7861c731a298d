"""A sweep under fire: kernels, workers and the sweep itself are killed at random, and the records must be those of a sweep left in peace.

`python tests/soak.py` does it with 200 runs; tests/test_soak.py does it with a few. Needs /proc."""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import nbformat

from robustlit.records import recorded
from robustlit.store import Store
from robustlit.sweeps import open_notebook

MODULE = """
import random, time
import pandas as pd
from robustlit.records import experiment

@experiment(smoke=dict(steps=20))
def drunkard(seed: int = 0, steps: int = 100, pause: float = 0.0):
    draw, at, walk = random.Random(seed), 0, []
    for _ in range(steps):
        at += draw.choice((-1, 1))
        walk.append(at)
        time.sleep(pause / steps)
    return pd.DataFrame(dict(step=range(steps), at=walk, share=[a / steps for a in walk]))
"""
CELLS = [
    ("#| default_exp drunkard", None),
    ("from robustlit.records import recorded\nfrom drunkard import drunkard", None),
    ('profile: str = "smoke"\nseed: int = 0\npause: float = 0.0', "parameters"),
    ("rows = recorded(drunkard, profile=profile, seed=seed, pause=pause)", None),
]
ROBUSTLIT = [sys.executable, "-c", "import sys; from robustlit.command import main; sys.exit(main(sys.argv[1:]))"]
KINDS = dict(kernel="kernelapp.launch_new_instance", worker="import _serve", sweep="robustlit.command import main")


def write_experiment(folder):
    "The notebook of a tiny experiment, with its module beside it."
    (folder / "drunkard.py").write_text(MODULE)
    made = [nbformat.v4.new_code_cell(text, metadata=dict(tags=[tag] if tag else [])) for text, tag in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=made), folder / "10_drunkard.ipynb")
    return folder / "10_drunkard.ipynb"


def processes(runs):
    "From kind to ids of the processes that work for a folder of records."
    found = {kind: [] for kind in [*KINDS, "other"]}
    for p in Path("/proc").glob("[0-9]*"):
        try:
            if f"ROBUSTLIT_RUNS={runs}\0".encode() in (p / "environ").read_bytes():
                command = (p / "cmdline").read_text()
                kind = next((k for k, mark in KINDS.items() if mark in command), "other")
                found[kind] += [int(p.name)] if command else []  # a zombie has none
        except OSError:
            continue
    return found


def start(notebook, runs, n, jobs, pause):
    "A sweep as a process of its own."
    env = os.environ | dict(ROBUSTLIT_RUNS=str(runs), ROBUSTLIT_RESULTS=str(runs / "results"))
    words = ["sweep", str(notebook), "-g", "seed", f"0:{n}", "-p", "pause", str(pause), "--jobs", str(jobs)]
    with open(runs / "log", "a") as log:
        return subprocess.Popen([*ROBUSTLIT, *words, "--threads", "1"], stdout=log, stderr=log, env=env)


def shoot(sweep, runs, kind, draw, calm):
    "Kill a process of this kind at a random moment of its life; False if the sweep ended before there was one."
    while sweep.poll() is None:
        found = processes(runs)[kind]
        if found:
            time.sleep(draw.expovariate(1 / calm))
            with_it = [pid for pid in processes(runs)[kind] if pid in found]
            if with_it:
                os.kill(draw.choice(with_it), signal.SIGKILL)
                return True
        time.sleep(0.1)
    return False


def soak(folder, n, kills, jobs, pause, seed, calm):
    "Sweep until all is recorded, with so many kills on the way; returns (kills by kind, how many sweeps it took)."
    draw, done, rounds, left = random.Random(seed), Counter(), 0, []
    while len(left) < kills:
        left += draw.sample([*KINDS], len(KINDS))
    left = left[:kills]
    while True:
        sweep, rounds = start(folder / "10_drunkard.ipynb", folder / "disturbed", n, jobs, pause), rounds + 1
        while left and sweep.poll() is None:
            if shoot(sweep, folder / "disturbed", left[0], draw, calm):
                done[left.pop(0)] += 1
        code = sweep.wait()
        if code == 0:
            return done, rounds
        if code == 2 or rounds > kills + 3:
            raise SystemExit((folder / "disturbed" / "log").read_text())


def leave_in_peace(folder, n, jobs, pause, by_sweep):
    "The same runs undisturbed: by a sweep, or one after the other in this process."
    if by_sweep:
        assert start(folder / "10_drunkard.ipynb", folder / "quiet", n, jobs, pause).wait() == 0
        return
    exp, store = open_notebook(str(folder / "10_drunkard.ipynb")).experiment, Store(folder / "quiet", folder / "none")
    for seed in range(n):
        recorded(exp, "smoke", store=store, seed=seed, pause=pause)


def contents(folder, which):
    "From key to parameters and rows, for all records of a sweep."
    store = Store(folder / which, folder / which / "results")
    exp = open_notebook(str(folder / "10_drunkard.ipynb")).experiment
    return {key: (r.parameters, r.rows.to_pylist()) for key, r in store.load(exp.name).items()}


def litter(runs):
    "What should not be there when all is done: second attempts, damaged and half-written files, processes."
    odd = [p.name for p in (runs / "local" / "drunkard").iterdir() if p.is_file() and p.name != ".home.json"]
    odd = [name for name in odd if not (name.endswith(".parquet") and name.count(".") == 1 or name[:7] == ".shelf-")]
    until = time.monotonic() + 10
    while (alive := sum(processes(runs).values(), [])) and time.monotonic() < until:
        time.sleep(0.2)
    return [*(name for name in odd if not name.endswith(".lock")), *(f"process {pid}" for pid in alive)]


def compare(folder, n):
    "Differences between the disturbed and the quiet sweep, in words."
    disturbed, quiet = contents(folder, "disturbed"), contents(folder, "quiet")
    found = [f"{len(quiet)} records of the quiet sweep, not {n}"] if len(quiet) != n else []
    found += [f"{key} is in one only" for key in sorted(disturbed.keys() ^ quiet.keys())]
    found += [f"{key} differs" for key in sorted(disturbed.keys() & quiet.keys()) if disturbed[key] != quiet[key]]
    return found + litter(folder / "disturbed")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=60, help="a third each of kernels, workers and whole sweeps")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds that a run takes at least")
    parser.add_argument("--calm", type=float, default=5.0, help="seconds between two kills, on average")
    parser.add_argument("--here", action="store_true", help="the quiet runs in this process instead of by a sweep")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args, begin = parser.parse_args(argv), time.monotonic()
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        write_experiment(folder)
        (folder / "quiet").mkdir(), (folder / "disturbed").mkdir()
        done, rounds = soak(folder, args.runs, args.kills, args.jobs, args.pause, args.seed, args.calm)
        leave_in_peace(folder, args.runs, args.jobs, args.pause, not args.here)
        found, held = compare(folder, args.runs), len(contents(folder, "disturbed"))
    print(f"{'runs':>6} {'kernels':>8} {'workers':>8} {'sweeps':>7} {'started':>8} {'records':>8} {'differences':>12}")
    killed = [done[kind] for kind in KINDS]
    print("{:6} {:8} {:8} {:7} {:8} {:8} {:>12}".format(args.runs, *killed, rounds, held, len(found) or "none"))
    print(f"killed by SIGKILL: kernels, workers, sweeps; seed {args.seed}, {time.monotonic() - begin:.0f} s")
    print("\n".join(found[:20]), end="\n" * bool(found))
    return 1 if found or sum(killed) != args.kills else 0


if __name__ == "__main__":
    sys.exit(main())
