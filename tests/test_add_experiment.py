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
