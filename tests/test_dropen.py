"Dropen: networks, penalties on gradients against an independent double-precision transcription, and the callbacks."

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from robustlit.adversarial_training import LearningRate
from robustlit.data import Batches, Dataset, load
from robustlit.dropen import gradient_penalties as gp
from robustlit.dropen.gradient_penalties import (
    ADPCallback,
    DropenCallback,
    Ensemble,
    GradientMemory,
    TRSCallback,
    gradient_cosine,
    gradient_magnitude,
    input_gradients,
    linear_eps,
    magnitude_attack,
    once_differentiable,
    report_rate,
)
from robustlit.dropen.networks import BUILDERS, build
from robustlit.intake import ModelError
from robustlit.training import Callback, Checkpoint, Learner, StopFit, set_seed

pytestmark = pytest.mark.filterwarnings("ignore:`model` has no dropout")


def blank(channels, side):
    x, y = torch.zeros(2, channels, side, side, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    x[0] = 255
    return Dataset("blank", x, y, x, y, x, y, tuple("0123456789"))


def small(dropout=0.0, dtype=torch.double, act=nn.ReLU):
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 4, 3, padding=1), act(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 12), act()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(12, 10)).to(dtype)


def images(n, batches=1, dtype=torch.double, seed=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batches, n, 1, 8, 8, generator=generator, dtype=dtype)
    return x, torch.randint(10, (batches, n), generator=generator)


def fit(model, batches, *callbacks, epochs=1, lr=0.1):
    return Learner(model, torch.optim.SGD(model.parameters(), lr), callbacks).fit(epochs, batches)


def one(model, *callbacks, n=8, dtype=torch.float32, **how):
    x, y = images(n, dtype=dtype)
    return fit(model, [(x[0], y[0])], *callbacks, **how)


class Watch(Callback):
    "Notes the loss and the weights' gradients of every step."

    order = 40

    def __init__(self):
        self.losses, self.gradients = [], []

    def after_backward(self, learn):
        self.losses.append(learn.loss.item())
        self.gradients.append(torch.cat([p.grad.flatten() for p in learn.model.parameters()]))


# Networks


@pytest.mark.parametrize(
    "name, channels, side, parameters",
    [("lenet", 1, 28, 431_080), ("two_conv", 3, 32, 604_926), ("vgg11", 3, 32, 9_756_426)],
)
def test_parameters_of_the_report(name, channels, side, parameters):
    assert sum(p.numel() for p in build(name, blank(channels, side)).parameters()) == parameters


@pytest.mark.parametrize("name", BUILDERS.names())
@pytest.mark.parametrize("channels, side", [(1, 28), (3, 32), (3, 17)])
def test_networks_take_images_of_any_size(name, channels, side):
    model = build(name, blank(channels, side), width=4).eval()
    x = torch.rand(3, channels, side, side)
    assert model(x).shape == (3, 10)
    bare = build(name, blank(channels, side), width=4, normalise=False).eval()
    bare.load_state_dict(model.state_dict())
    torch.testing.assert_close(bare((x - 0.5) / 0.5), model(x), atol=1e-5, rtol=1e-4)


def test_dropout_is_switched_off():
    x = torch.rand(4, 1, 28, 28)
    for p in (0.0, 0.5):
        model = build("lenet", blank(1, 28), dropout=p).train()
        assert torch.equal(model(x), model(x)) == (p == 0)


# The penalties, term by term


def transcribed_gradient(model, x, y):
    "The report's: of the mean cross-entropy."
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(model(x), y)
    return loss, torch.autograd.grad(loss, x, create_graph=True)[0].flatten(1)


def transcribed_mag(g):
    return 2 * sum((row**2).sum() for row in g) / len(g)


def transcribed_cos(g, h):
    one = lambda a, b: (a @ b).abs() / (a.norm() * b.norm())
    return sum(one(a, b) for a, b in zip(g, h)) / len(g)


