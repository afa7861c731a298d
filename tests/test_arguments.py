"Arguments: every public function takes a valid call and refuses what is known to be bad, by the argument's name, before anything runs."

import ast
import copy
import dataclasses
import importlib
import inspect
import math
import pkgutil
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

import robustlit
from robustlit import (
    adversarial_training,
    attacks,
    claims,
    cluster,
    command,
    corruptions,
    cost,
    data,
    evaluation,
    execution,
    experiments,
    faults,
    files,
    image_operations,
    input_diversity,
    masking,
    minimal_attacks,
    minimum_norm,
    models,
    own_attacks,
    planted,
    plots,
    preconditions,
    records,
    report,
    sources,
    statistics,
    store,
    streams,
    stressors,
    sweeps,
    training,
    worst_case,
    zoo,
)
from robustlit.benchmark import audit_reliability
from robustlit.checks import bad_values, checks_of
from robustlit.claims import known_claims
from robustlit.data import as_images, load
from robustlit.dropen import adversarial_training as report_training
from robustlit.dropen import gradient_masking as dropen_masking
from robustlit.dropen import (
    gradient_penalties,
    loss_surface,
    penalty_ablation,
    report_tables,
    robust_accuracy,
    training_methods,
)
from robustlit.dropen import networks as dropen_networks
from robustlit.dropen import subnetworks as dropen_subnetworks
from robustlit.experiments import experiment
from robustlit.filtering import (
    batchnorm_effect,
    calibration,
    external_stress,
    figures,
    filter_map,
    filter_response,
    filters,
    global_scores,
    gradient_masking,
    layer_scores,
    pruning,
    score_reliability,
    scores,
    selective_backpropagation,
    selective_training,
)
from robustlit.filtering import networks as filter_networks
from robustlit.metaplasticity import (
    adversarial_robustness,
    common_corruptions,
    continual,
    forgetting,
    layers,
    optimizer,
)
from robustlit.sleep import (
    ablation,
    baselines,
    cifar_convnet,
    conversion,
    defences,
    frozen_features,
    networks,
    noise_blur_fgsm,
    rule_search,
    spiking_activity,
    stdp,
    strong_attacks,
    unit_removal,
)

RNG = torch.Generator().manual_seed(0)
X, Y = torch.rand(4, 1, 8, 8, generator=RNG), torch.tensor([0, 1, 2, 3])
DIGITS = load("digits").subset(60, 20)
LARGER = load("digits", size=28).subset(60, 20)


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


MODEL, BINARY = perceptron().eval(), layers.binary_mlp(64, (8,), 10)
TASK = streams.permuted(DIGITS, 1)[0]
DAY = continual.Phase(BINARY.state_dict(), [continual.snapshots(BINARY, TASK)])
DAYS = continual.Phases(BINARY, [TASK], [DAY], {})
ROWS = stressors.stress(MODEL, (X, Y), [s for s in stressors.corruption_suite(MODEL, X, (1,)) if s.name == "fog"])
AUDIT = pd.DataFrame(dict(check=["range"], kind=["cause"], red=[False], finding=["fine"]))
AUDITS = AUDIT.assign(red=True, network="a", seed=0)
RUNS = pd.DataFrame(dict(meta=[0.0, 0.0, 1.0, 1.0], eps=0.1, seed=[0, 1, 0, 1], accuracy=[90.0, 91.0, 80.0, 82.0]))
RUNS = RUNS.assign(profile="smoke", hardware="cpu, 2 cores, Some Processor")
DESCENTS = pd.DataFrame(dict(space="report", suite="linf", stressor="pgd", data="mnist", strength=0.7, seed=[0, 1]))
DESCENTS = DESCENTS.assign(network="dropen", descent=50.0, accuracy=40.0)
ABLATED = pd.DataFrame(dict(variant=["dropen", "no_cosine"] * 2, stressor="worst", seed=[0, 0, 1, 1]))
ABLATED = ABLATED.assign(accuracy=[20.0, 10, 22, 11])
SEARCH = pd.DataFrame(dict(part="search", seed=0, trial=[0, 1], score=[50.0, 60.0], search_s=1.0))
TESTS = pd.DataFrame(
    dict(part="test", network=["awake", "best"], seed=0, stressor="blur", strength=1.0, accuracy=[9.0, 8.0])
)
TESTS = pd.concat([TESTS, TESTS.assign(seed=1)]).assign(red="none")
STRESSED = pd.DataFrame(dict(stressor=["blur", "blur", "noise"], strength=[0.0, 1.0, 1.0], accuracy=[90.0, 80.0, 70.0]))
SIGNS = lambda model, x, y, eps: (x + eps * (x - 0.5).sign()).clamp(0, 1)
SUBJECT = masking.Subject(MODEL, X, Y, 0.1, 0)
CONV = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10)).eval()
SEEN_BY_CONV = CONV(X).argmax(1)
MAP = filter_map.filter_map(CONV, (X, SEEN_BY_CONV), thresholds=3, filters=["high_pass"], images=None)
ATTACKED_MAP = filter_map.filter_map(CONV, (X, SEEN_BY_CONV), thresholds=3, eps=1e-6)
RANDOM_MAP = filter_map.filter_map(CONV, (X, SEEN_BY_CONV), thresholds=3, filters=(*filters.PAPER, *filters.CONTROLS))
WEIGHTS = {"2": CONV[2].weight}
STEP = filters.filter_steps(WEIGHTS, ["low_pass"], 2)[0]
SCORES = scores.filter_scores(MAP, ["high_pass"])
BOTH_SCORES = scores.filter_scores(ATTACKED_MAP)
ABOUT_RUN = dict(network="resnet18", data="digits", epochs=1, seed=0)
RUN_SCORES = BOTH_SCORES.assign(position=BOTH_SCORES["layer"].map({"0": 0, "2": 1}), **ABOUT_RUN)
COURSE = pd.DataFrame([ABOUT_RUN | dict(S_clean=0.1, S_adv=0.2, S_diff=0.1)])
RESPONSE = MAP.assign(part="valid")
CHOSEN = pd.DataFrame(dict(part="test", stressor="pulse", strength=0.1, layer="0", gained=[3, 0], lost=[1, 0]))
REMOVED = pd.DataFrame(dict(stressor=["constant", "zeros", "mean"], layer="0", norm="", eps=0.0, path=True))
REMOVED = REMOVED.assign(accuracy=[80.0, 70.0, 90.0], chance=10.0)
PRUNED = pd.DataFrame(dict(stressor=["none", "magnitude"], layer="", eps=0.0, accuracy=[90.0, 90.0], n_zero=[0, 5]))
PRUNED = PRUNED.assign(n_total=10, n_zero_active=[0, 4], n_active=8)
SIZED = pd.DataFrame(dict(suite=["clean", "linf", "linf"], stressor=["clean", "fgsm", "fgsm"], size=[np.nan, 1.0, 2.0]))
SIZED = SIZED.assign(accuracy=[90.0, 45.0, 20.0], calibrated=0.1, **ABOUT_RUN)
WITHOUT_CHANNELS = pd.DataFrame(
    dict(suite=["filters", "channels"], stressor=["unfiltered", "channel"], layer=["", "0"])
)
WITHOUT_CHANNELS = WITHOUT_CHANNELS.assign(eps=0.0, accuracy=[90.0, 80.0])
ARMS = pd.DataFrame(dict(arm=["none", "negative"], seed=0, after=2, start=1, stressor="fgsm", accuracy=[50.0, 60.0]))
TRANSFERRED = pd.DataFrame(dict(source=["mask 0", "whole"], target=["mask 1", "other 1"], pair=["masks", "seeds"]))
TRANSFERRED = TRANSFERRED.assign(transfer=[90.0, 50.0], broken=[10, 5], cosine=0.5, network="direct", seed=0)
TRANSFERRED = TRANSFERRED.assign(profile="cpu", hardware="GPU")
SURFACE = pd.DataFrame(dict(suite=["linf", "surface", *["slice"] * 7], strength=[0.1, *[0.0] * 4, 1.0, 0.0, 0.0, 0.0]))
SURFACE = SURFACE.assign(along=0.0, across=0.0, loss=1.0, predicted=1.0, label=3.0, **ABOUT_RUN, profile="cpu")
SURFACE = pd.concat([SURFACE, *(SURFACE[1:2].assign(along=a, across=b) for a, b in ((0, 1), (1, 0), (1, 1)))])
SURFACE = SURFACE.assign(u=[0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0], v=[0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0])
SURFACE = SURFACE.assign(corner=[0, 0, -1, -1, -1, -1, 0, 1, 2, 0, 0, 0], hardware="GPU")
DROPPING = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)).eval()
NOTEBOOK = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
BYTES, LOGITS = (255 * X).byte(), torch.eye(4)
WRONG = (MODEL(X).argmax(1) + 1) % 10
BALL, THREAT = attacks.Ball(X, 0.1), attacks.Threat(MODEL, X, Y)
CLAIM = dict(id="T-1", paper="toy", statement="it is", source="Fig 1", published="90 %", condition="at least 90 %")
CLAIM |= dict(experiment="metaplasticity/forgetting")
SEARCHING = attacks.Search(THREAT, 0.1)
STAGES, RULE = conversion.chain(MODEL, X), stdp.Rule(thresholds=(1.0, 1.0), steps=3)
NIGHT = stdp.sleep(perceptron(), X, RULE, RNG, watch=3)
NEAR = minimal_attacks.smallest(MODEL, X, Y, "deepfool", steps=2).table()
CURVE = attacks.attack_curve(MODEL, X, Y, 0.1, "fgsm")
TRACE = pd.DataFrame(dict(step=[0, 1, 2], learning=[1, 2, 2], on=[1, 1, 2], accuracy=[90.0, 50.0, 80.0]))
LEARNED = pd.DataFrame(dict(after=[1], on=[1], accuracy=[90.0]))
FORGOTTEN = pd.DataFrame(dict(split=["test"], statistics="running", bn="own", after=1, n_tasks=1, meta=0.0, width=8))
FORGOTTEN = FORGOTTEN.assign(epochs=1, gamma_init="ones", seed=0, on=1, accuracy=90.0)
LEARNER = training.Learner(MODEL, torch.optim.SGD(MODEL.parameters(), 0.1))
PARTS = dict(x_train=DIGITS.x_train, y_train=DIGITS.y_train, x_test=DIGITS.x_test, y_test=DIGITS.y_test)
SEEN = pd.DataFrame(dict(network=["a", "a", "b", "b"], stressor="fgsm", seed=[0, 1, 0, 1], strength=0.1, view="logits"))
SEEN = SEEN.assign(attack_loss="ce", accuracy=[90.0, 91.0, 80.0, 82.0])
CORRUPTED = pd.DataFrame(dict(stressor=["clean", *common_corruptions.REPORTED], strength=1, accuracy=50.0)).assign(
    bn="own", order="corrupt_first", reading="corrected", on=1, meta=0.0, width=8, epochs=1, seed=0, profile="cpu"
)
CORRUPTED["hardware"] = "GPU"


