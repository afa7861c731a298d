"""The worst-case cascade against AutoAttack (standard) of torchattacks: which images are left, and the time.

The networks of bench_minimum_norm.py, trained on clean images and on attacked ones; linf and l2. Processor time on one core, in turns,
medians; `ratio` is their time by ours, at least 2 is the goal. `theirs_only` counts the images that AutoAttack breaks and the cascade
does not, over all rounds and seeds. Usage: python tests/bench/bench_worst_case.py
"""

import argparse
import statistics
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from robustlit.attacks import attack_images
from robustlit.data import as_images, load

sys.path.insert(0, str(Path(__file__).parent))
from bench_minimum_norm import networks

RESULTS = Path(__file__).parents[2] / "results" / "bench" / "worst_case.csv"
RADII = dict(clean=dict(linf=0.06, l2=0.8), adversarial=dict(linf=0.2, l2=1.5))


def left_by(model, x, y, attack):
    "Which images the network still gets right, and the processor time."
    start = time.process_time()
    found = attack()
    took = time.process_time() - start
    with torch.no_grad():
        return model(getattr(found, "x", found)).argmax(1) == y, took


def bench(images=200, rounds=3):
    "A row for each network and norm."
    import torchattacks

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = load("mnist", valid=0, n_train=10_000, n_test=images, download=False)
    x, y, rows = as_images(data.x_test), data.y_test, []
    for network, model in networks(data).items():
        for norm, eps in RADII[network].items():
            times, kept = dict(ours=[], theirs=[]), dict(ours=[], theirs=[])
            for seed in range(rounds):
                dice = torch.Generator().manual_seed(seed)
                full = torchattacks.AutoAttack(model, dict(linf="Linf", l2="L2")[norm], eps, n_classes=10, seed=seed)
                mine = partial(attack_images, model, x, y, eps, "worst_case", dice, norm=norm)
                for name, attack in dict(ours=mine, theirs=partial(full, x, y)).items():
                    left, took = left_by(model, x, y, attack)
                    times[name].append(took)
                    kept[name].append(left)
            row = dict(network=network, norm=norm, eps=eps)
            for name in times:
                row[f"{name}_left"] = statistics.mean(100 * v.double().mean().item() for v in kept[name])
                row[f"{name}_s"] = statistics.median(times[name])
            pairs = list(zip(kept["ours"], kept["theirs"]))
            row["theirs_only"] = sum(int((a & ~b).sum()) for a, b in pairs)
            row["ours_only"] = sum(int((b & ~a).sum()) for a, b in pairs)
            row["ratio"] = row["theirs_s"] / row["ours_s"]
            rows.append(row | dict(images=images, rounds=rounds, torch=torch.__version__))
            print(pd.DataFrame(rows[-1:]).round(2).to_string(index=False), flush=True)
    return pd.DataFrame(rows)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in dict(images=200, rounds=3).items():
        args.add_argument(f"--{name}", type=int, default=value)
    args.add_argument("--save", action="store_true", help=f"write the numbers to results/bench/{RESULTS.name}")
    args = vars(args.parse_args())
    save, got = args.pop("save"), bench(**args)
    if save:
        got.to_csv(RESULTS, index=False, float_format="%.4g")
    weak, slow = got["theirs_only"] > 0, got["ratio"] < 2
    print(f"weaker in {weak.sum()}, less than twice as fast in {slow.sum()} of {len(got)} rows")
    sys.exit(bool(weak.any() or slow.any()))


if __name__ == "__main__":
    main()
