"Evaluation: which answers are right, that nothing is left behind, and that all who measure accuracy agree."

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlit.data import Batches, as_images, load
from robustlit.evaluation import (
    accuracy,
    accuracy_of,
    answers,
    calibration_error,
    check_model,
    correct,
    eval_mode,
    evaluate,
    logits_of,
    measures,
)
from robustlit.faults import fault_curve
from robustlit.intake import ModelError
from robustlit.masking import Subject
from robustlit.stressors import stress
from robustlit.training import Learner, Recorder, set_seed


@pytest.fixture(scope="module")
def data():
    return load("digits")


@pytest.fixture
def pair(data):
    return as_images(data.x_test[:90]), data.y_test[:90]


@pytest.fixture(scope="module")
def trained(data):
    set_seed(0)
    layers = nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.4), nn.Linear(32, 10)
    net = nn.Sequential(nn.Flatten(), *layers)
    Learner(net, torch.optim.Adam(net.parameters(), lr=0.01)).fit(5, Batches(data.x_train, data.y_train, 100))
    return net


@pytest.fixture
def net(trained):
    "In training mode but for its batch norm, which is frozen."
    trained.train()
    trained[2].eval()
    return trained


def modes(net):
    return [m.training for m in net.modules()]


def by_hand(net, x, y):
    "Percent right, image by image, from plain lists."
    was = modes(net)
    net.eval()
    rows = [net(a[None])[0].tolist() for a in x]
    for m, mode in zip(net.modules(), was):
        m.training = mode
    return 100 * sum(max(range(10), key=row.__getitem__) == label for row, label in zip(rows, y.tolist())) / len(y)


# Everybody who measures accuracy, each as the other modules call it


class Gives(nn.Module):
    "Looks its logits up by the first pixel, which numbers the images."

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x):
        return self.logits[(1000 * x[:, 0, 0, 0].float()).round().long()]