def transcribed_attack(model, x, y, eps, accumulate, start, steps=6):
    "B4: signs of a buffer that is never cleared, or of each step's own gradient."
    low, high, buffer, a = x - eps, x + eps, torch.zeros_like(x), start.clamp(0, 1)
    for _ in range(steps):
        a = a.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(a), y), a, create_graph=True)
        (up,) = torch.autograd.grad(transcribed_mag(g.flatten(1)), a)
        buffer = buffer + up if accumulate else up
        a = torch.max(torch.min(a.detach() + eps / 3 * buffer.sign(), high), low).clamp(0, 1)
    return a.detach()


@pytest.mark.parametrize("accumulate", [True, False])
def test_ten_steps_equal_the_transcription(accumulate):
    "Loss (B5) and weights' gradients, with the memory filling and popping."
    n, epochs, (x, y) = 6, 1, images(6, batches=10)
    magnitude = 0.3 * n**2 / 2  # (B5) with the weight that is 0.3 in (B6)
    ours, watch = small(), Watch()
    torch.manual_seed(5)
    callback = DropenCallback(cosine=2.0, smoothness=0.3, eps=0.1, last_eps=0.1, accumulate=accumulate)
    fit(ours, list(zip(x, y)), callback, watch, epochs=epochs)

    model, memory = small(), []
    opt = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(5)
    for t in range(10):
        half = n // 2
        attacked = x[t, half:]
        start = attacked + 0.1 * (2 * torch.rand_like(attacked) - 1)
        attacked = transcribed_attack(model, attacked, y[t, half:], 0.1, accumulate, start)
        loss, g = transcribed_gradient(model, x[t], y[t])
        cosines = [transcribed_cos(g, h) for h in memory]
        mixed = torch.cat([x[t, :half], attacked])
        loss = loss + 2.0 * sum(cosines) / max(1, len(cosines))
        loss = loss + magnitude * transcribed_mag(transcribed_gradient(model, mixed, y[t])[1])
        memory = [g.detach(), *memory][:5]
        opt.zero_grad()
        loss.backward()
        opt.step()
        assert watch.losses[t] == pytest.approx(loss.item(), rel=1e-9)
        flat = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(watch.gradients[t], flat, rtol=1e-7, atol=1e-9)
    assert len(callback.memory) == 5


def test_b5_is_b6_at_a_thousand_images():
    model, (x, y) = small(), images(1000, batches=3)
    old = [transcribed_gradient(model, x[k], y[k])[1].detach() for k in (1, 2)]
    loss, g = transcribed_gradient(model, x[0], y[0])
    b5 = loss + 10 * (transcribed_cos(g, old[0]) + transcribed_cos(g, old[1])) / 2 + 1e5 * transcribed_mag(g)
    memory = GradientMemory(5)
    for k in (1, 2):
        memory.add(input_gradients(model, x[k], y[k]))
    g = input_gradients(model, x[0], y[0])
    b6 = F.cross_entropy(model(x[0]), y[0]) + 10 * memory.cosine(g) + 0.2 * gradient_magnitude(g)
    assert b6.item() == pytest.approx(b5.item(), rel=1e-6)


