"Small networks on the digits, each with one known fault (or none), for checking what an audit of attacks can see."

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from robustlit.data import Batches, Dataset, as_images, load
from robustlit.training import Learner, set_seed

PLANTED = {
    "linear": "",
    "saturated": "The gradient is exactly zero for most images, because the hidden units are saturated.",
    "randomised": "The same images get different logits from call to call.",
    "batch_dependent": "The logits of an image depend on the other images of its batch.",
    "softmax_outputs": "The outputs are probabilities, not logits.",
    "zero_gradient": "The gradient is exactly zero for every image, because hidden activations are rounded.",
    "shattered": "The gradient is not zero but points nowhere useful: a search without gradients does better.",
    "clamped": "The gradient is exactly zero for the pixels that are exactly 0 or 1, though moving them changes the answer.",
    "detector": "Noisy images are refused: they all get the same constant logits.",
    "other_range": "The images are in [0, 255], not in [0, 1].",
    "normalised_outside": "Accuracy on images in [0, 1] is far too low, because the network expects standardised pixels.",
}


@lru_cache
def digits(seed: int) -> Dataset:
    return load("digits", seed=seed)


def held_out(seed: int) -> tuple[Tensor, Tensor]:
    data = digits(seed)
    return as_images(data.x_test[:200]), data.y_test[:200]


def mlp(width: int = 100, *, first: tuple = (), between: tuple = (nn.ReLU,), n_out: int = 10) -> nn.Sequential:
    "A network of one hidden layer, with what goes before it and what goes on its activations."
    layers = [*first, nn.Flatten(), nn.Linear(64, width), *(layer() for layer in between), nn.Linear(width, n_out)]
    return nn.Sequential(*layers)


def fit(net: nn.Sequential, seed: int, epochs: int = 12, parameters=None, xy=None) -> nn.Sequential:
    "Train on the digits (or on `xy`, uint8 images and labels), then put into eval mode."
    data, generator = digits(seed), torch.Generator().manual_seed(seed)
    x, y = (data.x_train, data.y_train) if xy is None else xy
    opt = torch.optim.Adam(net.parameters() if parameters is None else parameters, lr=3e-3)
    Learner(net, opt).fit(epochs, Batches(x, y, 64, generator=generator))
    net.zero_grad()
    return net.eval()


def linear(seed=0) -> tuple[nn.Module, Tensor, Tensor]:
    "Nothing is planted: softmax regression, whose robust accuracy `closed_form_accuracy` gives."
    set_seed(seed)
    return fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), seed, epochs=20), *held_out(seed)


def closed_form_accuracy(net: nn.Module, x: Tensor, y: Tensor, eps: float, box: bool = True) -> float:
    """Percent of images that no change of at most `eps` a pixel can make `linear`'s network get wrong.

    Against each rival class the worst image is a corner of the allowed region: each pixel goes to the end that
    favours the rival. The region is clipped to [0, 1], or not if `box` is false.
    """
    *_, layer = (m for m in net.modules() if isinstance(m, nn.Linear))
    w, b, flat = layer.weight.detach().double(), layer.bias.detach().double(), x.double().flatten(1)
    low, high = flat - eps, flat + eps
    if box:
        low, high = low.clamp(min=0), high.clamp(max=1)
    lead = w[y][:, None] - w  # (images, rivals, pixels): what each pixel adds to the margin over each rival
    worst = torch.where(lead > 0, low[:, None], high[:, None])
    margin = (lead * worst).sum(2) + b[y][:, None] - b
    margin[torch.arange(len(y)), y] = math.inf
    return 100 * (margin > 0).all(1).double().mean().item()


def saturated(seed=0, gain=1e4) -> tuple[nn.Module, Tensor, Tensor]:
    "Hidden weights multiplied by `gain` after training: tanh is exactly -1 or 1, so the gradient is exactly zero."
    set_seed(seed)
    net = fit(mlp(between=(nn.Tanh,)), seed)
    with torch.no_grad():
        for p in net[1].parameters():
            p.mul_(gain)
    return fit(net, seed, parameters=net[3].parameters()), *held_out(seed)


class Noise(nn.Module):
    "Gaussian noise on the pixels, in training and in eval mode."

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.15 * torch.randn_like(x)


def randomised(seed=0) -> tuple[nn.Module, Tensor, Tensor]:
    "Noise from torch's global generator on the pixels, at test time too."
    set_seed(seed)
    return fit(mlp(first=(Noise(),)), seed, epochs=15), *held_out(seed)


