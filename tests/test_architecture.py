"""The rules of the house, read from the syntax trees: rows, homes of heavy libraries, and what is never used.

Each rule is a function from source text to violations, so that the last tests can show it breaking on purpose.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cascade_runtime", "actors", "cluster")
ROWS = {
    8: ("cluster",),
    7: ("actors",),
    6: ("training", "evaluation", "batch"),
    5: ("engine", "in_process", "in_turns", "client", "planning", "edge"),
    4: ("vision", "decoding", "transports", "simulation", "emulation"),
    3: ("events", "models", "scheduling", "channels", "api"),
    2: ("config", "messages", "metrics", "proto", "tracing"),
    1: ("errors",),
}
ROW_OF = {unit: row for row, units in ROWS.items() for unit in units}
LEAVES = 3  # the units of this row and of those below do not know each other
TORCH_FREE = {
    "events",
    "scheduling",
    "simulation",
    "planning",
    "channels",
    "api",
    "transports",
    "client",
    "batch",
    "edge",
}
TORCH_FREE |= {*ROWS[2], *ROWS[1]}
RAY_HOMES = ("cluster.", "cascade_runtime.channels.object_store", "cascade_runtime.channels.call")
TRANSFORMERS_HOMES = ("cascade_runtime.models.", "cascade_runtime.training.")
MAX_LINES = 400


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, and its text."""

    name: str
    text: str

    @property
    def unit(self) -> str:
        """The package or file that has a row: "events" for cascade_runtime.events.array, "cluster" for cluster.cli."""
        first, *rest = self.name.split(".")
        return (rest[0] if rest else "") if first == "cascade_runtime" else first

    @property
    def tree(self) -> ast.Module:
        return parsed(self.text)


parsed = cache(ast.parse)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def modules() -> tuple[Module, ...]:
    return tuple(Module(module_name(path), path.read_text()) for path in source_files())


def imports(module: Module, *, top_level_only: bool = False) -> Iterator[str]:
    """Every dotted name a module imports, those inside functions and `import_module("...")` included."""
    for node in module.tree.body if top_level_only else ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}: relative import on line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def upward_imports(module: Module) -> Iterator[str]:
    """Imports of a unit in a higher row, or of a neighbour where neighbours do not know each other. (The package itself
    only names for type checkers what it resolves on first use.)
    """
    if module.name == "cascade_runtime":
        return
    row = ROW_OF.get(module.unit, 0)
    for name in imports(module):
        unit = Module(name, "").unit
        if name.split(".")[0] not in PACKAGES or unit not in ROW_OF or unit == module.unit:
            continue
        if ROW_OF[unit] > row or (ROW_OF[unit] == row and row <= LEAVES):
            yield f"{module.name} (row {row}) imports {name} (row {ROW_OF[unit]})"


def homeless_libraries(module: Module) -> Iterator[str]:
    """Imports of ray, transformers and torch outside their homes."""
    here = module.name + "."
    for name in imports(module):
        library = name.split(".")[0]
        if (
            (library == "ray" and not here.startswith(RAY_HOMES))
            or (library == "transformers" and not here.startswith(TRANSFORMERS_HOMES))
            or (library == "torch" and module.unit in TORCH_FREE)
        ):
            yield f"{module.name} imports {name}"


RUNS_WHAT_IT_READS = ("cloudpickle", "dill", "shelve", "marshal", "joblib", "yaml", "ray.cloudpickle")
FETCHES = ("requests", "aiohttp", "urllib3", "urllib.request", "ftplib", "telnetlib", "huggingface_hub")
FETCHING_HOME = "cascade_runtime.transports."  # the client's way to a server that its user has named
FORBIDDEN_CALLS = (
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv", "tempfile.mktemp"),
    *("pickle.load", "pickle.loads", "torch.load", "torch.hub.load", "torch.jit.load", "np.fromfile", "pd.read_pickle"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "ssl._create_unverified_context"),
)
MUST_BE = {
    "allow_pickle": False,
    "trust_remote_code": False,
    "shell": False,
    "weights_only": True,
    "use_safetensors": True,
    "verify": True,
}
EVERYWHERE = ("0.0.0.0", "[::]", "::")