@experiment(smoke=dict(seed=0))
def one_row(seed: int = 0) -> pd.DataFrame:
    "An experiment that takes no time."
    return pd.DataFrame(dict(accuracy=[50.0]))


def state():
    return attacks.State(i=torch.arange(4), y=Y, a=X.clone(), queries=0, gradients=0)


def ready():
    "The state of an attack that has looked once."
    s = attacks.State(i=torch.arange(4), y=Y, a=X.clone(), ids=torch.arange(4), seed=0, ball=BALL, target=None)
    s.far, s.best = torch.full((4,), math.inf), X.clone()
    return s


def animals():
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    return dataclasses.replace(DIGITS, classes=names)


def weights(n=8):
    return [nn.Parameter(torch.ones(n, n))]


def job():
    nbformat.write(NOTEBOOK, "one.ipynb")
    return execution.Job("one.ipynb", "done.ipynb", {}, {})


def draw(a=1):
    return plt.subplots(figsize=(1, 1))[0]


class Knob:
    value = 1

    def observe(self, function, name): ...


def knobs():
    return dict(a=Knob())


def control(seed=0, data="digits"):
    return perceptron()


def small(seed, data, hidden, epochs, batch_size):
    return networks.reader(64, 10, hidden, **networks.READINGS["report"])


ROWS_OF_TWO = pd.DataFrame(
    [(n, s, k, 90.0 + s + k) for n in "ab" for s in (0.0, 0.5) for k in range(2)],
    columns=["network", "strength", "seed", "accuracy"],
).assign(profile="cpu", hardware="GPU")

PLANTED = [planted.held_out, planted.linear, planted.zero_gradient, planted.clamped, planted.shattered]
PLANTED += [planted.randomised, planted.batch_dependent, planted.softmax_outputs, planted.other_range]
PLANTED += [planted.normalised_outside]


def owner(method):
    "The class in whose body a method is written."
    return getattr(sys.modules[method.__module__], method.__qualname__.split(".")[0])


def first_calls(work, *methods):
    "Each of the methods, and what it was given when it was first called in a piece of work."
    seen, made = {}, Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        for method in methods:

            def note(*args, _method=method, **kwargs):
                if _method not in seen:
                    given = inspect.signature(_method).bind(*args, **kwargs)
                    given.apply_defaults()
                    seen[_method] = copy.deepcopy(dict(given.arguments))
                return _method(*args, **kwargs)

            patch.setattr(owner(method), method.__name__, note)
        work()
    assert made == Path.cwd() and {*seen} == {*methods}, [m for m in methods if m not in seen]
    return seen


def in_attack(attack, *methods, norm="linf", early_stop=False, target=None):
    "The methods' first calls while an attack is at work."
    threat = attacks.Threat(MODEL, X, Y, norm, target, early_stop=early_stop)
    return first_calls(lambda: attacks.worst_images(threat, attack, 0.1), type(attack).__call__, *methods)


# A valid call of each public function: the later values of an argument's name stand in for those of its role

