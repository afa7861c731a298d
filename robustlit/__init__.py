"Four robustness papers re-run as notebooks, with a verdict on every claim."

__version__ = "0.1.0"

_homes = dict(load="data", load_network="zoo", stress="stressors", audit="masking")


def __getattr__(name):
    "The four functions at the front door, looked up when they are asked for."
    if name not in _homes:
        raise AttributeError(f"module 'robustlit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"robustlit.{_homes[name]}"), name)


def __dir__():
    return sorted([*globals(), *_homes])
