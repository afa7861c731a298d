"A gauntlet: odd models and odd data through every door, survived or refused in one sentence that says what to do."

import re
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from robustlit import planted, stressors
from robustlit.attacks import ATTACKS, attack_curve, attack_images, make_attack
from robustlit.data import as_images, load
from robustlit.evaluation import logits_of
from robustlit.faults import faulty, sites
from robustlit.filtering.filter_map import filter_map
from robustlit.intake import NORMALISATIONS, ModelError, call_model, given_pair, load_weights, normalised
from robustlit.masking import audit
from robustlit.metaplasticity.layers import BinaryLinear
from robustlit.minimal_attacks import SMALLEST, smallest
from robustlit.report import named_model, write_report
from robustlit.sleep.conversion import chain
from robustlit.sleep.stdp import sleep
from robustlit.stressors import SUITES, Stressor, linf_suite, noise_blur_suite, stress
from robustlit.worst_case import worst_case

X, Y = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 10


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


class Gives(nn.Module):
    "What a plain network says, changed by a function; it has weights of its own."

    def __init__(self, change, before=lambda x: x):
        super().__init__()
        self.net, self.change, self.before = plain(), change, before

    def forward(self, x):
        return self.change(self.net(self.before(x)))


class Two(Gives):
    def forward(self, x, mask):
        return self.net(x * mask)


class Output(NamedTuple):
    logits: Tensor
    aux: Tensor | None


class InPlace(Gives):
    "Normalises as much code does it, and so writes to what it is given."

    def forward(self, x):
        return self.net(x.sub_(0.5).div_(0.25))


class Remembers(Gives):
    "A state that nobody resets."

    state = 0.0

    def forward(self, x):
        z = self.net(x)
        self.state = 0.5 * self.state + z.detach().mean()
        return z + self.state


class RowState(Gives):
    "A state with a row an image, which does not fit another batch."

    state = None

    def forward(self, x):
        z = self.net(x)
        self.state = z.detach() if self.state is None else self.state + z.detach()
        return z + self.state


class Trains(Gives):
    "Batch norm that will not leave its training mode."

    def __init__(self):
        super().__init__(lambda z: z)
        self.norm = nn.BatchNorm2d(1)

    def train(self, mode=True):
        return super().train(True)

    def forward(self, x):
        return self.net(self.norm(x))


class Raises(Gives):
    def __init__(self, error):
        super().__init__(lambda z: z)
        self.error = error

    def forward(self, x):
        raise self.error


def no_grad(model):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model.requires_grad_(False)

        @torch.no_grad()
        def forward(self, x):
            return self.inner(x)

    return Frozen()


def quantised():
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(plain(), {nn.Linear}, torch.qint8)


def scripted():
    return torch.jit.trace(plain().eval(), X[:2])


def on_meta():
    with torch.device("meta"):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


SURVIVE = {
    "batch norm in training mode": Trains,
    "bfloat16": lambda: plain().bfloat16(),
    "DataParallel": lambda: nn.DataParallel(plain()),
    "dict with logits": lambda: Gives(lambda z: {"logits": z, "loss": None}),
    "double": lambda: plain().double(),
    "half": lambda: plain().half(),
    "in place": lambda: InPlace(None),
    "named tuple": lambda: Gives(lambda z: Output(z, None)),
    "object with logits": lambda: Gives(lambda z: SimpleNamespace(logits=z)),
    "recurrent state": lambda: Remembers(None),
    "script": scripted,
    "sigmoid head": lambda: Gives(torch.sigmoid),
    "tuple": lambda: Gives(lambda z: (z, z.mean())),
    "weight norm": lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 10))),
}
REFUSED = {
    "class numbers": (lambda: Gives(lambda z: z.argmax(1)), "before argmax"),
    "classes first": (lambda: Gives(lambda z: z.T), r"out\.T"),
    "colour": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10)), r"expand\(-1, 3, -1, -1\)"),
    "complex": (lambda: Gives(lambda z: torch.complex(z, z)), r"out\.abs\(\)"),
    "dict": (lambda: Gives(lambda z: OrderedDict(out=z)), r"return out\['out'\]"),
    "key error": (lambda: Raises(KeyError("embedding")), "KeyError: 'embedding'"),
    "larger images": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), "try --size 224"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "call it once on images"),
    "list of strings": (lambda: Gives(lambda z: ["a", "b"]), "return the tensor of logits"),
    "map": (lambda: Gives(lambda z: z[:, :, None, None]), r"out\.mean\(\(2, 3\)\)"),
    "meta": (on_meta, "meta device: load them"),
    "nan": (lambda: Gives(lambda z: z / 0 * 0), "NaN or infinity|not finite"),
    "not implemented": (lambda: Raises(NotImplementedError("come back later")), "come back later"),
    "nothing": (lambda: Gives(lambda z: None), "lacks a return"),
    "numpy": (lambda: Gives(lambda z: z.detach().numpy()), "no gradient goes"),
    "one number": (lambda: Gives(lambda z: z[:, 0]), r"torch\.cat\(\[-z, z\], 1\)"),
    "one column": (lambda: Gives(lambda z: z[:, :1]), r"torch\.cat\(\[-z, z\], 1\)"),
    "outputs over time": (lambda: Gives(lambda z: torch.stack([z] * 5)), r"sum over time: return out\.sum\(0\)"),
    "outputs over time, batch first": (lambda: Gives(lambda z: torch.stack([z] * 5, 1)), r"out\.sum\(1\)"),
    "probabilities": (lambda: Gives(lambda z: z.softmax(1)), "probabilities"),
    "two inputs": (lambda: Two(None), "wrap what else it needs"),
    "value error": (lambda: Raises(ValueError("only squares of 32")), "only squares of 32"),
}
DOORS = {
    "stress": lambda model: stress(model, (X, Y), noise_blur_suite(model, X, (0.5,), (0.1,))),
    "audit": lambda model: audit(model, (X, Y), eps=0.1, images=12),
    "attack_curve": lambda model: attack_curve(model, X, Y, [0.05, 0.1], steps=2),
}


