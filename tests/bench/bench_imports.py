"""How long the four functions at the front door take to come, against `import torch` alone.

Each number is the CPU time of a new process; the two take turns, so that a busy machine slows both. Usage: make bench
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parents[2] / "results" / "bench" / "imports.csv"
LIMIT = 1.25  # times `import torch`
WHAT = {"torch": "import torch", "front door": "from robustlit import load, load_network, stress, audit"}


def seconds(code: str) -> float:
    "CPU seconds of a new process that runs this code and nothing else."
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport time\nprint(time.process_time())"],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(told.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=11, help="processes of each kind (default: 11)")
    runs = parser.parse_args().runs
    for code in WHAT.values():
        seconds(code)  # the first one compiles and reads files
    times = pd.DataFrame([{name: seconds(code) for name, code in WHAT.items()} for _ in range(runs)])
    middle = times.median()
    table = pd.DataFrame(dict(seconds=middle.round(3), times_torch=(middle / middle["torch"]).round(3), runs=runs))
    table.rename_axis("what").to_csv(RESULTS)
    print(table.to_string())
    return 0 if table.times_torch["front door"] <= LIMIT else f"more than {LIMIT} times `import torch`"


if __name__ == "__main__":
    sys.exit(main())