def dangers(module: Module) -> Iterator[str]:
    """What a hostile file, peer or address could use: pickles, eval, code from checkpoints, fetching, open doors; and
    errors swallowed whole.
    """
    tree = module.tree
    reads_safely = any(
        isinstance(node, ast.ClassDef)
        and any(getattr(base, "attr", getattr(base, "id", "")) == "Unpickler" for base in node.bases)
        and any(isinstance(item, ast.FunctionDef) and item.name == "find_class" for item in node.body)
        for node in ast.walk(tree)
    )
    imported = set(imports(module))
    if any(name.split(".")[0] in ("pickle", "_pickle") for name in imported) and not reads_safely:
        yield f"{module.name}: pickle without an Unpickler that overrides find_class"
    for name in imported:
        if f"{name}.".startswith(tuple(f"{library}." for library in RUNS_WHAT_IT_READS)):
            yield f"{module.name}: {name}, a library that runs what it reads"
        fetches = f"{name}.".startswith(tuple(f"{library}." for library in FETCHES))
        if fetches or (name.split(".")[0] == "httpx2" and not module.name.startswith(FETCHING_HOME)):
            yield f"{module.name}: {name}, a library that fetches"
        if name in FORBIDDEN_CALLS:
            yield f"{module.name}: imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{module.name}:{node.lineno}: bare except"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _every_address(node.value):
            yield f"{module.name}:{node.lineno}: listens on every address"
        elif isinstance(node, ast.Call):
            yield from (f"{module.name}:{node.lineno}: {problem}" for problem in _dangerous_call(node))


def _every_address(text: str) -> bool:
    return text in EVERYWHERE or text.startswith(("0.0.0.0:", "[::]:", "tcp:0.0.0.0", "tcp:[::]"))


def _dangerous_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if called in FORBIDDEN_CALLS or called.endswith(".extractall"):
        yield called
    for name, good in MUST_BE.items():
        if name in given and not (isinstance(given[name], ast.Constant) and given[name].value is good):  # type: ignore[attr-defined]
            yield f"{name}={ast.unparse(given[name])}"
    if called in ("np.load", "numpy.load") and "allow_pickle" not in given:
        yield f"{called} without allow_pickle=False"
    if called.endswith(".from_pretrained") and ast.unparse(given.get("local_files_only", ast.Constant(0))) != "True":
        yield f"{called} without local_files_only=True"


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of a directed graph as a path that ends where it began, or an empty list."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for after in sorted(graph.get(node, ())):
            if found := visit(after, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def import_graph(sources: tuple[Module, ...]) -> dict[str, set[str]]:
    """Module -> the modules it needs while it is being imported."""
    names = {module.name for module in sources}
    graph: dict[str, set[str]] = {}
    for module in sources:
        targets = set()
        for name in imports(module, top_level_only=True):
            known = name if name in names else name.rpartition(".")[0]
            # A package's __init__ that lists its own files is not a cycle: they import one another, not the list.
            if known in names and known != module.name:
                targets.add(known)
        graph[module.name] = targets
    return graph


def test_every_module_has_a_row():
    homeless = {m.name for m in modules() if m.unit not in ROW_OF and m.name != "cascade_runtime"}
    assert not homeless, f"give these a row in ROWS and in cascade_runtime/__init__.py: {sorted(homeless)}"


def test_imports_point_down():
    assert not [problem for module in modules() for problem in upward_imports(module)]


def test_no_import_cycle():
    assert not cycle(import_graph(modules()))


def test_units_form_no_cycle_even_through_late_imports():
    graph: dict[str, set[str]] = {}
    for module in modules():
        if module.unit in ROW_OF:
            units = {Module(name, "").unit for name in imports(module) if name.split(".")[0] in PACKAGES}
            graph.setdefault(module.unit, set()).update(units & ROW_OF.keys() - {module.unit})
    assert not cycle(graph)


def test_heavy_libraries_stay_at_home():
    assert not [problem for module in modules() for problem in homeless_libraries(module)]


def test_nothing_runs_what_it_reads_or_swallows_every_error():
    assert not [problem for module in modules() for problem in dangers(module)]


@pytest.mark.parametrize(
    "package", ["cascade_runtime", "cluster", "actors", "cascade_runtime.events", "cascade_runtime.client"]
)
def test_importing_a_package_loads_no_heavy_library(package):
    heavy = ("torch", "transformers", "ray", "httpx2", "grpc", "tqdm", "pandas", "starlette")
    code = f"import sys, {package}; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_stages_are_imported_without_the_modelling_code_of_models_that_they_do_not_load():
    stages = "actors.controller, actors.encoder, actors.adapter, actors.target, cascade_runtime.emulation.level"
    code = f"import sys, {stages}; print([n for n in sys.modules if n.split('.')[0] == 'transformers'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_no_file_outgrows_one_noun():
    long = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in source_files()}
    assert not {name: lines for name, lines in long.items() if lines > MAX_LINES}