def doors(logits, y):
    "The accuracy of these logits by every door; training is none for logits that stop it."
    x = torch.zeros(len(y), 1, 1, 2)
    x[:, 0, 0, 0] = torch.arange(len(y)) / 1000
    net, batches = Gives(logits.clone()), list(zip(x.split(7), y.split(7)))
    found = dict(evaluate=evaluate(net, batches)["accuracy"], accuracy=accuracy(net, x, y, 11))
    found |= dict(measures=measures(logits_of(net, x), y)["accuracy"], answers=answers(logits, y)["accuracy"])
    found |= dict(audit=Subject(net, x, y, 0.1, 0).percent(x))
    if logits.isfinite().all():
        recorder = Recorder()
        learn = Learner(net, torch.optim.SGD(net.parameters(), lr=0.0), [recorder], lambda z, y: z.float().sum() * 0)
        learn.fit(1, batches)
        found |= dict(recorder=recorder.rows[0]["train_accuracy"])
    found["faults"] = fault_curve(net, x, y, rates=[0], draws=1).accuracy.item()
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_all_doors_agree_and_none_rounds_logits_away(dtype, scale):
    logits = (scale * torch.randn(300, 10, generator=torch.Generator().manual_seed(0))).to(dtype)
    y = torch.tensor([max(range(10), key=row.__getitem__) for row in logits.double().tolist()])
    assert set(doors(logits, y).values()) == {100}
    y[::3] = (y[::3] + 1) % 10
    found = doors(logits, y)
    assert found == pytest.approx(dict.fromkeys(found, 100 * 2 / 3), rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_wrong_at_every_door(bad):
    logits, y = torch.eye(10)[torch.arange(40) % 10], torch.arange(40) % 10
    logits[::4] = bad
    found = doors(logits, y)
    assert found == pytest.approx(dict.fromkeys(found, 75), rel=1e-6)
    logits[:] = bad
    assert set(doors(logits, torch.zeros(40, dtype=torch.int64)).values()) == {0}


def test_a_network_of_nan_is_wrong_about_class_zero_too(data, trained):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net[1].weight.fill_(float("nan"))
    zeros = data.y_test == 0
    assert accuracy(net, data.x_test[zeros], data.y_test[zeros]) == 0
    got = measures(logits_of(net, data.x_test), data.y_test)
    assert (got["accuracy"], got["low"], got["ece"]) == (0, 0, 0) and got["high"] < 2 and np.isfinite(got["loss"])
    assert answers(logits_of(net, data.x_test), data.y_test)["most_given"] == 0


# Numbers by hand


def test_accuracy_and_loss_by_hand(net, data, pair):
    x, y = pair
    hand = by_hand(net, x, y)
    assert 70 < hand < 100
    assert accuracy(net, x, y, 13) == accuracy(net, data.x_test[:90], y) == pytest.approx(hand)
    got = evaluate(net, [(x[:80], y[:80]), (x[80:], y[80:])])
    with eval_mode(net):
        log_p = net(x).double().log_softmax(1)
    assert got == pytest.approx(dict(loss=-float(log_p[range(90), y].mean()), accuracy=hand, n=90))
    row = measures(logits_of(net, x), y)
    assert row["accuracy"] == pytest.approx(hand) and row["loss"] == pytest.approx(got["loss"]) and row["n"] == 90
    p, z, n = hand / 100, 1.959964, 90
    middle, half = (p + z * z / (2 * n)), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    ends = [100 * (middle + s * half) / (1 + z * z / n) for s in (-1, 1)]
    assert [row["low"], row["high"]] == pytest.approx(ends, rel=1e-5)


def test_calibration():
    sure = np.array([0.9] * 10 + [0.6] * 10)
    right = np.array([1] * 9 + [0] + [1] * 6 + [0] * 4)
    assert calibration_error(sure, right) == pytest.approx(0)
    assert calibration_error(np.ones(10), np.zeros(10)) == pytest.approx(100)
    with pytest.raises(ValueError, match="`bins`"):
        calibration_error(sure, right, 0)


def test_calibration_of_half_precision_is_that_of_its_numbers():
    z = (2 * torch.randn(200, 10, generator=torch.Generator().manual_seed(1))).half()
    y = torch.arange(200) % 10
    half, single = measures(z, y), measures(z.float(), y)
    assert half == pytest.approx(single, rel=1e-6)


def test_answers_are_counted():
    logits = torch.eye(5)[[3, 3, 3, 1, 0, 3, 2, 3]]
    got = answers(logits, torch.tensor([3, 3, 0, 1, 1, 3, 4, 4]))
    assert got == dict(accuracy=50.0, most_given=62.5, n=8)
    logits[:3] = float("nan")
    got = answers(logits, torch.tensor([3, 3, 0, 1, 1, 3, 4, 4]))
    assert got == dict(accuracy=25.0, most_given=25.0, n=8)


def test_logits_do_not_depend_on_the_batch_size(net, data, pair):
    x, _ = pair
    whole = logits_of(net, x)
    assert whole.shape == (90, 10) and not whole.requires_grad
    torch.testing.assert_close(logits_of(net, x, 7), whole)
    assert torch.equal(logits_of(net, data.x_test[:90]), whole)  # the same images as bytes


# Nothing is left behind


CALLS = dict(
    logits_of=lambda net, x, y: logits_of(net, x, 30),
    accuracy=lambda net, x, y: accuracy(net, x, y, 30),
    evaluate=lambda net, x, y: evaluate(net, [(x, y)]),
    check_model=lambda net, x, y: check_model(net, x, y),
    stress=lambda net, x, y: stress(net, (x, y), "noise_blur"),
)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_modes_and_batch_norm_stay_as_they_were(net, pair, call):
    was, kept = modes(net), {k: v.clone() for k, v in net.state_dict().items()}
    seen = []
    handle = net[2].register_forward_hook(lambda m, a, z: seen.append((modes(net), torch.is_grad_enabled())))
    call(net, *pair)
    handle.remove()
    assert seen and not any(grad or any(ms) for ms, grad in seen)
    assert modes(net) == was and was.count(True) > 0 and torch.is_grad_enabled()
    assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_modes_come_back_after_an_exception(net, pair, call):
    class Interrupted(Exception):
        pass

    def fail(m, a, z):
        raise Interrupted("that is it")

    was, handle = modes(net), net[-1].register_forward_hook(fail)
    with pytest.raises(ModelError, match="Interrupted: that is it"):
        call(net, *pair)
    handle.remove()
    assert modes(net) == was and torch.is_grad_enabled()


def test_an_image_is_classed_without_its_neighbours(data):
    set_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)).train()
    net(as_images(data.x_train[:200]))
    x = as_images(data.x_test[:40])
    alone, together = logits_of(net, x, 1), logits_of(net, x, 40)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(net(x), together, atol=1e-2)  # in training mode it would be


# What is refused


@pytest.mark.parametrize(
    "call, error, told",
    [
        (lambda n, x, y: correct(torch.zeros(3, 10), y), ValueError, "`y` must hold 3 labels, one an image, got 90"),
        (lambda n, x, y: accuracy_of(torch.zeros(90), y), ValueError, "`logits` must have shape"),
        (lambda n, x, y: evaluate(nn.Flatten(0), [(x, y)]), ValueError, "`model` must give logits of shape"),
        (lambda n, x, y: evaluate(n, []), ValueError, "at least one image"),
        (lambda n, x, y: evaluate(n, [(x, y + 5)]), ValueError, "labels from 0 to 9"),
        (lambda n, x, y: accuracy(n, 255 * x, y), ValueError, r"must lie in \[0, 1\]"),
        (lambda n, x, y: accuracy(n, x, y[:5]), ValueError, "90 labels"),
        (lambda n, x, y: accuracy(n, x, y, 0), ValueError, "`batch_size`"),
        (lambda n, x, y: logits_of(n, x, 0), ValueError, "`batch_size`"),
        (lambda n, x, y: check_model(lambda x: x, x, y), TypeError, "wrap a function"),
        (lambda n, x, y: check_model(nn.Sequential(n, nn.Softmax(1)), x, y), ValueError, "drop the softmax"),
    ],
)
def test_what_would_make_numbers_meaningless_is_refused(net, pair, call, error, told):
    with pytest.raises(error, match=told):
        call(net, *pair)


def test_the_loss_is_that_of_all_images_together(net, pair):
    x, y = pair
    with eval_mode(net):
        whole = F.cross_entropy(net(x), y).item()
    assert evaluate(net, zip(x.split(50), y.split(50)))["loss"] == pytest.approx(whole)