@pytest.mark.parametrize("door", ["stress", "attack_curve"])
@pytest.mark.parametrize("what", SURVIVE)
def test_an_odd_model_is_survived(what, door):
    model, before = SURVIVE[what](), X.clone()
    rows = DOORS[door](model)
    columns = ["accuracy", "loss"] if door == "stress" else ["margin", "loss"]
    assert rows[columns].notna().all(axis=None) and torch.equal(X, before)
    assert "error" not in rows or (rows.error == "").all()


@pytest.mark.parametrize("what", ["in place", "half", "tuple", "DataParallel"])
def test_an_odd_model_is_audited(what):
    model, before = SURVIVE[what](), X.clone()
    seen = logits_of(model, X.clone()).argmax(1)
    assert len(audit(model, (X, seen), eps=0.1, images=12)) > 10
    assert torch.equal(X, before)


def sentence(door, model) -> str:
    "What a refusal says, in one line; an empty string where there is none."
    try:
        found = door(model)
    except ValueError as err:
        text = str(err)
        assert text and "\n" not in text and len(text) < 600
        return text
    return " ".join(found.finding[found.red]) if "finding" in found and found.red.any() else ""


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("what", REFUSED)
def test_an_odd_model_is_refused_with_what_to_do(what, door):
    make, told = REFUSED[what]
    if (what, door) == ("probabilities", "attack_curve"):  # an attack may be made on them
        return
    with pytest.raises(ValueError, match=told):
        raise ValueError(sentence(DOORS[door], make()))


@pytest.mark.parametrize("what", ["no_grad", "argmax", "quantised", "rows of state"])
@pytest.mark.parametrize("door", DOORS)
def test_no_traceback_but_a_value_error(what, door):
    hard = lambda z: nn.functional.one_hot(z.argmax(1), 10).float()
    made = {
        "no_grad": lambda: no_grad(plain()),
        "argmax": lambda: Gives(hard),
        "quantised": quantised,
        "rows of state": lambda: RowState(None),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sentence(DOORS[door], made[what]())


@pytest.mark.parametrize("how", ["sub_", "clamp_", "numpy", "data"])
def test_the_caller_s_images_are_never_written_to(how):
    def write(x):
        if how == "numpy":
            x.detach().numpy()[:] = 0.5
            return x
        if how == "data":
            x.data.mul_(0.5)
            return x
        return x.sub_(0.5) if how == "sub_" else x.clamp_(0.2, 0.8)

    model, before = Gives(lambda z: z, write), X.clone()
    suite = [
        *linf_suite(model, X, (0.1,), ("square", "random_sign", "pgd")),
        *noise_blur_suite(model, X, (0.5,), (0.1,)),
    ]
    assert (stress(model, (X, Y), suite).error == "").all()
    for attack, options in {"square": dict(queries=20), "random_sign": {}, "pgd": dict(steps=2), "fgsm": {}}.items():
        attack_images(model, X, Y, 0.1, attack, **options)
    logits_of(model, X), filter_map(model, (X, Y), ["net.1"], filters=["high_pass"], thresholds=2)
    assert torch.equal(X, before)


def test_a_model_in_place_gets_the_attack_of_its_twin():
    inplace, twin = InPlace(None), Gives(lambda z: z, lambda x: (x - 0.5) / 0.25)
    a, b = (
        attack_curve(m, X, Y, [0.05, 0.1], steps=3, generator=torch.Generator().manual_seed(1)) for m in (inplace, twin)
    )
    pd.testing.assert_frame_equal(a, b)


# Data


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y))


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return len(Y)

    def __getitem__(self, i):
        if i >= len(Y):
            raise IndexError(i)
        return X[i], int(Y[i])


TAKEN = {
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "doubles": lambda: (X.numpy().astype("float64"), Y.numpy().astype("uint8")),
    "list": lambda: [X, Y.tolist()],
    "int32": lambda: (X, Y.int()),
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True),
    "items": Items,
    "stream": lambda: DataLoader(Stream(), batch_size=5),
    "tensors": lambda: TensorDataset(X, Y.short()),
    "gradient": lambda: (X.clone().requires_grad_(), Y),
}


