"What moved since a revision: a small repository of its own, with one paper, two experiments and three claims."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import robustlit
from robustlit.claims import moved_claims

EXPERIMENT = """
import pandas as pd
from ..claims import Finding, claim
from ..records import experiment

FACTOR = 2

def grown(seed):
    return FACTOR * 10 + seed

@experiment(smoke=dict(size=1), cpu=dict(size=3))
def NAME(size: int = 3, seed: int = 0):
    return pd.DataFrame(dict(y=[grown(seed)] * size))

def enough(y):
    return bool((y >= 20).all())

PARTS = dict(paper="toy", statement="s", source="Fig 1", published="20", condition="y >= 20", experiment="toy/NAME")

@claim("NAME-1", **PARTS, condition_cpu="y >= 20")
def stays_high(rows, scale):
    y = rows.groupby("seed").y.mean()
    return Finding(enough(y), "", y)
"""

COUNTED = """
@claim("growth-2", **PARTS, condition_cpu="there are rows")
def has_rows(rows, scale):
    return Finding(len(rows) > 0, "rows are there")
"""

RUN = """
import sys
from robustlit.records import pack, recorded
from robustlit.command import main
from robustlit.toy.decay import decay
from robustlit.toy.growth import growth

if "first" in sys.argv:
    for fn in growth, decay:
        for seed in range(3):
            recorded(fn, "cpu", seed=seed)
        pack(fn)
if "more" in sys.argv:
    recorded(growth, "cpu", seed=3), recorded(growth, "smoke", seed=4), recorded(decay, "smoke", seed=4)
sys.exit(main(["diff", sys.argv[1]]))
"""


def run(repo, *words):
    names = ("PYTHONPATH", "ROBUSTLIT_RUNS", "ROBUSTLIT_RESULTS")
    env = {k: v for k, v in os.environ.items() if k not in names} | dict(PYTHONPATH=str(repo))
    return subprocess.run([sys.executable, "-c", RUN, *words], cwd=repo, env=env, capture_output=True, text=True)


def git(repo, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", repo, *who, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    repo = tmp_path_factory.mktemp("repo")
    toy = repo / "robustlit" / "toy"
    toy.mkdir(parents=True)
    for path in Path(robustlit.__file__).parent.glob("*.py"):
        shutil.copy(path, repo / "robustlit")
    (toy / "__init__.py").touch()
    (toy / "growth.py").write_text(EXPERIMENT.replace("NAME", "growth") + COUNTED)
    (toy / "decay.py").write_text(EXPERIMENT.replace("NAME", "decay"))
    (repo / "settings.ini").write_text("[DEFAULT]\n")
    (repo / ".gitignore").write_text("runs/\n__pycache__/\n")
    git(repo, "init", "-q")
    git(repo, "add", "-A"), git(repo, "commit", "-qm", "code")
    done = run(repo, "HEAD", "first")
    assert done.returncode == 0, done.stderr
    git(repo, "add", "-A"), git(repo, "commit", "-qm", "records")
    repo.joinpath("first").write_text(done.stdout)
    return repo


def test_records_that_came_in_move_claims(repo):
    out = repo.joinpath("first").read_text()
    assert "3 claims moved since HEAD" in out
    assert "was: not measured" in out and "is:  indicated at cpu scale: 21.0 ± 1.0 % (n = 3)" in out
    assert out.count("3 new records of toy/growth") == 2 and "new records of toy/decay: " in out


def test_an_edit_moves_the_claims_that_it_reaches_and_is_named(repo):
    path = repo / "robustlit" / "toy" / "growth.py"
    path.write_text(path.read_text().replace("y >= 20).all", "y >= 22).all").replace("FACTOR = 2", "FACTOR = 4 - 2"))
    done = run(repo, "HEAD", "more")
    path.write_text(EXPERIMENT.replace("NAME", "growth") + COUNTED)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert (
        "1 claim moved since HEAD" in out
        and "toy growth-1" in out
        and "growth-2" not in out
        and "decay" not in out.split("since")[1]
    )
    assert "was: indicated at cpu scale" in out and "is:  not indicated at cpu scale: 21.5 ± 1.3 % (n = 4)" in out
    by = next(line for line in out.splitlines() if line.strip().startswith("by "))
    assert "robustlit.toy.growth.enough" in by and "robustlit.toy.growth.FACTOR" in by and "grown" not in by
    assert "1 new record of toy/growth" in out and out.count("new records of") == 1  # the smoke runs are no news


def test_a_revision_that_is_none_is_told():
    with pytest.raises(ValueError, match="`rev` must be a revision of the repository"):
        moved_claims("no-such-revision")
