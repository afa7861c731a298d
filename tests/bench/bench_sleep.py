"""Sleep by events against the plain way of writing it: steps per second and peak memory.

The network, the spikes and the numbers that come out are the same on each side; spike counts and weights are compared
in the same run. Everything is measured interleaved, as medians; ratios are what counts. Usage: make bench
"""

import argparse
import copy
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from robustlit.data import load
from robustlit.evaluation import accuracy
from robustlit.sleep.conversion import chain, drive_factors, largest
from robustlit.sleep.networks import READINGS, TRAINING, descend, reader
from robustlit.sleep.stdp import REPORT, RULES, EventEngine, gate, image_dream, spike_chance
from robustlit.training import set_seed

HIDDEN = (1200, 1200)
DENSE = dataclasses.replace(REPORT, thresholds=(4.0, 4.0, 4.0), decrease=0.005)
GATED = dataclasses.replace(RULES["B"], thresholds=(12.0, 12.0, 12.0), increase=0.005, decrease=0.0005)
SETTINGS = {  # the rule, for how many steps it has slept already, and how many times faster than each rival it has to be
    "A": (RULES["A"], 3000, dict(plain=30, rows=2)),
    "B": (RULES["B"], 500, dict(plain=30, rows=2)),
    "report": (REPORT, 100, dict(plain=30, rows=2)),
    "dense": (DENSE, 50, dict(plain=4, rows=2)),  # a third to a half of all units fires: little is left to skip
    "dense, gated": (GATED, 50, dict(plain=2)),
}
RESULTS = Path(__file__).parents[2] / "results" / "bench" / "sleep.csv"


def plain_run(weights, membranes, spikes, rule, alpha):
    "The rule as it is published, in place: every weight's change in every step. Spikes a step and layer."
    counted = np.zeros((len(spikes), len(weights)), int)
    for t, s in enumerate(spikes):
        for k, (w, v) in enumerate(zip(weights, membranes)):
            v.mul_(rule.leak).add_(w @ s, alpha=alpha[k])
            fired = ((v > rule.thresholds[k]) if rule.strict else (v >= rule.thresholds[k])).to(w.dtype)
            v.mul_(1 - fired)
            change = torch.outer(fired, rule.increase * s - rule.decrease * (1 - s))
            w += change * gate(w, rule.gate_width) if rule.gated else change
            counted[t, k] = fired.sum()
            s = fired
    return counted


def row_run(weights, membranes, spikes, rule, alpha):
    "The same with a thought spent: only rows of neurons that fired are changed."
    counted = np.zeros((len(spikes), len(weights)), int)
    for t, s in enumerate(spikes):
        for k, (w, v) in enumerate(zip(weights, membranes)):
            v.mul_(rule.leak).add_(w @ s, alpha=alpha[k])
            fired = (v > rule.thresholds[k]) if rule.strict else (v >= rule.thresholds[k])
            rows = fired.nonzero().squeeze(1)
            if len(rows):
                v[rows] = 0
                change, old = rule.increase * s - rule.decrease * (1 - s), w[rows]
                w[rows] = old + (change * gate(old, rule.gate_width) if rule.gated else change)
            counted[t, k] = len(rows)
            s = fired.to(w.dtype)
    return counted


def images(n):
    "Real MNIST where it is found; the same number of random images of its size otherwise."
    try:
        data = load("mnist", valid=0, download=False)
        return data.x_train[:n], data.y_train[:n], "MNIST"
    except (FileNotFoundError, OSError):
        return torch.randint(256, (n, 1, 28, 28), dtype=torch.uint8), torch.arange(n) % 10, "random pixels"


def trained(n):
    x, y, source = images(n)
    generator = set_seed(0)
    net = reader(784, 10, HIDDEN, **READINGS["authors"])
    descend(net, x, y, 2, generator=generator, **TRAINING["authors"] | dict(batch_size=20))
    return net, x, y, source


def midnight(net, x, name, steps):
    "An engine that has slept for a while, and the spikes of the next `steps` steps."
    rule, slept, _ = SETTINGS[name]
    stages = chain(net, x[:2].float() / 255)
    by_data = rule.normalise == "data"
    alpha = drive_factors(largest(net, stages, x[:1000]), rule.scale) if by_data else (1.0,) * len(stages)
    engine = EventEngine(stages, rule, alpha)
    if rule.normalise == "weights":
        engine.scale(rule.scale)
    chance = spike_chance(image_dream(x, rule.steps_per_image)(0, slept + steps, None), rule)
    spikes = torch.rand(chance.shape, generator=set_seed(1)) < chance
    engine.run(spikes[:slept])
    return rule, alpha, engine, spikes[slept:]


class Ours:
    def __init__(self, engine, spikes):
        self.engine, self.spikes = copy.deepcopy(engine), spikes

    def run(self):
        return self.engine.run(self.spikes)[0]

    def weights(self):
        return self.engine.weights()


class Theirs:
    def __init__(self, run, engine, spikes, rule, alpha, dtype=torch.float64):
        self.w = [w.to(dtype) for w in copy.deepcopy(engine).weights()]
        membranes = [torch.from_numpy(s[3]).to(dtype, copy=True) for s in engine.state]
        self.run = lambda: run(self.w, membranes, spikes.flatten(1).to(dtype), rule, alpha)

    def weights(self):
        return self.w


