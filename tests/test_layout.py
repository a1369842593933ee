"""The rules that keep the house in order: links, import directions, safety, names, packaging."""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import keju
from keju.stages.spec import stages

REPO = Path(__file__).resolve().parents[1]
SHELLS = sorted((REPO / "examples").glob("*.sh"))
FOLDERS = ("src", "data_prepare", "eval", "kernels", "tokenizers")
CONFIGS = str(REPO / "examples" / "configs")

# Which parts of keju a part may import, and "scripts" for the scripts in src/keju. `keju` itself is its __init__.py.
ALLOWED = {
    "keju": {"models"},
    "errors": set(),
    "cli": {"errors", "keju", "stages"},
    "stages": {"keju"},
    "__main__": {"cli"},
    "kernels": set(),
    "tokenizers": {"errors"},
    "records": {"errors"},
    "trees": {"errors"},
    "losses": {"errors", "kernels"},
    "models": {"errors", "kernels", "tokenizers"},
    "conversion": {"errors", "models", "tokenizers", "records"},
    "encoding": {"errors", "records", "trees", "tokenizers"},
    "training": {"errors", "keju", "stages", "trees", "losses", "models", "encoding", "records", "conversion"},
    "rl": {"errors", "stages", "kernels", "trees", "losses", "models", "encoding", "records", "training"},
    "planning": {"errors", "stages", "kernels", "trees", "models", "training", "rl"},
    "eval": {"errors", "models", "tokenizers", "trees", "encoding", "records", "kernels"},
    "data_prepare": {"errors", "records"},
    "report": {"errors", "stages", "training", "records", "eval"},
}
SCRIPTS = {stage.script for stage in stages().values()}
PLAIN = {"trees": {"torch", "numpy"}, "kernels": {"torch", "triton"}}  # all that these may import from elsewhere


PACKAGE = REPO / "src" / "keju"
# Parts of the package whose folders lie at the top: each is a link in src/keju.
LINKS = {
    "data_prepare": "data_prepare",
    "eval": "eval",
    "kernels": "kernels/ops",
    "tokenizers": "tokenizers/families",
}


@functools.cache
def settings() -> dict:
    """pyproject.toml"""
    return tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


def sources(*folders: str) -> list[Path]:
    found = sorted(path for folder in folders for path in (REPO / folder).rglob("*.py"))
    assert found
    return found


def modules() -> list[Path]:
    """Those that can be imported; kernels/bench/, say, is not among them."""
    return sources("src/keju", *LINKS.values())


def module_name(path: Path) -> str:
    """keju.training.stage for src/keju/training/stage.py, keju.kernels.gae for kernels/ops/gae.py."""
    name, folder = next(
        ((f"keju.{name}", REPO / folder) for name, folder in LINKS.items() if path.is_relative_to(REPO / folder)),
        ("keju", PACKAGE),
    )
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join([name, *(part for part in parts if part != "__init__")])


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports here are absolute"
            if node.module == "keju":
                for alias in node.names:
                    yield node.lineno, f"keju.{alias.name}"
            else:
                yield node.lineno, node.module


def part_of(name: str) -> str:
    """The part a module belongs to: "training", or "scripts" for a script in src/keju, or "keju"."""
    parts = name.split(".")
    if len(parts) == 1:
        return "keju"
    return "scripts" if parts[1] in SCRIPTS else parts[1]


def stage_scripts() -> list[Path]:
    """Each has a command; what else lies in src/keju is no script."""
    names = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "cli", "errors"}
    assert names == SCRIPTS
    return [PACKAGE / f"{name}.py" for name in sorted(names)]


# -- imports -----------------------------------------------------------------------------------------------------------


