"""Every function that runs in an experiment is one that its digest reaches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustlit.records import known_experiments

SMALL = dict(epochs=1, images=10)
NIGHT = dict(SMALL, hidden=[8, 8], steps=20)
# Smaller than the smoke profile. `ROBUSTLIT_ORACLE=all` runs the long ones too, `smoke` all at the profile's own size.
LONG = ("metaplasticity/gradient_masking", "sleep/cifar_convnet", "sleep/frozen_features")
SHORT = {
    "benchmark/class_incremental": dict(epochs=1, hidden=[8, 8], per_task=30),
    "metaplasticity/adversarial_robustness": dict(SMALL, width=8, n_tasks=2),
    "metaplasticity/gradient_masking": dict(SMALL, width=8, n_tasks=2, images=20),
    "metaplasticity/common_corruptions": dict(SMALL, width=8, n_tasks=2),
    "metaplasticity/forgetting": dict(epochs=1, width=8, n_tasks=2),
    "sleep/cifar_convnet": dict(SMALL, budget=2, steps=20, valid_images=20),
    "sleep/noise_blur_fgsm": {k: v for k, v in NIGHT.items() if k != "steps"},
    "sleep/frozen_features": dict(SMALL, budget=2, steps=20, published_steps=20, valid_images=20, hidden=[8, 8]),
    "sleep/spiking_activity": NIGHT,
    "sleep/strong_attacks": dict(epochs=1, images=10, hidden=[8, 8]),
    "sleep/gradient_masking": dict(epochs=1, images=20, hidden=[8, 8]),
    "sleep/ablation": NIGHT,
    "sleep/patches": dict(epochs=1, budget=2, steps=20),
    "sleep/class_incremental": dict(epochs=1, hidden=[8, 8], per_task=30, steps=20, more_steps=10, side=2),
    "sleep/unit_removal": NIGHT,
    "sleep/distillation_weight": dict(epochs=1, hidden=[8, 8]),
    "sleep/common_corruptions": dict(epochs=1, images=10, hidden=[8, 8]),
}


# Asked by an annotation, which is no part of a digest: it refuses an argument or lets it pass, and changes no row.
REFUSES_ONLY = ("robustlit.zoo._is_network",)


def own(name):
    return (Path(__file__).parent.parent / "robustlit" / f"{name}.py").is_file()


@pytest.fixture(scope="module")
def told():
    names = sorted(n for n in known_experiments() if own(n))
    size = os.environ.get("ROBUSTLIT_ORACLE", "few")
    asked = {n: {} if size == "smoke" else SHORT.get(n, {}) for n in names if size != "few" or n not in LONG}
    command = [sys.executable, str(Path(__file__).parent / "traced.py"), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_ran_was_reached(told):
    assert len(told) >= 17 - len(LONG)
    missed = {name: [r for r in found["missed"] if r not in REFUSES_ONLY] for name, found in told.items()}
    assert {name: those for name, those in missed.items() if those} == {}


def test_the_oracle_sees_what_runs(told):
    seen = {name: len(found["ran"]) for name, found in told.items()}
    assert min(seen.values()) > 15, seen
    assert "robustlit.training.Learner" in told["metaplasticity/forgetting"]["ran"]
    assert any(r.startswith("robustlit.corruptions._fog") for r in told["sleep/common_corruptions"]["ran"])