def timed(side):
    t = time.perf_counter()
    counts = side.run()
    return time.perf_counter() - t, counts, side.weights()


def check_same(ours, rival, steps):
    assert (ours[1] == rival[1]).all(), "other neurons fired"
    for a, b in zip(ours[2], rival[2]):
        gap = float((a - b).abs().max())
        assert gap < 1e-12 * steps, f"weights differ by {gap:.3g}"


def measure(net, x, name, steps, rounds):
    "Median steps a second of each side at one setting, taken in turns; each begins in the middle of the same sleep."
    rule, alpha, engine, spikes = midnight(net, x, name, steps)
    same = (engine, spikes, rule, alpha)
    sides = dict(
        ours=lambda: Ours(engine, spikes),
        plain=lambda: Theirs(plain_run, *same),
        plain_float32=lambda: Theirs(plain_run, *same, torch.float32),
        rows=lambda: Theirs(row_run, *same),
    )
    times = {k: [] for k in sides}
    for _ in range(rounds):
        got = {k: timed(make()) for k, make in sides.items()}
        check_same(got["ours"], got["plain"], steps), check_same(got["ours"], got["rows"], steps)
        for k, (t, *_) in got.items():
            times[k].append(t)
    rate = {k: steps / statistics.median(t) for k, t in times.items()}
    fired = [float(spikes.float().flatten(1).sum(1).mean()), *got["ours"][1].mean(0)]
    row = dict(setting=name, active=" / ".join(f"{f:.3g}" for f in fired))
    row |= {f"{k}_steps_per_s": r for k, r in rate.items()}
    return row | {f"over_{k}": rate["ours"] / rate[k] for k in ("plain", "plain_float32", "rows")}


def resident(field):
    "A line of this process's memory statistics, in MiB (Linux)."
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure_memory(which):
    "Peak resident memory of a few steps, the rule's state with it, above what was held before (MiB); NaN but on Linux."
    set_seed(0)
    net = reader(784, 10, HIDDEN)
    x = torch.randint(256, (64, 1, 28, 28), dtype=torch.uint8)
    rule, stages = RULES["A"], chain(net, x[:2].float() / 255)
    spikes, alpha = torch.rand(64, 784) < 0.1, (1.0,) * len(stages)

    def go():
        if which == "ours":
            return our_run_once(stages, rule, alpha, spikes)
        weights = [s.layer.weight.detach().double() for s in stages]
        run = plain_run if which == "plain" else row_run
        return run(weights, [torch.zeros(len(w)).double() for w in weights], spikes[:3].double(), rule, alpha)

    EventEngine(chain(reader(784, 10, (2, 2)), x[:2].float() / 255), rule, alpha).run(spikes[:2])  # compiled
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        base = resident("VmRSS")
    except OSError:
        return float("nan")
    go()
    return resident("VmHWM") - base


def our_run_once(stages, rule, alpha, spikes):
    engine = EventEngine(stages, rule, alpha)
    return engine.run(spikes)[0], engine.weights()


def in_new_process(which):
    out = subprocess.run([sys.executable, __file__, "--memory", which], capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def aims(name):
    return f"{name} {' and '.join(f'{v}x {k}' for k, v in SETTINGS[name][2].items())}"


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--memory", choices=("ours", "plain", "rows"), help=argparse.SUPPRESS)
    args.add_argument("--images", type=int, default=10_000, help="images of the training, which takes two epochs")
    args.add_argument("--steps", type=int, default=60, help="steps of sleep that are timed")
    args.add_argument("--rounds", type=int, default=3, help="how often each side is measured")
    args.add_argument("--save", action="store_true", help=f"write the numbers to results/bench/{RESULTS.name}")
    args = args.parse_args()
    if args.memory:
        print(json.dumps(measure_memory(args.memory)))
        return
    net, x, y, source = trained(args.images)
    same = dict(threads=torch.get_num_threads(), torch=torch.__version__, source=source, steps=args.steps)
    same |= dict(accuracy=accuracy(net, x, y))
    same |= {f"{k}_peak_mib": in_new_process(k) for k in ("ours", "plain", "rows")}
    rows = []
    for name in SETTINGS:
        rows.append(measure(net, x, name, args.steps, args.rounds))
        for k, v in rows[-1].items():
            print(f"{k:>25}  {v:.3g}" if isinstance(v, float) else f"{k:>25}  {v}", flush=True)
    for k, v in same.items():
        print(f"{k:>25}  {v:.3g}" if isinstance(v, float) else f"{k:>25}  {v}")
    table = pd.DataFrame(rows).assign(**same)
    if args.save:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=RESULTS.parent, delete=False) as f:
            table.to_csv(f, index=False, float_format="%.4g")
        Path(f.name).replace(RESULTS)
    missed = [
        f"{row.setting} {row[f'over_{k}']:.3g}x {k} (at least {v})"
        for _, row in table.iterrows()
        for k, v in SETTINGS[row.setting][2].items()
        if row[f"over_{k}"] < v
    ]
    print(f"NOT met: {', '.join(missed)}" if missed else "all targets met: " + ", ".join(map(aims, SETTINGS)))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
