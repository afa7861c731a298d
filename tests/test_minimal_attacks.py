"Smallest distances: exact where a closed form exists, in the picture, leaving no trace, equal to other libraries."

import copy
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from robustlit.attacks import Threat, attack_images
from robustlit.data import Batches, as_images, load
from robustlit.intake import ModelError
from robustlit.minimal_attacks import (
    JSMA,
    SMALLEST,
    Boundary,
    DeepFool,
    accuracy_by_distance,
    best_pair,
    boundary_step,
    dotted,
    smallest,
    smallest_found,
)
from robustlit.training import Learner, set_seed

CHEAP = dict(
    deepfool=dict(),
    jsma=dict(),
    carlini_wagner=dict(steps=60, searches=4, lr=0.05, c=0.1),
    boundary=dict(queries=300),
    ddn=dict(steps=40),
    fmn=dict(steps=40),
    fab=dict(steps=10),
    fab_t=dict(steps=5),
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run(name, net, x, y, seed=0, **options):
    return smallest(net, x, y, name, generator=generator(seed), **CHEAP[name] | options)


@pytest.fixture(scope="module")
def trained():
    set_seed(0)
    data = load("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))
    Learner(net, torch.optim.Adam(net.parameters(), lr=0.01)).fit(10, Batches(data.x_train, data.y_train, 100))
    return net.eval(), as_images(data.x_test[:60]), data.y_test[:60]


@pytest.fixture(scope="module")
def right(trained):
    "Only the images that the network gets right."
    net, x, y = trained
    with torch.no_grad():
        keep = net(x).argmax(1) == y
    return net, x[keep], y[keep]


def linear(classes):
    "Logits W x + b on images whose pixels stay far from 0 and 1, labels as given, and the exact smallest distance."
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, classes)).double()
    x = 0.4 + 0.2 * torch.rand(30, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        z, w = net(x), net[1].weight
        y = z.argmax(1)
        length = (w[y][:, None] - w).norm(dim=2)
        exact = ((z.amax(1, keepdim=True) - z) / length).masked_fill(length == 0, math.inf).amin(1)
    return net, x, y, exact


@pytest.mark.parametrize("name", SMALLEST)
def test_images_stay_in_the_picture_and_what_is_said_of_them_is_true(trained, name):
    net, x, y = trained
    wrong = y.clone()
    wrong[:5] = (y[:5] + 1) % 10
    f = run(name, net, x, wrong)
    with torch.no_grad():
        clean, after = net(x).argmax(1), net(f.x).argmax(1)
    assert f.x.min() >= 0 and f.x.max() <= 1 and f.x.shape == x.shape
    assert torch.equal(f.clean, clean) and torch.equal(f.predicted, after)
    assert torch.equal(f.success, after != wrong) and f.success.double().mean() > 0.9
    move = (f.x - x).flatten(1).abs()
    for far, by_hand in ((f.l0, (move > 1e-6).sum(1)), (f.l2, move.norm(dim=1)), (f.linf, move.amax(1))):
        assert torch.allclose(far[f.success], by_hand[f.success].double()) and far[~f.success].isinf().all()
    free = clean != wrong
    assert free.sum() >= 5 and torch.equal(f.x[free], x[free]) and torch.equal(f.x[~f.success], x[~f.success])
    for column in (f.l0, f.l2, f.linf, f.gradients, f.queries):
        assert (column[free] == 0).all()
    assert (f.l2[~free] > 0).all() and (f.queries[~free] > 0).all()
    assert (f.gradients[~free] > 0).all() == (name != "boundary")
    rows = f.table()
    assert rows.columns.tolist() == "image success l0 l2 linf clean predicted gradients queries".split()
    assert rows["l2"].tolist() == f.l2.tolist() and rows["image"].tolist() == list(range(60))


def test_deepfool_is_exact_on_a_linear_network():
    net, x, y, exact = linear(4)
    for overshoot in (0.02, 0.05):
        f = smallest(net, x, y, overshoot=overshoot, nudge=0)
        assert torch.allclose(f.l2, (1 + overshoot) * exact, rtol=1e-9) and (f.gradients == 8).all()
    f = smallest(net, x, y)
    assert torch.allclose(f.l2, 1.02 * (exact + 1e-4), rtol=1e-9)


def test_carlini_wagner_comes_near_the_exact_distance():
    net, x, y, exact = linear(4)
    f = smallest(net, x, y, "carlini_wagner", lr=5e-3)
    ratio = f.l2 / exact
    assert ratio.min() >= 1 - 1e-9 and ratio.median() < 1.02 and ratio.mean() < 1.03


def test_boundary_approaches_the_exact_distance_from_above():
    net, x, y, exact = linear(2)
    medians = []
    for queries in (200, 500, 1500):
        f = smallest(net, x, y, "boundary", generator=generator(), queries=queries)
        assert f.success.all() and (f.l2 >= exact).all() and (f.queries <= queries + 2).all()
        medians.append((f.l2 / exact).median().item())
    assert medians[0] > medians[1] > medians[2] and medians[2] < 1.01


def test_jsma_follows_a_transcription(right):
    "One image at a time, one pixel at a time, with lists."
    net, x, y = copy.deepcopy(right[0]).double(), right[1][:12].double(), right[2][:12]
    for direction in ("both", "up"):
        f = smallest(net, x, y, "jsma", direction=direction)
        for i in range(len(x)):
            a, left, goal, done = x[[i]].clone(), [7] * 64, None, False
            for _ in range(500):
                jacobian = torch.autograd.functional.jacobian(lambda v: net(v)[0], a).view(10, 64)
                z = net(a)[0].tolist()
                if goal is None:
                    goal = max((k for k in range(10) if k != y[i]), key=z.__getitem__)
                if np.argmax(z) != y[i]:
                    done = True
                    break
                best, pixel, sign = 0.0, None, 0
                for p in range(64):
                    alpha = jacobian[goal, p].item()
                    beta = sum(jacobian[k, p].item() for k in range(10) if k != goal)
                    value, now = -alpha * beta, a.view(-1)[p].item()
                    room = now < 1 if alpha > 0 else now > 0 and direction == "both"
                    if value > best and room and left[p]:
                        best, pixel, sign = value, p, 1 if alpha > 0 else -1
                if pixel is None:
                    break
                left[pixel] -= 1
                a.view(-1)[pixel] = min(1, max(0, a.view(-1)[pixel].item() + 0.1 * sign))
            assert f.success[i].item() == done
            if done:
                assert torch.allclose(f.x[[i]], a, atol=1e-9)


def test_jsma_keeps_its_bounds(right):
    net, x, y = right
    f = smallest(net, x, y, "jsma", theta=0.1, changes=3)
    assert ((f.x - x).abs() <= 0.3 + 1e-6).all()
    up, down = (smallest(net, x, y, "jsma", direction=d).x - x for d in ("up", "down"))
    assert (up >= 0).all() and (down <= 0).all()
    few = smallest(net, x, y, "jsma", steps=2, pixels=2)
    assert few.l0[few.success].max() <= 4
    goal = Threat(net, x, y, target="runner_up").target
    f = smallest(net, x, y, "jsma", target="runner_up")
    assert torch.equal(f.success, f.predicted == goal) and f.success.double().mean() > 0.9


def test_best_pair_by_hand(monkeypatch):
    torch.manual_seed(0)
    alpha, beta = torch.randn(2, 9, 7)
    up, down = torch.rand(2, 9, 7) > 0.3
    value, at = best_pair(alpha, beta, up, down)
    for i in range(9):
        best = 0.0
        for p in range(7):
            for q in range(7):
                a, b = alpha[i, p] + alpha[i, q], beta[i, p] + beta[i, q]
                may = up[i, p] & up[i, q] if a > 0 else down[i, p] & down[i, q]
                if p != q and may and a * b < 0:
                    best = max(best, (a * b).abs().item())
        assert value[i].item() == pytest.approx(best, rel=1e-5) and at[i, 0] != at[i, 1]


def test_deepfool_at_the_edge_of_the_pixel_range(right):
    net, x, y = right
    inside, end = smallest(net, x, y), smallest(net, x, y, clip_steps=False)
    free = smallest(net, x, y, clip=False)
    assert inside.success.all() and free.success.all() and end.success.double().mean() < 0.5
    assert free.x.min() < 0 and (end.x.min() >= 0) and (end.x.max() <= 1)
    assert free.l2.median() < inside.l2.median()
    look = smallest(net, x, y, clip=False, look="clean", overshoot=0.05, nudge=0)
    assert look.success.all() and not torch.allclose(look.x, free.x, atol=1e-3)


def test_targets(right):
    net, x, y = right
    target = (y + 1) % 10
    for name in ("jsma", "carlini_wagner", "boundary"):
        more = dict(starts=x) if name == "boundary" else {}
        any_class, f = (run(name, net, x, y, batch_size=25, **more, **t) for t in (dict(), dict(target=target)))
        assert torch.equal(f.success, f.predicted == target) and f.success.double().mean() > 0.7
        assert f.l2.median() > any_class.l2.median()
    with pytest.raises(ValueError, match="`target` is not for 'deepfool'"):
        smallest(net, x, y, target=target)


def test_kappa_asks_for_more(right):
    net, x, y = right
    near, far = (smallest(net, x, y, "carlini_wagner", steps=100, lr=0.05, kappa=k) for k in (0.0, 2.0))
    with torch.no_grad():
        z = net(far.x)
    ahead = z.amax(1) - z.gather(1, y[:, None])[:, 0]
    assert (ahead[far.success] >= 2 - 1e-4).all() and far.l2.median() > near.l2.median()


def test_abort_saves_and_costs_little(right):
    net, x, y = right
    full, early = (run("carlini_wagner", net, x, y, steps=200, searches=6, abort=a) for a in (False, True))
    assert (full.gradients == 1200).all() and early.gradients.sum() < full.gradients.sum()
    assert early.l2.median() <= 1.05 * full.l2.median()


@pytest.mark.parametrize("name", SMALLEST)
def test_an_image_meets_the_same_attack_alone_and_in_company(right, name):
    net, x, y = copy.deepcopy(right[0]).double(), right[1].double(), right[2]
    whole, parts = (run(name, net, x, y, batch_size=size) for size in (60, 7))
    assert torch.allclose(whole.l2, parts.l2, rtol=1e-6) and torch.equal(whole.gradients, parts.gradients)


def test_generator_decides(right):
    a, b, c = (run("boundary", *right, seed=s).x for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    state = torch.get_rng_state()
    run("boundary", *right)
    assert torch.equal(state, torch.get_rng_state())


class Blind(nn.Module):
    "Only says which class, and counts how often."

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0

    @torch.no_grad()
    def forward(self, x):
        self.calls += 1
        return nn.functional.one_hot(self.net(x).argmax(1), 10).float()


def test_boundary_needs_the_answer_only(right):
    net, x, y = right
    f, blind = run("boundary", net, x, y), run("boundary", Blind(net), x, y)
    assert torch.allclose(f.l2, blind.l2) and f.gradients.sum() == 0 and f.queries.max() <= 302
    for name in ("deepfool", "jsma", "carlini_wagner"):
        with pytest.warns(UserWarning, match="no gradient of `model` reaches the images"):
            found = run(name, Blind(net), x, y)
        # Adam turns the rounding of the distance into steps, so Carlini and Wagner's attack stumbles over the border
        won = found.success if name == "carlini_wagner" else found.success.new_zeros(len(y))
        assert torch.equal(found.success, won) and (net(found.x).argmax(1) != y)[won].all()


def test_boundary_starts(right):
    net, x, y = right
    f = smallest(net, x, y, "boundary", starts=x, queries=len(x) + 13, generator=generator())
    pool = (y[:, None] == y).double() * 1e9 + torch.cdist(x.flatten(1), x.flatten(1))
    assert f.success.all() and (f.l2 <= pool.amin(1) + 1e-4).all()
    nobody = smallest(net, x[y == 3], y[y == 3], "boundary", starts=x[y == 3], queries=100)
    assert nobody.l2.isinf().all() and torch.equal(nobody.x, x[y == 3])
    with pytest.raises(ValueError, match="`starts` must be images of shape"):
        smallest(net, x, y, "boundary", starts=torch.zeros(3, 1, 4, 4))
    d = dotted(500, (1, 6, 6))
    assert set(d.unique().tolist()) == {0, 1} and d.mean((1, 2, 3)).std() > 0.2


def test_boundary_step_is_on_the_sphere():
    torch.manual_seed(0)
    x, a, noise = torch.rand(3, 5, 2, 4, 4, dtype=torch.float64)
    across, towards = torch.rand(2, 5, dtype=torch.float64)
    sphere, new = boundary_step(x, a, noise, across, towards)
    d, on, nearer = ((v - x).flatten(1) for v in (a, sphere, new))
    assert torch.allclose(on.norm(dim=1), d.norm(dim=1))
    assert torch.allclose(nearer.norm(dim=1), (1 - towards) * d.norm(dim=1))
    cosine = (on * d).sum(1) / d.norm(dim=1) ** 2
    assert torch.allclose(cosine, (1 + across**2) ** -0.5)


def test_the_curve(right):
    net, x, y = right
    rows = pd.concat([run(n, net, x, y).table().assign(attack=n) for n in ("deepfool", "boundary")])
    rows.loc[rows["image"] == 3, ["l2"]] = math.inf
    for norm in ("l0", "l2", "linf"):
        curve = accuracy_by_distance(rows, norm=norm, by=["attack"])
        for _, part in curve.groupby("attack"):
            assert part["accuracy"].is_monotonic_decreasing and part["distance"].is_monotonic_increasing
            assert part["accuracy"].iloc[0] == 100 and (part["images"] == len(x)).all()
    assert accuracy_by_distance(rows)["accuracy"].iloc[-1] == pytest.approx(100 / len(x))
    at = accuracy_by_distance(pd.DataFrame(dict(l2=[0.0, 0.5, 1.0, math.inf])), [0, 0.5, 0.7, 2])
    assert at["accuracy"].tolist() == [75, 50, 50, 25]
    assert accuracy_by_distance(pd.DataFrame(dict(l2=[0.0, 0.5])), 0.2)["accuracy"].tolist() == [50]


def test_the_curve_and_pgd_agree(right):
    net, x, y = right
    rows = pd.concat([run(n, net, x, y).table() for n in ("deepfool", "carlini_wagner")])
    best = rows.groupby("image", as_index=False)[["l2"]].min()
    for eps in (0.3, 0.6):
        pgd = attack_images(net, x, y, eps, "pgd", norm="l2", steps=60, relative_step=0.05, generator=generator())
        ours = accuracy_by_distance(best, eps)["accuracy"].item()
        assert abs(ours - 100 * pgd.correct.double().mean().item()) <= 6


class Breaks(nn.Module):
    "Raises at the third look."

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 3:
            raise KeyError("third")
        return self.net(x)


@pytest.mark.parametrize("name", SMALLEST)
def test_the_network_is_as_it_was(right, name):
    net, x, y = copy.deepcopy(right[0]).train(), right[1], right[2]
    net[1].eval()
    net[4].bias.requires_grad_(False)
    net[1].weight.grad = torch.ones_like(net[1].weight)
    state, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    image = x.clone()
    for module in (net, Breaks(net)):
        if module is net:
            run(name, module, x, y)
            with torch.inference_mode():
                run(name, module, x.clone(), y)
        else:
            with pytest.raises(ModelError, match="KeyError: 'third'"):
                run(name, module, x, y)
        assert [m.training for m in net.modules()] == modes and torch.equal(x, image)
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        assert not net[4].bias.requires_grad and net[1].weight.requires_grad
        assert net[4].weight.grad is None and torch.equal(net[1].weight.grad, torch.ones_like(net[1].weight))


def test_as_is_leaves_running_statistics(right):
    _, x, y = right
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    before = net[0].running_mean.clone()
    smallest(net, x, y, mode="as_is", steps=3)
    assert torch.equal(net[0].running_mean, before) and net.training


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(attack="deepfoll"), ValueError, "did you mean 'deepfool'"),
        (dict(attack=3), TypeError, "`attack`"),
        (dict(step=3), ValueError, "did you mean 'steps'"),
        (dict(steps=0), ValueError, "`steps` must be a whole number >= 1"),
        (dict(overshoot=-1), ValueError, "`overshoot`"),
        (dict(candidates=1), ValueError, "`candidates`"),
        (dict(look="back"), ValueError, "`look`"),
        (dict(attack="jsma", pixels=3), ValueError, "`pixels`"),
        (dict(attack="jsma", theta=0), ValueError, "`theta`"),
        (dict(attack="jsma", of="odds"), ValueError, "`of`"),
        (dict(attack="carlini_wagner", c="small"), TypeError, "`c`"),
        (dict(attack="carlini_wagner", kappa=-1), ValueError, "`kappa`"),
        (dict(attack="boundary", queries=100), ValueError, "`queries` must be a whole number >= 113"),
        (dict(attack="jsma", target=torch.zeros(3, dtype=torch.int64)), ValueError, "`target` must hold"),
        (dict(x=255 * torch.ones(1, 1, 8, 8)), ValueError, "must lie in"),
        (dict(y=torch.full((60,), 12)), ValueError, "labels from 0 to 9"),
        (dict(y=torch.zeros(60)), TypeError, "int64"),
        (dict(model="net"), TypeError, "`model`"),
        (dict(batch_size=0), ValueError, "`batch_size`"),
        (dict(norm="l2"), ValueError, "option of deepfool"),
    ],
)
def test_bad_input_is_refused_in_words(trained, change, error, words):
    net, x, y = trained
    with pytest.raises(error, match=words):
        smallest(**dict(model=net, x=x, y=y) | change)


