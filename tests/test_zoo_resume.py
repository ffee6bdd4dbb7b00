"""`r2vpo train --resume`: runs that were interrupted go on in their own folders."""

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3 import A2C
from stable_baselines3.common.monitor import load_results

pytest.importorskip("rl_zoo3")

from sb3_r2vpo import R2VPO, ResumableCheckpointCallback
from sb3_r2vpo.checkpoints import statistics_of
from sb3_r2vpo.zoo.cli import main
from sb3_r2vpo.zoo.lasting import LastingExperimentManager

FRAGILE = """
import os, signal
import gymnasium as gym
from pathlib import Path

class Fragile(gym.Wrapper):
    '''Something bad happens once.'''

    # Gymnasium 1.0 asks the class, and a wrapper's is a property
    metadata = {"render_modes": []}

    def __init__(self, trap=False, render_mode=None):
        super().__init__(gym.make("CartPole-v1"))
        self.trap, self.count = Path("trap"), 0 if trap else -(10**9)

    def step(self, action):
        self.count += 1
        obs, reward, *rest = self.env.step(action)
        if self.count == 330 and self.trap.exists():
            kind = self.trap.read_text()
            self.trap.unlink()
            if kind == "error":
                raise ValueError("a defect")
            elif kind == "reward":
                reward = float("nan")
            elif kind == "observation":
                obs = obs * float("nan")
            else:
                os.kill(os.getpid(), getattr(signal, kind))
        return obs, reward, *rest

if "Fragile-v0" not in gym.registry:
    gym.register("Fragile-v0", entry_point=Fragile)
"""
CONFIG = dict(policy="MlpPolicy", n_timesteps=1024, n_envs=2, n_steps=64, batch_size=64, n_epochs=2, normalize=True)
TRAIN = ["train", "--gym-packages", "fragile", "--env", "Fragile-v0", "-conf", "fragile.yml", "--seed", "3", "--verbose", "0"]
TRAPPED = ["--env-kwargs", "trap:True", "--eval-env-kwargs", "trap:False"]
EVALUATED = ["--eval-freq", "256", "--eval-episodes", "2", "-tb", "tb"]
RUN = Path("logs/r2vpo/Fragile-v0_1")


@pytest.fixture
def r2vpo(monkeypatch, tmp_path, capsys):
    def run(*arguments) -> str:
        monkeypatch.setattr("sys.argv", ["r2vpo", *arguments])
        main()
        return capsys.readouterr().out

    (tmp_path / "fragile.py").write_text(FRAGILE)
    (tmp_path / "fragile.yml").write_text(yaml.dump({"Fragile-v0": CONFIG}))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    # The command's process is its own, this one has other tests to come
    monkeypatch.setattr(LastingExperimentManager, "resumed_run", None)
    return run


def curve(run, key):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    return [event.step for event in events.Scalars(key)]


