"""What SB3's documentation describes for PPO works with R2VPO."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_r2vpo import R2VPO, RatioHistogramCallback

FAST = dict(n_steps=64, batch_size=32, n_epochs=2, device="cpu")


def weights(model) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])


@pytest.mark.parametrize(
    "policy, env",
    [
        ("MlpPolicy", "Pendulum-v1"),
        ("MlpPolicy", "CartPole-v1"),
        ("MlpPolicy", IdentityEnvMultiDiscrete(3)),
        ("MlpPolicy", IdentityEnvMultiBinary(3)),
        ("MultiInputPolicy", SimpleMultiObsEnv()),
        ("CnnPolicy", FakeImageEnv(screen_height=36, screen_width=36, n_channels=1)),
    ],
)
def test_action_and_observation_spaces(policy, env, tmp_path):
    model = R2VPO(policy, env, seed=0, **FAST)
    before = weights(model)
    model.learn(128)
    assert (weights(model) != before).any()
    model.save(tmp_path / "model")
    obs = model.env.reset()
    action, _ = R2VPO.load(tmp_path / "model", env=model.env).predict(obs, deterministic=True)
    np.testing.assert_array_equal(action, model.predict(obs, deterministic=True)[0])


def test_the_same_seed_gives_the_same_run():
    runs = [weights(R2VPO("MlpPolicy", "CartPole-v1", seed=seed, **FAST).learn(192)) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


def test_learning_rate_zero_changes_nothing():
    model = R2VPO("MlpPolicy", "CartPole-v1", learning_rate=0.0, **FAST)
    before = weights(model)
    model.learn(128)
    np.testing.assert_array_equal(weights(model), before)


def test_logger_keys():
    model = R2VPO("MlpPolicy", "Pendulum-v1", clip_range_vf=0.2, **FAST).learn(128)
    logged = {key for key in model.logger.name_to_value if key.startswith("train/")}
    assert logged == {
        f"train/{name}"
        for name in (
            "approx_kl clip_range_vf entropy_loss explained_variance learning_rate loss n_updates policy_gradient_loss "
            "quiet ratio_max ratio_penalty_last_epoch ratio_variance ratio_variance_last_epoch signal std target_var "
            "value_loss var_coef var_coef_at_bound"
        ).split()
    }


def test_target_kl_stops_before_the_step(capsys):
    settings = dict(var_coef=0.0, learning_rate=0.1, n_epochs=10, verbose=1, seed=0, n_steps=64, batch_size=32, device="cpu")
    model = R2VPO("MlpPolicy", "CartPole-v1", target_kl=1e-4, **settings).learn(64)
    assert "Early stopping at step" in capsys.readouterr().out
    assert model._n_updates < 10
    one_step = R2VPO("MlpPolicy", "CartPole-v1", **{**settings, "batch_size": 64, "n_epochs": 1}).learn(64)
    assert model.policy.optimizer.state[model.policy.action_net.weight]["step"] == 1
    assert one_step.policy.optimizer.state[one_step.policy.action_net.weight]["step"] == 1


def test_callbacks(tmp_path):
    env = make_vec_env("CartPole-v1", n_envs=2, seed=0)
    evaluation = EvalCallback(make_vec_env("CartPole-v1"), eval_freq=64, best_model_save_path=str(tmp_path), verbose=0)
    checkpoint = CheckpointCallback(save_freq=64, save_path=str(tmp_path / "checkpoints"))
    model = R2VPO("MlpPolicy", env, **FAST).learn(256, callback=[evaluation, checkpoint])
    assert (tmp_path / "best_model.zip").exists()
    assert len(list((tmp_path / "checkpoints").glob("*.zip"))) == 2
    assert evaluation.last_mean_reward > 0
    R2VPO.load(tmp_path / "best_model", env=env).learn(128)
    model.learn(100_000, callback=StopTrainingOnMaxEpisodes(max_episodes=2))
    assert model.num_timesteps < 10_000


def test_a_callback_that_stops_training():
    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 100

    assert R2VPO("MlpPolicy", "CartPole-v1", **FAST).learn(1000, callback=Stop()).num_timesteps == 100


def test_set_env_and_evaluate():
    model = R2VPO("MlpPolicy", "CartPole-v1", **FAST).learn(64)
    model.set_env(make_vec_env("CartPole-v1", n_envs=1, seed=1))
    model.learn(64)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=2)
    assert mean > 0


def test_vec_normalize_and_subprocesses():
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0, vec_env_cls=SubprocVecEnv))
    model = R2VPO("MlpPolicy", env, **FAST).learn(256)
    assert model.get_vec_normalize_env() is env and env.obs_rms.count > 200
    env.close()


class CustomExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space, features_dim=8):
        super().__init__(observation_space, features_dim)
        self.net = th.nn.Sequential(th.nn.Linear(4, features_dim), th.nn.BatchNorm1d(features_dim), th.nn.Dropout(0.1))

    def forward(self, obs):
        return self.net(obs)


class CustomPolicy(ActorCriticPolicy):
    """Subclass as in SB3's custom policy guide."""