@pytest.mark.parametrize("copies", [2, 5])
def test_the_number_of_images_changes_nothing(copies):
    x, y = images(8)
    losses = []
    for k in (1, copies):
        watch, batch = Watch(), (x[0].repeat(k, 1, 1, 1), y[0].repeat(k))
        fit(small(), [batch, batch], DropenCallback(eps=0.0, last_eps=0.0), watch, lr=0.01)
        losses.append(watch.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_gradients_of_the_penalties_by_finite_differences():
    model, (x, y) = small(act=nn.Tanh), images(6)
    other = torch.randn(6, 64, dtype=torch.double)

    def penalty():
        g = input_gradients(model, x[0], y[0])
        return 2 * gradient_cosine(g, other) + 3 * gradient_magnitude(g)

    weights = list(model.parameters())
    exact = torch.autograd.grad(penalty(), weights, allow_unused=True, materialize_grads=True)
    move = [torch.randn_like(w) for w in weights]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for w, d in zip(weights, move):
                w += sign * 1e-5 * d
        values.append(penalty().item())
        with torch.no_grad():
            for w, d in zip(weights, move):
                w -= sign * 1e-5 * d
    along = sum((g * d).sum().item() for g, d in zip(exact, move))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(along, rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_cosine_lies_between_zero_and_one(scale):
    torch.manual_seed(0)
    g, memory = scale * torch.randn(7, 30), GradientMemory(3)
    for _ in range(4):
        memory.add(torch.randn(7, 30))
        assert 0 <= memory.cosine(g) <= 1
    assert gradient_cosine(g, -g).item() == pytest.approx(1 if scale > 1e-9 else 0, abs=1e-3)
    assert memory.cosine(torch.zeros(7, 30)) == 0


def test_memory_with_a_short_batch():
    memory, long, short = GradientMemory(2), torch.randn(6, 9), torch.randn(4, 9)
    assert memory.cosine(long) == 0
    for stored, now in ((long, short), (short, long)):
        memory.clear()
        memory.add(stored)
        assert memory.cosine(now).item() == pytest.approx(gradient_cosine(now[:4], stored[:4]).item(), rel=1e-5)
    for g in (long, short, long, short):
        memory.add(g)
    assert len(memory) == 2
    assert memory.nbytes == 2 * 6 * 9 * 4


def test_memory_is_never_above_its_size_and_empty_when_an_epoch_begins():
    x, y = images(4, batches=9, dtype=torch.float32)
    callback, sizes = DropenCallback(memory=3, steps=1), []

    class Look(Callback):
        order = 40

        def before_epoch(self, learn):
            sizes.append("epoch")

        def before_batch(self, learn):
            sizes.append(len(callback.memory))

    fit(small(dtype=torch.float32), list(zip(x, y)), callback, Look(), epochs=2)
    assert sizes == ["epoch", 0, 1, 2, 3, 3, 3, 3, 3, 3] * 2


# The attack


@pytest.mark.parametrize("accumulate", [True, False])
def test_attack_equals_its_transcription(accumulate):
    model, (x, y) = small(act=nn.Tanh), images(9)
    start = x[0] + 0.2 * (2 * torch.rand_like(x[0]) - 1)
    ours = magnitude_attack(model, x[0], y[0], 0.2, accumulate=accumulate, start=start)
    wanted = [transcribed_attack(model, x[0], y[0], 0.2, acc, start) for acc in (accumulate, not accumulate)]
    torch.testing.assert_close(ours, wanted[0], atol=1e-12, rtol=0)
    assert (ours - wanted[1]).abs().max() > 0.01
    assert (ours - x[0]).abs().max() <= 0.2 + 1e-12 and 0 <= ours.min() and ours.max() <= 1


def test_attack_leaves_no_trace():
    model, (x, y) = build("vgg11", blank(1, 8), width=4).train(), images(8, dtype=torch.float32)
    model.fc1.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    magnitude_attack(model, x[0], y[0], 0.1, steps=2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [k for k, p in model.named_parameters() if not p.requires_grad] == ["fc1.weight"]
    assert all(p.grad is None for p in model.parameters())


def test_attack_with_no_room_or_no_clip():
    model, (x, y) = small(), images(5)
    assert torch.equal(magnitude_attack(model, x[0], y[0], 0.0), x[0])
    out = magnitude_attack(model, x[0], y[0], 1.0, clip=False)
    assert out.min() < -0.1 and out.max() > 1.1
    with pytest.raises(ValueError, match="`y` must hold labels from 0 to 9"):
        magnitude_attack(model, x[0], y[0] + 5)
    with pytest.raises(ValueError, match="`start` must have the shape"):
        magnitude_attack(model, x[0], y[0], start=x[0, :2])


@pytest.mark.parametrize("conv", [dict(), dict(stride=2, padding=1), dict(dilation=2), dict(groups=2, bias=False)])
def test_lean_convolutions_give_the_same_derivatives(conv):
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 32, 3, **conv), nn.Conv2d(32, 2, 3, padding="same")
    model = nn.Sequential(first, nn.Tanh(), second, nn.Flatten())
    model, x, y = model.double(), torch.rand(3, 2, 9, 9, dtype=torch.double, requires_grad=True), torch.arange(3)
    (g,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x, create_graph=True)
    (plain,) = torch.autograd.grad(g.square().sum(), x)
    with gp._still(model):
        torch.testing.assert_close(gp._steeper(model, x, y, None), plain, rtol=1e-9, atol=1e-12)


# Schedules


def test_schedules_are_those_of_the_report():
    assert linear_eps(0) == 0.1
    assert linear_eps(119) == pytest.approx(0.19917, abs=5e-6)
    model, seen = small(dtype=torch.float32), []

    class Look(Callback):
        order = LearningRate.order + 1

        def before_batch(self, learn):
            seen.append(learn.opt.param_groups[0]["lr"])

    x, y = images(2, dtype=torch.float32)
    dropen = DropenCallback(steps=0)
    fit(model, [(x[0], y[0])], LearningRate(report_rate), Look(), dropen, epochs=120, lr=1e-3)
    found = [seen.count(v) for v in dict.fromkeys(seen)]
    assert found == [41, 40, 39]
    assert list(dict.fromkeys(seen)) == pytest.approx([1e-3, 1e-4, 1e-5])
    assert dropen.frame.eps.iloc[[0, 119]].tolist() == pytest.approx([0.1, 0.1 + 0.1 * 119 / 120])


# The callback in a fit


def test_reused_gradients_are_those_of_another_pass():
    losses = {}
    for reuse in (True, False):
        watch = Watch()
        torch.manual_seed(3)
        one(small(), DropenCallback(reuse=reuse), watch, dtype=torch.double, epochs=3)
        losses[reuse] = watch.losses
    assert losses[True] == pytest.approx(losses[False], rel=1e-9)


def test_zero_weights_are_direct_training():
    plain, watched = small(0.5, torch.float32), small(0.5, torch.float32)
    for model, callbacks in ((plain, []), (watched, [DropenCallback(cosine=0.0, smoothness=0.0)])):
        torch.manual_seed(0)
        one(model, *callbacks, epochs=3)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters()))


