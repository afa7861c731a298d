"""Run experiments with every function of the package telling that it ran; print which ran and which their digest reaches.

`python traced.py '{"paper/name": {parameter: value}}'` prints JSON. The functions are marked as the package is imported,
so that the runs take hardly longer than plain ones; compiled functions cannot carry a mark and are left out.
"""

import ast
import importlib.abc
import importlib.machinery
import json
import os
import sys
import tempfile

RAN = set()
COMPILED = ("njit", "jit", "vectorize")


class Marks(ast.NodeTransformer):
    "Puts `__ran__(name)` at the start of every function."

    def __init__(self, module):
        self.path = [module]

    def visit_ClassDef(self, node):
        self.path.append(node.name)
        self.generic_visit(node)
        self.path.pop()
        return node

    def visit_FunctionDef(self, node):
        names = {
            n.id if isinstance(n, ast.Name) else getattr(n, "attr", "")
            for d in node.decorator_list
            for n in ast.walk(d)
        }
        if names & {*COMPILED}:
            return node
        top = ".".join(self.path[:2]) if len(self.path) > 1 else f"{self.path[0]}.{node.name}"
        self.path.append(node.name)
        self.generic_visit(node)
        self.path.pop()
        mark = ast.Expr(ast.Call(ast.Name("__ran__", ast.Load()), [ast.Constant(top)], []))
        node.body.insert(1 if ast.get_docstring(node) and len(node.body) > 1 else 0, mark)
        return node


class Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data, path, *, _optimization=-1):
        tree = ast.fix_missing_locations(Marks(self.name).visit(ast.parse(data)))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimization)

    def get_code(self, fullname):  # never from, or into, the cache of compiled files
        return self.source_to_code(self.get_data(self.path), self.path)

    def exec_module(self, module):
        vars(module)["__ran__"] = RAN.add
        super().exec_module(module)


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if not fullname.startswith("robustlit"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            spec.loader = Loader(fullname, spec.origin)
        return spec


def checking(code):
    "Functions that only look at an argument, for `check_with` in an annotation: no number depends on them."
    found = set()
    for m in [m for m in code.modules.values() if m is not None]:
        for node in (n for u in m.units for n in ast.walk(u.node) if isinstance(n, ast.Call)):
            if isinstance(node.func, ast.Name) and node.func.id == "check_with" and isinstance(node.args[0], ast.Name):
                found |= {f"{k[0]}.{k[1]}" for k in code.reached((m.name, node.args[0].id)) if len(k) == 2}
    return found


def main(asked):
    sys.meta_path.insert(0, Finder())
    from robustlit import digest
    from robustlit.records import find_experiment

    told = {}
    for name, parameters in asked.items():
        function = find_experiment(name)
        RAN.clear()
        with digest.noting() as uses:
            bound = function.bind("smoke", parameters)
            function(**{k: tuple(v) if isinstance(v, list) else v for k, v in bound.items()})
        ran, code = {*RAN}, digest._code()
        keys = code.reached((function.function.__module__, function.function.__name__))
        for table, entry in uses:
            keys |= code.reached((*code.tables[table], entry))
        aside = (*digest.CHECKS, *digest.BOOKKEEPING, "robustlit")  # the front door is read through, not reached
        ran = {r for r in ran if r.rpartition(".")[0] not in aside} - checking(code)
        told[name] = dict(ran=sorted(ran), missed=sorted(ran - {f"{k[0]}.{k[1]}" for k in keys if len(k) == 2}))
    return told


if __name__ == "__main__":
    os.environ["ROBUSTLIT_RUNS"] = tempfile.mkdtemp()
    print(json.dumps(main(json.loads(sys.argv[1]))))