@pytest.mark.parametrize("what", TAKEN)
def test_data_are_taken_as_people_have_them(what):
    dice = torch.get_rng_state()
    x, y = given_pair(TAKEN[what]())
    assert torch.equal(x, X) and torch.equal(y, Y) and y.dtype == torch.int64 and not x.requires_grad
    few = given_pair(TAKEN[what](), 10) if what in ("loader", "items") else None
    assert few is None or len(few[1]) == 10 and torch.equal(few[0], given_pair(TAKEN[what](), 10)[0])
    assert torch.equal(torch.get_rng_state(), dice)


def test_bytes_are_taken_by_every_door():
    model, x = plain(), (255 * X).byte()
    for data in ((x, Y.int()), (x.numpy(), Y.numpy())):
        want = as_images(x)
        pd.testing.assert_frame_equal(stress(model, data, "noise_blur"), stress(model, (want, Y), "noise_blur"))
        rows = [attack_curve(model, *pair, 0.1, "fgsm") for pair in (data, (want, Y))]
        pd.testing.assert_frame_equal(*rows)
        maps = [filter_map(model, pair, ["1"], filters=["high_pass"], thresholds=2) for pair in (data, (want, Y))]
        pd.testing.assert_frame_equal(*maps)
        assert torch.equal(smallest(model, *data, steps=2).x, smallest(model, want, Y, steps=2).x)


def test_a_pixel_that_was_rounded_is_clamped():
    x = X.clone()
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 1 + 2e-7, -1e-7
    assert given_pair((x, Y))[0].aminmax() == x.clamp(0, 1).aminmax()
    found = attack_images(plain(), x, Y, 0.1, "fgsm").x
    assert found.min() >= 0 and found.max() <= 1 and x.max() > 1
    with pytest.raises(ValueError, match="1.001"):
        given_pair((x + 1e-3, Y))


