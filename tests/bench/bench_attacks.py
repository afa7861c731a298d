"""Attacks against the fastest of foolbox, torchattacks and secml-torch: equal steps, to the accuracy that is left.

All of them start from the same network and images, early stop is off (but on in Square, which torchattacks always leaves early),
and all end on the accuracy on the adversarial images. In turns, medians; ratios (theirs / ours, above 1 we are faster) are what counts.
On a CPU it is processor time on one core that counts, and memory once freed is kept: otherwise the order in which a library frees its
tensors decides how often the system hands out the same pages anew. Libraries that are absent are left out. Usage: make bench
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from robustlit.attacks import attack_images

RESULTS = Path(__file__).parents[2] / "results" / "bench" / "attacks.csv"
KEEP_MEMORY = dict(MALLOC_TRIM_THRESHOLD_=str(2**30), MALLOC_MMAP_THRESHOLD_=str(2**30))
FREE = 1.05  # How much slower than the fastest is still as fast


def network(width):
    torch.manual_seed(0)
    layers = nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    return nn.Sequential(nn.Flatten(), *layers).eval()


def ours(net, x, y, eps, steps):
    def run(name, **options):
        how = dict(early_stop=False) | options
        return lambda: attack_images(net, x, y, eps, name, **how).correct.double().mean().item()

    step = eps / 5
    return dict(
        fgsm=run("fgsm"),
        bim=run("bim", steps=steps, step_size=step),
        mim=run("mim", steps=steps, step_size=step),
        pgd=run("pgd", steps=steps, step_size=step),
        pgd_l2=run("pgd", steps=steps, step_size=2 * eps, norm="l2"),
        apgd_ce=run("apgd_ce", steps=steps),
        apgd_dlr=run("apgd_dlr", steps=steps),
        square=run("square", queries=10 * steps, early_stop=True),
    )


def torchattacks_runs(net, x, y, eps, steps):
    import torchattacks as ta

    step = eps / 5
    made = dict(
        fgsm=ta.FGSM(net, eps),
        bim=ta.BIM(net, eps, step, steps),
        mim=ta.MIFGSM(net, eps, step, steps),
        pgd=ta.PGD(net, eps, step, steps),
        pgd_l2=ta.PGDL2(net, eps, 2 * eps, steps),
        apgd_ce=ta.APGD(net, eps=eps, steps=steps, seed=0),
        apgd_dlr=ta.APGD(net, eps=eps, steps=steps, seed=0, loss="dlr"),
        square=ta.Square(net, eps=eps, n_queries=10 * steps, seed=0),
    )

    def run(attack):
        def call():
            a = attack(x, y)
            with torch.no_grad():
                return (net(a).argmax(1) == y).double().mean().item()

        return call

    return {name: run(attack) for name, attack in made.items()}


def foolbox_runs(net, x, y, eps, steps):
    import foolbox

    model, fa, step = foolbox.PyTorchModel(net, bounds=(0, 1), device=x.device), foolbox.attacks, eps / 5
    made = dict(
        fgsm=fa.LinfFastGradientAttack(),
        bim=fa.LinfBasicIterativeAttack(abs_stepsize=step, steps=steps),
        pgd=fa.LinfProjectedGradientDescentAttack(abs_stepsize=step, steps=steps),
        pgd_l2=fa.L2ProjectedGradientDescentAttack(abs_stepsize=2 * eps, steps=steps),
    )

    def run(attack):
        return lambda: 1 - attack(model, x, y, epsilons=eps)[2].double().mean().item()

    return {name: run(attack) for name, attack in made.items()}


def secml_runs(net, x, y, eps, steps):
    from secmlt.adv.backends import Backends
    from secmlt.adv.evasion.pgd import PGD
    from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier
    from torch.utils.data import DataLoader, TensorDataset

    options = dict(num_steps=steps, random_start=True, y_target=None, backend=Backends.NATIVE)
    loader, model = DataLoader(TensorDataset(x, y), batch_size=len(x)), BasePyTorchClassifier(net)
    made = dict(
        pgd=PGD(perturbation_model="linf", epsilon=eps, step_size=eps / 5, **options),
        pgd_l2=PGD(perturbation_model="l2", epsilon=eps, step_size=2 * eps, **options),
    )

    def run(attack):
        def call():
            a = torch.cat([batch for batch, _ in attack(model, loader)])
            with torch.no_grad():
                return (net(a).argmax(1) == y).double().mean().item()

        return call

    return {name: run(attack) for name, attack in made.items()}


LIBRARIES = dict(torchattacks=torchattacks_runs, foolbox=foolbox_runs, secmlt=secml_runs)


def clock(call, device):
    if device == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def bench(images=500, steps=20, width=512, rounds=9, eps=0.1, device="cpu"):
    "A row an attack: median milliseconds of each library, and how many times ours the fastest other one takes."
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    net = network(width).to(device)
    x = torch.rand(images, 1, 28, 28, device=device)
    with torch.no_grad():
        y = net(x).argmax(1)
    runs = {"ours": ours(net, x, y, eps, steps)}
    for name, make in LIBRARIES.items():
        if importlib.util.find_spec(name):
            runs[name] = make(net, x, y, eps, steps)
    rows = []
    for attack in runs["ours"]:
        calls = {library: made[attack] for library, made in runs.items() if attack in made}
        times = [{library: clock(call, device) for library, call in calls.items()} for _ in range(rounds + 2)][2:]
        median = {library: 1e3 * statistics.median(t[library] for t in times) for library in calls}
        others = {library: t for library, t in median.items() if library != "ours"}
        ratio = min(others.values()) / median["ours"] if others else float("nan")
        row = dict(attack=attack, **{f"{library}_ms": median.get(library) for library in runs}, ratio=ratio)
        rows.append(row | dict(images=images, steps=steps, width=width, device=device, torch=torch.__version__))
    return pd.DataFrame(rows)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in dict(images=500, steps=20, width=512, rounds=9).items():
        args.add_argument(f"--{name}", type=int, default=value)
    args.add_argument("--device", default="cpu")
    args.add_argument("--save", action="store_true", help=f"write the numbers to results/bench/{RESULTS.name}")
    args = vars(args.parse_args())
    if KEEP_MEMORY.keys() - os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    save, got = args.pop("save"), bench(**args)
    print(got.drop(columns=["images", "steps", "width", "device", "torch"]).round(2).to_string(index=False))
    if save:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=RESULTS.parent, delete=False) as f:
            got.to_csv(f, index=False, float_format="%.4g")
        Path(f.name).replace(RESULTS)
    slow = got[got["ratio"] < 1 / FREE]["attack"].tolist()
    print(
        f"as fast as the fastest other library within {FREE - 1:.0%}: {'all' if not slow else 'not ' + ', '.join(slow)}"
    )
    sys.exit(bool(slow))


if __name__ == "__main__":
    main()
