"""Attacks against the fastest of foolbox, torchattacks and secml-torch: equal steps, to the accuracy that is left.

Three networks: a perceptron with random weights on random images; a small convolutional network, trained plainly on MNIST; a middle-sized
one, trained on FGSM, where most images withstand. All libraries start from the same network and images, early stop is off (but on in
Square, which torchattacks always leaves early), and all end on the accuracy on the adversarial images. In turns, each round beginning with another
library; what counts is the median over rounds of the ratio to the fastest other library (theirs / ours, above 1 we are faster). With seven rounds, the
smallest and the largest ratio (`low`, `high`) are a 98 % interval of that median.
On a CPU it is processor time on one core that counts, and memory once freed is kept: otherwise the order in which a library frees its
tensors decides how often the system hands out the same pages anew. Libraries that are absent are left out. Usage: make bench
"""

import argparse
import importlib.util
import math
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
from robustlit.data import as_images, load

RESULTS = Path(__file__).parents[2] / "results" / "bench" / "attacks.csv"
KEEP_MEMORY = dict(MALLOC_TRIM_THRESHOLD_=str(2**30), MALLOC_MMAP_THRESHOLD_=str(2**30))
FREE = 1.05  # How much slower than the fastest is still as fast
SPAN = 0.5  # Seconds that a timing takes at least: short attacks are run several times in a row


def perceptron(images, eps):
    torch.manual_seed(0)
    layers = nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    net, x = nn.Sequential(nn.Flatten(), *layers).eval(), torch.rand(images, 1, 28, 28)
    with torch.no_grad():
        return net, x, net(x).argmax(1)


def convolutional(images, width, eps=0.0):
    "A network trained on 10,000 digits, on images of FGSM if `eps` is not 0, and test images."
    torch.manual_seed(0)
    layers = nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(98 * width, 100), nn.ReLU(), nn.Linear(100, 10))
    data, opt = load("mnist", n_train=10_000, n_test=images), torch.optim.Adam(net.parameters(), 1e-3)
    x, y, generator = as_images(data.x_train), data.y_train, torch.Generator().manual_seed(0)
    for _ in range(3):
        for i in torch.randperm(len(y), generator=generator).split(100):
            shown = attack_images(net, x[i], y[i], eps, "fgsm", generator).x if eps else x[i]
            opt.zero_grad()
            nn.functional.cross_entropy(net(shown), y[i]).backward()
            opt.step()
    return net.eval(), as_images(data.x_test), data.y_test


NETWORKS = dict(
    perceptron=perceptron,
    small_cnn=lambda images, eps: convolutional(images, 8),
    robust_cnn=lambda images, eps: convolutional(images, 24, eps),
)


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


def clock(call, device, times=1):
    "Seconds of one call, the mean of so many in a row: processor time on the CPU, wall-clock time on a GPU."
    now = time.process_time if device == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    wait()
    start = now()
    for _ in range(times):
        call()
    wait()
    return (now() - start) / times


def bench(network, images=1000, steps=20, rounds=7, eps=0.1, device="cpu"):
    "A row an attack: median milliseconds of each library, and how many times ours the fastest other one takes, round by round."
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    net, x, y = (one.to(device) for one in NETWORKS[network](images, eps))
    runs = {"ours": ours(net, x, y, eps, steps)}
    for name, make in LIBRARIES.items():
        if importlib.util.find_spec(name):
            runs[name] = make(net, x, y, eps, steps)
    rows = []
    for attack in runs["ours"]:
        calls = {library: made[attack] for library, made in runs.items() if attack in made}
        once = [{library: clock(call, device) for library, call in calls.items()} for _ in range(2)][1]
        often = math.ceil(SPAN / min(once.values()))
        times = []
        for k in range(rounds):  # each round another one begins
            order = [*calls][k % len(calls) :] + [*calls][: k % len(calls)]
            times.append({library: clock(calls[library], device, often) for library in order})
        median = {library: 1e3 * statistics.median(t[library] for t in times) for library in calls}
        others = {lib: sorted(t[lib] / t["ours"] for t in times) for lib in calls if lib != "ours"}
        rounds_of = min(others.values(), key=statistics.median, default=[float("nan")])
        ratio = dict(ratio=statistics.median(rounds_of), low=rounds_of[0], high=rounds_of[-1])
        left = 100 * runs["ours"][attack]()
        row = dict(network=network, attack=attack, left=left, **{f"{k}_ms": median.get(k) for k in runs}, **ratio)
        rows.append(row | dict(images=images, steps=steps, rounds=rounds, device=device, torch=torch.__version__))
    return pd.DataFrame(rows)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in dict(images=1000, steps=20, rounds=7).items():
        args.add_argument(f"--{name}", type=int, default=value)
    args.add_argument("--device", default="cpu")
    args.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    args.add_argument("--save", action="store_true", help=f"write the numbers to results/bench/{RESULTS.name}")
    args = vars(args.parse_args())
    if KEEP_MEMORY.keys() - os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    save, networks = args.pop("save"), args.pop("networks")
    got = pd.concat([bench(network, **args) for network in networks])
    print(got.drop(columns=["images", "steps", "rounds", "device", "torch"]).round(2).to_string(index=False))
    if save:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=RESULTS.parent, delete=False) as f:
            got.to_csv(f, index=False, float_format="%.4g")
        Path(f.name).replace(RESULTS)
    named = lambda rows: ", ".join(rows.agg("{0.attack} on {0.network}".format, axis=1)) or "none"
    slow = got[got["ratio"] < 1 / FREE]
    print(f"mean ratio {statistics.geometric_mean(got['ratio'].dropna()):.3f}")
    print(f"slower than the fastest other library by more than {FREE - 1:.0%}, {named(slow)}")
    print(f"and that in every round: {named(slow[slow['high'] < 1 / FREE])}")
    sys.exit(bool(len(slow)))


if __name__ == "__main__":
    main()
