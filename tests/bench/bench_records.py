"""How long it takes to look at many records: as separate files at first and afterwards, in a new process, and packed.

The records are those of an experiment of the package with its own rows and parameters, under other seeds. Each number is
the CPU time of a new process that has imported the package already. Usage: make bench
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from robustlit import store as shop
from robustlit.claims import known_claims, ledger
from robustlit.command import main as robustlit
from robustlit.digest import code_digest, definitions
from robustlit.experiments import SCHEMA, _key, _text
from robustlit.records import Record, Store, find_experiment, known_experiments, pack, records

NAME = "sleep/noise_blur_fgsm"
RESULTS = Path(__file__).parents[2] / "results" / "bench" / "records.csv"
LIMITS = {  # what is asked for: (what, number of runs) -> CPU seconds
    ("first", 10_000): 30,
    ("same process", 10_000): 2,
    ("new process", 10_000): 2,
    ("packed", 1_000): 0.3,
}


def file_runs(n: int):
    "File n records: the committed ones over and over, each time with seeds that were not there, as of today's schema."
    exp, store = find_experiment(NAME), Store()
    made = [r for r in Store(runs=store.runs / "none", results=RESULTS.parents[1]).load(NAME).values()]
    today = dict(
        schema=SCHEMA, id=exp.id, digest=code_digest(exp.function), uses='{"datasets/mnist":"0123456789abcdef"}'
    )
    today["definitions"] = json.dumps(definitions(exp.function))
    for i, r in enumerate(itertools.islice(itertools.cycle(made), n)):
        seed = r.parameters["seed"] + 1000 * (i // len(made))
        named = r.parameters | dict(seed=seed)
        about = r.about | today | dict(parameters=_text(named), seed=seed, key=_key(exp.id, exp.version, named))
        record = Record(r.rows, about)
        about["checksum"] = record.checksum()
        shop._write_run(store.runs / NAME / f"{about['key']}.parquet", record.table())


def seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def quiet(work):
    with contextlib.redirect_stdout(io.StringIO()):
        work()


def in_process(what: str) -> dict:
    "What a new process measures."
    known_claims()
    for name in known_experiments():
        code_digest(find_experiment(name).function)
    if what == "files":
        return dict(zip(("first", "same process"), (seconds(lambda: records(NAME)) for _ in range(2))))
    if what == "pack":
        return dict(pack=seconds(lambda: pack(NAME)))
    if what == "packed":
        return dict(packed=seconds(lambda: records(NAME)))
    works = {
        "new process": lambda: records(NAME),
        "three seeds": lambda: records(NAME, seed=[0, 1, 2]),
        "status": lambda: quiet(lambda: robustlit(["status"])),
        "claims": ledger,
    }
    return {what: seconds(works[what])}


def measure(n: int) -> dict:
    "All numbers for n runs, in folders of their own."
    with tempfile.TemporaryDirectory() as folder:
        env = dict(os.environ, ROBUSTLIT_RUNS=f"{folder}/runs", ROBUSTLIT_RESULTS=f"{folder}/results")
        found = dict(runs=n)
        for what in ("files", "new process", "three seeds", "status", "claims", "pack", "packed"):
            if what == "files":
                subprocess.run([sys.executable, __file__, "--file", str(n)], env=env, check=True)
            if what == "packed":
                Path(f"{folder}/runs").rename(f"{folder}/aside")
            done = subprocess.run(
                [sys.executable, __file__, "--ask", what], env=env, check=True, capture_output=True, text=True
            )
            found |= json.loads(done.stdout.splitlines()[-1])
            print(n, what, {k: round(v, 3) for k, v in found.items() if k != "runs"}, flush=True)
    return found


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--ask", help=argparse.SUPPRESS)
    args.add_argument("--file", type=int, help=argparse.SUPPRESS)
    args.add_argument("--runs", type=int, nargs="+", default=[300, 1000, 3000, 10_000], help="how many")
    args.add_argument("--save", action="store_true", help=f"write the numbers to results/bench/{RESULTS.name}")
    args = args.parse_args()
    if args.file:
        return file_runs(args.file)
    if args.ask:
        return print(json.dumps(in_process(args.ask)))
    table = pd.DataFrame([measure(n) for n in args.runs])
    print(table.to_string(index=False, float_format="{:.2f}".format))
    if args.save:
        table.to_csv(RESULTS, index=False, float_format="%.3g")
    numbers = table.set_index("runs")
    missed = [
        f"{what}, {n} runs: {numbers[what][n]:.2f} s (at most {limit})"
        for (what, n), limit in LIMITS.items()
        if n in numbers.index and numbers[what][n] > limit
    ]
    print(f"NOT met: {'; '.join(missed)}" if missed else "all targets met")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