def test_every_module_says_what_it_is():
    assert not [module.name for module in modules() if not (ast.get_docstring(module.tree) or "").strip()]


def test_no_script_folder_shadows_the_standard_library():
    """`python folder/file.py` puts the folder first on the path, so no name in it may be a standard module's."""
    files = [*source_files(), *(ROOT / "benchmarks").rglob("*.py")]
    run_from = {path.parent for path in files if "__main__" in path.read_text()}
    run_from |= {ROOT / package for package in (*PACKAGES, "benchmarks")}
    assert not [str(p) for p in files if p.parent in run_from and p.stem in sys.stdlib_module_names]


def test_no_utils():
    vague = {"utils", "util", "helpers", "helper", "misc", "common", "manager", "handler"}
    assert not [module.name for module in modules() if vague & set(module.name.split("."))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cascade_runtime.events.array", "from cascade_runtime.models import language"),
        ("cascade_runtime.scheduling.standing", "def f():\n    import cascade_runtime.decoding.decoder"),
        ("cascade_runtime.errors", "from cascade_runtime import config"),
        ("cascade_runtime.engine", "import importlib\nimportlib.import_module('actors.stage')"),
    ],
)
def test_the_row_rule_sees_an_upward_import(name, text):
    assert list(upward_imports(Module(name, text)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("actors.stage", "import ray"),
        ("cascade_runtime.channels.stream", "def f():\n    from ray import get"),
        ("cascade_runtime.engine", "import transformers.models"),
        ("cascade_runtime.client", "import torch"),
        ("cascade_runtime.channels.base", "if True:\n    import torch.nn"),
    ],
)
def test_the_home_rule_sees_a_stray_library(name, text):
    assert list(homeless_libraries(Module(name, text)))


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import loads",
        "eval('1')",
        "import torch\ntorch.load('x')",
        "np.load(p, allow_pickle=True)",
        "np.load(p, allow_pickle=choice)",
        "AutoModel.from_pretrained(p, local_files_only=True, trust_remote_code=True)",
        "AutoModel.from_pretrained(p)",
        "from torch import load",
        "from ray import cloudpickle",
        "import yaml",
        "compile(text, name, 'exec')",
        "np.load(p)",
        "load_file(p, weights_only=False)",
        "archive.extractall(folder)",
        "subprocess.run(line, shell=True)",
        "import urllib.request",
        "def f():\n    import httpx2",
        "httpx2.Client(verify=False)",
        "server.add_insecure_port('0.0.0.0:50051')",
        "listen(address='tcp:0.0.0.0:0')",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_the_danger_rule_sees_it(text):
    assert list(dangers(Module("cascade_runtime.events.bad", text)))


def test_the_danger_rule_lets_a_whitelisting_unpickler_pass():
    text = "import pickle\nclass Reader(pickle.Unpickler):\n    def find_class(self, module, name): ...\n"
    assert not list(dangers(Module("cascade_runtime.events.readers.npy", text)))


def test_the_cycle_rule_sees_a_cycle():
    ring = (Module("actors.a", "from actors import b"), Module("actors.b", "import actors.a"))
    assert cycle(import_graph(ring)) == ["actors.a", "actors.b", "actors.a"]