def batch_dependent(seed=0) -> tuple[nn.Module, Tensor, Tensor]:
    "Batch normalisation by the statistics of the test batch."
    set_seed(seed)
    norm = nn.BatchNorm2d(12, track_running_stats=False)
    net = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(12 * 64, 10))
    return fit(net, seed, epochs=6), *held_out(seed)


def softmax_outputs(seed=0) -> tuple[nn.Module, Tensor, Tensor]:
    "Trained on its logits, then a softmax put behind them."
    set_seed(seed)
    return nn.Sequential(fit(mlp(), seed), nn.Softmax(1)).eval(), *held_out(seed)


class Rounded(nn.Module):
    "Activations as whole numbers; the gradient passes straight through in training and is zero in eval mode."

    def forward(self, h: Tensor) -> Tensor:
        return h + (h.round() - h).detach() if self.training else h.round()


def zero_gradient(seed=0) -> tuple[nn.Module, Tensor, Tensor]:
    "Hidden activations rounded, so the gradient of every image exists and is exactly zero."
    set_seed(seed)
    return fit(mlp(between=(nn.ReLU, Rounded)), seed), *held_out(seed)


class Stairs(nn.Module):
    "Pixels rounded to eight levels, with a fine ripple of a random phase a pixel: all of the slope is the ripple's."

    phase: Tensor

    def __init__(self, height: float = 0.02, waves: float = 40):
        super().__init__()
        self.height, self.waves = height, waves
        self.register_buffer("phase", 2 * math.pi * torch.rand(1, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return (7 * x).round() / 7 + self.height * (2 * math.pi * self.waves * x + self.phase).sin()


def shattered(seed=0) -> tuple[nn.Module, Tensor, Tensor]:
    "Quantised pixels with a ripple: the gradient is right, large and of no use beyond a hundredth of a pixel's range."
    set_seed(seed)
    return fit(mlp(first=(Stairs(),)), seed), *held_out(seed)


def clamped(seed=0) -> tuple[nn.Module, Tensor, Tensor]:
    "A clamp to [0, 1] that changes no image, and whose gradient is zero at exactly 0 and exactly 1."
    set_seed(seed)
    return fit(mlp(first=(nn.Hardtanh(0.0, 1.0),)), seed), *held_out(seed)


class Guarded(nn.Module):
    "A classifier's logits, or a constant row for images that a guard holds to be noisy."

    refusal: Tensor

    def __init__(self, net: nn.Module, guard: nn.Module, reject_class: bool):
        super().__init__()
        self.net, self.guard = net, guard
        self.register_buffer("refusal", torch.tensor([0.0] * 10 + [10.0] * reject_class))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        extra = logits.new_full((len(x), len(self.refusal) - 10), -10.0)
        return torch.where(self.guard(x).argmax(1)[:, None] == 1, self.refusal, torch.cat([logits, extra], 1))


def detector(seed=0, reject_class=False) -> tuple[nn.Module, Tensor, Tensor]:
    "A guard trained to tell noisy images; they get ten zeros, or are of an eleventh class if `reject_class`."
    generator = set_seed(seed)
    x = digits(seed).x_train
    size = 0.05 + 0.25 * torch.rand(len(x), 1, 1, 1, generator=generator)
    noisy = as_images(x) + size * torch.randn(x.shape, generator=generator).sign()
    both = torch.cat([x, (255 * noisy.clamp(0, 1)).round().to(torch.uint8)])
    is_noisy = torch.arange(2).repeat_interleave(len(x))
    guard = fit(mlp(n_out=2), seed, xy=(both, is_noisy))
    return Guarded(fit(mlp(), seed), guard, reject_class).eval(), *held_out(seed)


def other_range(seed=0) -> tuple[nn.Module, Tensor, Tensor]:
    "Images in [0, 255], and a network that expects them so."
    set_seed(seed)
    net, (x, y) = fit(mlp(), seed), held_out(seed)
    with torch.no_grad():
        net[1].weight.div_(255)
    return net, 255 * x, y


class Standardise(nn.Module):
    "Each pixel less its mean over the training images, divided by its standard deviation (1 where that is 0)."

    mean: Tensor
    std: Tensor

    def __init__(self, seed: int):
        super().__init__()
        x = as_images(digits(seed).x_train)
        std = x.std(0)
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("std", torch.where(std > 0, std, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def normalised_outside(seed=0) -> tuple[nn.Module, Tensor, Tensor]:
    "Trained on `Standardise(seed)(x)` but given `x` in [0, 1], where it mostly guesses."
    set_seed(seed)
    hidden = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    net = nn.Sequential(Standardise(seed), nn.Flatten(), *hidden, nn.Linear(64, 10))
    return fit(net, seed)[1:].eval(), *held_out(seed)
