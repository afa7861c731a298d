"""The page 'How to add an experiment' is done as it is written, in a folder outside the repository."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parents[1]
PAGE = nbformat.read(ROOT / "nbs" / "add_experiment.ipynb", 4)


def blocks(language):
    text = "\n".join(c.source for c in PAGE.cells)
    return re.findall(rf"^```{language}\n(.*?)\n```", text, re.S | re.M)


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    "What each line of the page's shell says, after its notebook was made."
    folder = tmp_path_factory.mktemp("coins")
    function, *sources = blocks("python")
    (folder / "coin.py").write_text(function, encoding="utf-8")
    cells = [new_code_cell(source) for source in sources]
    for cell, tags in zip(cells[1:], [["parameters"], [], ["report"]], strict=True):
        cell.metadata["tags"] = tags
    about = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    nbformat.write(new_notebook(cells=cells, metadata=about), folder / "coin.ipynb")
    env = os.environ | dict(PYTHONPATH=str(ROOT), ROBUSTLIT_RUNS=str(folder / "runs"))
    start = [sys.executable, "-c", "import sys; from robustlit.command import main; sys.exit(main())"]
    lines = [line for line in "\n".join(blocks("sh")).splitlines() if line.startswith("robustlit ")]
    told = []
    for line in lines:
        done = subprocess.run([*start, *line.split()[1:]], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        told.append(done.stdout + done.stderr)
    return folder, told


def test_the_page_leads_to_records(typed):
    folder, told = typed
    assert "figure:" in told[0] and "notebook:" in told[0]
    assert len([*(folder / "runs").rglob("*.parquet")]) == 6


def test_what_has_a_record_is_not_run_again(typed):
    assert "3" in typed[1][-1] and "1" in typed[1][-1], typed[1][-1]


def test_the_function_may_stand_in_the_notebook_itself(tmp_path):
    "Without a module and without a word on the language, from another folder, later by its name."
    function, _, parameters, run, report = blocks("python")
    function = "%matplotlib inline\n" + function.replace("integers(0, 2, points)", "integers(0, sides(), points)")
    cells = [new_code_cell(function), new_code_cell("def sides():\n    return 2"), new_code_cell("!echo a line\n1 + 1")]
    rest = (parameters, "parameters"), (run.replace("from coin import coin\n", ""), "run"), (report, "report")
    cells += [new_code_cell(text, metadata=dict(tags=[tag])) for text, tag in rest]
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir(), elsewhere.mkdir()
    book = new_notebook(cells=cells)
    book.metadata.clear()
    nbformat.write(book, home / "toss.ipynb")
    env = os.environ | dict(PYTHONPATH=str(ROOT), ROBUSTLIT_RUNS=str(tmp_path / "runs"))

    def typed(line, folder=elsewhere):
        start = [sys.executable, "-c", "import sys; from robustlit.command import main; sys.exit(main())"]
        done = subprocess.run([*start, *line.split()], cwd=folder, env=env, capture_output=True, text=True)
        return done.stdout + done.stderr

    assert "figure:" in typed("run ../home/toss.ipynb -p points 20")
    assert "2 runs, 1 have a record, 1 to run" in typed("sweep coin -p points 20 -g seed 0,1 --dry-run")
    (home / "toss.ipynb").write_text((home / "toss.ipynb").read_text().replace("return 2", "return 3"))
    told = typed("sweep coin -p points 20 -g seed 0,1 --dry-run")
    assert "1 have a record (1 of them stale by __main__." in told and "__main__.sides" in told and "1 to run" in told
    assert "figure:" in typed("run coin -p points 20 --stale") and len([*(tmp_path / "runs").rglob("*.parquet")]) == 2
    assert "stale" not in typed("run coin -p points 20 --dry-run")