def test_statistics_of_batch_norm_are_those_of_the_clean_pass():
    found = []
    for callbacks in ([], [DropenCallback(compare="masks")], [DropenCallback(derivative="finite_difference")]):
        torch.manual_seed(0)
        model = build("vgg11", blank(1, 8), width=4)
        one(model, *callbacks)
        found.append({k: v for k, v in model.state_dict().items() if "running" in k or "tracked" in k})
    assert found[0]
    for other in found[1:]:
        assert all(torch.equal(v, other[k]) for k, v in found[0].items())


def test_rectifiers_in_place_work_everywhere():
    losses = []
    for inplace in (False, True):
        torch.manual_seed(0)
        relu = nn.ReLU(inplace)
        model, watch = nn.Sequential(relu, nn.Conv2d(1, 3, 3), relu, nn.Flatten(), nn.Linear(108, 10)).double(), Watch()
        one(model, DropenCallback(), watch, dtype=torch.double, epochs=2)
        losses.append(watch.losses)
    assert losses[0] == losses[1]


def test_an_own_network_in_three_lines():
    set_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=10)
    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    dropen = DropenCallback(steps=1)
    Learner(model, torch.optim.Adam(model.parameters(), 1e-3), [dropen]).fit(1, [(x, y), (x, y)])
    assert dropen.frame.loc[0, "smoothness"] > 0 and 0 < dropen.frame.loc[0, "cosine"] <= 1


def test_two_masks_on_one_batch():
    set_seed(0)
    alike, apart = (DropenCallback(compare="masks", steps=0) for _ in range(2))
    for callback, dropout in ((alike, 0.01), (apart, 0.8)):
        one(small(dropout, torch.float32), callback, n=40, lr=0.0)
    assert 1 >= alike.frame.cosine[0] > apart.frame.cosine[0] > 0


