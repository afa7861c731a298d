"""Minimum-norm attacks against foolbox, torchattacks, secml-torch and adv-lib: local optimality at equal budgets, and time.

Every forward and every backward pass of an image is one query; what counts is the nearest wrong image met within 200 and within
2,000 of them (local optimality of AttackBench, https://arxiv.org/abs/2404.19460), seen by a module that stands before the network, so
all libraries are measured in the same way. The envelope is the smallest distance of all attacks here, image by image. Time is
processor time on one core, in turns, medians; ratios (theirs / ours, above 1 we are faster) are of the attack of the same name.
Libraries that are absent are left out. Usage: python tests/bench/bench_minimum_norm.py
"""

import argparse
import importlib.util
import math
import statistics
import time
import warnings
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from robustlit.attacks import attack_images
from robustlit.data import Batches, as_images, load
from robustlit.minimal_attacks import smallest
from robustlit.minimum_norm import local_optimality, size_of
from robustlit.training import Learner, set_seed

RESULTS = Path(__file__).parents[2] / "results" / "bench" / "minimum_norm.csv"
BUDGETS, NORMS = (200, 2000), ("l2", "linf")


def convnet(channels, side):
    "Two strided convolutions and a linear layer."
    first, second = nn.Conv2d(1, channels, 3, 2, 1), nn.Conv2d(channels, 2 * channels, 3, 2, 1)
    return nn.Sequential(
        first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(2 * channels * (side // 4) ** 2, 10)
    )


def networks(data):
    "The same convolutional network, trained on clean images and on attacked ones (PGD, eps 0.2)."
    x, y, trained = as_images(data.x_train), data.y_train, {}
    for name in ("clean", "adversarial"):
        set_seed(0)
        model = convnet(8, x.shape[-1])
        opt = torch.optim.Adam(model.parameters(), lr=0.003)
        if name == "clean":
            Learner(model, opt).fit(2, Batches(data.x_train, y, 100))
        for epoch in range(3 if name == "adversarial" else 0):
            for rows in torch.randperm(len(x)).split(100):
                eps = 0.1 if epoch == 0 else 0.2
                a = attack_images(model, x[rows], y[rows], eps, "pgd", steps=7, early_stop=False).x
                opt.zero_grad()
                nn.functional.cross_entropy(model(a), y[rows]).backward()
                opt.step()
        trained[name] = model.eval().requires_grad_(False)
    return trained


class Watch(nn.Module):
    "Stands before a network, counts forward and backward passes, and keeps the nearest wrong image met within each budget."

    def __init__(self, model, x, y, norm):
        super().__init__()
        self.model, self.x, self.y, self.norm = model, x, y, norm
        self.spent = torch.zeros(len(x))
        self.best = {budget: torch.full((len(x),), math.inf) for budget in BUDGETS}

    def forward(self, a):
        near = torch.cdist(a.detach().flatten(1), self.x.flatten(1)).argmin(1)
        rows = torch.arange(len(a)) if len(a) == len(self.x) else near
        self.spent[rows] += 1
        z = self.model(a)
        with torch.no_grad():
            inside = (a.flatten(1).amin(1) >= -1e-6) & (a.flatten(1).amax(1) <= 1 + 1e-6)
            far = size_of(a - self.x[rows], self.norm).masked_fill_((z.argmax(1) == self.y[rows]) | ~inside, math.inf)
        for budget, best in self.best.items():
            within = far.masked_fill(self.spent[rows] > budget, math.inf)
            best.scatter_reduce_(0, rows, within, "amin")
        if z.requires_grad:
            z.register_hook(partial(self.backward, rows))
        return z

    def backward(self, rows, g):
        self.spent[rows] += 1


def ours(model, x, y, norm, budget):
    steps, run = budget // 2, partial(smallest, model, x, y, batch_size=len(x))
    runs = dict(fmn=partial(run, "fmn", steps=steps, norm=norm))
    runs["fab_t"] = partial(run, "fab_t", steps=max(1, budget // 27), norm=norm)
    if norm == "l2":
        runs["ddn"] = partial(run, "ddn", steps=steps)
        runs["deepfool"] = partial(run, "deepfool")
        runs["carlini_wagner"] = partial(run, "carlini_wagner", steps=steps // 5, searches=5)
    return runs


def foolbox_runs(model, x, y, norm, budget):
    import foolbox

    fmodel, fa, steps = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), foolbox.attacks, budget // 2
    made = dict(
        l2=dict(fmn=fa.L2FMNAttack(steps=steps), ddn=fa.DDNAttack(steps=steps)),
        linf=dict(fmn=fa.LInfFMNAttack(steps=steps)),
    )[norm]
    if norm == "l2":
        made["deepfool"] = fa.L2DeepFoolAttack(steps=50)
        made["carlini_wagner"] = fa.L2CarliniWagnerAttack(5, steps // 5)
    return {name: partial(attack, fmodel, x, y, epsilons=None) for name, attack in made.items()}


def torchattacks_runs(model, x, y, norm, budget):
    import torchattacks as ta

    how = dict(norm=dict(l2="L2", linf="Linf")[norm], eps=1e3, steps=max(1, budget // 27))
    return dict(fab_t=partial(ta.FAB(model, **how, multi_targeted=True, n_classes=10), x, y))


def secmlt_runs(model, x, y, norm, budget):
    from secmlt.adv.backends import Backends
    from secmlt.adv.evasion.ddn import DDN
    from secmlt.adv.evasion.fmn import FMN
    from torch.utils.data import DataLoader, TensorDataset

    loader, steps = DataLoader(TensorDataset(x, y), batch_size=len(x)), budget // 2
    made = dict(fmn=FMN(norm, steps, step_size=1.0, backend=Backends.NATIVE))
    if norm == "l2":
        made["ddn"] = DDN(steps, backend=Backends.NATIVE)
    return {name: partial(lambda attack: list(attack(model, loader)), attack) for name, attack in made.items()}


def adv_lib_runs(model, x, y, norm, budget):
    from adv_lib import attacks as al

    steps, power = budget // 2, dict(l2=2, linf=math.inf)[norm]
    runs = dict(fmn=partial(al.fmn, model, x, y, power, steps=steps))
    if norm == "l2":
        runs["ddn"] = partial(al.ddn, model, x, y, steps=steps, levels=None)
        runs["alma"] = partial(al.alma, model, x, y, num_steps=steps)
        runs["sdf"] = partial(al.sdf, model, x, y, steps=max(1, budget // 20))
    return runs


LIBRARIES = dict(foolbox=foolbox_runs, torchattacks=torchattacks_runs, secmlt=secmlt_runs, adv_lib=adv_lib_runs)


def met(make, model, x, y, norm, name, budget):
    "Nearest distances met, image by image, at a budget; 0 for images that are wrong when clean."
    watch = Watch(model, x, y, norm)
    torch.manual_seed(0)
    make(watch, x, y, norm, budget)[name]()
    with torch.no_grad():
        return torch.where(model(x).argmax(1) == y, watch.best[budget], 0.0), watch.spent.max().item()


def processor(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def bench(images=200, rounds=5):
    "A row for each network, norm, budget, library and attack."
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = load("mnist", valid=0, n_train=10_000, n_test=images, download=False)
    x, y, rows = as_images(data.x_test), data.y_test, []
    makers = dict(ours=ours) | {k: v for k, v in LIBRARIES.items() if importlib.util.find_spec(k)}
    for network, model in networks(data).items():
        for norm in NORMS:
            found = {}
            for library, make in makers.items():
                for budget in BUDGETS:
                    for name in make(model, x, y, norm, budget):
                        try:
                            found[library, name, budget] = met(make, model, x, y, norm, name, budget)
                        except Exception as err:
                            print(f"{library} {name} {norm}: {type(err).__name__}: {err}")
            best = torch.stack([d for d, _ in found.values()]).amin(0)
            calls = {library: make(model, x, y, norm, 200) for library, make in makers.items()}
            for name in calls["ours"]:
                who = [library for library in calls if (library, name, 200) in found]
                times = [{library: processor(calls[library][name]) for library in who} for _ in range(rounds)]
                calls[name] = {library: 1e3 * statistics.median(t[library] for t in times) for library in who}
            for (library, name, budget), (far, spent) in found.items():
                took = calls.get(name, {}).get(library) if budget == 200 else None
                row = dict(network=network, norm=norm, budget=budget, attack=name, library=library)
                row |= dict(success=far.isfinite().double().mean().item(), median=far[far > 0].median().item())
                row |= dict(local_optimality=local_optimality(far, best), spent=spent, ms=took)
                row["ratio"] = took / calls[name]["ours"] if took else None
                rows.append(row | dict(images=images, torch=torch.__version__))
    return pd.DataFrame(rows).sort_values(["network", "norm", "budget", "attack", "library"], ignore_index=True)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--images", type=int, default=200)
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--save", action="store_true", help=f"write the numbers to results/bench/{RESULTS.name}")
    args = vars(args.parse_args())
    save, got = args.pop("save"), bench(**args)
    print(got.drop(columns=["images", "torch"]).round(3).to_string(index=False))
    if save:
        got.to_csv(RESULTS, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
