"""What README and examples tell a user to type works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sb3_r2vpo import R2VPO

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(example, tmp_path):
    run = subprocess.run(
        [sys.executable, str(example), "--timesteps", "2048"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("code", blocks("python"))
def test_python_of_the_readme(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = R2VPO.learn
    monkeypatch.setattr(
        R2VPO, "learn", lambda self, total_timesteps, **kwargs: learn(self, min(total_timesteps, 64), **kwargs)
    )
    exec(compile(code, "README.md", "exec"), {})


def test_make_targets_of_the_readme():
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("make ")]
    assert commands
    for command in commands:
        arguments = command.split("#")[0].split()
        dry_run = subprocess.run([*arguments, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
        assert dry_run.returncode == 0, dry_run.stderr


def test_every_argument_of_r2vpo_is_in_the_table():
    for name in ("var_coef", "target_var", "max_target_var", "quiet_scale", "dual_lr", "var_coef_bounds", "ratio_penalty"):
        assert f"| `{name}` |" in README
    # and each default in it is the real one
    for name, default in re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", README, flags=re.MULTILINE):
        import inspect

        assert eval(default) == inspect.signature(R2VPO.__init__).parameters[name].default, name