def test_finite_differences_come_near_where_nothing_jumps():
    found = {}
    for how in (dict(), dict(derivative="finite_difference", h=1e-5)):
        watch, (x, y) = Watch(), images(8, batches=3)
        torch.manual_seed(3)
        model = small(0.3, act=nn.Tanh)
        fit(model, list(zip(x, y)), DropenCallback(**how), watch, lr=0.01)
        found[bool(how)] = watch
    assert found[True].losses == pytest.approx(found[False].losses, rel=1e-4)
    for a, b in zip(found[True].gradients, found[False].gradients):
        assert (a - b).norm() < 1e-3 * b.norm()


def test_warm_start_takes_up_the_last_moves():
    x, y = images(6, dtype=torch.float32)
    callback = DropenCallback(steps=2, warm_start=True, eps=0.1, last_eps=0.1)
    fit(small(dtype=torch.float32), [(x[0], y[0])], callback, epochs=2)
    start = callback.moves.start(x[0, 3:], 0.1)
    torch.testing.assert_close(start, callback.attacked, atol=0.1 / 127, rtol=0)
    assert (callback.moves.start(x[0, :3], 0.1) - x[0, :3]).abs().max() > 0.01  # never attacked: at random


def test_the_mean_cosine_is_over_batches_that_have_one():
    x, y = images(8, batches=3, dtype=torch.float32)
    callback, seen = DropenCallback(steps=0), []

    class Look(Callback):
        order = 20

        def after_loss(self, learn):
            if len(callback.memory):
                (g,) = torch.autograd.grad(F.cross_entropy(learn.logits, learn.yb), callback.leaf, retain_graph=True)
                seen.append(callback.memory.cosine(8 * g.flatten(1)).item())

    fit(small(dtype=torch.float32), list(zip(x, y)), callback, Look())
    assert len(seen) == 2 and callback.frame.cosine[0] == pytest.approx(sum(seen) / 2, rel=1e-5)


def test_images_are_changed_before_and_not_after():
    class Noise(Callback):
        def __init__(self, order):
            self.order = order

        def before_batch(self, learn):
            learn.xb = learn.xb * 0.5

    one(small(dtype=torch.float32), DropenCallback(steps=1), Noise(20))
    with pytest.raises(ValueError, match="give it an `order` below 30"):
        one(small(dtype=torch.float32), DropenCallback(steps=1), Noise(31))


# Checkpoints


class StopAfter(Callback):
    order = 95

    def __init__(self, epochs):
        self.epochs = epochs

    def after_epoch(self, learn):
        if learn.epoch == self.epochs:
            raise StopFit


class InTheMiddle(Checkpoint):
    "Keeps the state after the third batch."

    def before_epoch(self, learn):
        self.batches = 0

    def after_step(self, learn):
        self.batches += 1
        if self.batches == 3:
            super().after_epoch(learn)

    def after_epoch(self, learn): ...


def run(*callbacks, **how):
    generator = set_seed(4)
    model, data = small(0.5, torch.float32), load("digits").subset(100)
    batches = Batches(data.x_train, data.y_train, 20, generator=generator)
    opt = torch.optim.Adam(model.parameters(), 0.01)
    return Learner(model, opt, [DropenCallback(**how), LearningRate(report_rate), *callbacks]).fit(4, batches)


@pytest.mark.parametrize("how", [{}, dict(warm_start=True, steps=1), dict(derivative="finite_difference")])
def test_resume_is_exact(tmp_path, how):
    whole = run(**how)
    run(Checkpoint(tmp_path / "run.pt"), StopAfter(2), **how)
    resumed = run(Checkpoint(tmp_path / "run.pt"), StopAfter(9), **how)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters()))
    frames = [next(cb for cb in r.callbacks if isinstance(cb, DropenCallback)).frame for r in (whole, resumed)]
    assert frames[0].equals(frames[1])


def test_resume_in_the_middle_of_an_epoch_is_refused(tmp_path):
    run(InTheMiddle(tmp_path / "run.pt"))
    with pytest.raises(ValueError, match="got one from the middle, after 3 batches"):
        run(InTheMiddle(tmp_path / "run.pt"))


# What is not finite


