"""Wrong input ends in one sentence before anything is created, a defect in its traceback."""

import sys

import pytest

pytest.importorskip("rl_zoo3")

from sb3_r2vpo.zoo.cli import main

TRAIN = ["train", "--env", "CartPole-v1", "-n", "64"]


@pytest.fixture
def r2vpo(monkeypatch, tmp_path):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["r2vpo", *arguments])
        main()

    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tarin"], "unknown command 'tarin', choose from: train, enjoy, record_video,"),
        (["train", "--env", "CartPol-v1"], "CartPol-v1 not found in gym registry, you maybe meant CartPole-v1?"),
        (
            [*TRAIN, "-params", "learning_rat:0.1"],
            "`learning_rat` is not a hyperparameter of r2vpo: did you mean `learning_rate`?",
        ),
        ([*TRAIN, "-params", "n_env:2"], "did you mean `n_envs`?"),
        ([*TRAIN, "-params", "xyz:2"], "`xyz` is not a hyperparameter of r2vpo: there are batch_size, "),
        ([*TRAIN, "-params", "seed:2"], "`seed` is no hyperparameter: pass --seed SEED instead"),
        ([*TRAIN, "-params", "clip_range:0.2"], "`clip_range` is 0.2, but R2VPO has no clipping: remove it."),
        ([*TRAIN, "-params", "gamma:1.5"], "`gamma` is 1.5: it must be a number from 0 to 1"),
        ([*TRAIN, "-params", "policy:'MlpPolcy'"], "`policy` is 'MlpPolcy': R2VPO has MlpPolicy, "),
        ([*TRAIN, "-conf", "nope.yml"], "nope.yml does not exist"),
        ([*TRAIN, "-i", "nope.zip"], "`--trained-agent` is 'nope.zip': it must be the .zip file of a trained agent"),
        ([*TRAIN, "--track"], "please install W&B via `pip install wandb`"),
        (["enjoy", "--env", "CartPole-v1"], "The logs/r2vpo folder was not found. `--folder` is 'logs'"),
        (["plot_train", "-e", "CartPole-v1"], "logs/r2vpo does not exist"),
        (["plot_from_file", "-i", "nope"], "nope.pkl does not exist"),
        (["all_plots"], "-e/--env is missing"),
        (
            ["all_plots", "-e", "CartPole-v1", "-a", "ppo"],
            "`--algos` has ppo, but logs has no evaluation of it on CartPole-v1",
        ),
        (["load_from_hub", "--env", "CartPole-v1"], "set the environment variable `TRUST_REMOTE_CODE`"),
    ],
)
def test_one_sentence(r2vpo, monkeypatch, tmp_path, arguments, sentence):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delenv("TRUST_REMOTE_CODE", raising=False)
    with pytest.raises(SystemExit) as end:
        r2vpo(*arguments)
    assert str(end.value.code).startswith("r2vpo: ") and sentence in end.value.code
    assert not list(tmp_path.iterdir())


def test_a_value_that_is_no_python(r2vpo, capsys):
    with pytest.raises(SystemExit):
        r2vpo(*TRAIN, "-params", "policy:MlpPolicy")
    assert "policy:MlpPolicy is not NAME:VALUE with a Python value" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("{n_timesteps: 64, policy: MlpPolicy, clip_range: lin_0.2}", "`clip_range` is 'lin_0.2', but R2VPO has no clipping"),
        ("{n_timesteps: 64, policy: MlpPolicy, bach_size: 64}", "did you mean `batch_size`?"),
        ("{policy: MlpPolicy}", "`n_timesteps` is missing"),
        ("{n_timesteps: 64, policy", "while parsing a flow mapping"),
    ],
)
def test_entries(r2vpo, tmp_path, entry, sentence):
    (tmp_path / "mine.yml").write_text(f"CartPole-v1: {entry}")
    with pytest.raises(SystemExit) as end:
        r2vpo(*TRAIN, "-conf", "mine.yml")
    assert sentence in end.value.code


def test_arguments_that_the_environment_does_not_have(r2vpo):
    with pytest.raises(SystemExit) as end:
        r2vpo(*TRAIN, "--env-kwargs", "foo:1")
    assert "unexpected keyword argument 'foo'" in end.value.code


def test_ctrl_c_is_no_error(r2vpo, monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    # While RL Zoo is imported
    monkeypatch.setattr("sb3_r2vpo.zoo.version", interrupted)
    with pytest.raises(SystemExit, match="130"):
        r2vpo(*TRAIN)
    assert capsys.readouterr().err == "r2vpo: interrupted\n"


BROKEN = """
import gymnasium as gym
from stable_baselines3.common.envs import IdentityEnvBox

class Broken(IdentityEnvBox):
    def __init__(self, when, error):
        super().__init__()
        self.when, self.error = when, error
        if when == "made":
            raise error("a defect")

    def step(self, action):
        if self.when == "stepped":
            raise self.error("a defect")
        return super().step(action)

for when in ("made", "stepped"):
    for error in (ValueError, TypeError):
        gym.register(f"{when}-{error.__name__}-v0", entry_point=Broken, kwargs=dict(when=when, error=error))
"""


@pytest.mark.parametrize("when", ["made", "stepped"])
@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_a_defect_keeps_its_traceback(r2vpo, monkeypatch, tmp_path, when, error):
    (tmp_path / "broken_env.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error, match="a defect"):
        r2vpo("train", "--gym-packages", "broken_env", "--env", f"{when}-{error.__name__}-v0", "-n", "64", "--eval-freq", "-1")