@pytest.mark.parametrize("policy", ["MlpPolicy", CustomPolicy])
def test_custom_policies_and_policy_kwargs(policy, tmp_path):
    policy_kwargs = dict(
        features_extractor_class=CustomExtractor,
        activation_fn=th.nn.ReLU,
        net_arch=dict(pi=[16], vf=[32, 16]),
        share_features_extractor=False,
    )
    model = R2VPO(policy, "CartPole-v1", policy_kwargs=policy_kwargs, **FAST).learn(128)
    assert isinstance(model.policy.pi_features_extractor, CustomExtractor)
    model.save(tmp_path / "model")
    assert isinstance(R2VPO.load(tmp_path / "model").policy, ActorCriticPolicy if policy == "MlpPolicy" else policy)


def test_squashed_gsde():
    R2VPO("MlpPolicy", "Pendulum-v1", use_sde=True, policy_kwargs=dict(squash_output=True), **FAST).learn(128)


def test_tensorboard_log_and_ratio_histogram(tmp_path):
    model = R2VPO("MlpPolicy", "CartPole-v1", tensorboard_log=str(tmp_path), **FAST)
    model.learn(256, callback=RatioHistogramCallback())
    events = EventAccumulator(str(tmp_path / "R2VPO_1"), size_guidance={"histograms": 0})
    events.Reload()
    assert {"train/ratio_variance", "train/var_coef"} <= set(events.Tags()["scalars"])
    histograms = events.Histograms("train/ratio")
    assert len(histograms) == 3  # of every rollout but the last, like everything that SB3 logs in `train`
    for event in histograms:
        histogram = event.histogram_value
        assert histogram.num == 64
        assert 0 < histogram.min < 1 < histogram.max
        assert histogram.sum / 64 == pytest.approx(1, abs=0.2)


def test_ratio_histogram_of_the_policy_after_the_update():
    """At a learning rate of zero every ratio is one."""
    logged = []

    class Spy(RatioHistogramCallback):
        def _on_rollout_start(self):
            super()._on_rollout_start()
            logged.append(self.logger.name_to_value.get("train/ratio"))

    R2VPO("MlpPolicy", "Pendulum-v1", learning_rate=0.0, **FAST).learn(128, callback=Spy())
    assert logged[0] is None
    th.testing.assert_close(logged[1], th.ones(64))


def test_progress_bar_and_custom_logger(tmp_path):
    model = R2VPO("MlpPolicy", "CartPole-v1", **FAST)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(128, progress_bar=True)
    assert "train/ratio_variance" in (tmp_path / "progress.csv").read_text()


def test_unsupported_action_space():
    class DictActions(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (2,))
        action_space = gym.spaces.Dict({"a": gym.spaces.Discrete(2)})

    with pytest.raises(AssertionError, match="The algorithm only supports"):
        R2VPO("MlpPolicy", DictActions())