BAD_DATA = {
    "channels last": (lambda: (X.permute(0, 2, 3, 1), Y), r"x\.permute\(0, 3, 1, 2\)"),
    "colour last": (lambda: (np.zeros((24, 32, 32, 3), "uint8"), Y), r"x\.permute\(0, 3, 1, 2\)"),
    "divide": (lambda: (255 * X, Y), "divide them by 255"),
    "dicts": (lambda: DataLoader([dict(image=a, label=b) for a, b in zip(X, Y)]), "image, label"),
    "float labels": (lambda: (X, Y.float()), r"y\.long\(\)"),
    "images one by one": (lambda: (X[:, 0], Y), r"x\[:, None\]"),
    "labels in a column": (lambda: (X, Y[:, None]), r"y\[:, 0\]"),
    "lengths": (lambda: (X, Y[:-1]), "must hold 24 labels, one an image, got 23"),
    "lengths the other way": (lambda: (X[:-1], Y), "must hold 23 labels, one an image, got 24"),
    "normalised": (lambda: ((X - 0.5) / 0.25, Y), r"normalised\(model, mean, std\)"),
    "one-hot": (lambda: (X, torch.eye(10)[Y]), r"y\.argmax\(1\)"),
    "three": (lambda: (X, Y, Y), "pair"),
    "triples": (lambda: TensorDataset(X, Y, Y), "pair"),
    "whole numbers": (lambda: ((255 * X).long(), Y), "uint8"),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_bad_data_are_refused_with_what_to_do(what):
    make, told = BAD_DATA[what]
    data, model = make(), plain()
    calls = [lambda: stress(model, data, "noise_blur", images=20), lambda: filter_map(model, data, images=20)]
    if what not in ("normalised", "divide"):  # where the audit names the range as a finding
        calls.append(lambda: audit(model, data, images=20))
    if isinstance(data, tuple) and len(data) == 2:
        calls += [lambda: attack_curve(model, *data, 0.1), lambda: attack_images(model, *data, 0.1)]
        calls += [lambda: smallest(model, *data)]
    for call in calls:
        with pytest.raises((ValueError, TypeError), match=told):
            call()


# Radii


@pytest.mark.parametrize("eps, right", [(8, "8/255 = 0.03137"), (4.0, "4/255 = 0.01569"), (255, "255/255 = 1")])
def test_grey_levels_for_eps_are_refused_with_the_right_number(eps, right):
    model, calls = plain(), []
    calls += [lambda: attack_images(model, X, Y, eps), lambda: attack_curve(model, X, Y, [0.1, eps])]
    calls += [lambda: worst_case(model, X, Y, eps), lambda: linf_suite(model, X, (0.1, eps))]
    calls += [lambda: audit(model, (X, Y), eps=eps), lambda: filter_map(model, (X, Y), eps=eps)]
    for call in calls:
        with pytest.raises(ValueError, match=right):
            call()
    assert len(attack_curve(model, X, Y, [0.1, eps], "fgsm", norm="l2")) == 2 * len(Y)


# Attacks that go by another name, or lack what they need


@pytest.mark.parametrize("asked", ["deepfool", "cw", "ddn", "fmn", "jsma", "DeepFool"])
def test_an_attack_that_looks_for_the_nearest_image_leads_to_its_call(asked):
    calls = [
        lambda: attack_images(plain(), X, Y, 0.1, asked),
        lambda: attack_curve(plain(), X, Y, [0.1, 0.2], asked),
        lambda: make_attack(asked, steps=3),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="call robustlit.minimal_attacks.smallest") as told:
            call()
        assert "\n" not in str(told.value) and repr(asked) in str(told.value)
    (there,) = re.findall(r"smallest\(model, x, y, '(\w+)'\)", str(told.value))
    assert len(smallest(plain(), X[:2], Y[:2], there).x) == 2


def test_no_attack_is_left_without_a_way():
    for name in set(SMALLEST) - set(ATTACKS):
        with pytest.raises(ValueError, match=f"smallest.*'{name}'"):
            make_attack(name)
    for name in set(ATTACKS) - set(SMALLEST):
        with pytest.raises(ValueError, match=f"call robustlit.attacks.attack_images.*'{name}'"):
            smallest(plain(), X, Y, name)
    with pytest.raises(ValueError, match="'cw' is called 'carlini_wagner' here"):
        smallest(plain(), X, Y, "cw")
    with pytest.raises(ValueError, match="did you mean 'autoattack'"):
        make_attack("auto_attack")


def test_autoattack_without_its_extra_leads_to_the_cascade(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match="robustlit.worst_case.worst_case.*cascade") as told:
        attack_images(plain(), X, Y, 0.1, "autoattack")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("options", [{}, dict(losses=("ce",)), dict(norm="l2")], ids=str)
def test_transfer_without_surrogates_says_what_they_are(options):
    with pytest.raises(TypeError, match="'transfer' needs `surrogates`: a network or several"):
        attack_images(plain(), X, Y, 0.1, "transfer", **options)
    assert len(attack_images(plain(), X, Y, 0.1, "transfer", surrogates=plain(), **options).x) == len(Y)


def test_every_other_attack_needs_nothing():
    for name in set(ATTACKS) - {"transfer", "autoattack"}:
        assert callable(make_attack(name)[0])


# Preconditions: the model's own range, and answers that stay the same


def striped(channels: int) -> tuple:
    "Images whose class is a bright row."
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(160) % 8
    x = 0.25 + 0.5 * torch.rand(160, channels, 8, 8, generator=generator)
    x[torch.arange(160), :, y] += 0.25
    return x, y


class Reads(nn.Module):
    "Right on images that a convention has brought to its range, one class else."

    def __init__(self, x, convention):
        super().__init__()
        self.mean, self.size = convention(x).mean(), convention(x).std()

    def forward(self, x):
        off = ((x.mean((1, 2, 3)) - self.mean).abs() / self.size + (x.std((1, 2, 3)) / self.size).log().abs())[:, None]
        rows = 20 * (x.mean((1, 3)) - x.mean((1, 2, 3))[:, None]) / self.size
        return torch.where(off < 1, rows, 5 * torch.eye(8)[0].expand(len(x), 8))


CIFAR = [v.view(3, 1, 1) for v in map(torch.tensor, NORMALISATIONS["cifar10"])]
CONVENTIONS = {
    "grey, bytes": (
        1,
        lambda x: 255 * x,
        r"in \[0, 255\].*normalised\(model, \[0\], \[0.00392\]\).*--normalise 0/0.00392",
    ),
    "grey, standardised": (1, lambda x: (x - x.mean()) / x.std(), r"standardised.*normalised\(model, .*--normalise "),
    "colour, cifar10": (3, lambda x: (x - CIFAR[0]) / CIFAR[1], r"normalised\(model, .*--normalise "),
}


@pytest.mark.parametrize("what", CONVENTIONS)
def test_stress_warns_of_a_normalisation_outside_the_model(what):
    channels, convention, told = CONVENTIONS[what]
    x, y = striped(channels)
    model = Reads(x, convention)
    suite = noise_blur_suite(model, x, (0.1,), (0.001,))
    with pytest.warns(UserWarning, match=told) as seen:
        rows = stress(model, (x, y), suite)
    assert len(seen) == 1 and "\n" not in str(seen[0].message) and rows.accuracy[0] < 20
    inside = nn.Sequential(Changes(convention), model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stress(inside, (x, y), suite).accuracy[0] > 90
    with pytest.warns(UserWarning, match="`model` 'bare': .*right on images in"):
        stress(nn.ModuleDict(dict(inside=inside, bare=model)), (x, y), suite)


class Changes(nn.Module):
    "A function as a layer."

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x)


def test_the_planted_normalisation_is_told_and_the_remedy_is_one():
    model, x, y = planted.normalised_outside()
    with pytest.warns(UserWarning, match=r"normalised\(model, mean, std\), at the command line --normalise MEAN/STD"):
        stress(model, (x, y), "noise_blur")
    model, x, y = planted.other_range()
    with pytest.warns(UserWarning, match=r"normalised\(model, \[0\], \[0.00392\]\)"):
        before = stress(model, (x / 255, y), "noise_blur")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            stress(normalised(model, [0], [0.00392]), (x / 255, y), "noise_blur").accuracy[0] > before.accuracy[0] + 5
        )