@pytest.mark.parametrize(
    ("kind", "end", "said"),
    [
        ("error", ValueError, "a defect"),
        ("reward", SystemExit, "Not finite in the rollout: rewards"),
        ("observation", SystemExit, "Not finite: `observations` of environment 0, at step 330"),
        ("SIGTERM", SystemExit, "143"),
        ("SIGINT", None, ""),
    ],
)
def test_an_interrupted_run_goes_on_in_one_piece(r2vpo, capsys, kind, end, said):
    Path("trap").write_text(kind)
    if end is None:
        out = r2vpo(*TRAIN, *TRAPPED, *EVALUATED)
    else:
        with pytest.raises(end, match=re.escape(said)) as error:
            r2vpo(*TRAIN, *TRAPPED, *EVALUATED)
        out = capsys.readouterr().out
        # What a user has written is on top
        if kind == "error":
            assert [entry.name for entry in error.traceback][-1] == "step" and "rl_zoo3" not in str(error.traceback[-2].path)
    # A model for the other commands, and how to go on
    assert f"{'Model:':<25}{RUN}/Fragile-v0.zip" in out
    assert f"{'To go on:':<25}r2vpo train --resume {RUN}" in out
    steps = 640
    assert R2VPO.load(RUN / "Fragile-v0.zip").num_timesteps == steps
    statistics = np.load(RUN / "Fragile-v0/vecnormalize.pkl", allow_pickle=True)
    assert np.isfinite(statistics.obs_rms.mean).all() and np.isfinite(statistics.ret_rms.var)
    files = {path: path.read_bytes() for path in RUN.glob("*/*.yml")}

    r2vpo("train", "--gym-packages", "fragile", "--env", "Fragile-v0", "--resume")
    assert [path.name for path in Path("logs/r2vpo").iterdir()] == ["Fragile-v0_1"]
    assert R2VPO.load(RUN / "Fragile-v0.zip").num_timesteps == 1024
    assert {path: path.read_bytes() for path in RUN.glob("*/*.yml")} == files
    evaluations = np.load(RUN / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [256, 512, 768, 1024]
    assert curve("tb/Fragile-v0/R2VPO_1", "time/fps") == list(range(128, 1025, 128))
    # No episode counts twice, and there are some from before and after
    assert len(list(RUN.glob("*monitor.csv"))) == 4
    assert 800 < load_results(str(RUN))["l"].sum() <= 1024

    with pytest.raises(SystemExit, match=r"There is nothing to resume: .*Fragile-v0_1 has ended after 1024 timesteps"):
        r2vpo("train", "--resume", str(RUN))
    r2vpo("train", "--resume", str(RUN), "-n", "1280")
    assert R2VPO.load(RUN / "Fragile-v0.zip").num_timesteps == 1280
    # It is for as long when it is resumed again
    with pytest.raises(SystemExit, match=r"There is nothing to resume: .*Fragile-v0_1 has ended after 1280 timesteps"):
        r2vpo("train", f"--resume={RUN}")
    arguments = json.loads((RUN / "Fragile-v0/arguments.json").read_text())
    assert arguments.count("--n-timesteps") == 1 and arguments[arguments.index("--n-timesteps") + 1] == "1280"


def test_nothing_to_resume_is_one_sentence(r2vpo):
    for arguments, sentence in (
        (["--env", "Fragile-v0"], "There is nothing to resume: logs/r2vpo has no run of Fragile-v0"),
        ([], "`--resume` must be followed by the folder of a run, or --env say of what"),
        (["--env", "Fragile-v0", "-i", "a.zip"], "`--resume` and `--trained-agent` do not go together: it begins a new run"),
        (["--env", "Fragile-v0", "--trained-agent=a.zip"], "`--resume` and `--trained-agent` do not go together"),
        (["--env", "Fragile-v0", "-optimize"], "`--resume` and `--optimize-hyperparameters` do not go together"),
        (["--env", "Fragile-v0", "--optimize"], "`--resume` and `--optimize-hyperparameters` do not go together"),
    ):
        with pytest.raises(SystemExit, match=re.escape(sentence)):
            r2vpo("train", *arguments, "--resume")
    RUN.mkdir(parents=True)
    with pytest.raises(SystemExit, match="There is nothing to resume: logs/r2vpo/Fragile-v0_1 has no checkpoint"):
        r2vpo("train", "--resume", str(RUN))


def test_what_a_resumed_run_cannot_change(r2vpo):
    r2vpo(*TRAIN, "--eval-freq", "-1", "--save-freq", "128", "-n", "256")
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="keeps its hyperparameters, but `n_epochs` is 5 and was 2: begin a new run"):
        r2vpo("train", "--resume", str(RUN), "-n", "512", "-params", "n_epochs:5")
    import fcntl

    with open(RUN / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="Fragile-v0_1 is still being trained by another process"):
            r2vpo("train", "--resume", str(RUN), "-n", "512")
    assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before


