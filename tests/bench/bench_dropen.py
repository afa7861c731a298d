"""A training step of Dropen against the plain formulation.

The plain step is written here, as one would from the equations, and is independent of the package: weights take part in the second
derivatives of the attack, the clean half goes through the network once more for the magnitude, and the memory is a loop. Both steps begin at the same
weights, images and random start; without dropout the losses and the gradients of the weights are compared, in
double precision as well, since a step along signs turns rounding into other pixels where a derivative is near zero. Time is processor time on one core, in
turns, medians; ratios (plain / ours) above 1 mean that ours is faster. A forward pass of the whole batch is the unit of the table of parts.
Usage: python tests/bench/bench_dropen.py [--networks lenet two_conv] [--images 100] [--turns 7] [--parts]
"""

import argparse
import statistics
import time
import warnings

import torch
import torch.nn.functional as F

from robustlit.data import Dataset
from robustlit.dropen.gradient_penalties import DropenCallback, GradientMemory, magnitude_attack
from robustlit.dropen.networks import build
from robustlit.training import Callback, Learner

EPS, SHAPES = 0.1, dict(lenet=(1, 28), lenet_wide=(1, 28), two_conv=(3, 32), vgg11_thin=(3, 32))


def network(name, dropout):
    channels, side = SHAPES[name]
    x, y = torch.zeros(2, channels, side, side, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    x[0] = 255
    torch.manual_seed(0)
    model = build(name, Dataset("none", x, y, x, y, x, y, tuple("0123456789")), dropout=dropout).train()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.7)  # so that the penalties are a good part of the loss, as in a trained network
    return model


def gradient(model, x, y):
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(model(x), y)
    return loss, torch.autograd.grad(loss, x, create_graph=True)[0].flatten(1)


def magnitude(g):
    return 2 * g.square().sum(1).mean()


def plain_attack(model, x, y):
    "Climb the magnitude, with a buffer that is never cleared; gradients of the weights come along and are cleared later."
    low, high, a = x - EPS, x + EPS, x + EPS * (2 * torch.rand_like(x) - 1)
    a = a.clamp(0, 1).requires_grad_()
    for _ in range(6):
        loss = F.cross_entropy(model(a), y)
        magnitude(torch.autograd.grad(loss, a, create_graph=True)[0].flatten(1)).backward()
        with torch.no_grad():
            moved = torch.max(torch.min(a + EPS / 3 * a.grad.sign(), high), low).clamp(0, 1)
            a.copy_(moved)
    return a.detach()


def plain_step(model, opt, x, y, memory):
    loss, g = gradient(model, x, y)
    half, b = len(x) // 2, len(x)
    cosines = [F.cosine_similarity(g, h, eps=1e-8).abs().mean() for h in memory]
    attacked = torch.cat([x[:half], plain_attack(model, x[half:], y[half:])])
    loss = loss + 10 * sum(cosines) / max(1, len(cosines))
    loss = loss + 0.1 * b**2 * magnitude(gradient(model, attacked, y)[1])
    memory[:] = [g.detach(), *memory][:5]
    opt.zero_grad()
    loss.backward()
    opt.step()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


def plain(model, batches):
    opt, memory = torch.optim.Adam(model.parameters(), 0.0), []
    return [plain_step(model, opt, x, y, memory) for x, y in batches]


class Watch(Callback):
    "Notes the loss and the weights' gradients of every step."

    order = 90

    def __init__(self):
        self.seen = []

    def after_step(self, learn):
        self.seen.append((learn.loss.item(), [p.grad.clone() for p in learn.model.parameters()]))


def ours(model, batches, **how):
    watch, opt = Watch(), torch.optim.Adam(model.parameters(), 0.0)
    Learner(model, opt, [DropenCallback(eps=EPS, last_eps=EPS, **how), watch]).fit(1, batches)
    return watch.seen


def processor(call):
    torch.manual_seed(1)
    start = time.process_time()
    out = call()
    return time.process_time() - start, out


def agreement(name, batches, dtype):
    "Largest relative differences of loss and of all weights' gradients together, without dropout."
    model, batches = network(name, 0.0).to(dtype), [(x.to(dtype), y) for x, y in batches]
    (_, a), (_, b) = processor(lambda: plain(model, batches)), processor(lambda: ours(model, batches))
    flat = lambda gs: torch.cat([g.flatten() for g in gs])
    losses = max(abs(p / q - 1) for (p, _), (q, _) in zip(a, b))
    return losses, max(float((flat(p) - flat(q)).norm() / flat(p).norm()) for (_, p), (_, q) in zip(a, b))


def parts(model, x, y):
    "What a step is made of, each a function of its own; half of the batch is attacked."
    half, memory = len(x) // 2, GradientMemory(5)
    for _ in range(5):
        memory.add(torch.randn(len(x), x[0].numel()))
    still, xh, yh = torch.no_grad(), x[half:], y[half:]

    def forward():
        with still:
            model(x)

    def twice(x, y):
        loss, g = gradient(model, x, y)
        (loss + magnitude(g)).backward()

    def compare():
        g = torch.randn(len(x), x[0].numel(), requires_grad=True)
        memory.cosine(g).backward()

    one_step = lambda: gradient(model, xh, yh)[1].square().sum().backward()
    return {
        "forward": forward,
        "clean pass, twice differentiated": lambda: twice(x, y),
        "attack, 6 steps on half of the batch": lambda: magnitude_attack(model, xh, yh, EPS),
        "the same with weights": lambda: [one_step() for _ in range(6)],
        "attacked half, twice differentiated": lambda: twice(xh, yh),
        "memory of 5 batches": compare,
    }


def bench(name, a):
    "Agreement, the ratio, and what each run takes."
    channels, side = SHAPES[name]
    torch.manual_seed(0)
    batches = [(torch.rand(a.images, channels, side, side), torch.randint(10, (a.images,))) for _ in range(a.steps)]
    for dtype in (torch.double, torch.float):
        loss, grad = agreement(name, batches, dtype)
        print(
            f"{name}, {dtype}: largest difference of a loss {loss:.0e}, of the weights' gradients {grad:.0e}",
            flush=True,
        )
    model, times = network(name, 0.5), {}
    steps = dict(plain=lambda: plain(model, batches), ours=lambda: ours(model, batches))
    if a.approximations:
        steps["2 steps, warm start"] = lambda: ours(model, batches, steps=2, warm_start=True)
        steps["finite difference"] = lambda: ours(model, batches, derivative="finite_difference")
    runs = steps | (parts(model, *batches[0]) if a.parts else {})
    for _ in range(a.turns):
        for k, run in runs.items():
            times.setdefault(k, []).append(processor(run)[0] / (a.steps if k in steps else 1))
    ratios = [p / q for p, q in zip(times["plain"], times["ours"])]
    print(f"{name}: {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")
    for k, v in times.items():
        unit = f", {statistics.median(v) / statistics.median(times['forward']):.1f} forward passes" if a.parts else ""
        print(f"  {k}: {1e3 * statistics.median(v):.1f} ms{unit}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["lenet", "two_conv"])
    for name, value in dict(images=100, turns=7, steps=3).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--parts", action="store_true", help="what each part of a step takes")
    parser.add_argument("--approximations", action="store_true", help="the two named ones, as rivals of the exact step")
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in a.networks:
        bench(name, a)


if __name__ == "__main__":
    main()
