import sys
import weakref

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.results_plotter import X_TIMESTEPS, ts2xy
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from sb3_r2vpo import R2VPO, EnvPoolVecEnv, make_envpool_vec_env

pytest.importorskip("envpool")


def random_actions(vec_env, n_steps, seed=0):
    """As SB3 passes them: float32 within the bounds, or int64."""
    rng = np.random.default_rng(seed)
    space = vec_env.action_space
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.n, size=(n_steps, vec_env.num_envs))
    return rng.uniform(space.low, space.high, size=(n_steps, vec_env.num_envs, *space.shape)).astype(np.float32)


def rollout(vec_env, n_steps=60):
    """Everything that comes back, as one list of arrays."""
    arrays = [vec_env.reset()]
    for actions in random_actions(vec_env, n_steps):
        arrays += vec_env.step(actions)[:3]
    return arrays


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def set_cartpole_state(env, obs):
    """Puts Gymnasium's environment where EnvPool's is."""
    env.reset()
    env.state = obs.astype(np.float64)


def test_half_cheetah_steps_like_gymnasium():
    env = gym.make("HalfCheetah-v5", reset_noise_scale=0.0)
    vec_env = make_envpool_vec_env("HalfCheetah-v5", env_kwargs=dict(reset_noise_scale=0.0))
    assert np.allclose(vec_env.reset()[0], env.reset()[0])
    for actions in random_actions(vec_env, n_steps=50):
        expected_obs, expected_reward, *_ = env.step(actions[0])
        obs, rewards, _, _ = vec_env.step(actions)
        # MuJoCo's versions differ
        assert np.allclose(obs[0], expected_obs, atol=1e-3, rtol=1e-3)
        assert np.allclose(rewards[0], expected_reward, atol=1e-3, rtol=1e-3)


def test_cartpole_steps_and_resets_like_gymnasium():
    n_envs, limit, ends = 3, 25, {True: 0, False: 0}
    # Without Gymnasium's time limit, which RL Zoo patches
    envs = [gym.make("CartPole-v1").unwrapped for _ in range(n_envs)]
    vec_env = make_envpool_vec_env("CartPole-v1", n_envs, seed=1, env_kwargs=dict(max_episode_steps=limit))
    for env, first_obs in zip(envs, vec_env.reset(), strict=True):
        set_cartpole_state(env, first_obs)
    lengths = np.zeros(n_envs, dtype=int)
    for actions in random_actions(vec_env, n_steps=300):
        obs, rewards, dones, infos = vec_env.step(actions)
        lengths += 1
        for i, env in enumerate(envs):
            expected_obs, reward, terminated, _, _ = env.step(actions[i])
            truncated = bool(lengths[i] == limit)
            assert rewards[i] == reward
            assert dones[i] == (terminated or truncated)
            assert infos[i]["TimeLimit.truncated"] == truncated
            if not dones[i]:
                assert infos[i].keys() == {"TimeLimit.truncated"}
                assert np.allclose(obs[i], expected_obs, atol=1e-4)
                continue
            ends[truncated] += 1
            assert np.allclose(infos[i]["terminal_observation"], expected_obs, atol=1e-4)
            assert np.abs(obs[i]).max() <= 0.05, "not the first observation of an episode"
            assert infos[i]["episode"]["r"] == infos[i]["episode"]["l"] == lengths[i]
            lengths[i] = 0
            set_cartpole_state(env, obs[i])
    assert ends[True] > 3 and ends[False] > 3


def test_episode_statistics_are_those_of_monitor():
    vec_env = make_envpool_vec_env("Pendulum-v1", n_envs=2, seed=0)
    vec_env.reset()
    rewards = []
    for actions in random_actions(vec_env, n_steps=200):
        _, reward, dones, infos = vec_env.step(actions)
        rewards.append(reward)
    assert dones.all() and infos[0]["TimeLimit.truncated"]
    for i in range(2):
        episode = infos[i]["episode"]
        assert list(episode) == ["r", "l", "t"]
        assert episode["r"] == round(float(np.sum(rewards, axis=0, dtype=np.float64)[i]), 6)
        assert type(episode["r"]) is float and type(episode["l"]) is int
        assert episode["l"] == 200 and 0 < episode["t"] < 100


def test_a_reset_starts_the_episodes_and_their_statistics_anew():
    vec_env = make_envpool_vec_env("Pendulum-v1", seed=0, env_kwargs=dict(max_episode_steps=10))
    vec_env.reset()
    for actions in random_actions(vec_env, n_steps=7):
        vec_env.step(actions)
    # One that is under way is cancelled
    vec_env.step_async(actions)
    vec_env.reset()
    total = 0.0
    for actions in random_actions(vec_env, n_steps=10):
        _, rewards, dones, infos = vec_env.step(actions)
        total += float(rewards[0])
    assert dones[0] and infos[0]["episode"]["l"] == 10
    assert infos[0]["episode"]["r"] == pytest.approx(total, abs=1e-5)


