"""
One training in many processes: real ones, started by torchrun on this machine. This file is also what they run:
``torchrun ... test_distributed.py NAME FOLDER`` runs the function of that name below.
"""

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_r2vpo import R2VPO, MaskableR2VPO, NonFiniteUpdateError, RecurrentR2VPO, ResumableCheckpointCallback
from sb3_r2vpo.signal import StepSignal
from sb3_r2vpo.updater import Metrics, Updater, clip_gradient
from sb3_r2vpo.workers import Workers

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def torchrun(name, folder, n=2, check=True):
    """
    :return: What the processes have returned, by rank, and what they have printed
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*command, __file__, name, str(folder)], capture_output=True, text=True, timeout=900, env=environment
    )
    output = process.stdout + process.stderr
    assert not check or process.returncode == 0, output
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(n if check else 0)], output


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def weights_of(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])


class Box(gym.Env):
    """An environment that says what it is told to, and counts."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    action_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, episode_length=10, reward=lambda step: 1.0):
        self.episode_length, self.reward, self.step_number = episode_length, reward, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action):
        self.step_number += 1
        ended = self.step_number % self.episode_length == 0
        return self.np_random.normal(size=3).astype(np.float32), self.reward(self.step_number), False, ended, {}


# --------------------------------------------------------------------- two halves make one whole


class Float64(FlattenExtractor):
    def forward(self, observations):
        return super().forward(observations).double()


BATCH_SIZE, N_BATCHES = 16, 5