class Leaky(nn.Module):
    "A spiking network of one layer whose state is not reset: in a buffer, or an attribute."

    def __init__(self, buffer):
        super().__init__()
        self.net = plain()
        self.v = nn.Buffer(torch.zeros(10)) if buffer else torch.zeros(10)

    def forward(self, x):
        self.v = 0.5 * self.v + self.net(x).mean(0)
        return self.net(x) + self.v


class OwnDice(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.dice = plain(), torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.net(x + torch.rand(x.shape, generator=self.dice))


def numpy_dice(x):
    return x + torch.from_numpy(np.random.rand(*x.shape)).to(x.dtype)


MOVING = {
    "a buffer": (lambda: Leaky(True), "reset the state"),
    "an attribute": (lambda: Leaky(False), "reset the state"),
    "dice of its own": (OwnDice, "reset the state"),
    "dropout": (lambda: Gives(lambda z: nn.functional.dropout(z, 0.5)), "by chance"),
    "noise": (lambda: Gives(lambda z: z, lambda x: x + torch.rand_like(x)), "by chance"),
    "numpy": (lambda: Gives(lambda z: z, numpy_dice), "by chance"),
}


@pytest.mark.parametrize("what", MOVING)
def test_stress_tells_a_state_from_dice(what):
    make, told = MOVING[what]
    with pytest.warns(UserWarning, match=f"other logits at every call.*{told}") as seen:
        stress(make(), (X, Y), noise_blur_suite(plain(), X, (0.5,), ()))
    assert len(seen) == 1


@pytest.mark.parametrize("what", ["a buffer", "dropout", "noise"])
def test_looking_first_changes_no_row_and_no_buffer(what, monkeypatch):
    suite = noise_blur_suite(plain(), X, (0.5,), (0.1,))
    found = []
    for look in (stressors._warn, lambda *_: None):
        monkeypatch.setattr(stressors, "_warn", look)
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(stress(MOVING[what][0](), (X, Y), suite))
    pd.testing.assert_frame_equal(*found)


@pytest.mark.parametrize("what", ["plain", "batch norm", "half"])
def test_a_sound_network_is_not_warned_about(what):
    model = dict(plain=plain, half=lambda: plain().half())
    model["batch norm"] = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stress(model[what]().train(), (X, Y), noise_blur_suite(plain(), X, (0.5,), ()))


# Rows that are lost, rows that are kept


def failing(model, x, y, seed):
    raise RuntimeError("no fog\ntoday")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_stressor_that_raises_costs_its_own_row_alone(place):
    model = plain()
    suite = noise_blur_suite(model, X, (0.5,), (0.1,))
    whole = stress(model, (X, Y), suite)
    suite.insert(place, Stressor("own", "fog", 1.0, "", failing))
    with pytest.warns(UserWarning, match="1 of 3 stressors failed"):
        rows = stress(model, (X, Y), suite)
    bad = rows.iloc[place + 1]
    assert bad.error == "RuntimeError: no fog today" and np.isnan(bad.accuracy) and bad.n == len(Y)
    pd.testing.assert_frame_equal(rows.drop(index=place + 1).reset_index(drop=True), whole)
    with pytest.raises(RuntimeError, match="no fog"):
        stress(model, (X, Y), suite, strict=True)


@pytest.mark.parametrize("cut", [0, 3], ids=["whole rows", "a torn row"])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_rows_go_to_the_file_as_they_come_and_the_same_call_goes_on(tmp_path, stop, cut):
    model, file, ran = plain(), tmp_path / "rows.csv", []
    inner = noise_blur_suite(model, X, (0.5, 1.0), (0.1, 0.2))

    def suite(stops):
        def run(s, k, model, x, y, seed):
            ran.append(k)
            if k == stops:
                raise KeyboardInterrupt
            return s.run(model, x, y, seed)

        one = lambda s, k: lambda *args: run(s, k, *args)
        return [Stressor(s.suite, s.name, s.strength, s.unit, one(s, k)) for k, s in enumerate(inner)]

    with pytest.raises(KeyboardInterrupt):
        stress(model, (X, Y), suite(stop), keep=file)
    if stop and cut:
        file.write_bytes(file.read_bytes()[:-cut])
    done = max(0, stop - bool(cut))
    assert ran == list(range(stop + 1)) and file.exists() == (stop > 0)
    ran.clear()
    rows = stress(model, (X, Y), suite(None), keep=file)
    assert ran == list(range(done, 4))
    pd.testing.assert_frame_equal(rows, stress(model, (X, Y), inner))
    with torch.no_grad():
        model[1].bias += 0.1
    ran.clear()
    stress(model, (X, Y), suite(None), keep=file)
    assert ran == [0, 1, 2, 3]  # another model's rows are not taken
    ran.clear()
    stress(model, (X, Y), suite(None), keep=file)
    assert ran == []


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_several_networks_keep_their_rows_by_name_and_share_their_images(tmp_path, stop):
    made, file, models = [], tmp_path / "rows.csv", nn.ModuleDict(dict(first=plain(), second=plain()))
    inner = noise_blur_suite(plain(), X, (0.5, 1.0), (0.1,))

    def stops(model, x, y, seed):
        if model is models["second"]:
            raise KeyboardInterrupt
        return inner[stop].run(model, x, y, seed)

    def one(s):
        shown = lambda x, seed: (made.append(s.name), s.shown(x, seed))[1]
        return Stressor(s.suite, s.name, s.strength, s.unit, s.run, shown)

    suite = [one(s) for s in inner]
    whole = stress(models, (X, Y), suite)
    assert made == ["blur", "blur", "noise"]
    assert list(whole.columns)[:2] == ["model", "suite"] and whole.model.tolist() == ["first", "second"] * 4
    s = inner[stop]
    with pytest.raises(KeyboardInterrupt):
        halted = Stressor(s.suite, s.name, s.strength, s.unit, stops)
        stress(models, (X, Y), [*suite[:stop], halted, *suite[stop + 1 :]], keep=file)
    for again in (suite[stop:], []):  # the network that was stopped goes on alone, with the images made once more
        made.clear()
        pd.testing.assert_frame_equal(stress(models, (X, Y), suite, keep=file), whole)
        assert made == [s.name for s in again]
    other = nn.ModuleDict(dict(third=models["first"], second=models["second"]))
    assert stress(other, (X, Y), suite, keep=file).model.unique().tolist() == ["third", "second"] and len(made) == 3


@pytest.mark.parametrize("where", ["images", "first", "second"])
def test_of_several_networks_each_loses_its_own_row(where):
    models = nn.ModuleDict(dict(first=plain(), second=plain()))
    suite = noise_blur_suite(plain(), X, (0.5,), (0.1,))
    whole = stress(models, (X, Y), suite)
    no = dict(second=models["second"], first=models["first"])

    def run(model, x, y, seed):
        return failing(model, x, y, seed) if model is no[where] else suite[0].run(model, x, y, seed)

    one = Stressor("own", "fog", 1.0, "", run)
    if where == "images":
        one = Stressor("own", "fog", 1.0, "", run, lambda x, seed: failing(None, x, None, seed))
    lost = {"images": ["first", "second"]}.get(where, [where])
    with pytest.warns(UserWarning, match=f"{len(lost)} of 6 stressors failed"):
        rows = stress(models, (X, Y), [one, *suite])
    assert rows[rows.error != ""].model.tolist() == lost and rows[rows.error == ""].accuracy.notna().all()
    rest = rows[rows.stressor != "fog"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, whole)


def test_the_report_names_what_failed(tmp_path, monkeypatch):
    monkeypatch.setitem(
        SUITES,
        "noise_blur",
        lambda model, x: [Stressor("own", "fog", 1.0, "", failing), *noise_blur_suite(model, x, (0.5,), (0.1,))],
    )
    rows, _ = write_report(plain(), (X, Y), tmp_path / "page.html", "noise_blur", audited=False)
    assert "RuntimeError: no fog today" in (tmp_path / "page.html").read_text() and len(rows) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.csv", "page.html"]


# Checkpoints and factories

WRAPS = {
    "bare": (lambda s: s, None),
    "net": (lambda s: dict(net=s, epoch=3, acc=91.5), "entry 'net'"),
    "model with optimizer": (lambda s: dict(model=s, optimizer=dict(state={}, param_groups=[])), "entry 'model'"),
    "ema beside": (lambda s: dict(state_dict=s, ema=s), "'ema' would fit too"),
    "module.": (lambda s: dict(state_dict={f"module.{k}": v for k, v in s.items()}), r"prefix 'module\.' cut off"),
    "twice": (lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()}, r"prefix 'module\._orig_mod\.' cut"),
    "other net first": (lambda s: dict(head=dict(w=torch.ones(2)), backbone=s), "entry 'backbone'"),
}