CALLS = {
    statistics.t_interval: dict(values=[1.0, 2.0], confidence=0.9),
    statistics.prediction_interval: dict(values=[1.0, 2.0, 4.0], runs=3, around=2.0, confidence=0.9),
    statistics.paired_difference: dict(a=[1.0, 2.0], b=[0.0, 1.5], confidence=0.9),
    statistics.bootstrap_interval: dict(a=[1.0, 2.0], b=[0.0, 1.5], resamples=100, confidence=0.9, seed=1),
    statistics.equivalence: dict(a=[1.0, 2.0], b=[0.0, 1.5], margin=3.0, confidence=0.9),
    statistics.share_interval: dict(hits=1, n=2, confidence=0.9),
    statistics.holm: dict(pvalues=[0.1, 0.5]),
    statistics.differences: dict(
        found=ROWS_OF_TWO, pairs=[("a", "b")], on="network", y="accuracy", by="seed", over=["strength"]
    )
    | dict(lower_is_better=True),
    statistics.worded: dict(table=statistics.differences(ROWS_OF_TWO, [("a", "b")]), family=False, decimals=2)
    | dict(columns="strength"),
    plots.mean_table: dict(found=ROWS_OF_TWO, rows="network", columns=["strength"], y="accuracy", where="strength > 0")
    | dict(sd=True, sort=False, decimals=2),
    plots.about_records: dict(found=ROWS_OF_TWO, per="network"),
    plots.needs_records: dict(draw=lambda found: found),
    plots.show: dict(
        found=ROWS_OF_TWO,
        x="strength",
        y="accuracy",
        panels=None,
        lines="network",
        by="seed",
        interval="sd",
        style="band",
        colours=None,
        cols=2,
        title="two networks",
        where="strength > 0",
        axes=dict(xlim=(0, 1)),
    ),
    execution.read_notebook: dict(path="one.ipynb"),
    execution.tagged: dict(cell=NOTEBOOK.cells[0], tag="report"),
    execution.prepared: dict(notebook=NOTEBOOK, report=False),
    execution.own_kernel: dict(env={}),
    execution.Job: dict(
        notebook="a", executed="b", parameters={}, env={}, number=0, report=False, folder="", progress=False
    ),
    execution.execute: dict(job=execution.Job("one.ipynb", "done.ipynb", {}, {}), parent=0),
    files.check_writable: dict(folder="made"),
    files.write_atomically: dict(path="made.txt", write=lambda f: f.write(b"1"), exclusive=False, keep=True),
    models.network_path: dict(function=perceptron, parameters=dict(seed=0), store=None),
    models.load_or_train: dict(model=MODEL, train=lambda net: None, path="made.pt"),
    report.named_model: dict(model="torch.nn:Flatten", weights=None, normalise="cifar10"),
    report.stress_figure: dict(rows=ROWS),
    report.report_page: dict(title="A model", rows=ROWS, checks=AUDIT),
    report.write_report: dict(
        model=MODEL,
        data=(X, Y),
        path="page.html",
        suite="linf",
        images=4,
        title="",
        audited=False,
        attacks=["fgsm"],
        eps=[0.1],
    ),
    stressors.images_and_labels: dict(data=(X, Y), images=2, in_range=True),
    preconditions.other_ranges: dict(x=X),
    preconditions.range_finding: dict(model=perceptron(), x=X, y=Y),
    preconditions.binomial_tail: dict(k=3, n=5, p=0.5),
    preconditions.logits_moved: dict(a=torch.randn(4, 3), b=torch.zeros(4, 3)),
    preconditions.percent_right: dict(right=torch.ones(9)),
    preconditions.seeded_logits: dict(model=perceptron(), x=X, seed=0),
    preconditions.fewer_right: dict(a=torch.ones(9), b=torch.zeros(9), points=1.0),
    preconditions.why_answers_change: dict(model=MODEL, x=X, seed=0),
    preconditions.warnings_of: dict(model=MODEL, x=X, y=Y, seed=0, images=4),
    stressors.fingerprint: dict(model=MODEL, x=X, y=Y, seed=0),
    stressors.Stressor: dict(suite="noise_blur", name="blur", strength=1.0, unit="sigma", run=lambda m, x, y, s: m(x))
    | dict(shown=lambda x, seed: x, passes=1.0),
    stressors.corruption_suite: dict(model=MODEL, x=X, severities=(1,), calibration="auto", names=["fog"])
    | dict(compat=("dimming",), noise_seed=lambda seed, name, severity: seed),
    stressors.stress_names: dict(rows=ROWS),
    stressors.linf_suite: dict(model=MODEL, x=X, eps=(0.1,), attacks=("fgsm",)),
    stressors.fault_suite: dict(model=MODEL, x=X, rates=(0.1,)),
    stressors.noise_blur_suite: dict(model=MODEL, x=X, sigmas=(1.0,), variances=(0.1,)),
    stressors.restored: dict(model=MODEL),
    stressors.under: dict(stressor="fog", strength=1.0),
    stressors.in_schema: dict(rows=ROWS),
    stressors.model_stressor: dict(suite="x", name="y", strength=1.0, unit="z", change=lambda model, generator: None),
    stressors.stress: dict(
        model=MODEL, data=(X, Y), suite="noise_blur", images=4, seed=0, keep=None, strict=False, look=True
    ),
    stressors.eps_area: dict(eps=[0.0, 0.1, 0.2], accuracy=[90.0, 50.0, 10.0], floor=1e-3),
    stressors.corruption_error: dict(rows=ROWS, reference=ROWS),
    masking.Subject: dict(model=MODEL, x=X, y=Y, eps=0.1, seed=0, surrogates=[MODEL]),
    masking.student_of: dict(s=SUBJECT, steps=1, width=4),
    masking.Scaled: dict(model=MODEL, factor=2.0),
    masking.Back: dict(model=MODEL, low=0.0, high=255.0),
    cost.counted: dict(model=MODEL, count=print),
    cost.seconds_a_pass: dict(model=MODEL, x=X),
    cost.said_beforehand: dict(plan=dict(fog=1), images=3, seconds=0.1),
    cost.PassBar: dict(model=MODEL, plan=dict(fog=1), images=3, seconds=0.1, desc=""),
    masking.audit: dict(model=MODEL, data=(X, Y), eps=0.1, images=4, surrogates=[MODEL], seed=0, attack=SIGNS),
    masking.audit_summary: dict(table=AUDIT),
    own_attacks.inside: dict(ball=BALL, found=X, project=True),
    own_attacks.OwnAttack: dict(attack=SIGNS, project=True),
    own_attacks.mean_classifier: dict(x=X, y=Y),
    own_attacks.linear_worst: dict(model=own_attacks.mean_classifier(X, Y), x=X, y=Y, eps=0.1),
    own_attacks.attack_check: dict(model=MODEL, data=(X, Y), attack=SIGNS, eps=0.1, seed=0),
    audit_reliability.alarms: dict(rows=AUDITS.assign(planted="", clean=90.0)),
    audit_reliability.alarm_sentence: dict(rows=AUDITS.assign(planted="", clean=90.0)),
    audit_reliability.caught_sentence: dict(rows=AUDITS.assign(planted="detector", clean=90.0)),
    audit_reliability.detections: dict(rows=AUDITS.assign(planted="detector", clean=90.0)),
    masking.red_table: dict(found=AUDITS, columns=["network"], rows=("kind", "check")),
    masking.red_counts: dict(found=AUDITS, by="network"),
    zoo.timed_training: dict(name="local/small", parameters=dict(seed=0), folder=".", seconds=1.0),
    zoo.network: dict(parent=None, views=zoo.LOGITS, seconds=1.0),
    zoo.find_network: dict(name="sleep/control", paper="sleep"),
    zoo.load_network: dict(name="sleep/control", seed=0, data="digits", paper="sleep", epochs=1, hidden=(8, 8)),
    zoo.views_of: dict(name="sleep/control", paper="sleep"),
    zoo.networks: dict(paper="sleep"),
    zoo.network_of: dict(paper="sleep"),
    zoo.with_parent: dict(names=["sleep", "authors"], paper="sleep"),
    plots.ordered_colours: dict(values=[1, 2]),
    input_diversity.resized: dict(x=X, u=torch.rand(4, 4), smallest=0.9, probability=0.5),
    input_diversity.gaussian_kernel: dict(size=3, sigma=1.0),
    input_diversity.smoothed: dict(g=X, kernel=torch.ones(3, 3) / 9),
    input_diversity.DIM: dict(steps=1, step_size=0.1, momentum=1.0, probability=0.5, smallest=0.9, random_start=False)
    | dict(loss="ce"),
    input_diversity.TIM: dict(steps=1, step_size=0.1, momentum=1.0, size=3, sigma=1.0, probability=0.5, smallest=0.9)
    | dict(random_start=False, loss="ce"),
    minimum_norm.size_of: dict(move=X, norm="l1"),
    minimum_norm.finite: dict(g=X),
    minimum_norm.unit: dict(g=X, s=ready(), k=0),
    minimum_norm.begin: dict(s=ready()),
    minimum_norm.remember: dict(search=SEARCHING, s=ready(), logits=MODEL(X), norm="linf"),
    minimum_norm.cosine: dict(first=1.0, last=0.1, k=0, steps=3),
    minimum_norm.DDN: dict(steps=1, gamma=0.1, radius=1.0, loss="ce"),
    minimum_norm.into_ball: dict(move=X, radius=torch.ones(4), norm="l1"),
    minimum_norm.soft_margin: dict(logits=LOGITS, y=Y, target=None),
    minimum_norm.FMN: dict(steps=1, norm="l2", gamma=0.1, step_size=None, room=True, loss=None),
    minimum_norm.to_plane: dict(x=X, w=X, want=torch.ones(4), norm="linf", clip=True),
    minimum_norm.FAB: dict(steps=1, norm=None, candidates=2, alpha=0.1, overshoot=1.0, back=0.9),
    minimum_norm.FABT: dict(steps=1, norm="l2", targets=2, alpha=0.1, overshoot=1.0, back=0.9),
    minimum_norm.local_optimality: dict(distance=torch.ones(4), best=torch.ones(4)),
    worst_case.bump: dict(side=3, dtype=torch.float64, device="cpu"),
    worst_case.kl_divergence: dict(logits=LOGITS, clean=LOGITS),
    worst_case.PGDKL: dict(steps=1, step_size=0.1, relative_step=None, momentum=0.5),
    worst_case.APGDKL: dict(steps=2),
    worst_case.WorstCase: dict(steps=1, target_steps=1, fab_steps=1, queries=2, targets=1),
    worst_case.worst_case: dict(model=MODEL, x=X, y=Y, eps=0.1, norm="linf", batch_size=2, generator=RNG, mode="eval")
    | dict(steps=2, target_steps=2, fab_steps=1, queries=2, targets=1),
    claims.Finding: dict(passed=True, measured="seen", values=[1.0], unit="%", only_under="", second=""),
    claims.Claim: CLAIM
    | dict(check=len, where={}, condition_cpu=None, where_cpu=None, min_seeds=1, amended="")
    | dict(beside={}),
    claims.claim: dict(id="T-1"),
    claims.Verdict: dict(claim=claims.Claim(**CLAIM, check=len), outcome="holds", scale="cpu", finding=None, n=3)
    | dict(rests_on="records", hardware=(), stale=False, missing="", again=None),
    claims.verdict: dict(claim=claims.Claim(**CLAIM, check=len), store=None, source=lambda *about: pd.DataFrame()),
    claims.known_claims: dict(paper="sleep"),
    claims.ledger: dict(paper="sleep", store=None, source=lambda *about: pd.DataFrame(), flips=True),
    claims.ledger_markdown: dict(table=pd.DataFrame(dict(claim=["T-1"]))),
    claims.answers: dict(questions={"A-1": "Does it forget?"}, store=None, source=None),
    claims.verdicts: dict(paper="sleep", columns=["claim", "verdict"], store=None, source=None),
    claims.both_sizes: dict(paper="sleep", store=None, source=lambda *about: pd.DataFrame()),
    claims.text_table: dict(found=pd.DataFrame(dict(a=["b"])), columns=["a"], where=""),
    calibration.attacked_ratio: dict(models=[CONV], x=X, y=SEEN_BY_CONV, eps=0.1, attack="fgsm", seed=0),
    calibration.Calibration: dict(eps=0.1, ratio=0.5, clean=90.0, attacked=45.0, tried=pd.DataFrame()),
    calibration.halving_eps: dict(models=[CONV], x=X, y=SEEN_BY_CONV, ratio=0.5, tolerance=0.5, points=9, halvings=1)
    | dict(attack="fgsm", seed=0),
    calibration.attack_constraints: dict(
        table=pd.DataFrame(dict(clean=[90.0], attacked=[45.0], classes=[10])), tolerance=0.1
    ),
    calibration.trained: dict(network="resnet18", seed=0, data="digits", epochs=1, n_train=100, thin=True)
    | dict(tiny_size=32),
    calibration.held_out: dict(data="digits", images=20, part="valid", tiny_size=32),
    calibration.calibrated_eps: dict(network="resnet18", data="digits", seeds=1, epochs=1, n_train=100, images=20)
    | dict(thin=True, tiny_size=32),
    selective_training.layers_to_freeze: dict(scores=BOTH_SCORES, arm="negative", seed=0),
    selective_training.SelectiveTraining: dict(scores=len, arm="none", start=0, every=None, mode="skip", seed=0),
    figures.stress_regions: dict(rows=MAP, layer="2", filter="high_pass"),
    figures.score_areas: dict(rows=ATTACKED_MAP, layer="2"),
    figures.layer_curves: dict(rows=ATTACKED_MAP, layers=["2"], by=["seed"], title="curves"),
    figures.filter_panels: dict(rows=ATTACKED_MAP, layer="2", lines=None),
    figures.score_map: dict(scores=RUN_SCORES, by=["data"], delta=0.05, show=["S_clean"]),
    figures.score_courses: dict(table=COURSE, normalised=False),
    figures.overview: dict(model=CONV, clean=X[0], attacked=X[0], rows=ATTACKED_MAP, layer="2", threshold=0.5),
    figures.caption_with_images: dict(
        rows=MAP.assign(profile="smoke", hardware="cpu", seed=0), per=["seed"], scores=None
    ),
    gradient_masking.audits_of: dict(rows=COURSE),
    filter_response.removal: dict(rows=RESPONSE, filter="high_pass"),
    filter_response.improvements: dict(rows=CHOSEN),
    batchnorm_effect.norm_of: dict(model=CONV, x=X),
    batchnorm_effect.replaced: dict(model=CONV, layer="0", way="zeros", x=X, norm=None),
    batchnorm_effect.batchnorm_share: dict(rows=REMOVED),
    selective_backpropagation.gains: dict(rows=ARMS, arm="negative"),
    pruning.pruned_masks: dict(model=CONV, way="score", share=0.02, scores=BOTH_SCORES, seed=0),
    pruning.free_share: dict(rows=PRUNED, points=1.0),
    external_stress.external_score: dict(rows=SIZED, attack="fgsm", end=2.0),
    external_stress.ratios: dict(rows=SIZED, attack="fgsm"),
    score_reliability.by_grid: dict(rows=ATTACKED_MAP.assign(thresholds_used=3), score="S_adv"),
    score_reliability.against_random: dict(
        rows=pd.concat([RANDOM_MAP.assign(seed=k) for k in range(2)]), score="S_clean"
    ),
    score_reliability.collapsed_share: dict(rows=MAP),
    score_reliability.transfer: dict(rows=ATTACKED_MAP.assign(**ABOUT_RUN)),
    score_reliability.channel_table: dict(rows=WITHOUT_CHANNELS),
    plots.spread: dict(df=RUNS, y="accuracy", over=["meta"], by="seed", interval="sd"),
    plots.curve_with_spread: dict(
        ax=plt.subplots()[1], df=RUNS, x="eps", y="accuracy", group="meta", by="seed", interval="t", style="bars"
    )
    | dict(colours={0.0: "red", 1.0: "blue"}),
    plots.curve_panels: dict(df=RUNS, column="eps", values=[0.1], x="eps", y="accuracy", group="meta", shape=(1, 1))
    | dict(size=(2, 2), ylim=(0, 100), labels=("a", "b"), title="made"),
    plots.image_grid: dict(images=X, titles=None, rows=2, cols=2, size=1.0),
    plots.heat_table: dict(table=pd.DataFrame([[1.0]]), ax=None, low=0.0, high=1.0, decimals=1),
    plots.caption: dict(df=RUNS, per="meta"),
    plots.live_picture: dict(draw=draw, knobs=knobs()),
    plots.save_figure: dict(fig=draw(), name="made", folder="."),
    layers.sign: dict(x=X),
    layers.BinaryLinear: dict(in_features=2, out_features=2, binarise_input=True, init_width=0.1, init="normal"),
    layers.BinaryConv2d: dict(in_channels=1, out_channels=1, kernel_size=3, stride=1, padding=0, binarise_input=True)
    | dict(init_width=0.1, init="normal"),
    layers.binary_mlp: dict(inputs=64, hidden=[8], n_classes=10, gamma_init="ones", init_width=0.1),
    layers.real_mlp: dict(inputs=64, hidden=[8], n_classes=10, gamma_init="ones", init_width=0.1),
    layers.binary_convnet: dict(shape=(1, 8, 8), n_classes=10, variant="mnist", gamma_init="ones"),
    layers.storage_bits: dict(model=BINARY),
    layers.bn_state: dict(model=BINARY),
    layers.load_bn_state: dict(model=BINARY, state=layers.bn_state(BINARY)),
    layers.using_bn: dict(model=BINARY, state=layers.bn_state(BINARY)),
    layers.recalibrated_bn: dict(model=BINARY, batches=TASK.test_batches()),
    optimizer.damping: dict(w=torch.ones(2), meta=1.0),
    optimizer.MetaplasticAdam: dict(params=weights(), lr=0.1, meta=1.0, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    | dict(fused=None),
    continual.snapshots: dict(model=BINARY, task=TASK),
    continual.learn: dict(model=BINARY, tasks=[TASK], epochs=1, batch_size=10, order=RNG, meta=1.0, lr=0.1)
    | dict(weight_decay=0.0, callbacks=lambda task: ()),
    continual.Phase: dict(weights={}, batch_norm=[]),
    continual.Phases: dict(model=BINARY, tasks=[TASK], days=[DAY], made={}),
    continual.Phases.at: dict(self=DAYS, after=1, on=1, bn="own", statistics="running"),
    continual.networks_path: dict(parameters=dict(seed=0), store=None),
    continual.learned: dict(meta=1.0, width=8, seed=0, data="digits", n_tasks=1, epochs=1, batch_size=500)
    | dict(gamma_init="ones", network="real", first_identity=True),
    networks.Dropout: dict(p=0.2, kind="classic"),
    networks.reader: dict(n_in=64, n_out=10, hidden=(8,), bias=True, init="torch", dropout="none")
    | dict(dropout_kind="always", p=0.1),
    networks.report_convnet: dict(n_out=10, dropout_kind="inverted"),
    networks.square_error: dict(z=torch.ones(2, 3), y=torch.arange(2)),
    networks.as_floats: dict(x=X),
    networks.Pairs: dict(x=X, y=Y, batch_size=2, generator=RNG),
    networks.descend: dict(model=MODEL, x=X, y=Y, epochs=1, loss="square", lr=0.1, momentum=0.5, batch_size=2)
    | dict(generator=RNG, callbacks=()),
    networks.View: dict(model=MODEL, kind="softmax"),
    defences.authors_blur: dict(x=X, sigma=1.0),
    defences.report_blur: dict(x=X, sigma=1.0),
    defences.wrapped_noise: dict(x=X, variance=0.1, generator=RNG),
    defences.distortion: dict(x=X, stress="noise", level=0.1, seed=0),
    defences.distorted_copies: dict(x=X, kind="blur", generator=RNG, levels=[1.0]),
    defences.adversarial_copies: dict(model=MODEL, x=X, y=Y, generator=RNG, share=0.5, amplitude=0.1),
    defences.softened_loss: dict(temperature=2.0, weight=1.0),
    defences.soft_labels: dict(model=MODEL, x=X, temperature=2.0, batch_size=2),
    defences.distil: dict(teacher=MODEL, student=perceptron(), x=X, y=Y, temperature=2.0, epochs=1, generator=RNG)
    | dict(weight=1.0),
    baselines.training_part: dict(reading="report", data="digits"),
    baselines.test_part: dict(data="digits", images=20),
    baselines.perceptron: dict(reading="report", x=X, n_classes=10, hidden=(8, 8)),
    baselines.convolutional: dict(reading="report", x=torch.rand(1, 1, 28, 28), n_classes=10, hidden=()),
    baselines.begin: dict(reading="report", seed=0, data="digits", hidden=(8, 8), epochs=1, batch_size=10)
    | dict(parent=small, build=baselines.perceptron),
    rule_search.draw_rule: dict(generator=np.random.default_rng(0), layers=2, steps=10),
    rule_search.stressed: dict(model=MODEL, x=X, y=Y, seed=0, sigmas=(1.0,), variances=(0.1,), eps=(0.1,)),
    rule_search.score: dict(rows=STRESSED),
    rule_search.tested: dict(model=MODEL, x=X, y=Y, seed=0, eps=(0.1,), audited=4),
    rule_search.search: dict(model=MODEL, x=X, scored=lambda net: 1.0, budget=1, steps=2, seed=0),
    rule_search.trials_of: dict(df=SEARCH, by=()),
    rule_search.worth_of: dict(df=TESTS, by=()),
    rule_search.red_of: dict(df=TESTS, by=()),
    attacks.margin_of: dict(logits=LOGITS, y=Y),
    attacks.attack_loss: dict(logits=LOGITS, y=Y, loss="cw", target=None),
    attacks.Ball: dict(x=X, eps=0.1, norm="l2", clip=False),
    attacks.image_uniform: dict(ids=torch.arange(2), seed=0, draw=0, shape=(1, 2)),
    attacks.random_start: dict(ball=BALL, ids=torch.arange(4), seed=0, draw=0),
    attacks.Oracle: dict(model=MODEL, y=Y, eot=1),
    attacks.Threat: dict(model=MODEL, x=X, y=Y, norm="l2", target=None, restarts=1, early_stop=False, eot=1)
    | dict(clip=True, seed=0, ids=None, share=False),
    attacks.Search: dict(threat=THREAT, eps=0.1),
    attacks.worst_images: dict(threat=THREAT, attack=attacks.PGD(1), eps=0.1),
    attacks.PGD: dict(steps=2, step_size=None, relative_step=0.5, random_start=False, momentum=0.5, loss="cw"),
    attacks.FGSM: dict(loss="cw"),
    attacks.BIM: dict(steps=2, step_size=0.1, relative_step=None, loss="cw"),
    attacks.MIM: dict(steps=2, step_size=0.1, relative_step=None, momentum=0.5, loss="cw"),
    attacks.apgd_checkpoints: dict(steps=10),
    attacks.APGD: dict(steps=2, loss="ce", targets=0),
    attacks.Square: dict(queries=10, p=0.5, rescale=False),
    attacks.MeanLogits: dict(models=[MODEL]),
    attacks.Transfer: dict(surrogates=[MODEL], attack=attacks.PGD(1), losses=("ce",), ensemble=False),
    attacks.make_attack: dict(attack="pgd"),
    attacks.untouched: dict(model=MODEL, mode="as_is"),
    attacks.attack_images: dict(model=MODEL, x=X, y=Y, eps=0.1, attack="fgsm", generator=RNG, mode="eval"),
    attacks.attack_curve: dict(model=MODEL, x=X, y=Y, eps=[0.1], attack="fgsm", batch_size=2, generator=RNG)
    | dict(mode="eval"),
    attacks.accuracy_by_eps: dict(rows=CURVE, by=()),
    minimal_attacks.smallest_found: dict(threat=THREAT, attack=minimal_attacks.DeepFool(1)),
    minimal_attacks.input_slopes: dict(search=SEARCHING, s=state(), measure=lambda z: z),
    minimal_attacks.DeepFool: dict(steps=1, overshoot=0.1, candidates=2, clip_steps=True, nudge=0.0, look="clean"),
    minimal_attacks.saliency: dict(alpha=LOGITS, beta=-LOGITS, up=LOGITS > 0, down=LOGITS > 0),
    minimal_attacks.best_pair: dict(alpha=LOGITS, beta=-LOGITS, up=LOGITS > 0, down=LOGITS > 0),
    minimal_attacks.JSMA: dict(theta=0.1, steps=1, changes=1, pixels=2, direction="up", of="softmax"),
    minimal_attacks.CarliniWagner: dict(steps=1, searches=1, lr=0.1, c=0.1, kappa=0.0, abort=False),
    minimal_attacks.dotted: dict(n=2, shape=(1, 2, 2), seed=0, device="cpu"),
    minimal_attacks.boundary_step: dict(x=X, a=X + 0.1, noise=X, across=torch.ones(4), towards=torch.ones(4)),
    minimal_attacks.Boundary: dict(queries=200, starts=X, across=0.1, towards=0.1),
    minimal_attacks.smallest: dict(model=MODEL, x=X, y=WRONG, attack="deepfool", batch_size=2, generator=RNG)
    | dict(mode="eval"),
    minimal_attacks.accuracy_by_distance: dict(rows=NEAR, distances=[0.1], norm="linf", by=()),
    stressors.under: dict(stressor="fgsm", strength=0.1),
    stressors.in_schema: dict(rows=ROWS),
    stdp.Rule: dict(rate=1.0, increase=0.1, decrease=0.1, thresholds=(1.0,), scale=1.0, steps=1, dt=0.1, per_spike=1.0)
    | dict(steps_per_image=1, leak=0.9, gated=True, gate_width=0.1, normalise="none", previous="largest", reset="none")
    | dict(strict=True, rest_after=2, shrink=True, biases="random"),
    stdp.gate: dict(w=torch.ones(2), width=0.1),
    stdp.image_dream: dict(x=X, steps_per_image=2),
    stdp.masked_mean_dream: dict(x=X, side=3),
    stdp.spike_chance: dict(x=X, rule=RULE),
    stdp.EventEngine: dict(stages=STAGES, rule=RULE, alpha=(1.0, 1.0), x=None),
    stdp.TensorEngine: dict(stages=STAGES, rule=RULE, alpha=(1.0, 1.0), x=X, dtype=torch.float64),
    stdp.raster: dict(night=NIGHT, ax=None, units=3),
    stdp.sleep: dict(model=perceptron(), x=X, rule=RULE, generator=RNG, dream=None, s=None, watch=1, engine="event"),
    adversarial_robustness.situations: dict(n_tasks=2),
    common_corruptions.as_tested: dict(df=CORRUPTED, way="camera", highest=2),
    common_corruptions.figure_3: dict(found=CORRUPTED, way="camera", highest=2),
    common_corruptions.seen_by: dict(x=X, permutation=None, name="fog", severity=1, order="permute_first")
    | dict(reading="report", seed=0),
    forgetting.EvalModeTrace: dict(batches=TASK.test_batches()),
    forgetting.tested: dict(model=BINARY, tasks=[TASK], snapshots=DAY.batch_norm),
    forgetting.final_accuracy: dict(df=FORGOTTEN, statistics="running", bn="own"),
    ablation.mixed: dict(start="alone", switch="report"),
    cifar_convnet.small_convnet: dict(channels=1, side=8, n_out=10),
    cifar_convnet.learned_convnet: dict(seed=0, data="digits", epochs=1, batch_size=500),
    frozen_features.sort_by_split: dict(source=".", target="made"),
    frozen_features.Features: dict(frozen=perceptron()),
    frozen_features.feature_extractor: dict(extractor="digits", x=BYTES, epochs=1),
    noise_blur_fgsm.gain: dict(df=SEEN, network="a", parent="b", stress="fgsm", view=("logits", "ce")),
    noise_blur_fgsm.lowest_view: dict(df=SEEN),
    noise_blur_fgsm.first_view: dict(df=SEEN.assign(network="sleep")),
    spiking_activity.by_stretch: dict(night=NIGHT),
    strong_attacks.bounded: dict(model=MODEL, x=X, y=WRONG, seed=0),
    strong_attacks.nearest: dict(model=MODEL, x=X, y=WRONG, seed=0),
    unit_removal.without_units: dict(model=MODEL, units=torch.tensor([0]), x=BYTES),
    filter_networks.ResNet: dict(block=BasicBlock, repeats=(1, 1, 1, 1), data=DIGITS, width=4),
    filter_networks.SqueezeNet: dict(data=LARGER, width=8),
    filter_networks.ShuffleNet: dict(data=DIGITS, width=8),
    records.differing: dict(old={}, new={}),
    records.recorded: dict(fn=one_row, profile="smoke", force=False, store=None),
    records.key_of: dict(fn=one_row, profile="smoke"),
    records.missing: dict(fn=one_row, profile="smoke", grid={}, store=None),
    records.confirm: dict(which=one_row, why="they are equal", store=None, digests=None, uses=()),
    records.records: dict(which=one_row, profile="smoke", stale=True, version=1, store=None),
    records.run_table: dict(which=one_row, store=None, profile="smoke"),
    records.largest: dict(frame=RUNS),
    records.adopt: dict(path="made.parquet", store=None),
    store.Store: dict(runs="runs", results="results"),
    store.read_records: dict(path="made.parquet"),
    store.run_record: dict(which=one_row, bound=dict(seed=0)),
    sweeps.parse_value: dict(text="1", annotation=int),
    sweeps.parse_grid: dict(text="0:2", annotation=int),
    sweeps.find_notebook: dict(which="forgetting"),
    sweeps.open_notebook: dict(which="forgetting"),
    sweeps.plan: dict(notebook=sweeps.open_notebook("forgetting"), given={}, grid={}, profile="smoke"),
    sweeps.execute_all: dict(jobs=[], n_jobs=1, scheduler=None, claims=None),
    corruptions.blur: dict(x=X, sigma=1.0, border="mirror", radius=2, vertical_only=True),
    corruptions.corrupt: dict(
        x=X, name="fog", severity=2, calibration="mnist_c", generator=RNG, index=[0, 1, 2, 3], compat="truncate"
    ),
    corruptions.noise: dict(x=X, variance=0.1, generator=RNG, index=range(4)),
    corruptions.severities: dict(name="fog", calibration="mnist_c"),
    corruptions.corruption_table: dict(calibration="mnist_c"),
    faults.bit_fields: dict(dtype=torch.float16),
    faults.flip_bits: dict(x=X, rate=0.1, bits=["sign", 3], generator=RNG),
    faults.looks_binary: dict(module=MODEL),
    faults.quantises: dict(module=MODEL),
    faults.sites: dict(model=MODEL, binary=["1"]),
    faults.faulty: dict(model=MODEL, rate=0.1, where="weights", layers="1", bits=3, generator=RNG, binary=None),
    faults.fault_curve: dict(
        model=MODEL,
        x=X,
        y=Y,
        rates=[0.1],
        where="weights",
        layers="all",
        draws=1,
        bits=None,
        generator=RNG,
        binary=None,
        batch_size=2,
    ),
    streams.Task: PARTS | dict(name="a", permutation=torch.arange(64), classes=(0, 1)),
    streams.Task.train_batches: dict(self=TASK, batch_size=10, generator=RNG),
    streams.Task.test_batches: dict(self=TASK, batch_size=10),
    streams.permuted: dict(data=DIGITS, n_tasks=1, seed=3, first_identity=True),
    streams.rotated: dict(data=DIGITS, angles=[0, 90.0]),
    streams.pair: dict(first=DIGITS, second=DIGITS),
    streams.split: dict(data=DIGITS, groups=[["0", 1], [2]], relabel=True),
    streams.class_pairs: dict(data=DIGITS, per_task=5, generator=RNG),
    streams.permute: dict(x=X, permutation=torch.arange(X[0, 0].numel())),
    streams.vehicles_and_animals: dict(data=animals(), compat=True),
    streams.subsets: dict(data=DIGITS, n=2, seed=0),
    streams.AccuracyMatrix: dict(R=[[90, 10], [50, 90]], names=["a", "b"], untrained=[10, math.nan]),
    streams.AccuracyMatrix.from_frame: dict(df=LEARNED, after="after", on="on", value="accuracy"),
    streams.switch_drops: dict(trace=TRACE),
    streams.stability_gap: dict(trace=TRACE),
    training.set_seed: dict(seed=1),
    training.pick_device: dict(name="cpu"),
    training.Learner: dict(
        model=MODEL,
        opt=torch.optim.SGD(MODEL.parameters(), 0.1),
        callbacks=[training.Recorder()],
        loss_func=nn.functional.cross_entropy,
    ),
    training.Learner.notify: dict(self=LEARNER, moment="after_step"),
    training.Learner.fit: dict(self=LEARNER, epochs=1, batches=TASK.test_batches()),
    evaluation.eval_mode: dict(model=MODEL),
    evaluation.evaluate: dict(model=MODEL, batches=TASK.test_batches()),
    evaluation.accuracy: dict(model=MODEL, x=DIGITS.x_test, y=DIGITS.y_test, batch_size=10),
    evaluation.correct: dict(logits=LOGITS, y=Y),
    evaluation.accuracy_of: dict(logits=LOGITS, y=Y),
    evaluation.calibration_error: dict(confidence=np.full(4, 0.5), correct=np.ones(4), bins=3),
    evaluation.measures: dict(logits=LOGITS, y=Y),
    evaluation.answers: dict(logits=LOGITS, y=Y),
    filter_map.stratified_images: dict(data=DIGITS, images=20),
    evaluation.look_like_probabilities: dict(z=LOGITS),
    evaluation.check_model: dict(model=MODEL, x=as_images(DIGITS.x_test[:9]), y=DIGITS.y_test[:9]),
    evaluation.accuracy_by_task: dict(tasks=[TASK], model_on=lambda k: MODEL),
    evaluation.logits_of: dict(model=MODEL, x=DIGITS.x_test, batch_size=10),
    data.Dataset: {f.name: getattr(DIGITS, f.name) for f in dataclasses.fields(DIGITS)},
    data.as_images: dict(x=BYTES),
    data.Batches: dict(x=BYTES, y=Y, batch_size=2, shuffle=True, generator=RNG, permutation=torch.arange(64))
    | dict(augment=lambda x: x, drop_last=True),
    data.flip_and_crop: dict(padding=1, flip=False, generator=RNG),
    data.patch_dataset: dict(shared=4, own=2, noise=0.1, n_train=8, n_test=4, seed=1),
    data.load: dict(name="digits", root=".", size=8, valid=0.2, seed=1, n_train=20, n_test=10, device="cpu")
    | dict(download=False),
    sources.data_dirs: dict(root="."),
    sources.available: dict(root="."),
    sources.read_arrays: dict(name="digits", root=".", size=8, download=False),
    image_operations.blur: dict(x=X, sigma=1.0, border="mirror", radius=2, vertical_only=True),
    **{make: dict(seed=0) for make in PLANTED},
    planted.saturated: dict(seed=0, gain=10.0),
    planted.detector: dict(seed=0, reject_class=True),
    planted.Stairs: dict(height=0.1, waves=2.0),
    planted.Standardise: dict(seed=0),
    planted.Guarded: dict(model=MODEL, guard=MODEL, reject_class=True),
    planted.closed_form_accuracy: dict(
        model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), x=X, y=Y, eps=0.1, box=False
    ),
    training.Recorder: dict(valid=None),
    training.Progress: dict(label="train"),
    training.save_atomically: dict(state=dict(a=1), path="made.pt"),
    training.set_random_state: dict(state=training.random_state()),
    training.Checkpoint: dict(path="made.pt", every=2),
    adversarial_training.LearningRate: dict(shape="late"),
    adversarial_training.AdversarialTraining: dict(eps=0.1, attack="pgd", warmup=0.5, mode="eval"),
    adversarial_training.OverfittingMonitor: dict(eps=0.1, on_collapse="stop", gap=20.0, steps=3, images=4),
    adversarial_training.FastTraining: dict(eps=0.1, relative_step=1.25, random_start=True, on_collapse="stop")
    | dict(warmup=0.5, mode="eval"),
    adversarial_training.Replayed: dict(batches=[(X, Y)], replays=2),
    adversarial_training.FreeTraining: dict(eps=0.1, relative_step=1.0),
    adversarial_training.Trades: dict(eps=0.1, beta=6.0, steps=3, relative_step=0.5, warmup=0.5, mode="eval"),
    adversarial_training.GradientRegularisation: dict(weight=1.0),
    adversarial_training.training_cost: dict(model=MODEL, x=X, y=Y, ways=dict(direct=list), rounds=1),
    report_training.MagnitudeTraining: dict(eps=0.1, last_eps=0.2, steps=3, relative_step=0.3, accumulate=True)
    | dict(mode="eval", compat=["normalised_units"]),
    gradient_penalties.report_rate: dict(progress=0.5),
    conversion.zeros_around: dict(c=nn.Conv2d(1, 1, 3)),
    conversion.Stage: dict(name="1", layer=MODEL[1], before=[nn.Flatten()], rectified=True, pools=False, after=[]),
    conversion.forward_rectified: dict(stages=STAGES, x=X),
    conversion.chain: dict(model=MODEL, x=X),
    conversion.without_dropout: dict(model=MODEL, kinds=("always",)),
    conversion.largest: dict(model=MODEL, stages=STAGES, x=X, batch_size=2),
    conversion.drive_factors: dict(s=[1.0, 2.0], scale=1.0, previous="largest"),
    filters.keep_mask: dict(w=torch.rand(4), filter="low_pass", alpha=0.5, width=0.1, seed=0, layer="a"),
    filters.filterable_layers: dict(model=CONV, layers=["2"]),
    filters.active_weights: dict(model=CONV, x=X, layers="0"),
    filters.threshold_grid: dict(low=0.0, high=1.0, thresholds=3),
    filters.step_masks: dict(weights=WEIGHTS, step=STEP, compat=(), seed=0),
    filters.filter_steps: dict(weights=WEIGHTS, filters=["pulse"], thresholds=2, active=None, compat=(), seed=0),
    filters.filtered: dict(model=CONV, keep={"2": torch.ones(10, 72, dtype=torch.bool)}),
    filter_map.filter_map: dict(model=CONV, data=(X, Y), layers="2", scope="local", filters=["pulse"], thresholds=2)
    | dict(eps=0.1, adversary="static", attack="fgsm", options={}, images=None, seed=0, engine="plain", chunk=2)
    | dict(batch_size=2, compat=(), keep=None, per_image=False),
    filter_map.filter_suite: dict(model=CONV, x=X, layers="2", scope="local", filters=["pulse"], thresholds=2),
    filter_networks.Normalise: dict(data=DIGITS),
    filter_networks.build: dict(name="squeezenet", data=LARGER, width=8, init="torchvision"),
    dropen_subnetworks.subnetwork: dict(model=DROPPING, seed=1),
    dropen_subnetworks.monte_carlo_dropout: dict(model=DROPPING, passes=2),
    dropen_subnetworks.transfer_rate: dict(right=Y == Y, source=Y == 1, target=Y == 1),
    dropen_subnetworks.transfer_matrix: dict(rows=TRANSFERRED),
    dropen_subnetworks.transfer_by_pair: dict(rows=TRANSFERRED),
    dropen_subnetworks.transfer_maps: dict(rows=TRANSFERRED),
    loss_surface.gradient_norms: dict(model=MODEL, x=X, y=Y, loss="cw"),
    loss_surface.curvature: dict(model=MODEL, x=X, y=Y, loss="cw", h=0.1),
    loss_surface.loss_plane: dict(model=MODEL, x=X, y=Y, eps=0.1, points=2, reach=1.0, seed=0),
    loss_surface.decision_slice: dict(model=MODEL, x=X[:3], points=2, margin=0.1),
    loss_surface.surface_figure: dict(rows=SURFACE),
    loss_surface.slice_figure: dict(rows=SURFACE),
    dropen_networks.LeNet: dict(data=LARGER, dropout=0.5, width=4, normalise=True),
    dropen_networks.TwoConv: dict(data=LARGER, dropout=0.5, width=4, normalise=True),
    dropen_networks.VGG11: dict(data=LARGER, dropout=0.5, width=4, normalise=True),
    dropen_networks.build: dict(name="lenet", data=LARGER, dropout=0.5, width=4, normalise=True),
    gradient_penalties.input_gradients: dict(model=MODEL, x=X, y=Y, graph=True),
    gradient_penalties.gradient_cosine: dict(g=torch.rand(4, 9), h=torch.rand(4, 9)),
    gradient_penalties.gradient_magnitude: dict(g=torch.rand(4, 9)),
    gradient_penalties.GradientMemory: dict(size=2),
    gradient_penalties.Ensemble: dict(members=[MODEL]),
    gradient_penalties.magnitude_attack: dict(model=MODEL, x=X, y=Y, eps=0.1, steps=1, step_size=0.1, accumulate=True)
    | dict(start=X, clip=True, h=0.1),
    gradient_penalties.once_differentiable: dict(model=MODEL, x=X),
    gradient_penalties.linear_eps: dict(epoch=1, epochs=2, start=0.1, end=0.2),
    gradient_penalties.DropenCallback: dict(cosine=1.0, smoothness=0.1, memory=2, compare="masks", eps=0.1)
    | dict(last_eps=0.1, steps=1, relative_step=0.5, accumulate=False, clip=False, reuse=False, h=0.1)
    | dict(derivative="finite_difference", warm_start=True, compat=["normalised_units"]),
    gradient_penalties.TRSCallback: dict(cosine=1.0, smoothness=0.1, eps=0.1, last_eps=0.1, steps=1)
    | dict(relative_step=0.5, accumulate=False, clip=False),
    training_methods.attack_radius: dict(data="mnist"),
    training_methods.training_size: dict(profile="smoke", data="digits"),
    training_methods.unseen_images: dict(data="digits", images=20, profile="smoke"),
    training_methods.clean_pgd_worst: dict(model=MODEL, x=X, y=Y, eps=0.1, steps=1, seed=0),
    training_methods.surrogates: dict(data="digits", seed=0, profile="smoke", seeds=1),
    training_methods.report_images: dict(data=DIGITS),
    training_methods.report_network: dict(model=MODEL),
    report_tables.report_attack: dict(model=MODEL, x=X, y=Y, eps=0.1, steps=1, generator=torch.Generator()),
    report_tables.descent: dict(clean=90.0, attacked=10.0),
    report_tables.descents: dict(rows=DESCENTS, space="report"),
    robust_accuracy.side_by_side: dict(rows=DESCENTS),
    dropen_masking.audits_of: dict(rows=DESCENTS.assign(network="direct")),
    penalty_ablation.batch_cosine: dict(model=MODEL, x=X, y=Y, batch_size=2),
    penalty_ablation.gradient_lengths: dict(model=MODEL, x=X, y=Y, eps=0.1, steps=1),
    penalty_ablation.gain_over: dict(rows=ABLATED, a="dropen", b="no_cosine", stressor="worst"),
    gradient_penalties.ADPCallback: dict(entropy=1.0, diversity=0.1),
    scores.area: dict(values=np.ones(3), rule="simpson"),
    scores.response: dict(rows=MAP, layer="2", attacked=False, filters=["high_pass"]),
    scores.combined_response: dict(rows=MAP, layer="2", attacked=False, filters=["high_pass"]),
    scores.label: dict(score=0.1, delta=0.05, tested=True),
    scores.filter_scores: dict(rows=MAP, filters=["high_pass"], by=(), rule="simpson", count="all", delta=0.05)
    | dict(draws=0, seed=0),
    scores.normalised_scores: dict(table=SCORES, method="symmetric"),
    scores.to_layers: dict(table=SCORES, share=0.5, score="S_clean", what="names", lowest=True, stressor="combined"),
}
# Valid calls of methods: what an attack calls is taken from one at work