def test_a_resumed_run_has_its_hyperparameters_whatever_the_file_says_by_now(r2vpo):
    r2vpo(*TRAIN, "--eval-freq", "-1", "--save-freq", "128", "-n", "256")
    Path("fragile.yml").write_text(yaml.dump({"Fragile-v0": {**CONFIG, "n_epochs": 5, "gamma": 0.9}}))
    r2vpo("train", "--resume", str(RUN), "-n", "512")
    model = R2VPO.load(RUN / "Fragile-v0.zip")
    assert (model.num_timesteps, model.n_epochs, model.gamma) == (512, 2, 0.99)


def test_what_libraries_write_into_the_hyperparameters_is_no_change(r2vpo):
    # RL Zoo writes `gamma` into the one, A2C its optimizer into the other
    dictionaries = ["normalize:dict(norm_obs=True,norm_reward=False)", "policy_kwargs:dict(net_arch=[8])", "gamma:0.98"]
    train = ["train", "--algo", "a2c", "--env", "CartPole-v1", "--eval-freq", "-1"]
    r2vpo(*train, "-n", "128", "-params", *dictionaries)
    r2vpo(*train[:5], "--resume", "-n", "256")
    assert A2C.load("logs/a2c/CartPole-v1_1/CartPole-v1.zip").num_timesteps >= 256


def test_an_evaluation_of_other_episodes_is_refused_before_training(r2vpo):
    r2vpo(*TRAIN, *EVALUATED, "-n", "256")
    with pytest.raises(SystemExit, match="`--eval-episodes` is 3 and was 2: a resumed run keeps it"):
        r2vpo("train", "--gym-packages", "fragile", "--resume", str(RUN), "-n", "512", "--eval-episodes", "3")
    assert ResumableCheckpointCallback(RUN).newest().name == "rl_model_256_steps.zip"


def test_a_search_is_not_the_latest_run(r2vpo):
    r2vpo(*TRAIN, "--eval-freq", "-1", "-n", "128")
    r2vpo(*TRAIN, "--optimize", "--n-trials", "1", "-n", "128", "--n-evaluations", "1", "--eval-episodes", "1")
    r2vpo("train", "--gym-packages", "fragile", "--env", "Fragile-v0", "--resume", "-n", "256")
    assert R2VPO.load(RUN / "Fragile-v0.zip").num_timesteps == 256


def test_other_algorithms_keep_rl_zoos_checkpoints(r2vpo):
    r2vpo("train", "--algo", "dqn", "--env", "CartPole-v1", "-n", "200", "--eval-freq", "-1", "--save-freq", "100")
    saved = Path("logs/dqn/CartPole-v1_1").glob("rl_model_*_steps.zip")
    assert {path.name for path in saved} == {"rl_model_100_steps.zip", "rl_model_200_steps.zip"}


@pytest.mark.parametrize("deleted", [False, True])
def test_a_checkpoint_is_shown_with_its_own_statistics(r2vpo, monkeypatch, deleted):
    from stable_baselines3.common.vec_env import VecNormalize

    r2vpo(*TRAIN, "--eval-freq", "-1", "--save-freq", "128", "-n", "512")
    if deleted:
        # As after a kill
        (RUN / "Fragile-v0/vecnormalize.pkl").unlink()
    shown, load = [], VecNormalize.load
    monkeypatch.setattr(VecNormalize, "load", lambda path, env: shown.append(load(path, env)) or shown[-1])
    show = ["enjoy", "--gym-packages", "fragile", "--env", "Fragile-v0", "-n", "10"]
    r2vpo(*show, "--load-checkpoint", "128")
    r2vpo(*show, "--load-last-checkpoint")
    for normalizer, steps in zip(shown, (128, 512), strict=True):
        expected = statistics_of(RUN / f"rl_model_{steps}_steps.zip").obs_rms
        np.testing.assert_array_equal(normalizer.obs_rms.var, expected.var)