def exact_model(**kwargs):
    settings = dict(n_steps=BATCH_SIZE * N_BATCHES // WORLD_SIZE, batch_size=BATCH_SIZE, n_epochs=2, seed=3, device="cpu")
    policy_kwargs = dict(features_extractor_class=Float64, net_arch=[8])
    model = R2VPO("MlpPolicy", Box(), policy_kwargs=policy_kwargs, **{**settings, **kwargs})
    model.policy.double()
    model.dual.double()
    model.signal = StepSignal(model.policy)
    model._setup_learn(10**6)
    return model


def fill(buffer, policy, rng):
    """With this process's parts of the minibatches of all processes together."""
    n = BATCH_SIZE * N_BATCHES
    scale = 10.0 ** np.arange(N_BATCHES).repeat(BATCH_SIZE)[:, None]  # each minibatch has other advantages
    observations, actions = (rng.normal(size=(n, d)).astype(np.float32) for d in (3, 2))
    values, returns, advantages = rng.normal(size=(3, n, 1))
    with th.no_grad():
        _, log_probs, _ = policy.evaluate_actions(th.as_tensor(observations), th.as_tensor(actions))
    part = np.arange(n).reshape(N_BATCHES, WORLD_SIZE, -1)[:, RANK].ravel()
    buffer.reset()
    buffer.observations[:, 0], buffer.actions[:, 0] = observations[part], actions[part]
    # All else of float64
    buffer.values, buffer.returns, buffer.advantages = values[part], returns[part], (scale * (3 + advantages))[part]
    buffer.log_probs = log_probs.numpy()[part, None]
    buffer.full = True
    return part


def exact(folder=None, **kwargs):
    np.random.permutation = np.arange
    model, rng = exact_model(**kwargs), np.random.default_rng(0)
    logged = []
    for rollout in range(3):
        part = fill(model.rollout_buffer, model.policy, rng)
        # The second is quiet in all processes, the third in one of them
        rewards = rng.normal(size=BATCH_SIZE * N_BATCHES) * (rollout == 0)
        rewards[0] += rollout == 2
        model.reward_variation.begin()
        model.reward_variation.add(rewards[part], np.zeros(len(part), dtype=bool), [])
        model.train()
        logged.append({k: v for k, v in model.logger.name_to_value.items() if k.startswith("train/")})
    return weights_of(model), model.dual.value.item(), logged


#: The gradient is clipped, λ is learned, the variances are large; and training is stopped within an update
EXACT = dict(
    learned=dict(learning_rate=0.02, max_grad_norm=0.1),
    raw=dict(normalize_advantage=False, learning_rate=0.01, clip_range_vf=0.2, ent_coef=0.01),
    stopped=dict(learning_rate=0.02, target_kl=0.002),
)


def exact_all(folder):
    return {name: exact(**kwargs) for name, kwargs in EXACT.items()}


def exact_compiled(folder):
    return {name: exact(compile=True, **kwargs) for name, kwargs in EXACT.items()}


def assert_halves_make_a_whole(halves, monkeypatch, **others):
    monkeypatch.setattr(np.random, "permutation", np.arange)
    for name, kwargs in EXACT.items():
        weights, var_coef, logged = exact(**kwargs, **others)
        assert name != "stopped" or logged[-1]["train/n_updates"] < 6
        assert name == "raw" or [values["train/quiet"] for values in logged] == [0, 1, 0]
        assert np.abs(weights - weights_of(exact_model(**kwargs, **others))).max() > 0.01
        for half in halves:
            assert np.isfinite(weights).all()
            np.testing.assert_allclose(half[name][0], weights, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(half[name][1], var_coef, rtol=1e-9)
            for half_logged, whole_logged in zip(half[name][2], logged, strict=True):
                assert half_logged.keys() == whole_logged.keys()
                for key, value in whole_logged.items():
                    np.testing.assert_allclose(half_logged[key], value, rtol=1e-9, err_msg=key)


# --------------------------------------------------------------------- a script, and what is shared


class Witness(BaseCallback):
    """What a process has seen: observations as the environment gives them, timesteps, episodes."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at, self.observations, self.timesteps, self.episodes = stop_at, [], [], []

    def _on_training_start(self):
        self.observations.append(self.training_env.get_original_obs())

    def _on_step(self):
        self.observations.append(self.training_env.get_original_obs())
        self.timesteps.append(self.num_timesteps)
        self.episodes += [info["episode"]["l"] for info in self.locals["infos"] if "episode" in info]
        return self.n_calls != self.stop_at


def script(folder):
    env = VecNormalize(make_vec_env(lambda: Box(episode_length=5 + 2 * RANK), n_envs=2, seed=0))
    own = folder / f"of_rank_{RANK}"  # so that it is seen who writes
    settings = dict(n_steps=16, batch_size=32, n_epochs=2, seed=1, stats_window_size=10)
    model = R2VPO("MlpPolicy", env, verbose=1, tensorboard_log=str(own), **settings)
    witness = Witness()
    evaluated = VecNormalize(make_vec_env(Box), training=False)
    callbacks = [
        EvalCallback(evaluated, eval_freq=20, n_eval_episodes=1, log_path=own, best_model_save_path=own),
        EveryNTimesteps(64, CheckpointCallback(1, own)),
        witness,
    ]
    model.learn(130, callbacks, progress_bar=True)
    model.save(folder / "model")
    loaded = R2VPO.load(folder / "model")
    seen = dict(
        rank=model.rank,
        weights=weights_of(model),
        loaded_weights=weights_of(loaded),
        statistics=[x.copy() for rms in (env.obs_rms, env.ret_rms) for x in (rms.mean, rms.var, np.array(rms.count))],
        observations=np.concatenate(witness.observations),
        timesteps=witness.timesteps,
        episodes=witness.episodes,
        window=[episode["l"] for episode in model.ep_info_buffer],
        num_timesteps=model.num_timesteps,
        wrote=sorted(path.name for path in own.rglob("*")),
    )
    stopped = R2VPO("MlpPolicy", env, **settings)
    stopped.learn(1000, Witness(stop_at=20 if RANK == 1 else None))
    return dict(seen, stopped_at=stopped.num_timesteps, stopped_weights=weights_of(stopped))


def nan_in_one(folder):
    env = Box(reward=lambda step: np.nan if RANK == 1 and step == 20 else 1.0)
    model = R2VPO("MlpPolicy", env, n_steps=32, batch_size=16, n_epochs=1, seed=1)
    try:
        model.learn(64)
    except NonFiniteUpdateError as e:
        return str(e), weights_of(model)


class Wider(Box):
    observation_space = spaces.Box(-1.0, 1.0, (4 if RANK == 1 else 3,))


#: What process 1 is started with, and what it is told
DIFFERENT = {
    "`n_steps` is 32 in rank 0 and 48 in rank 1": dict(n_steps=48),
    "`n_envs` is 1 in rank 0 and 2 in rank 1": dict(env=DummyVecEnv([Box, Box])),
    "`learning_rate` is 0.0003 in rank 0 and 0.001 in rank 1": dict(learning_rate=1e-3),
    "`policy_kwargs` is {} in rank 0": dict(policy_kwargs=dict(net_arch=[8])),
    "`observation_space` is Box(-inf, inf, (3,), float32) in rank 0 and Box(-1.0, 1.0, (4,), float32)": dict(env=Wider()),
    "`total_timesteps` is 64 in rank 0 and 128 in rank 1": dict(total_timesteps=128),
    "`VecNormalize` is {} in rank 0": dict(env=VecNormalize(DummyVecEnv([Box]))),
}


def different(folder):
    messages = []
    for others in DIFFERENT.values():
        settings = dict(env=Box(), n_steps=32, batch_size=16, n_epochs=1, seed=RANK, total_timesteps=64)
        settings |= others if RANK == 1 else {}
        total_timesteps = settings.pop("total_timesteps")
        try:
            R2VPO("MlpPolicy", **settings).learn(total_timesteps)
        except ValueError as e:
            messages.append(str(e))
    try:
        R2VPO("MlpPolicy", Box(), batch_size=15)
    except ValueError as e:
        messages.append(str(e))
    return messages


class BatchNormalized(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.norm = th.nn.BatchNorm1d(self.features_dim)

    def forward(self, observations):
        return self.norm(super().forward(observations))


def variants(folder):
    """Of the algorithm and its networks."""
    settings = dict(n_steps=32, batch_size=16, n_epochs=2, seed=1)
    models = [
        RecurrentR2VPO("MlpLstmPolicy", Box(), policy_kwargs=dict(lstm_hidden_size=8), **settings),
        MaskableR2VPO("MlpPolicy", InvalidActionEnvDiscrete(dim=8, n_invalid_actions=4), **settings),
        R2VPO("MlpPolicy", Box(), policy_kwargs=dict(features_extractor_class=BatchNormalized), **settings),
    ]
    return [{k: v.numpy() for k, v in model.learn(192).policy.state_dict().items()} for model in models]


def all_that_ends_well(folder):
    return {f.__name__: f(folder) for f in (script, nan_in_one, different, exact_all, variants)}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What two processes have seen and returned; one start for many tests."""
    folder = tmp_path_factory.mktemp("distributed")
    by_rank, output = torchrun("all_that_ends_well", folder)
    return {name: [results[name] for results in by_rank] for name in by_rank[0]}, output, folder


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_two_halves_take_the_step_of_the_whole(processes, monkeypatch):
    halves = processes[0]["exact_all"]
    assert_halves_make_a_whole(halves, monkeypatch)
    # Not only nearly
    np.testing.assert_array_equal(halves[0]["learned"][0], halves[1]["learned"][0])


def test_processes_have_the_same_weights_and_other_samples(processes):
    first, second = processes[0]["script"]
    assert (first["rank"], second["rank"]) == (0, 1)
    for weights in ("weights", "loaded_weights", "stopped_weights"):
        np.testing.assert_array_equal(first[weights], second[weights])
    np.testing.assert_array_equal(first["weights"], first["loaded_weights"])
    # Not one environment has the seed of another
    resets = np.concatenate([first["observations"][:2], second["observations"][:2]])
    assert len(np.unique(resets[:, 0])) == 4


def test_variants_have_the_same_weights_and_buffers(processes):
    for ours, theirs in zip(*processes[0]["variants"], strict=True):
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)
            assert np.isfinite(value).all()


def test_timesteps_are_those_of_all(processes):
    for process in processes[0]["script"]:
        assert process["timesteps"] == list(range(4, 193, 4))
        assert process["num_timesteps"] == 192  # three rollouts of 2 x 2 x 16


def test_statistics_of_observations_are_those_of_all(processes):
    first, second = processes[0]["script"]
    for ours, theirs in zip(first["statistics"], second["statistics"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    expected = RunningMeanStd(shape=(3,))
    expected.update(np.concatenate([first["observations"], second["observations"]]))
    for ours, right in zip(first["statistics"], (expected.mean, expected.var, expected.count), strict=False):
        # SB3's batch moments are of float32
        np.testing.assert_allclose(ours, right, rtol=1e-5, atol=1e-6)
    assert first["statistics"][2] == pytest.approx(expected.count, rel=1e-9)
    assert first["statistics"][5] == pytest.approx(192)  # returns


def test_episodes_are_those_of_all(processes):
    first, second = processes[0]["script"]
    assert first["window"] == second["window"] and len(first["window"]) == 10
    assert set(first["episodes"]) == {5} and set(second["episodes"]) == {7}
    assert set(first["window"]) == {5, 7}


def test_only_the_first_process_writes(processes):
    (first, second), output = processes[0]["script"], processes[1]
    assert second["wrote"] == []
    assert {"best_model.zip", "evaluations.npz", "rl_model_64_steps.zip", "R2VPO_1"} <= set(first["wrote"])
    assert len(re.findall(r"total_timesteps +\| 64 ", output)) == 1
    assert "192/130" in output  # the progress bar


def test_all_stop_where_one_is_told_to(processes):
    # 20 steps of the second process, 32 of the first one
    assert [process["stopped_at"] for process in processes[0]["script"]] == [2 * (20 + 32)] * 2


def test_bad_minibatch_of_one_is_skipped_by_all(processes):
    (message, weights), (other_message, other_weights) = processes[0]["nan_in_one"]
    np.testing.assert_array_equal(weights, other_weights)
    assert np.isfinite(weights).all()
    assert message == other_message and "Not finite in the rollout: rewards of rank 1" in message


def test_different_arguments_are_told(processes):
    for messages in processes[0]["different"]:
        *messages, of_batch_size = messages
        for message, expected in zip(messages, DIFFERENT, strict=True):
            assert message.startswith(expected)
        assert "`batch_size` is 15" in of_batch_size and "2" in of_batch_size


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("function, n, others", [("exact_all", 4, {}), ("exact_compiled", 2, dict(compile=True))])
def test_parts_take_the_step_of_the_whole(tmp_path, monkeypatch, function, n, others):
    assert_halves_make_a_whole(torchrun(function, tmp_path, n)[0], monkeypatch, **others)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_parts_of_two_machines_take_the_step_of_the_whole(tmp_path, monkeypatch):
    endpoint = f"127.0.0.1:{free_port()}"
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    command = [sys.executable, "-m", "torch.distributed.run", *options, __file__, "exact_all", str(tmp_path)]
    for machine in [subprocess.Popen(command) for _ in range(2)]:
        assert machine.wait(timeout=900) == 0
    halves = [pickle.loads((tmp_path / f"{rank}.pkl").read_bytes()) for rank in range(2)]
    assert_halves_make_a_whole(halves, monkeypatch)


def test_compiled_step_in_two_pieces_is_the_step(monkeypatch):
    def weights(**kwargs):
        model = R2VPO("MlpPolicy", Box(), n_steps=64, batch_size=16, n_epochs=2, seed=1, learning_rate=1e-3, **kwargs)
        return weights_of(model.learn(128))

    plain, vectors = weights(compile=False), []
    # Between the pieces: here nothing is left to average
    monkeypatch.setattr(Workers, "average", lambda self, vector: vectors.append(vector))
    np.testing.assert_allclose(weights(compile=True), plain, rtol=1e-4, atol=1e-6)
    # Once in each gradient step: the gradient and all metrics but the largest ratio
    assert [len(vector) for vector in vectors] == [len(plain) + len(Metrics._fields) - 1] * 16


# --------------------------------------------------------------------- what ends badly


def hanging(folder):
    """Process 1 gets stuck in its environment; the script has its own timeout."""
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=8))
    env = Box(reward=lambda step: 1.0 if RANK == 0 or step < 40 else time.sleep(300))
    R2VPO("MlpPolicy", env, n_steps=32, batch_size=16, n_epochs=1).learn(10**4)


@pytest.mark.slow
def test_a_process_that_hangs_is_named(tmp_path):
    _, output = torchrun("hanging", tmp_path, check=False)
    assert re.search(r"LostWorkerError: .*: rank 1 \(pid \d+ on .*\) did not come", output), output


def killed(folder):
    """Process 1 is killed in the middle of the third update."""
    import torch.distributed as dist

    all_reduce = dist.all_reduce
    model = R2VPO("MlpPolicy", Box(), n_steps=32, batch_size=12, n_epochs=3, seed=1)

    def deadly(tensor):
        # Of gradients, in the second epoch of three
        if RANK == 1 and model._n_updates == 7 and len(tensor) > 100:
            os.kill(os.getpid(), signal.SIGKILL)
        all_reduce(tensor)

    dist.all_reduce = deadly
    with ResumableCheckpointCallback(folder / "checkpoints", save_freq=1) as checkpoints:
        model.learn(10**4, checkpoints)


def test_a_killed_process_takes_the_others_down(tmp_path):
    _, output = torchrun("killed", tmp_path, check=False)
    # torchrun says so
    assert re.search(r"rank\s*: 1 .*exitcode\s*: -9", output, re.DOTALL), output
    newest = ResumableCheckpointCallback(tmp_path / "checkpoints").newest()
    model = R2VPO.load(newest)
    assert model.num_timesteps == 2 * 64 and np.isfinite(weights_of(model)).all()


def test_whoever_is_left_names_the_one_that_is_not(tmp_path):
    """As on another machine, where torchrun does not see the process die."""
    processes, port = [], free_port()
    for rank in range(3):
        started = dict(TORCHELASTIC_RUN_ID="test", RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=3, LOCAL_WORLD_SIZE=3)
        started |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS=1)
        environment = {**os.environ, **{name: str(value) for name, value in started.items()}}
        command = [sys.executable, __file__, "killed", str(tmp_path)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=900)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL, 1]
    for error in (errors[0], errors[2]):
        assert re.search(rf"LostWorkerError: .*: rank 1 \(pid {processes[1].pid} on .*\) did not come", error), error