def test_same_seed_same_rollout():
    def make(seed):
        return make_envpool_vec_env("CartPole-v1", n_envs=3, seed=seed)

    first = rollout(make(seed=3))
    assert same(first, rollout(make(seed=3)))
    assert not same(first, rollout(make(seed=4)))
    # SB3's seeds are uint32
    assert len(rollout(make(seed=2**32 - 1))) == len(first)

    vec_env = make(seed=4)
    rollout(vec_env)
    vec_env.seed(3)
    assert same(first, rollout(vec_env)), "seeded after construction"
    assert not same(first, rollout(vec_env)), "a seed counts for one reset"


def test_unseeded_environments_differ():
    assert not same(rollout(EnvPoolVecEnv("CartPole-v1")), rollout(EnvPoolVecEnv("CartPole-v1")))
    first_obs = EnvPoolVecEnv("CartPole-v1", n_envs=2).reset()
    assert not np.array_equal(first_obs[0], first_obs[1])


def test_observations_stay_as_they_were():
    """Nothing that came back is written to by later steps."""
    for env_id in ("CartPole-v1", "CheetahRun-v1"):
        vec_env = make_envpool_vec_env(env_id, n_envs=2, seed=0, env_kwargs=dict(max_episode_steps=5))
        kept = [vec_env.reset()]
        copies = [kept[0].copy()]
        for actions in random_actions(vec_env, n_steps=30):
            obs, _, _, infos = vec_env.step(actions)
            kept += [obs, *(info["terminal_observation"] for info in infos if "episode" in info)]
            copies += [array.copy() for array in kept[len(copies) :]]
        assert len(kept) > 31 and same(kept, copies)


@pytest.mark.parametrize(
    "env_id, shape, dtype",
    [
        ("HalfCheetah-v5", (17,), np.float32),
        ("CheetahRun-v1", (17,), np.float32),
        # with a scalar entry
        ("WalkerRun-v1", (24,), np.float32),
        ("LunarLander-v3", (8,), np.float32),
        ("Pong-v5", (4, 84, 84), np.uint8),
    ],
)
def test_observations_are_in_their_space(env_id, shape, dtype):
    vec_env = make_envpool_vec_env(env_id, n_envs=2, seed=0)
    assert vec_env.observation_space.shape == shape and vec_env.observation_space.dtype == dtype
    for obs in (vec_env.reset(), vec_env.step(random_actions(vec_env, n_steps=1)[0])[0]):
        assert obs.shape == (2, *shape) and obs.dtype == dtype
        assert all(vec_env.observation_space.contains(one) for one in obs)


def test_bounds_mean_what_they_say():
    vec_env = EnvPoolVecEnv("CheetahRun-v1")
    assert np.all(vec_env.observation_space.low == -np.inf) and np.all(vec_env.observation_space.high == np.inf)
    assert vec_env.action_space == spaces.Box(-1.0, 1.0, (6,), np.float32)
    assert EnvPoolVecEnv("LunarLander-v3").observation_space == spaces.Box(-np.inf, np.inf, (8,), np.float32)
    assert EnvPoolVecEnv("Humanoid-v5").action_space == gym.make("Humanoid-v5").action_space
    assert EnvPoolVecEnv("CartPole-v1").observation_space == gym.make("CartPole-v1").observation_space


def test_a_kept_dictionary_has_the_entries_of_the_flat_one():
    kwargs = dict(env_id="WalkerRun-v1", n_envs=2, seed=0, env_kwargs=dict(max_episode_steps=3))
    flat = rollout(make_envpool_vec_env(**kwargs), n_steps=3)
    vec_env = make_envpool_vec_env(**kwargs, flatten_dict=False)
    obs = vec_env.reset()
    assert isinstance(vec_env.observation_space, spaces.Dict)
    assert all(
        value.dtype == np.float32 and value.shape[1:] == vec_env.observation_space[key].shape for key, value in obs.items()
    )
    assert np.array_equal(np.concatenate(list(obs.values()), axis=1), flat[0])
    for actions in random_actions(vec_env, n_steps=3):
        obs, _, dones, infos = vec_env.step(actions)
    assert dones.all()
    assert np.array_equal(np.concatenate(list(obs.values()), axis=1), flat[-3])
    assert vec_env.observation_space.contains(infos[1]["terminal_observation"])
    assert not np.array_equal(infos[1]["terminal_observation"]["velocity"], obs["velocity"][1])