ENGINES = [stdp.EventEngine(STAGES, RULE, (1.0, 1.0)), stdp.TensorEngine(STAGES, RULE, (1.0, 1.0), X[:1])]
SPIKES = torch.ones(3, 64, dtype=torch.bool)
SHOWN = claims.Claim(**CLAIM, check=lambda rows, scale: claims.Finding(True, "seen"))
LEAF = X.clone().requires_grad_()
OPTIMIZER = optimizer.MetaplasticAdam(weights())  # torch wraps `step` when the first one is made
RATES = dict(step_size=None, relative_step=0.1)
CALLS |= {
    data.Dataset.to: dict(self=DIGITS, device="cpu"),
    data.Dataset.subset: dict(self=DIGITS, n_train=20, n_test=10, n_valid=None, seed=1),
    training.Recorder.load_state_dict: dict(self=training.Recorder, state=dict(rows=[])),
    adversarial_training.AdversarialTraining.attacked: dict(learn=LEARNER, x=X, y=Y)
    | dict(self=adversarial_training.AdversarialTraining(0.1, steps=1)),
    adversarial_training.AdversarialTraining.load_state_dict: dict(state=RATES)
    | dict(self=adversarial_training.AdversarialTraining(0.1)),
    adversarial_training.FastTraining.load_state_dict: dict(state=RATES | dict(monitor=dict(rows=[])))
    | dict(self=adversarial_training.FastTraining(0.1)),
    adversarial_training.FreeTraining.load_state_dict: dict(state=dict(delta=torch.zeros(0)))
    | dict(self=adversarial_training.FreeTraining(0.1)),
    selective_training.SelectiveTraining.weights: dict(self=selective_training.SelectiveTraining(len), model=CONV),
    selective_training.SelectiveTraining.load_state_dict: dict(state=dict(names=[], rows=[]))
    | dict(self=selective_training.SelectiveTraining(len)),
    gradient_penalties.DropenCallback.load_state_dict: dict(state=dict(rows=[], step=0))
    | dict(self=gradient_penalties.DropenCallback),
    gradient_penalties.GradientMemory.add: dict(self=gradient_penalties.GradientMemory(2), g=torch.rand(4, 9)),
    gradient_penalties.GradientMemory.cosine: dict(self=gradient_penalties.GradientMemory(2), g=torch.rand(4, 9)),
    gradient_penalties.Ensemble.joined: dict(self=gradient_penalties.Ensemble([MODEL]), logits=[LOGITS]),
    own_attacks.OwnAttack.make: dict(self=own_attacks.OwnAttack(SIGNS), model=MODEL, x=X, y=Y, eps=0.1),
    cost.PassBar.part: dict(self=cost.PassBar(MODEL, dict(fog=1), 3, 0.1), name="fog", passes=1.0),
    masking.Subject.right: dict(self=SUBJECT, x=X, model=MODEL),
    masking.Subject.percent: dict(self=SUBJECT, x=X, model=MODEL),
    masking.Subject.images: dict(self=SUBJECT, attack="fgsm", eps=0.1, model=MODEL),
    masking.Subject.left: dict(self=SUBJECT, attack="fgsm", eps=0.1),
    masking.Subject.under: dict(self=SUBJECT, attack="fgsm", eps=0.1),
    claims.Claim.__call__: dict(self=SHOWN, rows=RUNS, scale="cpu", beside={}),
    claims.Claim.runs: dict(self=SHOWN, scale="cpu"),
    claims.Claim.command: dict(self=SHOWN, scale="cpu", seeds=3),
    store.Store.places: dict(self=store.Store, name="local/one_row"),
    store.Store.table_path: dict(self=store.Store, name="local/one_row"),
    store.Store.run_paths: dict(self=store.Store, name="local/one_row", key=""),
    store.Store.read_path: dict(self=store.Store, name="local/one_row", suffix=".parquet"),
    store.Store.load: dict(self=store.Store, name="local/one_row", key=""),
    store.Store.find: dict(self=store.Store, name="local/one_row", key="0" * 16),
    store.Store.write: dict(self=store.Store, record=store.run_record(one_row, dict(seed=0)), force=False),
    experiments.Experiment.refuse_unknown: dict(self=one_row, names=["seed"]),
    experiments.Experiment.rows_now: dict(self=one_row, rows=RUNS),
    experiments.Experiment.bind: dict(self=one_row, profile="smoke", given=dict(seed=1)),
    experiments.Experiment.key: dict(self=one_row, bound=dict(seed=1)),
    experiments.Experiment.profile_of: dict(self=one_row, bound=dict(seed=1)),
    sweeps.ExperimentNotebook.annotation: dict(self=sweeps.open_notebook("forgetting"), name="meta"),
    sweeps.ExperimentNotebook.refuse_unknown: dict(self=sweeps.open_notebook("forgetting"), names=["meta"]),
    filters.FilterStep.compactness: dict(self=STEP, count="all"),
    optimizer.MetaplasticAdam.step: dict(self=OPTIMIZER, closure=None),
    frozen_features.Features.train: dict(self=frozen_features.Features(perceptron()), mode=True),
    frozen_features.Features.of: dict(self=frozen_features.Features(perceptron()), x=X, batch_size=2),
    conversion.Stage.drive: dict(self=STAGES[0], spikes=torch.ones(1, 64), weight=MODEL[1].weight.detach()),
    conversion.Stage.arriving: dict(self=STAGES[0], spikes=torch.ones(1, 1, 8, 8)),
    **{type(e).run: dict(self=e, spikes=SPIKES, watch=1) for e in ENGINES},
    **{type(e).scale: dict(self=e, factor=2.0) for e in ENGINES},
    attacks.Ball.direction: dict(self=BALL, g=X),
    attacks.Oracle.slope: dict(self=attacks.Oracle(MODEL, Y), value=(LEAF**2).sum(), a=LEAF, again=True),
    **in_attack(
        attacks.PGD(2),
        attacks.Ball.project,
        attacks.Ball.step,
        attacks.Oracle.logits,
        attacks.Oracle.gradient,
        attacks.State.keep,
        attacks.Threat.wins,
        attacks.Threat.score,
        attacks.Threat.gradient,
        attacks.Search.gradient,
        attacks.Search.record,
        attacks.Search.leave,
        attacks.Search.keep,
        early_stop=True,
    ),
    **in_attack(attacks.APGD(20), *(getattr(attacks.AdaptiveStep, k) for k in ("move", "remember", "judge"))),
    **in_attack(
        attacks.Square(10),
        attacks.Square.side,
        attacks.Square.begin,
        attacks.Square.throw,
        attacks.Search.query,
    ),
    **in_attack(attacks.RandomSign()),
    **in_attack(attacks.UniformNoise()),
    **in_attack(attacks.Transfer(MODEL, attacks.PGD(1))),
    **in_attack(own_attacks.OwnAttack(SIGNS)),
    **in_attack(minimal_attacks.DeepFool(1), minimal_attacks.DeepFool.step, norm="l2"),
    **in_attack(minimal_attacks.JSMA(steps=1), minimal_attacks.JSMA.choose, norm="l2"),
    **in_attack(minimal_attacks.CarliniWagner(2, 1), minimal_attacks.CarliniWagner.descend, norm="l2"),
    **in_attack(minimal_attacks.Boundary(120), minimal_attacks.Boundary.begin, norm="l2"),
    **in_attack(minimum_norm.DDN(1), norm="l2"),
    **in_attack(minimum_norm.FMN(1), minimum_norm.FMN.radius, norm="l2"),
    **in_attack(
        minimum_norm.FAB(1),
        minimum_norm.ToBorder.start,
        minimum_norm.ToBorder.border,
        minimum_norm.ToBorder.step,
        norm="l2",
    ),
    **in_attack(input_diversity.DIM(1), input_diversity.DIM.gradient),
    **in_attack(worst_case.PGDKL(1)),
    **in_attack(worst_case.APGDKL(2)),
    **in_attack(worst_case.WorstCase(1, 1, 1, 2, 1)),
    **first_calls(
        lambda: attacks.worst_images(attacks.Threat(MODEL, X, Y, "l2"), worst_case.SquareL2(10), 0.1),
        worst_case.Bumps.full,
        worst_case.Bumps.tiles,
        worst_case.Bumps.throw,
        worst_case.SquareL2.side,
        worst_case.SquareL2.begin,
    ),
}
MANAGERS = {faults.faulty, evaluation.eval_mode, conversion.without_dropout, attacks.untouched}
MANAGERS |= {
    cost.PassBar.part,
    batchnorm_effect.replaced,
    execution.own_kernel,
    zoo.timed_training,
    layers.using_bn,
    filters.filtered,
}
EXTRA_SETTINGS = {zoo.load_network: {"epochs", "hidden"}}
EXTRA_SETTINGS[worst_case.worst_case] = {"steps", "target_steps", "fab_steps", "queries", "targets"}

