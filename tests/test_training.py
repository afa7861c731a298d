"Training: exact resume after a kill, modes and weights left as they were, callbacks in order."

import subprocess
import sys

import pytest
import torch
from torch import nn

from robustlit.data import Batches, load
from robustlit.evaluation import accuracy, eval_mode, evaluate
from robustlit.training import (
    Callback,
    Checkpoint,
    Learner,
    Recorder,
    StopFit,
    pick_device,
    save_atomically,
    set_seed,
)

SCRIPT = """
import os, sys, torch
from torch import nn
from robustlit.data import Batches, load
from robustlit.metaplasticity.layers import binary_mlp
from robustlit.metaplasticity.optimizer import MetaplasticAdam
from robustlit.training import Callback, Checkpoint, Learner, Recorder, set_seed

path, kill_at = sys.argv[1], int(sys.argv[2])

class Die(Callback):
    def after_backward(self, learn):
        if learn.epoch == kill_at: os._exit(9)

data, generator = load("digits"), set_seed(7)
net = nn.Sequential(nn.Dropout(0.1), *binary_mlp(64, (32,)))
learn = Learner(net, MetaplasticAdam(net.parameters()), [Recorder(), Die(), Checkpoint(path + "/run.pt")])
learn.fit(4, Batches(data.x_train, data.y_train, 50, generator=generator))
torch.save(dict(net=net.state_dict(), rows=learn.callbacks[1].rows), path + "/end.pt")
"""


def script(path, kill_at):
    path.mkdir(exist_ok=True)
    return subprocess.run([sys.executable, "-c", SCRIPT, str(path), str(kill_at)], timeout=300).returncode


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    assert script(tmp_path / "whole", -1) == 0
    assert script(tmp_path / "cut", 2) == 9
    assert not (tmp_path / "cut" / "end.pt").exists()
    assert script(tmp_path / "cut", -1) == 0
    whole, cut = (torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(whole["net"][k], cut["net"][k]) for k in whole["net"])
    assert whole["rows"] == cut["rows"] and len(whole["rows"]) == 4


@pytest.fixture
def digits():
    return load("digits")


def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def test_evaluation_leaves_modes_and_statistics_alone_even_after_an_error(digits):
    set_seed(0)
    net = small().train()
    net[2].eval()
    before = [t.clone() for t in net.state_dict().values()]
    accuracy(net, digits.x_test, digits.y_test)
    with pytest.raises(ZeroDivisionError), eval_mode(net):
        assert not net.training
        raise ZeroDivisionError
    assert [m.training for m in net] == [True, True, False, True, True] and net.training
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values()))


def test_callbacks_act_in_their_order_and_cleanup_follows_an_error(digits):
    seen = []

    class Note(Callback):
        def __init__(self, order, fail=False):
            self.order, self.fail = order, fail

        def after_loss(self, learn):
            seen.append(self.order)
            if self.fail:
                raise RuntimeError("no")

        def after_fit(self, learn):
            seen.append(f"end {self.order}")

    net = small()
    learn = Learner(net, torch.optim.SGD(net.parameters(), 0.1), [Note(3, fail=True), Note(1), Note(2)])
    with pytest.raises(RuntimeError):
        learn.fit(1, Batches(digits.x_train, digits.y_train))
    assert seen == [1, 2, 3, "end 1", "end 2", "end 3"]


def test_a_penalty_joins_the_loss_through_a_callback(digits):
    class Shrink(Callback):
        def after_loss(self, learn):
            learn.loss = learn.loss + 10 * sum(p.square().sum() for p in learn.model.parameters())

    sizes = []
    for callbacks in ([], [Shrink()]):
        generator = set_seed(0)
        net = small()
        fit = Learner(net, torch.optim.SGD(net.parameters(), 0.01), callbacks)
        fit.fit(2, Batches(digits.x_train, digits.y_train, generator=generator))
        sizes.append(sum(p.square().sum().item() for p in net.parameters()))
    assert sizes[1] < 0.1 * sizes[0]


def test_early_stop_keeps_what_was_learned(digits):
    class Enough(Callback):
        order = 70

        def after_epoch(self, learn):
            if learn.epoch == 2:
                raise StopFit

    net, rec = small(), Recorder(valid=Batches(digits.x_valid, digits.y_valid, shuffle=False))
    Learner(net, torch.optim.Adam(net.parameters()), [rec, Enough()]).fit(9, Batches(digits.x_train, digits.y_train))
    assert rec.frame.epoch.tolist() == [1, 2]
    assert set(rec.frame) >= {"train_loss", "train_accuracy", "valid_loss", "valid_accuracy"}


# NaN on the way


def normed() -> nn.Sequential:
    set_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def four_batches() -> list:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(10, 1, 8, 8, generator=generator), torch.arange(10)) for _ in range(4)]


