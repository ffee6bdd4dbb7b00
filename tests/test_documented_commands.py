"""What README, docs and examples tell a user to type works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sb3_r2vpo import R2VPO

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()


def blocks(language: str) -> list[str]:
    """Blocks of code, each once."""
    text = "\n".join(page.read_text() for page in PAGES)
    return list(dict.fromkeys(re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)))


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(example, tmp_path):
    run = subprocess.run(
        [sys.executable, str(example), "--timesteps", "2048"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("code", blocks("python"))
def test_documented_python(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = R2VPO.learn
    monkeypatch.setattr(
        R2VPO, "learn", lambda self, total_timesteps, **kwargs: learn(self, min(total_timesteps, 64), **kwargs)
    )
    exec(compile(code, "documentation", "exec"), {})


def test_documented_make_targets():
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


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        name, _, anchor = link.replace("\n", " ").partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