# --------------------------------------------------------------------- what is left of one process


def test_alone_nothing_of_it_is_there():
    code = """if True:
        import sys
        from sb3_r2vpo import R2VPO
        model = R2VPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=16, n_epochs=1).learn(64)
        import torch.distributed as dist
        assert "sb3_r2vpo.distributed" not in sys.modules and not dist.is_initialized() and model.rank == 0
    """
    environment = {k: v for k, v in os.environ.items() if k != "TORCHELASTIC_RUN_ID"}
    # What others set does not count
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment, "WORLD_SIZE": "2", "RANK": "1"}, timeout=120)


def test_alone_the_weights_are_bit_for_bit_those_of_a_step_that_shares_nothing(monkeypatch):
    def weights():
        model = R2VPO("MlpPolicy", Box(), n_steps=64, batch_size=16, n_epochs=2, seed=1, learning_rate=1e-3, compile=False)
        return weights_of(model.learn(256))

    def backward(self, batch):
        c = self.coefficients
        loss, metrics = self.evaluate(batch)
        loss.backward()
        gradient_norm = clip_gradient(self.policy, c.max_grad_norm)
        accept = th.isfinite(loss.detach()) & th.isfinite(gradient_norm) & (metrics.approx_kl <= c.max_kl)
        return accept, th.stack(metrics._replace(gradient_norm=gradient_norm))

    ours = weights()
    monkeypatch.setattr(Updater, "backward", backward)
    monkeypatch.setattr(Workers, "minibatches", lambda self, source, batch_size, normalize: source(batch_size))
    np.testing.assert_array_equal(ours, weights())


if __name__ == "__main__":
    result = globals()[sys.argv[1]](Path(sys.argv[2]))
    (Path(sys.argv[2]) / f"{RANK}.pkl").write_bytes(pickle.dumps(result))