class At(Callback):
    "Does something at one moment of one step, and keeps the network as it was then."

    def __init__(self, moment, step, do):
        self.step, self.steps, self.do = step, 0, do
        setattr(self, moment, self.act)

    def act(self, learn):
        self.steps += 1
        if self.steps == self.step:
            self.do(learn)
            self.kept = {k: v.clone() for k, v in learn.model.state_dict().items()}


def bad_pixel(learn):
    learn.xb[4, 0, 3, 3] = torch.nan


def bad_slope(learn):
    learn.loss = learn.loss + (0 * learn.model[1].bias).sum().sqrt()


def bad_weight(learn):
    learn.model[4].weight.data[2, 3] = torch.inf


SPOILED = [
    ("before_batch", bad_pixel, "the gradient of `4.bias` holds"),
    ("after_loss", bad_slope, "the gradient of `1.bias` holds"),
    ("before_batch", bad_weight, "`4.weight` holds"),
]


@pytest.mark.parametrize("moment, do, named", SPOILED, ids=[c[1].__name__ for c in SPOILED])
def test_a_step_through_nan_is_not_made_and_is_named(moment, do, named):
    net, spoil, steps = normed(), At(moment, 7, do), At("after_step", 0, None)
    learn = Learner(net, torch.optim.Adam(net.parameters()), [spoil, steps])
    with pytest.raises(FloatingPointError, match=f"at step 3 of epoch 2: {named} NaN or infinity") as told:
        learn.fit(5, four_batches())
    assert "\n" not in str(told.value) and steps.steps == 6
    if moment == "before_batch":  # before the forward pass, which moves the statistics of batch norm
        assert all(torch.equal(v, spoil.kept[k]) for k, v in net.state_dict().items())
    assert do is bad_weight or all(v.isfinite().all() for v in net.state_dict().values())


def test_a_weight_that_a_step_makes_infinite_is_found_before_anything_is_saved(tmp_path):
    net, spoil = normed(), At("after_step", 8, bad_weight)
    learn = Learner(net, torch.optim.Adam(net.parameters()), [spoil, Checkpoint(tmp_path / "run.pt")])
    with pytest.raises(FloatingPointError, match="after the last step of epoch 2: `4.weight` holds"):
        learn.fit(3, four_batches())
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    assert saved["epoch"] == 1 and all(v.isfinite().all() for v in saved["model"].values())


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_a_finite_training_has_the_weights_of_the_plain_loop(make):
    nets = [normed(), normed()]
    Learner(nets[0], make(nets[0].parameters(), lr=0.01)).fit(3, four_batches())
    opt = make(nets[1].parameters(), lr=0.01)
    for _ in range(3):
        for x, y in four_batches():
            opt.zero_grad()
            nn.functional.cross_entropy(nets[1](x), y).backward()
            opt.step()
    both = zip(nets[0].state_dict().values(), nets[1].state_dict().values())
    assert all(torch.equal(a, b) for a, b in both)


def test_a_parameter_that_is_not_trained_may_have_any_gradient():
    net = normed()
    learn = Learner(net, torch.optim.SGD(net[4].parameters(), 0.01), [At("after_loss", 3, bad_slope)])
    assert learn.fit(2, four_batches()).epoch == 2


def test_a_failed_save_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "a.pt"
    save_atomically(dict(a=1), path)
    with pytest.raises(Exception):  # noqa: B017 - pickle's error depends on its version
        save_atomically(dict(a=lambda: 0), path)
    assert torch.load(path) == dict(a=1) and [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path, digits):
    batches = Batches(digits.x_train, digits.y_train)
    for callbacks in ([Checkpoint(tmp_path / "a.pt")], [Recorder(), Checkpoint(tmp_path / "a.pt")]):
        net = small()
        learn = Learner(net, torch.optim.Adam(net.parameters()), callbacks)
        if len(callbacks) == 1:
            learn.fit(1, batches)
        else:
            with pytest.raises(ValueError, match="other callbacks"):
                learn.fit(1, batches)


def test_a_perfect_and_a_blind_network_score_as_they_should():
    y = torch.arange(10).repeat(3)
    x = nn.functional.one_hot(y, 10).mul(255).byte().view(30, 1, 1, 10)
    assert accuracy(nn.Flatten(), x, y) == 100
    blind = evaluate(nn.Sequential(nn.Flatten(), nn.Linear(10, 10, bias=False).requires_grad_(False)), [(x * 0.0, y)])
    assert blind["loss"] == pytest.approx(2.302585, abs=1e-5) and blind["n"] == 30


REFUSED = [
    (lambda: set_seed(-1), "`seed`"),
    (lambda: pick_device("cudda"), "`name` is unknown"),
    (lambda: evaluate(nn.Flatten(), []), "at least one image"),
    (lambda: Checkpoint("a.pt", every=0), "`every`"),
    (lambda: Learner(small(), torch.optim.SGD(small().parameters())).fit(-1, []), "`epochs`"),
]


@pytest.mark.parametrize("call, message", REFUSED, ids=[m for _, m in REFUSED])
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError) as e:
        call()
    assert message in str(e.value)