@pytest.mark.parametrize("what", WRAPS)
def test_a_checkpoint_is_loaded_as_people_save_it(tmp_path, what):
    wrap, told = WRAPS[what]
    want = plain()
    with torch.no_grad():
        want[1].weight.normal_()
    torch.save(wrap(want.state_dict()), tmp_path / "w.pt")
    model = plain()
    line = load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model[1].weight, want[1].weight) and "\n" not in line
    assert line == "" if told is None else re.search(told, line)


@pytest.mark.parametrize("values", [("cifar10",), ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])])
def test_normalisation_goes_into_the_model(values):
    x, inner = torch.rand(4, 3, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]))
    torch.testing.assert_close(normalised(inner, *values)(x), inner((x - mean) / std))
    with pytest.raises(ModelError, match="3 channels"):
        call_model(normalised(inner, *values), X)


STRANGE = """import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, fail=False):
        super().__init__()
        self.layers, self.fail = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), fail

    def forward(self, x):
        assert not self.fail, "batch must be even"
        return self.layers(x)

def make():
    torch.manual_seed(0)
    return Small()

def raises():
    raise RuntimeError("no such backbone")

def asserts():
    assert 1 + 1 == 3, "hidden must be even"

def stops():
    raise SystemExit("usage: train.py")

def fails_later():
    return Small(True)

number = 3
"""