def test_import_directions():
    wrong = []
    for path in modules():
        own = module_name(path)
        part = part_of(own)
        allowed = set(ALLOWED) - {"keju"} if part == "scripts" else ALLOWED[part] | {part}
        wrong += [
            f"{path.relative_to(REPO)}:{line}: {own} imports {name}"
            for line, name in imported_names(path)
            if name.split(".")[0] == "keju" and part_of(name) not in allowed
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", PLAIN)
def test_trees_and_kernels_need_little(part):
    known = {"keju", *PLAIN[part], *sys.stdlib_module_names}
    wrong = [
        f"{path.relative_to(REPO)}:{line}: {name}"
        for path in sources("src/keju/trees" if part == "trees" else "kernels/ops")
        for line, name in imported_names(path)
        if name.split(".")[0] not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_every_part_has_its_directions():
    parts = {part_of(module_name(path)) for path in modules()} - {"scripts"}
    assert parts == set(ALLOWED)


def test_every_module_is_found_by_its_name():
    """By Python, and by whatever reads the tree without running it."""
    links = {path.name: path.resolve() for path in PACKAGE.iterdir() if path.is_symlink()}
    assert links.pop("configs") == REPO / "examples" / "configs"
    assert links == {name: REPO / folder for name, folder in LINKS.items()}
    assert Path(keju.__file__).parent == PACKAGE
    for path in modules():
        assert (path.parent / "__init__.py").exists(), f"{path.relative_to(REPO)} is in no package: add an __init__.py"
        assert importlib.util.find_spec(module_name(path)).origin is not None


def test_no_package_where_a_name_is_taken():
    """A package kernels/ or tokenizers/ would win over the installed one wherever the root is on the path."""
    for folder in ("kernels", "tokenizers"):
        assert not (REPO / folder / "__init__.py").exists()
    code = "import transformers, tokenizers; tokenizers.Encoding; transformers.AutoTokenizer"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_kernels_import_without_transformers():
    """As on a machine that has torch and Triton alone."""
    code = """
import sys

class Absent:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == "transformers" else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Absent(finder) for finder in sys.meta_path if hasattr(finder, "find_spec")]
import keju.kernels, pkgutil, importlib
for module in pkgutil.iter_modules(keju.kernels.__path__):
    importlib.import_module(f"keju.kernels.{module.name}")
assert "transformers" not in sys.modules
try:
    import transformers
except ModuleNotFoundError:
    print("absent")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "absent", done.stderr


# -- what our sources never do -----------------------------------------------------------------------------------------

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def dangers(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imported_names(path):
        if name.split(".")[0] in PICKLES:
            yield line, f"import {name}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("eval", "exec", "os.system", "os.popen", "torch.hub.load"):
            yield node.lineno, called
        if called == "torch.load" and given.get("weights_only") != "True":
            yield node.lineno, "torch.load without weights_only=True"
        for name, safe in (("trust_remote_code", "False"), ("shell", "False"), ("allow_pickle", "False")):
            if given.get(name, safe) != safe:
                yield node.lineno, f"{name}={given[name]}"


def test_nothing_is_unpickled_or_executed():
    found = [f"{path.relative_to(REPO)}:{line}: {what}" for path in sources(*FOLDERS) for line, what in dangers(path)]
    assert not found, "\n".join(found)


def test_dangers_are_seen(tmp_path):
    lines = {
        "import pickle": "import pickle",
        "from dill import loads": "import dill",
        "eval(text)": "eval",
        "os.system(text)": "os.system",
        "torch.load(path)": "torch.load without weights_only=True",
        "f(x, trust_remote_code=True)": "trust_remote_code=True",
        "subprocess.run(x, shell=True)": "shell=True",
        "model.eval(); torch.load(path, weights_only=True)": None,
    }
    for number, (code, what) in enumerate(lines.items()):
        path = tmp_path / f"{number}.py"
        path.write_text(code)
        assert [found for _, found in dangers(path)] == ([what] if what else [])


# -- errors ------------------------------------------------------------------------------------------------------------

OURS = {"ValueError", "TypeError", "KeyError", "RuntimeError", "NotImplementedError", "SystemExit", "Exception"}
NAMES_A_FLAG = re.compile(r"--[a-z]\w+|\{(flag|option)\}")


def raised(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, class, message) of every `raise` that makes an error."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield node.lineno, ast.unparse(node.exc.func), ", ".join(map(ast.unparse, node.exc.args))


def test_kernels_blame_nobody():
    assert not [path for path in sources("kernels/ops") if "UserError" in path.read_text(encoding="utf-8")]


def unlike_mistakes(path: Path) -> list[str]:
    """Messages to one who gave flags in errors that a stage would not take for a mistake of theirs."""
    return [
        f"{path}:{line}: {name}({message})"
        for line, name, message in raised(path)
        if name in OURS and NAMES_A_FLAG.search(message)
    ]


def test_who_names_a_flag_blames_the_user():
    found = [line for path in sources("src", "data_prepare", "eval", "tokenizers") for line in unlike_mistakes(path)]
    assert not found, "\n".join(found)


def test_libraries_name_parameters():
    """Stages call them by their flags; these may have others. What is about flags themselves is in keju.training."""
    about_flags = {*stage_scripts(), *sources("src/keju/training"), PACKAGE / "rl/arguments.py"}
    about_flags -= {*sources("src/keju/training/objectives")}
    found = [
        f"{path}:{line}: {message}"
        for path in sources("src", "data_prepare", "eval", "tokenizers")
        if path not in about_flags
        for line, _, message in raised(path)
        if re.match("f?[\"']--", message)
    ]
    assert not found, "\n".join(found)


def test_plain_errors_that_name_a_flag_are_seen(tmp_path):
    path = tmp_path / "module.py"
    for code, seen in (
        ('raise ValueError(f"--max_length {number}: too long")', True),
        ('raise RuntimeError(f"{flag}: {path} does not exist")', True),
        ('raise UserError("--max_length: too long")', False),
        ('raise ValueError("input_ids -- those of a row -- must be [batch, time]")', False),
    ):
        path.write_text(code)
        assert bool(unlike_mistakes(path)) == seen


# -- files -------------------------------------------------------------------------------------------------------------


def test_names_say_what_a_file_holds():
    vague = {"utils", "util", "common", "helpers", "helper", "misc"}
    names = {path: {*path.relative_to(REPO).parent.parts, path.stem} for path in sources(*FOLDERS, "tests")}
    assert not [path for path, parts in names.items() if parts & vague]


def test_packages_import_nothing_by_themselves():
    """But for transformers, with which the families are registered."""
    packages = [path for path in sources(*FOLDERS) if path.name == "__init__.py" and path.read_text().strip()]
    assert packages.pop(packages.index(PACKAGE / "__init__.py"))
    for path in packages:
        assert [name for _, name in imported_names(path)] == ["transformers"]


@pytest.mark.parametrize("script", stage_scripts(), ids=lambda path: path.stem)
def test_stage_scripts_have_a_main_that_is_guarded(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    assert f"python -m keju.{script.stem}" in (ast.get_docstring(tree) or ""), "its docstring has the line that runs it"
    last = tree.body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"
    assert [ast.unparse(node) for node in last.body] == ["run_stage(main)"]


@pytest.mark.parametrize("script", ["tests/run.sh", *(f"examples/{path.name}" for path in SHELLS)])
def test_shells_parse(script):
    done = subprocess.run(["bash", "-n", str(REPO / script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def data_files() -> list[Path]:
    """What the package reads and is not Python."""
    folders = ["src/keju", *LINKS.values(), "examples/configs"]
    files = [path for folder in folders for path in (REPO / folder).rglob("*")]
    return [path for path in files if path.is_file() and path.suffix not in (".py", ".pyc")]


def test_every_data_file_is_packaged():
    patterns = [
        str(PACKAGE.joinpath(*package.split(".")[1:]).resolve() / pattern).replace(str(PACKAGE / "configs"), CONFIGS)
        for package, patterns in settings()["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
    ]
    files = data_files()
    missing = [path for path in files if not any(fnmatch.fnmatch(str(path), pattern) for pattern in patterns)]
    assert not missing, f"package-data of pyproject.toml does not cover {missing}"
    idle = [pattern for pattern in patterns if not any(fnmatch.fnmatch(str(path), pattern) for path in files)]
    assert not idle, f"package-data of pyproject.toml names what is not there: {idle}"


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_environment(tmp_path):
    """Built as it is published, installed without the repository: every file is there, and stages run."""
    tree, wheels, environment = tmp_path / "tree", tmp_path / "wheels", tmp_path / "environment"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "src", "examples", *FOLDERS[1:]):
        copy = functools.partial(shutil.copytree, symlinks=True) if (REPO / name).is_dir() else shutil.copy
        copy(REPO / name, tree / name)
    run = functools.partial(subprocess.run, capture_output=True, text=True, cwd=tmp_path)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(tree)])
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("keju/")}
    for path in modules():
        name = Path(*module_name(path).split("."))
        name = name / "__init__.py" if path.name == "__init__.py" else name.with_suffix(".py")
        assert name.as_posix() in packed
    assert {path.name for path in data_files()} <= {Path(name).name for name in packed}
    # The dependencies are those of this environment; of keju there is the wheel alone.
    done = run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    assert done.returncode == 0, done.stderr
    (site,) = environment.glob("lib/python*/site-packages")
    done = run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)])
    assert done.returncode == 0, done.stderr
    paths = [path for path in sys.path if "site-packages" in path]
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in paths))
    python = str(environment / "bin" / "python")
    done = run([python, "-c", "import keju; print(keju.__file__)"])
    assert Path(done.stdout.strip()).is_relative_to(site), done.stderr
    for command in (
        ["prepare_data", "--corpus", "idiom", "--output_dir", "data"],
        ["plan", "--model_name_or_path", "llama-tiny", "--num_gpus", "2"],
    ):
        done = run([python, "-m", "keju", *command])
        assert done.returncode == 0, done.stderr