@pytest.mark.parametrize("name", ["cross_entropy", "cosine", "smoothness"])
def test_a_loss_that_is_not_finite_names_step_and_term(tmp_path, name):
    torch.manual_seed(0)
    model, path, spoiled = build("vgg11", blank(1, 8), width=4), tmp_path / "run.pt", []
    loss = lambda z, y: F.cross_entropy(z, y) * (math.nan if spoiled and name == "cross_entropy" else 1)
    dropen, (x, y) = DropenCallback(steps=1), images(6, batches=2, dtype=torch.float32)
    learn = Learner(model, torch.optim.SGD(model.parameters(), 1e-4), [dropen, Checkpoint(path)], loss)
    learn.fit(1, list(zip(x, y)))
    kept, before = path.read_bytes(), {k: v.clone() for k, v in model.state_dict().items()}
    dropen.weights = dropen.weights | ({name: 1e39} if name != "cross_entropy" else {})
    spoiled.append(True)
    step = 2 if name == "cosine" else 1  # the first batch has no other to be compared with
    with pytest.raises(FloatingPointError, match=f"step {step} of epoch 2: the term `{name}`"):
        learn.fit(2, list(zip(x, y)))
    assert name == "cosine" or all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(v.isfinite().all() for v in model.state_dict().values())
    assert path.read_bytes() == kept


# What is refused


@pytest.mark.parametrize(
    "setting",
    [
        dict(eps=-0.1),
        dict(eps=1.5),
        dict(last_eps=8),
        dict(memory=0),
        dict(cosine=-1.0),
        dict(smoothness=-0.1),
        dict(steps=-1),
        dict(h=0.0),
        dict(compare="mask"),
        dict(derivative="approximate"),
        dict(compat=["normalised"]),
        dict(smoothness=math.nan),
    ],
)
def test_bad_settings_are_refused(setting):
    with pytest.raises((TypeError, ValueError), match=f"`{[*setting][0]}`"):
        DropenCallback(**setting)


class Probabilities(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small(dtype=torch.float32)

    def forward(self, x):
        return self.inner(x).softmax(1)


X, Y = (v[0] for v in images(8, dtype=torch.float32))


@pytest.mark.parametrize(
    "batch, message",
    [
        ((X[:1], Y[:1]), "at least 2 images each, half of them are attacked, got 1"),
        ((2 * X, Y), r"`batches` must lie in \[0, 1\]"),
        ((X * math.nan, Y), "`batches` must be finite"),
        ((X, Y + 5), "`batches` must hold labels from 0 to 9"),
        ((X, Y[:4]), "must hold 8 labels"),
        ((X, Y.float()), "must be int64"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_bad_batches_are_refused(batch, message, first):
    "In the first batch as in a later one."
    with pytest.raises((TypeError, ValueError), match=message):
        fit(small(dtype=torch.float32), [batch] if first else [(X, Y), batch], DropenCallback(steps=1))


def test_probabilities_and_detached_networks_are_refused():
    with pytest.raises(ValueError, match="got probabilities"):
        one(Probabilities(), DropenCallback())

    class Cut(nn.Sequential):
        def forward(self, x):
            return super().forward(x.detach())

    with pytest.raises(ValueError, match="no gradients of `model` reach the images"):
        one(Cut(nn.Flatten(), nn.Linear(64, 10)), DropenCallback())
    with pytest.raises(ModelError, match="a row of logits an image"):
        one(nn.Conv2d(1, 2, 3), DropenCallback())


def test_a_network_without_dropout():
    with pytest.warns(UserWarning, match="`model` has no dropout"):
        one(small(dtype=torch.float32), DropenCallback())
    with pytest.raises(ValueError, match="must have dropout where masks are compared"):
        one(small(dtype=torch.float32), DropenCallback(compare="masks"))

    class Functional(nn.Sequential):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, self.training)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one(Functional(nn.Flatten(), nn.Linear(64, 10)), DropenCallback())


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


def test_layers_without_a_second_derivative_are_named():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(1, 2, 3), Attention(), nn.Tanh())
    model = nn.Sequential(inner, nn.Flatten(), nn.Linear(72, 10))
    assert once_differentiable(model, X) == ["0.1"]
    with pytest.raises(ValueError, match=r"torch cannot do that for '0.1' \(Attention\)"):
        one(model, DropenCallback())
    callback = DropenCallback(derivative="finite_difference")
    one(model, callback)
    assert callback.frame.smoothness[0] > 0


def test_images_in_normalised_units():
    callback, x = DropenCallback(compat=["normalised_units"]), 3 * X - 0.4
    fit(small(dtype=torch.float32), [(x, Y)], callback)
    assert callback.attacked.min() == 0 and callback.attacked.max() == 1  # the report clips there as well


# Ensembles


def members(n=3):
    torch.manual_seed(7)
    net = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 10)).double()
    return Ensemble([net() for _ in range(n)])


