"""A built wheel works outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # From the tracked files, as a clone has them: what a checkout's build folder holds must not help
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_content(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"sb3_r2vpo/py.typed", "sb3_r2vpo/hyperparams/r2vpo.yml", "sb3_r2vpo/r2vpo.py", "sb3_r2vpo/zoo/cli.py"} <= names
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks", "hyperparams"))]


def test_installed_elsewhere(wheel, tmp_path):
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True)
    code = (
        "import sb3_r2vpo, sb3_r2vpo.zoo as zoo; print(sb3_r2vpo.__file__, zoo.hyperparameter_file());"
        "assert 'default' in zoo.hyperparameter_file().read_text();"
        "sb3_r2vpo.R2VPO('MlpPolicy', 'CartPole-v1', n_steps=64).learn(64)"
    )
    env = {**os.environ, "PYTHONPATH": str(target)}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert all(path.startswith(str(target)) for path in run.stdout.split())
    help_text = subprocess.run(
        [sys.executable, str(target / "bin" / "r2vpo"), "--help"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert "train" in help_text.stdout, help_text.stderr
