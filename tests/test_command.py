"""The front door and the command: what opens at once, and what is loaded only when it is needed."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "pandas", "scipy", "numba", "matplotlib", "pyarrow", "torchvision", "papermill")


def loaded_after(code):
    "Exit code, and which heavy packages a new process has loaded after this code."
    ask = f"import sys\ntry:\n    {code}\nexcept SystemExit as e:\n    print('exit', e.code)\n"
    ask += f"print('loaded', *[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("words, code", [("--version", 0), ("--help", 0), ("sweep --help", 0), ("swep", 2), ("run", 2)])
def test_help_and_refusals_load_nothing_heavy(words, code):
    out, err, heavy = loaded_after(f"from robustlit.command import main; main({words.split()})")
    assert heavy == [] and f"exit {code}" in out
    assert "usage: robustlit" in out + err or words == "--version"


def test_the_package_loads_nothing_heavy():
    out, _, heavy = loaded_after("import robustlit; print(robustlit.__version__, *dir(robustlit))")
    assert heavy == [] and {"load", "load_network", "stress", "audit", "__version__"} <= {*out.split()}


def test_the_front_door_gives_functions():
    import robustlit
    from robustlit import audit, load, load_network, stress

    homes = {f.__name__: f.__module__ for f in (audit, load, load_network, stress)}
    assert homes == dict(
        audit="robustlit.masking", load="robustlit.data", load_network="robustlit.zoo", stress="robustlit.stressors"
    )
    with pytest.raises(AttributeError, match="no attribute 'stres'"):
        robustlit.stres  # noqa: B018


def test_the_front_door_is_followed_by_the_digest():
    from robustlit.digest import definitions

    def asked():
        from robustlit import load

        return load("digits")

    assert "robustlit.data.load" in definitions(asked)