def test_a_checkpoint_has_its_statistics_with_it(r2vpo, recwarn):
    r2vpo(*TRAIN, "--eval-freq", "-1", "--save-freq", "128", "-n", "512")
    # All that were asked for
    checkpoints = ResumableCheckpointCallback(RUN).checkpoints()
    assert [path.name for path in checkpoints] == [f"rl_model_{steps}_steps.zip" for steps in (128, 256, 384, 512)]
    # A new run that begins with an agent, for no more than one rollout
    r2vpo(*TRAIN, "--eval-freq", "-1", "-n", "128", "-i", str(checkpoints[1]))
    count = np.load("logs/r2vpo/Fragile-v0_2/Fragile-v0/vecnormalize.pkl", allow_pickle=True).obs_rms.count
    assert count == pytest.approx(statistics_of(checkpoints[1]).obs_rms.count + 128 + 2)


def test_a_failed_start_leaves_no_folder(r2vpo):
    Path("damaged.zip").write_bytes(b"PK")
    with pytest.raises(SystemExit, match=r"damaged\.zip is damaged or no saved model"):
        r2vpo(*TRAIN, "-i", "damaged.zip")
    with pytest.raises(SystemExit, match="unexpected keyword argument"):
        r2vpo(*TRAIN, "--env-kwargs", "foo:1")
    assert not list(Path("logs").rglob("Fragile*"))


def start(*arguments, output=None):
    """The command in a process of its own, which need not import anything."""

    def run():
        th.set_num_threads(1)
        if output is not None:
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
            sys.stdout = os.fdopen(1, "w")
        sys.argv = ["r2vpo", *arguments]
        main()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process(r2vpo, how):
    process = start(*TRAIN, "-n", "1000000", "-params", "compile:False", "--save-freq", "128", *EVALUATED, output="said")
    while not (RUN / "rl_model_1024_steps.zip").exists():
        assert process.is_alive()
        time.sleep(0.05)
    os.kill(process.pid, how)
    process.join()
    assert process.exitcode == (128 + how if how == signal.SIGTERM else -how)
    assert ("To go on:" in Path("said").read_text()) == (how == signal.SIGTERM)
    steps = int(ResumableCheckpointCallback(RUN).newest().stem.split("_")[-2])
    # TensorBoard reads event files in the order of their names: by second, and those of the same one by process
    time.sleep(1.0)
    r2vpo("train", "--gym-packages", "fragile", "--resume", str(RUN), "-n", str(steps + 256))
    assert R2VPO.load(RUN / "Fragile-v0.zip").num_timesteps == steps + 256
    assert load_results(str(RUN))["l"].sum() <= steps + 256
    assert curve("tb/Fragile-v0/R2VPO_1", "time/fps") == list(range(128, steps + 257, 128))


def test_runs_that_start_at_once_have_folders_of_their_own(r2vpo):
    options = ["-n", "128", "-tb", "tb", "--eval-freq", "-1"]
    processes = [start(*TRAIN, *options, "--seed", str(seed), output=f"said{seed}") for seed in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    runs = [Path(f"logs/r2vpo/Fragile-v0_{number}") for number in range(1, 5)]
    said = [Path(f"said{seed}").read_text() for seed in range(4)]
    assert {re.search(r"Model: +(.*)/Fragile-v0.zip", out)[1] for out in said} == {str(run) for run in runs}
    assert {R2VPO.load(run / "Fragile-v0.zip").seed for run in runs} == {0, 1, 2, 3}
    assert len(list(Path("tb/Fragile-v0").iterdir())) == 4


def test_monitor_files_that_cannot_be_read_are_no_error(r2vpo):
    r2vpo(*TRAIN, "--eval-freq", "-1", "-n", "128")
    from sb3_r2vpo.zoo.learning_curve import draw_learning_curve

    for content in ("", "r,l,t\n1,2,3\n", '#{"t_start": 1}\nr,l,t\n1,2\n,,,,\n', "#{"):
        (RUN / "0.monitor.csv").write_text(content)
        with pytest.warns(UserWarning, match="There is no learning curve: the monitor files in .* cannot be read"):
            assert draw_learning_curve(RUN, "title") is None
