"""Metaplastic training against the plain way of writing it: one step, one epoch, peak memory.

Everything is measured in one run, interleaved, as medians; ratios are what counts. Usage: make bench
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from robustlit.data import load
from robustlit.metaplasticity.layers import binary_mlp
from robustlit.metaplasticity.optimizer import MetaplasticAdam
from robustlit.streams import permuted
from robustlit.training import Learner, Recorder

WIDTH, BATCH, META = 1024, 100, 1.35
RESULTS = Path(__file__).parents[2] / "results" / "bench" / "metaplasticity.csv"


class PlainSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        grad = grad.clone()
        grad[x.abs() > 1] = 0
        return grad


class PlainLinear(nn.Linear):
    "The hidden weight kept beside the parameter, which holds the sign while the network computes."

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)
        nn.init.uniform_(self.weight, -0.05, 0.05)
        self.hidden = self.weight.data.clone()

    def forward(self, x):
        self.weight.data = torch.sign(self.hidden)
        return F.linear(x, self.weight)


class PlainNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        sizes = [784, width, width, 10]
        self.layers = nn.ModuleList(PlainLinear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm1d(b) for b in sizes[1:])

    def forward(self, x):
        x = x.view(len(x), -1)
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms)):
            x = norm(layer(PlainSign.apply(x) if i else x))
        return x


class PlainAdam:
    "The published rule, a parameter after the other, an operation after the other."

    def __init__(self, net, lr=0.005, meta=META, decay=1e-7):
        self.net, self.lr, self.meta, self.decay, self.t = net, lr, meta, decay, 0
        self.m = [torch.zeros_like(p) for p in net.parameters()]
        self.v = [torch.zeros_like(p) for p in net.parameters()]

    def step(self):
        self.t += 1
        hidden = {id(layer.weight): layer for layer in self.net.layers}
        s = self.lr * math.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        for p, m, v in zip(self.net.parameters(), self.m, self.v):
            layer = hidden.get(id(p))
            w = p.data if layer is None else layer.hidden
            g = p.grad + self.decay * w
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            den = v.sqrt().add_(1e-8)
            if layer is None:
                w.addcdiv_(m, den, value=-s)
            else:
                shrinks = torch.sign(w) * m > 0
                damped = (1 - torch.tanh(self.meta * w.abs()) ** 2) * m
                w.addcdiv_(torch.where(shrinks, damped, m), den, value=-s)


class PlainImages(Dataset):
    "Images through PIL one by one, as a torchvision data set gives them."

    def __init__(self, x, y, permutation):
        self.x, self.y = x.squeeze(1).numpy(), y
        shuffle = transforms.Lambda(lambda t: t.view(-1)[permutation].view(1, 28, 28))
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.0,), (1.0,)), shuffle])

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.x[i], mode="L")), int(self.y[i])


def images(n):
    "Real MNIST where it is found; the same number of random images of its size otherwise."
    try:
        data = load("mnist", valid=0, download=False)
        return data.subset(n_train=n) if n < len(data.x_train) else data, "MNIST"
    except (FileNotFoundError, OSError):
        from robustlit.data import Dataset as Tensors

        x, y = torch.randint(256, (n, 1, 28, 28), dtype=torch.uint8), torch.arange(n) % 10
        parts = dict(x_train=x, y_train=y, x_valid=x[:0], y_valid=y[:0], x_test=x[:100], y_test=y[:100])
        return Tensors("random", **parts, classes=tuple("0123456789"), mean=(0.5,), std=(0.3,)), "random pixels"


def plain_epoch(net, opt, loader):
    net.train()
    for x, y in loader:
        loss = F.cross_entropy(net(x), y)
        net.zero_grad()
        loss.backward()
        opt.step()


def seconds(call):
    t = time.perf_counter()
    call()
    return time.perf_counter() - t


def interleaved(calls, rounds, warm=2):
    "Median seconds of each call, taken in turns."
    for _ in range(warm):
        for call in calls:
            call()
    times = [[seconds(call) for call in calls] for _ in range(rounds)]
    return [statistics.median(t) for t in zip(*times)]


def one_step(net, opt, x, y):
    def step():
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad() if hasattr(opt, "zero_grad") else net.zero_grad()
        loss.backward()
        opt.step()

    return step


def products():
    "Every matrix product of a step as the plain framework computes it, and their number of operations."
    a = [torch.randn(BATCH, n) for n in (784, WIDTH, WIDTH)]
    w = [torch.randn(n, k) for n, k in ((WIDTH, 784), (WIDTH, WIDTH), (10, WIDTH))]
    flops = sum(2 * BATCH * wi.numel() * (2 if i == 0 else 3) for i, wi in enumerate(w))
    return a, w, flops


def peak_gflops(n=2048):
    "This machine's single-precision matrix product, at its best of ten, on large matrices."
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2 * n**3 / min(seconds(lambda: a @ b) for _ in range(10)) / 1e9


def measure_step(rounds):
    torch.manual_seed(0)
    x, y = torch.rand(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    ours, plain = binary_mlp(784, (WIDTH, WIDTH)), PlainNet(WIDTH)
    fused, loose = (
        MetaplasticAdam(binary.parameters(), meta=META, fused=f) for binary, f in ((ours, None), (ours, False))
    )
    calls = [one_step(ours, fused, x, y), one_step(plain, PlainAdam(plain), x, y), one_step(ours, loose, x, y)]
    t_ours, t_plain, t_loose = interleaved(calls, rounds, warm=10)
    flops = products()[2]
    peak = max(peak_gflops() for _ in range(2))
    ideal = flops / peak / 1e9
    return dict(
        step_ms=1e3 * t_ours,
        plain_step_ms=1e3 * t_plain,
        unfused_step_ms=1e3 * t_loose,
        step_speedup=t_plain / t_ours,
        sgemm_peak_gflops=peak,
        products_at_peak_ms=1e3 * ideal,
        step_over_products=t_ours / ideal,
    )


def our_epoch(task):
    net = binary_mlp(784, (WIDTH, WIDTH))
    learn = Learner(net, MetaplasticAdam(net.parameters(), meta=META), [Recorder()])
    batches = task.train_batches(BATCH, torch.Generator().manual_seed(0))
    return lambda: learn.fit(1, batches)


def their_epoch(task):
    net = PlainNet(WIDTH)
    loader = DataLoader(PlainImages(task.x_train, task.y_train, task.permutation), batch_size=BATCH, shuffle=True)
    opt = PlainAdam(net)
    return lambda: plain_epoch(net, opt, loader)


def measure_epoch(n, rounds):
    data, source = images(n)
    task = permuted(data, 1, seed=0)[0]
    ours, plain = interleaved([our_epoch(task), their_epoch(task)], rounds, warm=1)
    return dict(epoch_s=ours, plain_epoch_s=plain, epoch_speedup=plain / ours, images=n, source=source)


def resident(field):
    "A line of this process's memory statistics, in MiB (Linux)."
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure_memory(which):
    "Peak resident memory while training one short epoch, above what was held before it (MiB); NaN but on Linux."
    epoch = dict(ours=our_epoch, plain=their_epoch)[which](permuted(images(10_000)[0], 1, seed=0)[0])
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        base = resident("VmRSS")
    except OSError:
        return float("nan")
    epoch()
    return resident("VmHWM") - base


def in_new_process(which):
    out = subprocess.run([sys.executable, __file__, "--memory", which], capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--memory", choices=("ours", "plain"), help=argparse.SUPPRESS)
    args.add_argument("--images", type=int, default=60_000, help="images an epoch")
    args.add_argument("--rounds", type=int, default=5, help="how often each side is measured")
    args.add_argument("--save", action="store_true", help=f"write the numbers to results/bench/{RESULTS.name}")
    args = args.parse_args()
    if args.memory:
        print(json.dumps(measure_memory(args.memory)))
        return
    got = dict(threads=torch.get_num_threads(), torch=torch.__version__)
    got |= measure_step(20 * args.rounds) | measure_epoch(args.images, args.rounds)
    got |= {f"{k}_peak_mib": in_new_process(k) for k in ("ours", "plain")}
    for k, v in got.items():
        print(f"{k:>22}  {v:.3g}" if isinstance(v, float) else f"{k:>22}  {v}")
    if args.save:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=RESULTS.parent, delete=False) as f:
            pd.DataFrame([got]).to_csv(f, index=False, float_format="%.4g")
        Path(f.name).replace(RESULTS)
    ok = got["epoch_speedup"] >= 2.5 and got["step_over_products"] <= 1.9
    print(f"epoch {got['epoch_speedup']:.2f}x the plain one (at least 2.5), step {got['step_over_products']:.2f} times "
          f"its products at sgemm peak (at most 1.9): {'met' if ok else 'NOT met'}")  # fmt: skip
    sys.exit(not ok)


if __name__ == "__main__":
    main()