# Bad values by an argument's name, beside those that follow from its annotation

BY_NAME = dict(
    seed=[1.5, True, -1, "0"],
    lr=[True, math.nan, "0.1", -1],
    meta=["abc", math.nan, -1, True],
    generator=[0],
    model=[nn.Flatten, 3, len],
    net=[nn.Flatten, 3, len],
    data=[3, pd.DataFrame(), "mnsit"],
    df=[3, pd.DataFrame(), "text"],
    rows=[3, "text", pd.DataFrame()],
    scores=[3, "text", pd.DataFrame()],
    table=[3, "text", pd.DataFrame()],
    layer=[3, "no such layer"],
    norm=["l3", "linf ", 2],
    attack=["fsgm", 3],
    network=["sqeezenet", 3],
    profile=["smok", 3],
    device=["gpu", 3],
    name=[pd.DataFrame(), 3],
    path=[3, pd.DataFrame()],
    x=[3, X.numpy(), "images"],
    y=[[0, 1, 2, 3]],
    images=[-1, 0, 1.5, True],
    epochs=[-1, 1.5, True],
    batch_size=[0, -1, 1.5, True],
)
"Images outside [0, 1], of other dimensions, of whole numbers, with NaN; labels of floats, of other numbers of images."
IMAGES = [X + 1, X[0], X.byte(), X * math.nan]
LABELS = [Y.float(), Y[:2], Y - 1]
BY_HAND = {
    (stressors.stress, "data"): [*((x, Y) for x in IMAGES if x.dtype != torch.uint8), *((X, y) for y in LABELS), (X,)],
    (stressors.stress, "suite"): ["corruption", [], [3]],
    (stressors.stress, "images"): [0, -1],
    (masking.audit, "data"): [*((X, y) for y in LABELS), (X,)],
    (report.write_report, "suite"): ["blurs"],
    (report.named_model, "model"): ["torch.nn"],
    (report.named_model, "weights"): ["no such file.pt"],
    (report.named_model, "normalise"): ["cifar", "0.5", "0.5/0.5/0.5", "0.5/0", "a/b"],
    (zoo.find_network, "name"): ["sleep/slep"],
    (zoo.load_network, "name"): ["sleep/slep"],
    (figures.stress_regions, "layer"): ["no such layer"],
    (figures.score_areas, "layer"): ["no such layer"],
    (figures.filter_panels, "layer"): ["no such layer"],
    (figures.filter_panels, "lines"): ["no such column"],
    (batchnorm_effect.replaced, "layer"): ["no such layer"],
    (batchnorm_effect.replaced, "norm"): ["no such layer"],
    (claims.Finding, "values"): [[[1.0]]],
    (claims.Finding, "only_under"): ["compat"],
    (plots.image_grid, "images"): [X + 1, X[0, 0], X * math.nan],
    (plots.save_figure, "name"): ["a/b", ""],
    (statistics.t_interval, "values"): [[], ["a"]],
    (statistics.share_interval, "hits"): [-1, 3],
    (statistics.holm, "pvalues"): [[2.0], ["a"]],
}
FREE = {
    "self": "the object itself",
    "learn": "the Learner, which calls it",
    "annotation": "of a parameter: whatever may stand there",
    "ax": "axes of matplotlib, which is imported only when something is drawn",
}


