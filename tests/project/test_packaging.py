import getpass
import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium
import pytest
import torch

from ahm_gym import _compat

ROOT = Path(__file__).resolve().parents[2]


def modules():
    """Every Python file of the package under its installed path, without caches."""
    files = {}
    for folder, name in (
        (ROOT / "ahm_gym", "ahm_gym"),
        *((ROOT / n, f"ahm_gym/{n}") for n in ("agents", "envs")),
    ):
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder)
            if name != "ahm_gym" or inside.parts[0] not in ("agents", "envs"):
                files[f"{name}/{inside.as_posix()}"] = path
    return files


def run_python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options
    )


def test_the_links_lead_to_the_folders_at_the_top():
    for name in ("agents", "envs"):
        link = ROOT / "ahm_gym" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"


def test_every_folder_with_modules_is_packaged():
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    settings = toml.loads((ROOT / "pyproject.toml").read_text())
    packages = settings["tool"]["setuptools"]["packages"]
    found = {name.rsplit("/", 1)[0].replace("/", ".") for name in modules()}
    assert found == set(packages)


@pytest.mark.parametrize("name", ["agents", "envs"])
def test_the_bare_names_are_refused(monkeypatch, name):
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(ImportError, match=f"import this package as ahm_gym.{name}"):
        importlib.import_module(name)


@pytest.mark.parametrize("env_id", [env_id for env_id in gymnasium.registry if env_id.startswith("AHM/")])
def test_the_registered_entry_points_exist(env_id):
    spec = gymnasium.spec(env_id)
    assert issubclass(gymnasium.envs.registration.load_env_creator(spec.entry_point), gymnasium.Env)
    if env_id != "AHM/Curriculum-v0":  # an episode is a run, and no batch of episodes shares one
        vector = gymnasium.envs.registration.load_env_creator(spec.vector_entry_point)
        assert issubclass(vector, gymnasium.vector.VectorEnv)


def test_importing_the_package_loads_neither_environments_nor_agents():
    code = """
import sys, ahm_gym
loaded = [name for name in sys.modules if name.split(".")[0] in ("timm", "monai", "stable_baselines3")]
loaded += [name for name in sys.modules if name.startswith(("ahm_gym.envs", "ahm_gym.agents"))]
assert not loaded, loaded
"""
    done = run_python(code, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_pretraining_a_vision_transformer_imports_nothing_heavy_that_it_does_not_need():
    heavy = "{'monai', 'stable_baselines3', 'sklearn', 'ray'}"
    code = f"import sys, ahm_gym.pretraining.recipes; assert not {heavy} & set(sys.modules)"
    done = run_python(code, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_repair_leaves_a_sound_torchvision_alone():
    torchvision, library = importlib.import_module("torchvision"), _compat.library
    _compat.repair_torchvision()
    assert sys.modules["torchvision"] is torchvision
    assert _compat.library is library


class FakeLibrary:
    """A stand-in for `torch.library.Library`, because the real one can define an operator only once."""

    def __init__(self, namespace, kind):
        self.defined = [namespace, kind]

    def define(self, schema):
        self.defined.append(schema)


def fail_first(monkeypatch, error):
    """Makes the first import of torchvision fail halfway; returns the list of imports."""
    imports = []

    def import_module(name):
        imports.append(name)
        if len(imports) == 1:
            monkeypatch.setitem(sys.modules, "torchvision.half_imported", sys)
            raise error
        assert "torchvision.half_imported" not in sys.modules

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
    monkeypatch.setattr(_compat.importlib, "import_module", import_module)
    monkeypatch.setattr(torch.library, "Library", FakeLibrary)
    monkeypatch.setattr(_compat, "library", None)
    return imports


def test_the_repair_defines_the_operators_that_a_broken_torchvision_lacks(monkeypatch):
    imports = fail_first(monkeypatch, RuntimeError("operator torchvision::nms does not exist"))
    _compat.repair_torchvision()
    assert imports == ["torchvision", "torchvision"]
    signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert _compat.library.defined == ["torchvision", "DEF", f"nms{signature}", f"qnms{signature}"]


def test_the_repair_passes_on_any_other_failure(monkeypatch):
    imports = fail_first(monkeypatch, RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        _compat.repair_torchvision()
    assert imports == ["torchvision"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the tree, so that nothing is left in the tree itself."""
    folder = tmp_path_factory.mktemp("build")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("ahm_gym", "agents", "envs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(tree)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_every_module_once_and_nothing_under_a_bare_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    templates = (ROOT / "ahm_gym" / "benchmark" / "report" / "templates").iterdir()
    page = [path.relative_to(ROOT).as_posix() for path in templates]
    assert len(page) > 8 and sorted(names) == sorted([*modules(), *page, "ahm_gym/py.typed"])


SPAWN = """
import multiprocessing, pickle

def main():
    import ahm_gym, ahm_gym.envs
    from ahm_gym.agents.a3c import A3C
    assert ahm_gym.__file__.startswith(FOLDER), ahm_gym.__file__
    assert pickle.loads(pickle.dumps(ahm_gym.envs.MaskingEnv)) is ahm_gym.envs.MaskingEnv
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(type, (A3C,)) is type(A3C)
        assert pool.apply(str, (A3C,)) == str(A3C)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_classes_of_an_installed_wheel_reach_spawned_processes(wheel, tmp_path):
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    program = tmp_path / "program.py"
    program.write_text(f"FOLDER = {str(installed)!r}\n{SPAWN}")
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, str(program)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", {"USER": "anna"})
    _compat.name_user()
    assert os.environ == {"USER": "anna"}
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    _compat.name_user()
    assert getpass.getuser() == f"user{os.getuid()}"