@pytest.fixture
def strange(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "strange.py").write_text(STRANGE)
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "text.pt").write_text("weights, honestly")
    (tmp_path / "folder").mkdir()
    torch.save(dict(epoch=3), tmp_path / "empty.pt")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    for name in ("strange", "broken"):
        sys.modules.pop(name, None)
    yield tmp_path
    for name in ("strange", "broken"):
        sys.modules.pop(name, None)


SLIPS = {
    "strange:make --weights text.pt": "must be a state dict",
    "strange:make --weights folder": "a folder",
    "strange:make --weights nowhere.pt": "no such file",
    "strange:make --weights empty.pt": "holds no dict of tensors",
    "strange:make --weights other.pt": "does not fit Small: 2 keys lacking, such as 'layers.1.weight'",
    "strange:raises": "RuntimeError: no such backbone (strange.py, line 18)",
    "strange:asserts": "AssertionError: hidden must be even",
    "strange:stops": "SystemExit: usage: train.py",
    "strange:fails_later": "AssertionError: batch must be even",
    "strange:number": "callable",
    "broken:make": "SyntaxError",
    "strange:make --out folder": "got the folder folder; say folder/page.html",
    "strange:make --out rows.csv": "say rows.html",
    "strange:make --out text.pt/page.html": "one that files can be written to, got text.pt",
    "strange:make --normalise cifar": "did you mean 'cifar10'",
    "strange:make --normalise cifar10": "3 channels",
    "strange:make --suite fog": "`suite` is unknown",
    "strange:make --data digit": "digits",
    "strange:make --size 9": "cannot be multiplied",
}


@pytest.mark.parametrize("words", SLIPS)
def test_a_slip_at_the_command_line_is_one_sentence_before_anything_is_computed(strange, words, capsys):
    from robustlit.command import main

    before = sorted(p.name for p in strange.iterdir())
    code = main(["stress", *words.split(), *([] if "--suite" in words else ["--suite", "noise_blur"])])
    told = capsys.readouterr()
    assert code == 2 and told.err.startswith("robustlit: ") and told.err.count("\n") == 1 and told.out == ""
    assert SLIPS[words] in told.err
    after = sorted(p.name for p in strange.iterdir() if p.name != "__pycache__")
    assert after == [b for b in before if b != "__pycache__"]


def test_the_command_line_takes_a_checkpoint_and_a_normalisation(strange, capsys):
    from robustlit.command import main

    state = {f"module.{k}": v for k, v in named_model("strange:make").state_dict().items()}
    torch.save(dict(net=state), "c.pt")
    words = (
        "stress strange:make --weights c.pt --normalise 0.5/0.25 --suite noise_blur --images 40 --no-audit --out p.html"
    )
    assert main(words.split()) == 0
    assert "weights: entry 'net'; prefix 'module.' cut off" in capsys.readouterr().out
    model = normalised(named_model("strange:make"), [0.5], [0.25])
    want = stress(model, load("digits"), "noise_blur", images=40)
    rows = pd.read_csv("p.csv")
    assert rows.accuracy.tolist() == want.accuracy.tolist()


def test_ctrl_c_at_the_command_line_keeps_the_rows(tmp_path):
    (tmp_path / "slow.py").write_text(
        STRANGE.replace(
            "        return self.layers(x)",
            "        import os, pathlib, signal\n"
            '        n = pathlib.Path("calls"); n.write_text(n.read_text() + "." if n.exists() else ".")\n'
            "        if len(n.read_text()) == 12:\n            signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "            os.kill(os.getpid(), signal.SIGINT)\n"
            "        return self.layers(x)",
        )
    )
    words = "stress slow:make --suite noise_blur --images 40 --no-audit --out page.html".split()
    call = [Path(sys.executable).with_name("robustlit"), *words]
    done = [subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300) for _ in range(2)]
    assert [d.returncode for d in done] == [130, 0] and "the same command goes on" in done[0].stderr
    calls = len((tmp_path / "calls").read_text())
    assert calls == 12 + 8 + 11 - 3  # eight looks at clean images each time; three rows were in the file
    assert len(pd.read_csv(tmp_path / "page.csv")) == 12 and not (tmp_path / "page.partial.csv").exists()


# Layers as people have them


class QuantLinear(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, (10 * self.weight).round() / 10, self.bias)