def test_bad_rows_are_refused_in_words():
    rows = pd.DataFrame(dict(l2=[1.0, math.nan]))
    with pytest.raises(ValueError, match="no NaN"):
        accuracy_by_distance(rows)
    with pytest.raises(ValueError, match="lacks linf"):
        accuracy_by_distance(rows, norm="linf")
    with pytest.raises(ValueError, match="`norm`"):
        accuracy_by_distance(rows, norm="l3")
    with pytest.raises(ValueError, match="`distances`"):
        accuracy_by_distance(rows, [-1])
    with pytest.raises(ValueError, match="at least one image"):
        accuracy_by_distance(rows[:0])


def test_an_attack_of_ones_own(right):
    net, x, y = right

    def grey(search, s, r):
        s.a = torch.full_like(s.a, 0.5)
        search.record(s)

    f = smallest(net, x, y, grey)
    assert torch.equal(f.x[f.success], torch.full_like(f.x[f.success], 0.5)) and 0 < f.success.sum() < len(x)
    same = smallest_found(Threat(net, x, y), DeepFool(steps=20))
    assert torch.equal(same.x, smallest(net, x, y, DeepFool(steps=20)).x)
    assert isinstance(SMALLEST["jsma"](), JSMA) and Boundary(200).queries == 200


def test_foolbox_finds_the_same(right):
    foolbox = pytest.importorskip("foolbox")
    warnings.simplefilter("ignore")
    net, x, y = right
    fa, model = foolbox.attacks, foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    grey = 0.3 + 0.4 * x
    with torch.no_grad():
        keep = net(grey).argmax(1) == y
    theirs = fa.L2DeepFoolAttack(steps=100)(model, grey[keep], y[keep], epsilons=None)[1]
    assert keep.sum() > 10 and torch.allclose(smallest(net, grey[keep], y[keep]).x, theirs, atol=1e-4)
    cw = fa.L2CarliniWagnerAttack(6, 100, 0.02, 0, 0.1, abort_early=False)
    for attack, options, made in (
        ("deepfool", dict(), fa.L2DeepFoolAttack(steps=100)),
        ("carlini_wagner", dict(searches=6, steps=100, lr=0.02, c=0.1, abort=False), cw),
    ):
        a = made(model, x, y, epsilons=None)[1]
        f, far = smallest(net, x, y, attack, **options), (a - x).flatten(1).norm(dim=1)
        assert f.l2.median().item() == pytest.approx(far.median().item(), rel=0.01)
        assert ((a - f.x).abs().flatten(1).amax(1) < 0.02).double().mean() > 0.9  # foolbox clips the sum of steps
    torch.manual_seed(0)
    far = (fa.BoundaryAttack(steps=1200)(model, x, y, epsilons=None)[1] - x).flatten(1).norm(dim=1)
    assert run("boundary", net, x, y, queries=1300).l2.median() <= 1.02 * far.median()


def test_torchattacks_finds_the_same(right):
    torchattacks = pytest.importorskip("torchattacks")
    net, x, y = right
    grey = 0.3 + 0.4 * x
    with torch.no_grad():
        keep = net(grey).argmax(1) == y
    theirs = torchattacks.DeepFool(net, steps=20)(grey[keep], y[keep]).detach()
    assert torch.allclose(smallest(net, grey[keep], y[keep], nudge=0, steps=20).x, theirs, atol=1e-4)
    looks = []
    handle = net.register_forward_hook(lambda *_: looks.append(1))
    theirs = torchattacks.CW(net, c=1, steps=200, lr=0.02)(grey[keep], y[keep]).detach()
    handle.remove()
    options = dict(searches=1, c=1.0, lr=0.02, abort=False, steps=len(looks))  # it stops when the batch's cost rises
    f = smallest(net, grey[keep], y[keep], "carlini_wagner", **options)
    same = (theirs - f.x).abs().flatten(1).amax(1) < 1e-3
    assert f.success.all() and same.double().mean() > 0.85
