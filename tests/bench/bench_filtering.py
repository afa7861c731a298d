"""The filter map against the loop that sets the weight, runs the network and puts it back.

The loops are written here and are independent of the package. Static: two forward passes a mask, on clean and on stored attacked images.
Adaptive: a forward pass, the input gradient of that pass, and a forward pass on the attacked images; the last one also computes the
weights' gradients, as the original code does. All work on the same network, images, masks and threads, in turns; medians.
Ratios (loop / ours) above 1 mean that ours is faster. Peak memory is that of the whole process, ours measured first.
Usage: python tests/bench/bench_filtering.py [--width 16] [--images 128] [--thresholds 25] [--turns 3] [--layers NAME ...]
"""

import argparse
import resource
import statistics
import time

import torch
import torch.nn.functional as F

from robustlit.data import Dataset
from robustlit.evaluation import logits_of
from robustlit.filtering.filter_map import filter_map
from robustlit.filtering.filters import PAPER, filter_steps, filterable_layers, keep_mask
from robustlit.filtering.networks import build

EPS = 0.1


def network(width):
    "A ResNet-18 for MNIST whose batch norm has seen images."
    torch.manual_seed(0)
    x, y = torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    net = build("resnet18", Dataset("mnist", x, y, x, y, x, y, tuple("0123456789")), width).train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(64, 1, 28, 28))
    return net.eval()


def attacked(net, x, y, weights_too):
    "Logits and FGSM images from one pass and its gradient."
    x = x.clone().requires_grad_()
    z = net(x)
    loss = F.cross_entropy(z, y, reduction="sum")
    wanted = [x, *net.parameters()] if weights_too else [x]
    grad = torch.autograd.grad(loss, wanted)[0]
    return z.detach(), (x + EPS * grad.sign()).clamp(0, 1).detach()


def loop(net, x, y, layers, thresholds, adversary):
    "Clean and attacked accuracy of every mask, one after the other."
    found, stored = [], attacked(net, x, y, False)[1]
    for name, module in filterable_layers(net, layers).items():
        w = module.weight.data
        for s in filter_steps({name: w}, PAPER, thresholds):
            module.weight.data = w * keep_mask(w, s.filter, s.alpha, s.width)
            if adversary == "static":
                z, z_adv = (logits_of(net, v) for v in (x, stored))
            else:
                z, x_adv = attacked(net, x, y, adversary == "weights too")
                z_adv = logits_of(net, x_adv)
            found.append([(v.argmax(1) == y).double().mean().item() for v in (z, z_adv)])
        module.weight.data = w
    return found


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main():
    parser = argparse.ArgumentParser()
    for name, value in dict(width=16, images=128, thresholds=25, turns=3, threads=1).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--layers", nargs="*")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    net, x, y = network(a.width), torch.rand(a.images, 1, 28, 28), torch.arange(a.images) % 10
    ours = lambda adversary: filter_map(net, (x, y), a.layers, "local", PAPER, a.thresholds, EPS, adversary)
    for adversary, loops in (("static", ["static"]), ("adaptive", ["adaptive", "weights too"])):
        times, memory = {}, {}
        for _ in range(a.turns):
            runs = {"ours": lambda v=adversary: ours(v)}
            runs |= {k: lambda k=k: loop(net, x, y, a.layers, a.thresholds, k) for k in loops}
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                times.setdefault(name, []).append(time.perf_counter() - start)
                memory.setdefault(name, peak())
        mine = statistics.median(times["ours"])
        for name in loops:
            ratio = statistics.median(times[name]) / mine
            print(
                f"{name}: {ratio:.2f}x ({mine:.1f} s), peak {memory['ours']:.0f} and {memory[name]:.0f} MiB", flush=True
            )


if __name__ == "__main__":
    main()