def test_episode_end_carries_the_information_of_the_environment():
    vec_env = make_envpool_vec_env("FetchReach-v4", n_envs=2, env_kwargs=dict(max_episode_steps=2))
    vec_env.reset()
    for actions in random_actions(vec_env, n_steps=2):
        infos = vec_env.step(actions)[3]
    assert infos[1]["is_success"] in (0.0, 1.0)
    assert "env_id" not in infos[1]
    # that of the new episode
    assert vec_env.reset_infos[1].keys() == {"is_success", "distance"}
    distances = [*(info["distance"] for info in infos), *(info["distance"] for info in vec_env.reset_infos)]
    assert len(set(distances)) == 4


def test_atari_statistics_are_of_the_reward_before_clipping():
    vec_env = make_envpool_vec_env("SpaceInvaders-v5", seed=0, env_kwargs=dict(max_episode_steps=300, reward_clip=True))
    vec_env.reset()
    clipped = 0.0
    for actions in random_actions(vec_env, n_steps=300):
        _, rewards, dones, infos = vec_env.step(actions)
        clipped += rewards[0]
        if dones[0]:
            break
    # Its invaders give 5 points and more
    assert clipped > 0 and infos[0]["episode"]["r"] >= 5 * clipped


def test_staggered_environments_are_spread_over_their_episodes():
    vec_env = make_envpool_vec_env("CheetahRun-v1", n_envs=4, seed=0, env_kwargs=dict(max_episode_steps=10), stagger=True)
    for _ in range(2):  # A reset starts anew
        vec_env.reset()
        ends = {}
        for step, actions in enumerate(random_actions(vec_env, n_steps=25), start=1):
            obs, _, dones, infos = vec_env.step(actions)
            for i in np.flatnonzero(dones):
                ends.setdefault(int(i), []).append((step, infos[i].get("episode", {}).get("l")))
                # As at a time limit, so that the value of the last observation counts
                assert infos[i]["TimeLimit.truncated"] and not np.array_equal(infos[i]["terminal_observation"], obs[i])
        # What was cut short is in no statistics
        assert ends == {
            0: [(3, None), (13, 10), (23, 10)],
            1: [(5, None), (15, 10), (25, 10)],
            2: [(8, None), (18, 10)],
            3: [(10, 10), (20, 10)],
        }


def test_only_first_episodes_are_cut_short():
    vec_env = make_envpool_vec_env("CartPole-v1", n_envs=4, seed=0, stagger=True)
    vec_env.reset()
    infos = [info for actions in random_actions(vec_env, n_steps=600) for info in vec_env.step(actions)[3]]
    # Random actions end every episode long before
    assert sum("episode" in info for info in infos) > 50 and not any(info["TimeLimit.truncated"] for info in infos)


def test_monitor_file_has_every_episode(tmp_path):
    vec_env = make_envpool_vec_env("CartPole-v1", n_envs=3, seed=0, monitor_dir=str(tmp_path / "run"))
    vec_env.reset()
    episodes = []
    for actions in random_actions(vec_env, n_steps=200):
        episodes += [info["episode"] for info in vec_env.step(actions)[3] if "episode" in info]
    vec_env.close()
    results = load_results(str(tmp_path / "run"))
    assert len(episodes) > 10
    assert results.r.tolist() == [episode["r"] for episode in episodes]
    assert results.l.tolist() == [episode["l"] for episode in episodes]
    assert ts2xy(results, X_TIMESTEPS)[0][-1] == sum(episode["l"] for episode in episodes)


def test_vec_normalize_on_top():
    vec_env = VecNormalize(make_envpool_vec_env("CheetahRun-v1", n_envs=4, seed=0, env_kwargs=dict(max_episode_steps=50)))
    vec_env.reset()
    for actions in random_actions(vec_env, n_steps=100):
        obs, _, dones, infos = vec_env.step(actions)
    assert dones.all() and np.abs(obs).max() <= 10
    assert vec_env.obs_rms.count == pytest.approx(4 * 101, abs=1)
    # normalized once, as the observations are
    expected = vec_env.normalize_obs(vec_env.unnormalize_obs(infos[0]["terminal_observation"]))
    assert np.allclose(infos[0]["terminal_observation"], expected, atol=1e-5)
    # the statistics are those of the rewards before
    assert 0 <= infos[0]["episode"]["r"] <= 50


def test_vec_monitor_on_top_has_the_same_statistics():
    vec_env = make_envpool_vec_env("Pendulum-v1", n_envs=2, seed=0, env_kwargs=dict(max_episode_steps=20))
    assert vec_env.env_is_wrapped(Monitor) == [True, True]
    assert vec_env.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]
    own = []
    step_wait = vec_env.step_wait

    def recording_step_wait():
        result = step_wait()
        own.extend(dict(info["episode"]) for info in result[3] if "episode" in info)
        return result

    vec_env.step_wait = recording_step_wait
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        monitored = VecMonitor(vec_env)
    monitored.reset()
    seen = []
    for actions in random_actions(monitored, n_steps=60):
        seen += [info["episode"] for info in monitored.step(actions)[3] if "episode" in info]
    assert len(own) == len(seen) == 6
    assert np.allclose([e["r"] for e in own], [e["r"] for e in seen], rtol=1e-5)
    assert [e["l"] for e in own] == [e["l"] for e in seen]