class FakeQuant(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.weight_fake_quant = nn.Identity()


@pytest.mark.parametrize("layer", [QuantLinear, FakeQuant, torch.ao.nn.qat.Linear])
def test_faults_say_that_they_flip_the_float_master(layer):
    more = dict(qconfig=torch.ao.quantization.default_qat_qconfig) if layer is torch.ao.nn.qat.Linear else {}
    model = nn.Sequential(nn.Flatten(), layer(64, 10, **more))
    with pytest.warns(UserWarning, match="1 quantise their weights: bits flip in the float master"), faulty(model, 0.1):
        pass
    assert sites(model).set_index("tensor").kind["weight"] == "float32 master"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with faulty(plain(), 0.1), faulty(nn.Sequential(BinaryLinear(64, 10)), 0.1):
            pass


class Asserts(nn.Module):
    "Looks at the shape of its images in one of several ways."

    def __init__(self, way):
        super().__init__()
        self.net, self.way = plain(), way

    def forward(self, x):
        if self.way == "shape":
            assert x.shape[1] == 1, "grey images"
        elif self.way == "dim":
            assert x.dim() == 4
        elif self.way == "torch":
            torch._assert(x.size(2) == x.size(3), "square images")
        elif self.way == "if" and (x.shape[-2:] != (8, 8) or x.ndim != 4):
            raise ValueError("images of 8 x 8")
        return self.net(x)


@pytest.mark.parametrize("way", ["shape", "dim", "torch", "if"])
def test_a_shape_check_is_no_skip_connection(way):
    assert [s.name for s in chain(Asserts(way), X)] == ["net.1", "net.3"]


def test_sleep_names_the_layers_that_need_thresholds_and_those_that_never_fire():
    with pytest.raises(ValueError, match=r"2 layers \(1, 3\), got 3"):
        sleep(plain(), X, "A")
    with pytest.warns(UserWarning, match=r"^3 \(threshold 1e\+09\) never fired in 50 steps"):
        sleep(plain(), X, "A", steps=50, thresholds=(1e-3, 1e9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sleep(plain(), X, "A", steps=50, thresholds=(1e-3, 1e-3))


@pytest.mark.parametrize("binarise_input", [False, True])
@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 64), (2, 0, 64), (2, 1, 4, 64)])
def test_a_binary_layer_takes_what_a_linear_one_takes(shape, binarise_input):
    torch.manual_seed(0)
    layer, x = BinaryLinear(64, 10, binarise_input), torch.randn(shape, requires_grad=True)
    used = x.detach().sign() if binarise_input else x.detach()
    want = nn.functional.linear(used, layer.weight.detach().sign())
    out = layer(x)
    assert out.shape == (*shape[:-1], 10)
    torch.testing.assert_close(out, want)
    out.sum().backward()
    assert x.grad.shape == x.shape and layer.weight.grad.shape == layer.weight.shape
    with pytest.raises(ValueError, match=r"\(\.\.\., 64\)"):
        layer(torch.rand(*shape[:-1], 63))


# The command line


@pytest.mark.parametrize("what", ["dict", "outputs over time", "two inputs", "lazy", "half", "tuple", "in place"])
def test_odd_models_at_the_command_line(what, strange, monkeypatch, capsys):
    from robustlit.command import main

    odd = ModuleType("odd")
    odd.make = SURVIVE[what] if what in SURVIVE else REFUSED[what][0]
    monkeypatch.setitem(sys.modules, "odd", odd)
    code = main("stress odd:make --suite noise_blur --images 20 --no-audit --out p.html".split())
    told = capsys.readouterr()
    assert code == (0 if what in SURVIVE else 2) and (strange / "p.html").exists() == (what in SURVIVE)
    if what in REFUSED:
        assert re.search(REFUSED[what][1], told.err) and told.err.count("\n") == 1


def test_the_command_line_says_how_many_stressors_failed(strange, monkeypatch, capsys):
    from robustlit.command import main

    monkeypatch.setitem(SUITES, "noise_blur", lambda m, x: [Stressor("own", "fog", 1.0, "", failing)] * 2)
    assert main("stress strange:make --suite noise_blur --images 20 --no-audit --out p.html".split()) == 0
    assert "2 of 2 stressors failed, such as fog: RuntimeError: no fog today" in capsys.readouterr().out


def test_the_command_line_warns_in_one_line_and_the_option_helps(strange, capsys):
    from robustlit.command import main

    code = "from robustlit import planted\n\nclass Bare:\n    def __call__(self):\n        return planted.other_range(0)[0]\n"
    (strange / "bare.py").write_text(code + "\nmake = Bare()\n")
    words = "stress bare:make --suite noise_blur --images 200 --no-audit --out p.html"
    assert main(words.split()) == 0
    told = capsys.readouterr().err
    (line,) = [line for line in told.splitlines() if "warning: " in line]
    assert "--normalise 0/0.00392" in line and "UserWarning" not in told
    before = pd.read_csv("p.csv").accuracy[0]
    assert main([*words.split(), "--normalise", "0/0.00392"]) == 0
    assert "warning" not in capsys.readouterr().err and pd.read_csv("p.csv").accuracy[0] > before + 5
    sys.modules.pop("bare")
