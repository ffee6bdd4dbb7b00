"""What users of sb3-contrib's MaskablePPO and RecurrentPPO do works with MaskableR2VPO and RecurrentR2VPO."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.common.wrappers import ActionMasker
from sb3_contrib.ppo_mask.policies import MlpPolicy
from sb3_contrib.ppo_recurrent.policies import MlpLstmPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.sac.policies import SACPolicy

from sb3_r2vpo import R2VPO, MaskableR2VPO, NonFiniteUpdateError, RatioHistogramCallback, RecurrentR2VPO
from sb3_r2vpo.updater import evaluate_actions

FAST = dict(n_steps=64, batch_size=32, n_epochs=2, device="cpu", seed=0)
LSTM = dict(policy_kwargs=dict(lstm_hidden_size=8, net_arch=[8]))
MASKED = {
    "discrete": lambda: InvalidActionEnvDiscrete(dim=20, n_invalid_actions=15),
    "multi_discrete": lambda: InvalidActionEnvMultiDiscrete(dims=[4, 5], n_invalid_actions=5),
    "multi_binary": lambda: InvalidActionEnvMultiBinary(dims=5, n_invalid_actions=4),
}


def weights(model) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])


def maskable(env="discrete", **kwargs) -> MaskableR2VPO:
    return MaskableR2VPO("MlpPolicy", MASKED[env](), **{**FAST, **kwargs})


def recurrent(env="CartPole-v1", **kwargs) -> RecurrentR2VPO:
    return RecurrentR2VPO("MlpLstmPolicy", env, **{**FAST, **LSTM, **kwargs})


MODELS = {"maskable": (maskable, MaskablePPO, "MlpPolicy"), "recurrent": (recurrent, RecurrentPPO, "MlpLstmPolicy")}


@pytest.mark.parametrize("kind", MODELS)
def test_save_and_load_keep_the_dual_variable(kind, tmp_path):
    model = MODELS[kind][0](var_coef="auto_1.5").learn(128)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=model.env)
    assert loaded.dual.value == model.dual.value != 1.5
    np.testing.assert_array_equal(weights(loaded), weights(model))
    assert not hasattr(loaded, "clip_range")
    loaded.learn(128, reset_num_timesteps=False)
    assert type(model).load(tmp_path / "model", var_coef=0.5).dual.value == 0.5
    with pytest.raises(TypeError, match="no clipping"):
        type(model).load(tmp_path / "model", clip_range=0.2)


@pytest.mark.parametrize("kind", MODELS)
def test_start_from_a_trained_ppo_model(kind, tmp_path):
    make_model, ppo_class, policy = MODELS[kind]
    model = make_model()
    ppo = ppo_class(policy, model.env, **FAST, policy_kwargs=model.policy_kwargs).learn(128)
    ppo.save(tmp_path / "ppo")
    with pytest.raises(ValueError, match=r"no 'dual'.*exact_match=False"):
        model.set_parameters(tmp_path / "ppo")
    model.set_parameters(tmp_path / "ppo", exact_match=False)
    np.testing.assert_array_equal(weights(model), weights(ppo))
    model.learn(128)


@pytest.mark.parametrize("kind", MODELS)
def test_the_arguments_are_those_of_r2vpo(kind):
    make_model = MODELS[kind][0]
    model = make_model(var_coef=lambda progress: 3.0 * progress, clip_range_vf=0.2, target_kl=0.5).learn(128)
    assert model.logger.name_to_value["train/var_coef"] == 0.0
    assert {"train/ratio_variance", "train/ratio_max", "train/clip_range_vf"} <= set(model.logger.name_to_value)
    with pytest.raises(ValueError, match="`target_var` is -1"):
        make_model(target_var=-1)
    with pytest.raises(TypeError, match="no clipping"):
        make_model(clip_range=0.2)


def test_defaults_are_those_of_recurrent_ppo():
    ours, theirs = RecurrentR2VPO("MlpLstmPolicy", "CartPole-v1"), RecurrentPPO("MlpLstmPolicy", "CartPole-v1")
    for name in ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize(
    "make_model, message",
    [
        (lambda: R2VPO("MlpLstmPolicy", "CartPole-v1"), "'MlpLstmPolicy': R2VPO has MlpPolicy.*LSTM.*RecurrentR2VPO"),
        (lambda: R2VPO(MlpLstmPolicy, "CartPole-v1"), "which is for RecurrentR2VPO and not for R2VPO"),
        (lambda: R2VPO(MlpPolicy, "CartPole-v1"), "which is for MaskableR2VPO and not for R2VPO"),
        (lambda: RecurrentR2VPO("MlpPolicy", "CartPole-v1"), "'MlpPolicy': RecurrentR2VPO has MlpLstmPolicy"),
        (lambda: RecurrentR2VPO(MlpPolicy, "CartPole-v1"), "which is for MaskableR2VPO and not for RecurrentR2VPO"),
        (lambda: MaskableR2VPO(MlpLstmPolicy, "CartPole-v1"), "which is for RecurrentR2VPO and not for MaskableR2VPO"),
        (lambda: MaskableR2VPO(R2VPO.policy_aliases["MlpPolicy"], "CartPole-v1"), "for R2VPO and not for MaskableR2VPO"),
        (lambda: R2VPO(SACPolicy, "Pendulum-v1"), "`policy` is SACPolicy: it must be an actor-critic policy"),
    ],
)
def test_a_policy_of_another_algorithm(make_model, message):
    with pytest.raises(ValueError, match=message):
        make_model()


# Masks


class KeepSteps(BaseCallback):
    """What was done, and what was allowed."""

    def __init__(self):
        super().__init__()
        self.actions, self.masks = [], []

    def _on_step(self):
        self.actions.append(self.locals["actions"])
        self.masks.append(self.locals["action_masks"])
        return True


def is_valid(actions, masks, n_choices):
    """
    :param actions: (n, parts)
    :param masks: (n, sum of choices)
    """
    starts = np.cumsum([0, *n_choices[:-1]])
    return np.take_along_axis(masks, (actions + starts).astype(int), axis=1).astype(bool)


@pytest.mark.parametrize("env, n_choices", [("discrete", [20]), ("multi_discrete", [4, 5]), ("multi_binary", [2] * 5)])
def test_an_invalid_action_is_never_taken_and_has_no_gradient(env, n_choices):
    steps = KeepSteps()
    model = maskable(env, ent_coef=0.01).learn(512, callback=steps)
    actions = np.concatenate(steps.actions).reshape(512, -1)
    masks = np.concatenate(steps.masks).reshape(512, -1)
    assert is_valid(actions, masks, n_choices).all()
    assert not masks.all()

    # What is invalid in all samples of a minibatch has no gradient
    batch = next(model.rollout_buffer.get(None))
    mask = np.ones(sum(n_choices), dtype=bool)
    mask[0] = False
    batch = batch._replace(
        action_masks=th.as_tensor(mask).float().expand(len(batch.actions), -1),
        # All take the last choice of each part
        actions=th.as_tensor(np.array(n_choices) - 1).float().expand(len(batch.actions), -1),
    )
    _, log_prob, entropy = evaluate_actions(model.policy, batch)
    model.policy.optimizer.zero_grad()
    (log_prob.sum() + entropy.sum()).backward()
    gradient = model.policy.action_net.bias.grad
    # Up to rounding: sb3-contrib normalizes the logits before it masks them
    assert gradient[0].abs() < 1e-5 * gradient.abs().max()


@pytest.mark.parametrize("env", MASKED)
def test_masks_leave_the_ratio_finite(env):
    """Both policies see the same mask: it cancels, whatever the logits of what is masked do."""
    model = maskable(env, learning_rate=1e-2).learn(256)
    logged = model.logger.name_to_value
    assert 0.0 < logged["train/ratio_variance"] < 10.0 and np.isfinite(logged["train/ratio_max"])

    batch = next(model.rollout_buffer.get(None))
    with th.no_grad():
        before = evaluate_actions(model.policy, batch)[1]
        always_masked = th.zeros(batch.action_masks.shape[1])
        always_masked[1] = 1.0
        batch = batch._replace(action_masks=th.maximum(batch.action_masks, always_masked).clone())
        batch.action_masks[:, 0] = 0.0
        taken = batch.actions[:, 0] != 0
        unmasked = evaluate_actions(model.policy, batch)[1][taken]
        model.policy.action_net.bias[0] += 30.0
        masked = evaluate_actions(model.policy, batch)[1][taken]
    assert taken.any() and len(before) == len(taken)
    th.testing.assert_close(unmasked, masked)
    # And without the mask the same change is an abyss
    with th.no_grad():
        free = evaluate_actions(model.policy, batch._replace(action_masks=th.ones_like(batch.action_masks)))[1][taken]
    assert (free < masked - 10.0).any()


def test_evaluation_and_prediction_with_masks(tmp_path):
    env = make_vec_env(MASKED["discrete"], n_envs=2)
    model = MaskableR2VPO("MlpPolicy", env, **FAST)
    model.learn(256, callback=MaskableEvalCallback(MASKED["discrete"](), eval_freq=64, n_eval_episodes=2, verbose=0))
    assert "eval/mean_reward" in model.logger.name_to_value or model.logger.name_to_value
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)
    masks = get_action_masks(env)
    for deterministic in (True, False):
        for _ in range(20):
            actions, _ = model.predict(env.reset(), action_masks=masks, deterministic=deterministic)
            assert masks[np.arange(2), actions].all()


@pytest.mark.parametrize(
    "env", ["discrete", *(pytest.param(env, marks=pytest.mark.slow) for env in ("multi_discrete", "multi_binary"))]
)
def test_the_compiled_gradient_step_gives_the_same(env):
    plain, other = (maskable(env, compile=compile, ent_coef=0.01, var_coef="auto_1.5") for compile in (False, True))
    for model in (plain, other):
        model.set_random_seed(0)
        model.learn(256)
    assert len(other._programs) == 1 and not other._programs.failed
    np.testing.assert_allclose(weights(other), weights(plain), rtol=1e-3, atol=1e-4)
    assert other.dual.value.item() == pytest.approx(plain.dual.value.item(), rel=1e-3)
    assert other.dual.value != 1.5


def test_use_masking():
    steps = KeepSteps()
    maskable().learn(256, callback=steps, use_masking=False)
    assert steps.masks == [None] * 256


def test_masks_of_a_wrapper():
    env = ActionMasker(IdentityEnv(4), lambda env: np.array([True, True, False, True]))
    steps = KeepSteps()
    MaskableR2VPO("MlpPolicy", env, **FAST).learn(128, callback=steps)
    assert not (np.concatenate(steps.actions) == 2).any()


@pytest.mark.parametrize(
    "env, message",
    [
        (gym.make("CartPole-v1"), "does not support action masking. Consider using ActionMasker"),
        (ActionMasker(IdentityEnv(4), lambda env: np.ones(3)), r"has shape \(3,\): Discrete\(4\) needs 4 values"),
        (ActionMasker(IdentityEnv(4), lambda env: np.zeros(4)), "left no valid action in step 1 of the rollout: an episode"),
    ],
)
def test_masks_that_are_not_there_or_do_not_fit(env, message):
    with pytest.raises(ValueError, match=message):
        MaskableR2VPO("MlpPolicy", env, **FAST).learn(64)


def test_continuous_actions_have_no_masks():
    with pytest.raises(AssertionError, match=r"only supports .*Discrete.* as action spaces but Box"):
        MaskableR2VPO("MlpPolicy", "Pendulum-v1")


# LSTM


def test_prediction_with_states():
    model = recurrent().learn(128)
    obs = model.env.reset()
    _, states = model.predict(obs, state=None, episode_start=np.ones(1), deterministic=True)
    _, others = model.predict(obs, state=states, episode_start=np.zeros(1), deterministic=True)
    assert np.abs(others[0] - states[0]).max() > 0
    _, first = model.predict(obs, state=others, episode_start=np.ones(1), deterministic=True)
    np.testing.assert_array_equal(first[0], states[0])


def test_padding_has_no_part_in_the_update():
    """Whatever lies in the padding of a minibatch: the loss is the same."""
    model = recurrent().learn(64)
    batch = next(model.rollout_buffer.get(64))
    padding = batch.mask < 0.5
    assert padding.any(), "not one sequence is padded"
    update = model._make_updater(target_var=0.02)
    loss, metrics = update.evaluate(batch)
    other = {name: getattr(batch, name).clone() for name in ("old_values", "old_log_prob", "advantages", "returns")}
    for tensor in other.values():
        tensor[padding] = th.nan
    observations = batch.observations.clone()
    observations[padding] = 7.0
    other_loss, other_metrics = update.evaluate(batch._replace(observations=observations, **other))
    th.testing.assert_close(loss, other_loss)
    th.testing.assert_close(metrics, other_metrics)
    # And of the samples every single one has a part
    real = th.nonzero(~padding).flatten()
    advantages = batch.advantages.clone()
    advantages[real[-1]] += 1.0
    assert update.evaluate(batch._replace(advantages=advantages))[1].policy_gradient_loss != metrics.policy_gradient_loss


@pytest.mark.parametrize("lstm", [{}, dict(n_lstm_layers=2, shared_lstm=True, enable_critic_lstm=False)])
def test_an_lstm_runs_through_a_minibatch_at_once(lstm):
    """The values are those of sb3-contrib, which goes from timestep to timestep."""
    model = recurrent(policy_kwargs={**LSTM["policy_kwargs"], **lstm}).learn(128)
    batch = next(model.rollout_buffer.get(64))
    starts = batch.episode_starts.unflatten(0, (batch.lstm_states.pi[0].shape[1], -1))
    assert starts[:, 0].sum() > 1 and batch.lstm_states.pi[0][:, starts[:, 0] == 1].any(), "there is something to reset"
    real, calls = batch.mask > 0.5, []
    actions = batch.actions.long().flatten()
    expected = model.policy.evaluate_actions(batch.observations, actions, batch.lstm_states, batch.episode_starts)
    model.policy.lstm_actor.register_forward_hook(lambda *_: calls.append(1))
    th.testing.assert_close(evaluate_actions(model.policy, batch), tuple(x[real] for x in expected))
    assert len(calls) == 1
    # Another buffer may have episodes start within a sequence
    starts[0, 1] = 1.0
    evaluate_actions(model.policy, batch._replace(episode_starts=starts.flatten()))
    assert len(calls) > 2


def test_multi_binary_actions_with_an_lstm():
    class Switches(gym.ActionWrapper):
        action_space = spaces.MultiBinary(2)

        def action(self, action):
            return int(action[0])

    env = Switches(gym.make("CartPole-v1"))
    recurrent(env).learn(128)


def test_a_rollout_buffer_of_ones_own():
    class Buffer(RecurrentRolloutBuffer):
        pass

    model = recurrent(rollout_buffer_class=Buffer).learn(64)
    assert type(model.rollout_buffer) is Buffer


def test_an_lstm_is_not_compiled():
    with pytest.warns(UserWarning, match="`compile` is True, but the gradient step of an LSTM"):
        model = recurrent(compile=True)
    model.learn(64)
    assert len(model._programs) == 0


# Both


@pytest.mark.parametrize("kind", MODELS)
def test_a_bad_reward_does_not_spread(kind):
    class BadReward(gym.Wrapper):
        def step(self, action):
            obs, _, terminated, truncated, info = self.env.step(action)
            return obs, float("nan"), terminated, truncated, info

        def action_masks(self):
            return np.ones(2)

    env = BadReward(gym.make("CartPole-v1"))
    model = MaskableR2VPO("MlpPolicy", env, **FAST) if kind == "maskable" else recurrent(env)
    before = weights(model)
    with pytest.raises(NonFiniteUpdateError, match="Not finite in the rollout: rewards, returns"):
        model.learn(64)
    np.testing.assert_array_equal(weights(model), before)


@pytest.mark.parametrize("kind", MODELS)
def test_the_histogram_of_the_ratio(kind):
    histograms = []

    class Keep(RatioHistogramCallback):
        def _on_rollout_start(self):
            super()._on_rollout_start()
            histograms.append(self.logger.name_to_value.get("train/ratio"))

    plain = MODELS[kind][0]().learn(192)
    model = MODELS[kind][0]().learn(192, callback=Keep())
    ratio = histograms[-1]
    assert ratio.shape == (64,)
    assert 0.0 < (ratio - 1.0).square().mean() < 0.1
    # Looking at it changes nothing
    np.testing.assert_array_equal(weights(model), weights(plain))


def test_without_sb3_contrib_one_sentence_says_what_to_install():
    code = """if True:
        import sys
        sys.modules["sb3_contrib"] = None
        import sb3_r2vpo
        try:
            sb3_r2vpo.MaskableR2VPO
        except ImportError as e:
            print(e)
        try:
            from sb3_r2vpo import RecurrentR2VPO
        except ImportError as e:
            print(e)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines() == [
        f"{name} needs sb3-contrib: pip install 'sb3_r2vpo[contrib]'" for name in ("MaskableR2VPO", "RecurrentR2VPO")
    ], run.stderr


def test_a_plain_buffer_does_not_hold_masks():
    with pytest.raises(AssertionError, match="doesn't support action masking"):
        maskable(rollout_buffer_class=RolloutBuffer).learn(64)
