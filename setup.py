"Package metadata comes from settings.ini; pyproject.toml holds the build and tool configuration."

import json
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def experiment_notebooks():
    "Notebooks that the command line can run: those with a cell tagged `parameters`."
    for path in sorted((here / cfg["nbs_path"]).glob("*/[0-9]*_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if any("parameters" in c["metadata"].get("tags", []) for c in cells):
            yield path


def extras():
    "Running a notebook takes what opening one takes; `all` is all that a user may want, `dev` that and the tools."
    notebooks, sweeps, attacks, cluster, dev = (
        cfg[f"{k}_requirements"].split() for k in ("notebooks", "sweeps", "attacks", "cluster", "dev")
    )
    everything = list(dict.fromkeys(notebooks + sweeps + attacks + cluster))
    return dict(
        notebooks=notebooks,
        sweeps=notebooks + sweeps,
        attacks=attacks,
        cluster=notebooks + sweeps + cluster,
        all=everything,
        dev=list(dict.fromkeys(everything + dev)),
    )


class BuildWithNotebooks(build_py):
    "Beside the package's modules, the experiment notebooks and the tables of records, which git holds elsewhere."

    def targets(self):
        tables = sorted(p for p in (here / "results").glob("*/*") if p.suffix in (".parquet", ".json"))
        kinds = {"notebooks": experiment_notebooks(), "results": tables}
        folder = Path(self.build_lib) / cfg["lib_path"]
        return {p: folder / kind / p.parent.name / p.name for kind, paths in kinds.items() for p in paths}

    def run(self):
        super().run()
        if not self.editable_mode:
            for path, target in self.targets().items():
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target), preserve_mode=False)

    def get_outputs(self, include_bytecode=True):
        beside = [] if self.editable_mode else [str(target) for target in self.targets().values()]
        return super().get_outputs(include_bytecode) + beside


setup(
    version=cfg["version"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]),
    cmdclass={"build_py": BuildWithNotebooks},
    install_requires=cfg["requirements"].split(),
    extras_require=extras(),
    long_description=(here / "README.md").read_text(encoding="utf-8") if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
)