def label(fn):
    return f"{fn.__module__.removeprefix('robustlit.')}.{fn.__qualname__}"


def called(fn, arguments):
    "The function's result; of a context manager or an iterator, what it gives when used up."
    rest = dict(arguments)
    selves = [rest.pop("self")] if "self" in rest else []
    made = fn(*(s() if inspect.isclass(s) else s for s in selves), **rest)  # a class: one made where it is needed
    if fn in MANAGERS:
        with made as made:
            pass
    return list(made) if inspect.isgenerator(made) else made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "The file of a record."
    kept = store.Store(tmp_path_factory.mktemp("runs"))
    records.recorded(one_row, store=kept)
    return kept.run_paths("local/one_row")[0]


@pytest.fixture
def here(tmp_path, monkeypatch, made):
    "An empty folder with a notebook in it, in which networks and figures are filed too."
    for name in ("RUNS", "RESULTS", "FIGURES"):
        monkeypatch.setenv(f"ROBUSTLIT_{name}", str(tmp_path / name.lower()))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    nbformat.write(NOTEBOOK, "one.ipynb")
    for name in ("images.txt", "train_test_split.txt"):
        Path(name).touch()
    shutil.copy(made, "made.parquet")
    yield tmp_path
    plt.close("all")


@pytest.mark.parametrize("fn", CALLS, ids=label)
def test_a_valid_call_is_taken(fn, here):
    called(fn, CALLS[fn])
    named = {k for k, p in inspect.signature(fn).parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    assert {*CALLS[fn]} - EXTRA_SETTINGS.get(fn, set()) == named, "an argument is missing in the table"


def bad(fn, name):
    "Values that an argument must refuse: by its annotation, by its name, and by hand; but none that its annotation allows."
    check, found = checks_of(fn)[name], [*bad_values(fn).get(name, []), *BY_HAND.get((fn, name), [])]
    for value in BY_NAME.get(name, []) if check is not None else []:
        try:
            check(value, name)
        except (TypeError, ValueError, OSError):
            found.append(value)
    return found


ARGUMENTS = [(fn, name) for fn in CALLS for name in CALLS[fn] if name in checks_of(fn) and name not in FREE]


@pytest.mark.parametrize("fn, name", ARGUMENTS, ids=[f"{label(f)}-{name}" for f, name in ARGUMENTS])
def test_bad_values_are_refused_by_name(fn, name, here):
    values, before = bad(fn, name), sorted(Path().iterdir())
    assert values, "an argument that takes anything"
    for value in values:
        with pytest.raises((TypeError, ValueError, OSError)) as e:
            called(fn, CALLS[fn] | {name: value})
        assert f"`{name}`" in str(e.value), f"{value!r}: {e.value}"
    assert sorted(Path().iterdir()) == before, "something was written before the refusal"


# Nothing public is left out


OWN_TESTS = {
    "robustlit.checks": "tests/test_checks.py",
    "robustlit.digest": "tests/test_digest.py",
    "robustlit.intake": "tests/test_gauntlet.py",
}
GIVEN = {
    attacks.Attacked: "what `attack_images` gives",
    minimal_attacks.Smallest: "what `smallest` gives",
    faults.Faults: "what `faulty` gives",
    stdp.Night: "what `sleep` gives",
    store.Record: "what a store gives",
    execution.Worker: "takes nothing, and starts a process",
    execution.Worker.do: "starts a kernel; a job is checked where it is made: tests/test_long_work.py",
    training.Callback.load_state_dict: "keeps nothing: callbacks that do have their own",
    attacks.AutoAttack.__call__: "needs a package that is not always there",
    sweeps.Run: "what `plan` gives",
    sweeps.ExperimentNotebook: "what `open_notebook` gives",
    attacks.AutoAttack: "needs a package that is not always there",
    command.main: "refuses by its own parser, with an exit code",
    sweeps.carry_out: "given by the parser of the command line",
    cluster.crew_size: "needs a scheduler: tests/test_cluster.py",
    cluster.execute_by_dask: "needs a scheduler: tests/test_cluster.py",
    records.pack: "needs a record, and makes a table: tests/test_records.py",
    records.drop: "needs a record, and removes it: tests/test_records.py",
    records.stale_by: "needs a record: tests/test_records.py",
    experiments.canonical: "takes anything: tests/test_records.py",
    experiments.check_name: "checks a name, and is told what to call it: tests/test_records.py",
    experiments.find_experiment: "checks a name: tests/test_records.py",
    experiments.experiment: "checks its own arguments: tests/test_records.py",
    experiments.Experiment: "what `experiment` makes",
    statistics.Interval: "what the intervals give",
    zoo.Network: "what `find_network` gives",
    filters.FilterStep: "what `filter_steps` gives",
    baselines.Start: "what `begin` gives",
    worst_case.Cascade: "what `worst_case` gives",
    claims.moved_claims: "runs the code of another revision: tests/test_moved.py",
}
KIND_ALONE = (global_scores.trajectories, global_scores.distances, layer_scores.scored_runs, layer_scores.profiles)
KIND_ALONE += (layer_scores.likeness, layer_scores.periodicity)
GIVEN |= dict.fromkeys(KIND_ALONE, "say the kinds of their arguments alone: tests/test_filtering_experiments.py")


def takes_arguments(thing):
    if inspect.isclass(thing):
        return "__init__" in vars(thing) and not issubclass(thing, Exception)
    return bool({*inspect.signature(thing).parameters} - {*FREE})


def methods_of(cls):
    "The public methods in the body of a class that take arguments; `forward` is torch's to call and to answer for."
    for name in vars(cls):
        method = getattr(cls, name)
        is_public = name == "__call__" or not (name.startswith("_") or name == "forward")
        if is_public and (inspect.isfunction(method) or inspect.ismethod(method)) and takes_arguments(method):
            yield method


def public():
    "Every public function, class and method that takes arguments, where it is defined."
    for info in pkgutil.walk_packages(robustlit.__path__, "robustlit."):
        if info.name.endswith("._modidx"):
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", []):
            thing = vars(module).get(name)
            is_code = inspect.isfunction(thing) or inspect.isclass(thing)
            if is_code and thing.__module__ == module.__name__:
                yield from [thing] if takes_arguments(thing) else []
                yield from methods_of(thing) if inspect.isclass(thing) else []


def unnamed():
    "Public functions and classes that are neither in the table of calls nor named with a reason."
    drawn = {one.check for one in known_claims()}  # given records by `verdict`
    return sorted(label(f) for f in {*public()} - {*CALLS} - {*GIVEN} - drawn if f.__module__ not in OWN_TESTS)


def test_every_public_function_is_called_or_named_with_a_reason():
    assert not unnamed()
    assert not [label(f) for f in GIVEN if f in CALLS], "called in the table, so it needs no reason"
    assert not [label(f) for f in {*GIVEN} - {*public()}], "no longer public"
    assert all(GIVEN.values()) and all(Path(__file__).with_name(Path(p).name).exists() for p in OWN_TESTS.values())


def test_a_new_public_function_is_missed(monkeypatch):
    def fresh(path): ...

    fresh.__module__, fresh.__qualname__ = files.__name__, "fresh"
    monkeypatch.setattr(files, "fresh", fresh, raising=False)
    monkeypatch.setattr(files, "__all__", [*files.__all__, "fresh"])
    assert unnamed() == ["files.fresh"]
    monkeypatch.setitem(GIVEN, fresh, "made for this test")
    assert not unnamed()


# Experiments: by the command line, by `recorded`, and called directly

GIVEN_BADLY = dict(
    meta="abc", seed=1.5, lr=True, width=0, epochs=-1, batch_size=0.5, n_tasks=True, images=0, hidden=[0], eps=1.5
)
KINDS_ALONE = ("filtering/global_scores", "filtering/layer_scores")  # say the kinds of their parameters alone
KNOWN = [experiments.find_experiment(name) for name in sorted(experiments.known_experiments())]
RUNNABLE = [one for one in KNOWN if one.paper != "local" and one.name not in KINDS_ALONE]


@pytest.mark.parametrize("one", RUNNABLE, ids=lambda one: one.name)
def test_an_experiment_refuses_bad_values_by_name(one, here):
    for profile in one.profiles:
        one.bind(profile)
    given = {k: v for k, v in GIVEN_BADLY.items() if k in one.parameters}
    assert given
    for name, value in given.items():
        for call in (one, lambda **bad: records.recorded(one, **bad), lambda **bad: sweeps.plan(book(one), bad)):
            with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
                call(**{name: value})


# One role, one annotation

NAMES = dict(data=("mnsit", "mnist"), network=("slep", "sleep"), profile=("smok", "smoke"))


@pytest.mark.parametrize("one", RUNNABLE, ids=lambda one: one.name)
def test_an_experiment_refuses_unknown_names_with_the_nearest(one, here):
    for name, (wrong, right) in NAMES.items():
        if name not in (*one.parameters, "profile"):
            continue
        ways = [lambda **bad: records.recorded(one, **bad), lambda **bad: records.key_of(one, **bad)]
        for call in ways if name == "profile" else [one, *ways]:
            with pytest.raises(ValueError, match=f"`{name}` is unknown: '{wrong}'") as e:
                call(**{name: wrong})
            known = one.parameters.get(name)
            near = right if known is None or name == "data" or right in str(known.default) else "Known: "
            assert near in str(e.value)
    assert not (here / "runs").exists()


ROLES = ("data", "network", "norm", "attack", "device", "profile")
BARE = {  # parameters of these names that take any string, and why
    "batchnorm_effect.replaced norm": "the name of a layer",
    "noise_blur_fgsm.gain network": "what a table calls it",
    "checks.check_eps norm": "only linf has a largest radius; the attack refuses unknown ones",
    "experiments.bind profile": "of the experiment's own profiles",
    "masking.left attack": "a method that the audit calls",
    "masking.images attack": "a method that the audit calls",
    "masking.under attack": "a method that the audit calls",
    "global_scores.global_scores data": "says its kind alone",
    "global_scores.global_scores network": "says its kind alone",
    "layer_scores.layer_scores data": "says its kind alone",
    "layer_scores.layer_scores network": "says its kind alone",
}


def bare():
    "Parameters of public functions and experiments that bear the name of a role and take any string."
    for path in sorted(Path(robustlit.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
                for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                    if a.arg in ROLES and a.annotation is not None and "str" in ast.unparse(a.annotation).split(" | "):
                        yield f"{path.stem}.{node.name} {a.arg}"


def test_an_argument_that_names_something_known_is_annotated_with_what_is_known():
    assert {*bare()} <= {*BARE}


def book(one):
    return sweeps.ExperimentNotebook(Path("one.ipynb"), one, {k: p.default for k, p in one.parameters.items()})


@pytest.mark.parametrize(
    "words", ["run forgetting -p meta abc", "run forgetting -p seed 1.5", "sweep forgetting -g meta True --dry-run"]
)
def test_the_command_refuses_before_anything_runs(words, here, capsys):
    assert command.main(words.split()) == 2
    name = words.split()[3]
    assert f"`{name}` must be" in capsys.readouterr().err and not (here / "runs").exists()