def test_ensemble_answers_with_the_mean_of_the_probabilities():
    model, x = members(), images(5)[0]
    mean = sum(m(x[0]).softmax(1) for m in model.members) / 3
    torch.testing.assert_close(model(x[0]), mean.log())


def test_trs_equals_its_transcription():
    model, (x, y), watch = members(), images(6), Watch()
    torch.manual_seed(3)
    fit(model, [(x[0], y[0])], TRSCallback(smoothness=0.7), watch, lr=0.0)
    torch.manual_seed(3)
    x, y, nets = x[0], y[0], model.members
    a = (x[3:] + 0.1 * (2 * torch.rand_like(x[3:]) - 1)).clamp(0, 1)
    buffer = torch.zeros_like(a)
    for _ in range(6):
        a = a.detach().requires_grad_()
        gs = [torch.autograd.grad(F.cross_entropy(m(a), y[3:]), a, create_graph=True)[0] for m in nets]
        buffer = buffer + torch.autograd.grad(sum((g**2).sum() for g in gs), a)[0]
        a = torch.max(torch.min(a.detach() + 0.1 / 3 * buffer.sign(), x[3:] + 0.1), x[3:] - 0.1).clamp(0, 1)
    clean = [transcribed_gradient(m, x, y) for m in nets]
    steep = [transcribed_gradient(m, torch.cat([x[:3], a.detach()]), y)[1] for m in nets]
    cos = sum(transcribed_cos(clean[i][1], clean[j][1]) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    mag = sum((6 * g).square().sum() / 6 for g in steep) / 3
    loss = sum(ce for ce, _ in clean) + 10 * cos + 0.7 * mag
    assert watch.losses[0] == pytest.approx(loss.item(), rel=1e-9)
    flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(watch.gradients[0], flat, rtol=1e-7, atol=1e-10)


def test_adp_equals_its_transcription():
    model, (x, y), watch = members(), images(5), Watch()
    fit(model, [(x[0], y[0])], ADPCallback(), watch, lr=0.0)
    with torch.no_grad():
        p = torch.stack([m(x[0]).softmax(1) for m in model.members]).numpy()
    base = -np.log(p[:, np.arange(5), y[0].numpy()]).mean(1).sum()
    mean = p.mean(0)
    entropy, volume = -(mean * np.log(mean)).sum(1).mean(), 0.0
    for i, label in enumerate(y[0].tolist()):
        wrong = np.delete(p[:, i], label, axis=1)
        wrong = wrong / np.linalg.norm(wrong, axis=1, keepdims=True)
        volume += np.log(np.linalg.det(wrong @ wrong.T + 1e-6 * np.eye(3))) / 5
    assert watch.losses[0] == pytest.approx(base - 2 * entropy - 0.5 * volume, rel=1e-9)


@pytest.mark.parametrize("callback", [TRSCallback, ADPCallback])
def test_an_ensemble_is_wanted(callback):
    for model in (small(dtype=torch.float32), Ensemble([small(dtype=torch.float32)])):
        with pytest.raises(ValueError, match="`model` must be an Ensemble of at least 2 networks"):
            one(model, callback())


def test_no_hooks_are_left_behind():
    model = members().float()
    one(model, TRSCallback(steps=1))
    net = small(0.5, torch.float32)
    one(net, DropenCallback(derivative="finite_difference"))
    with pytest.raises(ValueError):
        fit(net, [(X, Y), (2 * X, Y)], DropenCallback(derivative="finite_difference"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for top in (model, net) for m in top.modules())
