"""Images per second for each corruption: whole batches against the usual loop over images with scikit-image, scipy and Pillow.

Both sides corrupt the same 200 images in the same run, one after the other, on one thread; medians of several rounds.
Usage: python tests/bench/bench_corruptions.py [--images 200] [--rounds 5] [--threads 1]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_corruptions import PLAIN, pictures

from robustlit import corruptions
from robustlit.corruptions import CORRUPTIONS, corrupt

RESULTS = Path(__file__).parents[2] / "results" / "bench" / "corruptions.csv"
CASES = ((1, 28, "mnist_c"), (3, 32, "cifar_c"))
SEVERITY = 3


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def measure(name, x, calibration, rounds):
    "Median seconds of the batch and of the loop, interleaved; the loop starts from float images, as ours does."
    c = corruptions._known[name].table[calibration][SEVERITY - 1]
    plain = x.permute(0, 2, 3, 1).double().numpy()
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    batch = lambda: corrupt(x, name, SEVERITY, calibration, generator)
    loop = lambda: [np.clip(PLAIN[name](p, c, rng), 0, 1) for p in plain]
    batch(), batch(), PLAIN[name](plain[0], c, rng)
    ours, theirs = zip(*((seconds(batch), seconds(loop)) for _ in range(rounds)))
    return statistics.median(ours), statistics.median(theirs)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for channels, side, calibration in CASES:
        x = pictures(args.images, channels, side)
        for name in CORRUPTIONS:
            ours, theirs = measure(name, x, calibration, args.rounds)
            size = f"{side}x{side}x{channels}"
            rows.append((size, name, round(args.images / ours), round(args.images / theirs), round(theirs / ours, 2)))
            print("{:8} {:18} {:>9,}/s {:>9,}/s {:8.1f}x".format(*rows[-1]), flush=True)
    table = pd.DataFrame(rows, columns=["size", "corruption", "batch_per_s", "loop_per_s", "ratio"])
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(RESULTS, index=False)
    for size, part in [*table.groupby("size"), ("both", table)]:
        print(f"{size}: geometric mean {np.exp(np.log(part.ratio).mean()):.1f}x, lowest {part.ratio.min():.1f}x")


if __name__ == "__main__":
    main()