@pytest.mark.parametrize("algorithm", [PPO, R2VPO])
@pytest.mark.parametrize("env_id", ["CheetahRun-v1", "CartPole-v1"])
def test_learn(algorithm, env_id):
    vec_env = make_envpool_vec_env(env_id, n_envs=4, env_kwargs=dict(max_episode_steps=40))
    model = algorithm("MlpPolicy", vec_env, n_steps=64, batch_size=64, n_epochs=2, seed=0, device="cpu")
    model.learn(512)
    assert len(model.ep_info_buffer) >= 8
    returns, lengths = evaluate_policy(model, vec_env, n_eval_episodes=4, return_episode_rewards=True)
    assert len(returns) == 4 and max(lengths) <= 40


def test_learn_from_a_dictionary():
    vec_env = make_envpool_vec_env("WalkerRun-v1", n_envs=2, env_kwargs=dict(max_episode_steps=40), flatten_dict=False)
    model = R2VPO("MultiInputPolicy", vec_env, n_steps=64, batch_size=64, n_epochs=2, device="cpu").learn(256)
    assert model.num_timesteps == 256


def test_same_seed_same_training():
    def weights(seed):
        vec_env = make_envpool_vec_env("CartPole-v1", n_envs=2)
        model = R2VPO("MlpPolicy", vec_env, n_steps=32, n_epochs=1, seed=seed, device="cpu").learn(128)
        return model.policy.action_net.weight.detach().numpy()

    assert np.array_equal(weights(0), weights(0))


def test_attributes():
    vec_env = EnvPoolVecEnv("HalfCheetah-v5", n_envs=3, env_kwargs=dict(frame_skip=2))
    assert vec_env.render_mode is None
    assert vec_env.get_attr("frame_skip") == [2, 2, 2]
    assert vec_env.get_attr("render_mode", indices=[0, 2]) == [None, None]
    assert not vec_env.has_attr("action_masks")
    with pytest.raises(AttributeError, match="'gravity'"):
        vec_env.get_attr("gravity")
    with pytest.raises(AttributeError, match=r"'frame_skip'.*env_kwargs"):
        vec_env.set_attr("frame_skip", 5)
    with pytest.raises(AttributeError, match="'compute_reward'"):
        vec_env.env_method("compute_reward")
    with pytest.raises(NotImplementedError, match="Gymnasium"):
        vec_env.get_images()
    with pytest.warns(UserWarning, match="render"):
        assert vec_env.render("human") is None


def test_options_are_refused():
    vec_env = EnvPoolVecEnv("CartPole-v1")
    vec_env.set_options(None)
    with pytest.raises(ValueError, match=r"`options` is \{'low': 0\}"):
        vec_env.set_options({"low": 0})
    assert vec_env.reset().shape == (1, 4)


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(env_id="CheetahRn-v1"), ValueError, "`env_id` is 'CheetahRn-v1'.*CheetahRun-v1"),
        (dict(n_envs=0), ValueError, "`n_envs` is 0: it must be an integer >= 1"),
        (dict(n_envs=2.0), ValueError, "`n_envs` is 2.0"),
        (dict(num_threads=-1), ValueError, "`num_threads` is -1: it must be an integer >= 0"),
        (dict(env_kwargs=dict(render_mode="human")), ValueError, "`render_mode` is 'human': it must be None"),
        (dict(env_kwargs=dict(gravity=1)), TypeError, "gravity"),
        (dict(env_kwargs=dict(num_envs=1)), TypeError, "num_envs"),
        (dict(env_kwargs=dict(max_episode_steps=-1), stagger=True), ValueError, "`stagger` is True: .* a time limit"),
        (dict(env_id="IntersectionMultiAgent-v0"), ValueError, "one player"),
        (dict(env_id="FrankaKitchen-v1"), ValueError, "dictionaries in dictionaries"),
        (dict(env_id="Sokoban-v0"), ValueError, "`flatten_dict` is True: it must be False for Sokoban-v0"),
    ],
)
def test_errors(kwargs, error, message):
    with pytest.raises(error, match=message):
        make_envpool_vec_env(**{"env_id": "CartPole-v1", **kwargs})


def test_envpool_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3_r2vpo\[envpool\]'"):
        EnvPoolVecEnv("CartPole-v1")


def test_close_twice():
    vec_env = make_envpool_vec_env("CartPole-v1", seed=0)
    vec_env.reset()
    pool = weakref.ref(vec_env._pool)
    vec_env.close()
    assert pool() is None, "its threads are still there"
    vec_env.close()
