"""Attacks against the fastest of foolbox, torchattacks and secml-torch: early stop off, equal steps, to robust accuracy.

All of them start from the same network and images and end on the same thing, the accuracy on the adversarial images.
Interleaved, medians; ratios are what counts. Libraries that are absent are left out.
Usage: python tests/bench/bench_attacks.py [--images 200] [--steps 20] [--width 256] [--rounds 7]
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
import warnings

import torch
from torch import nn

from robustlit.attacks import attack_images


def network(width):
    torch.manual_seed(0)
    layers = nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    return nn.Sequential(nn.Flatten(), *layers).eval()


def ours(net, x, y, eps, steps):
    def run(name, **options):
        return lambda: attack_images(net, x, y, eps, name, early_stop=False, **options).correct.double().mean().item()

    step = eps / 5
    return dict(
        fgsm=run("fgsm"),
        bim=run("bim", steps=steps, step_size=step),
        mim=run("mim", steps=steps, step_size=step),
        pgd=run("pgd", steps=steps, step_size=step),
        pgd_l2=run("pgd", steps=steps, step_size=2 * eps, norm="l2"),
        apgd_ce=run("apgd_ce", steps=steps),
        apgd_dlr=run("apgd_dlr", steps=steps),
        square=run("square", queries=10 * steps),
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


def clock(call):
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bench(images=200, steps=20, width=256, rounds=7, eps=0.1, device="cpu"):
    "A row an attack: our median seconds, the fastest other library's, and theirs / ours."
    warnings.simplefilter("ignore")
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
        for call in calls.values():
            call()
        times = {library: [] for library in calls}
        for _ in range(rounds):
            for library, call in calls.items():
                times[library].append(clock(call))
        median = {library: statistics.median(t) for library, t in times.items()}
        own = median.pop("ours")
        fastest = min(median, key=lambda library: median[library], default=None)
        row = dict(attack=attack, ours_seconds=round(own, 5), fastest=fastest)
        if fastest is not None:
            row |= dict(their_seconds=round(median[fastest], 5), ratio=round(median[fastest] / own, 2))
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in dict(images=200, steps=20, width=256, rounds=7).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    for row in bench(**vars(parser.parse_args())):
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
