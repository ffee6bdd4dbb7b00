"""Fixed, scheduled and learned coefficient of the ratio variance, during training."""

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_r2vpo import R2VPO


class LoggedValues(BaseCallback):
    """Keeps what each update has logged."""

    def __init__(self, *keys):
        super().__init__()
        self.keys, self.values = keys, []

    def _on_step(self):
        return True

    def _keep(self):
        logged = self.logger.name_to_value
        if self.keys[0] in logged:
            self.values.append([logged[key] for key in self.keys])

    # The logger is emptied before `train`, so its values are there when the next rollout starts
    _on_rollout_start = _keep
    _on_training_end = _keep


def logged_during(keys, n_rollouts, env="CartPole-v1", **kwargs):
    settings = dict(n_steps=128, batch_size=64, n_epochs=4, seed=0, device="cpu")
    model = R2VPO("MlpPolicy", env, **{**settings, **kwargs})
    callback = LoggedValues(*keys)
    # One step more than fits, so that the last rollout passes the end of training
    model.learn((n_rollouts - 1) * model.n_steps * model.n_envs + 1, callback=callback)
    return np.array(callback.values), model


def test_a_fixed_coefficient_stays():
    values, _ = logged_during(["train/var_coef"], 3, var_coef=0.5)
    assert values.ravel().tolist() == [0.5] * 3


@pytest.mark.parametrize("name", ["learning_rate", "clip_range_vf", "var_coef"])
@pytest.mark.parametrize("schedule", [lambda progress: progress, lambda progress: 2 * progress - 1])
def test_no_schedule_goes_below_zero(name, schedule):
    values, _ = logged_during([f"train/{name}"], 3, **{name: schedule})
    total = 2 * 128 + 1
    assert values.ravel() == pytest.approx([max(0.0, schedule(1 - steps / total)) for steps in (128, 256, total)])


def test_a_learning_rate_that_falls_to_zero_learns_nothing_in_a_rollout_beyond_the_end():
    policies = []

    class KeepPolicy(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            policies.append(self.model.policy.parameters_to_vector())

    model = R2VPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, learning_rate=lambda progress: 3e-4 * progress)
    model.learn(2 * 128 + 1, callback=KeepPolicy())
    assert (policies[1] != policies[2]).any()
    np.testing.assert_array_equal(policies[2], model.policy.parameters_to_vector())


def test_a_scheduled_coefficient_follows_and_is_floored_at_zero():
    values, _ = logged_during(["train/var_coef"], 3, var_coef=lambda progress: 6.0 * progress)
    total = 2 * 128 + 1
    assert values.ravel() == pytest.approx([6 * (1 - 128 / total), 6 * (1 - 256 / total), 0.0])


def test_a_scheduled_target_is_floored_above_zero():
    schedule = dict(target_var=lambda progress: 0.02 * progress, max_target_var=1e-9)
    values, model = logged_during(["train/target_var", "train/var_coef"], 3, **schedule)
    assert model._current_progress_remaining == 0
    # Nothing is allowed any more, so the price rises
    assert 0 < values[-1, 0] < 1e-6
    assert np.isfinite(values).all() and values[-1, 1] > values[-2, 1]


@pytest.mark.parametrize("ratio_penalty, logged", [("variance", "ratio_variance"), ("two_sided", "ratio_penalty")])
def test_a_learned_coefficient_holds_the_last_variance_at_the_target(ratio_penalty, logged):
    values, _ = logged_during(
        [f"train/{logged}_last_epoch"],
        25,
        env=VecNormalize(make_vec_env("Pendulum-v1", n_envs=8, seed=0)),
        n_epochs=10,
        gamma=0.9,
        learning_rate=1e-3,
        target_var=0.03,
        max_target_var=0.03,
        ratio_penalty=ratio_penalty,
        var_coef_bounds=(1e-3, 1e3),
    )
    # The ascent is in the logarithm, so it is the geometric mean
    assert np.exp(np.log(values[5:]).mean()) == pytest.approx(0.03, rel=0.2)


@pytest.mark.parametrize(
    "change",
    [
        dict(target_var=0.06),
        dict(max_target_var=0.008),
        dict(dual_lr=0.25),
        dict(var_coef="auto_0.5"),
        dict(var_coef_bounds=(0.9, 100.0)),
        dict(ratio_penalty="variance"),
    ],
    ids=str,
)
def test_every_argument_of_the_constraint_changes_what_is_learned(change):
    def trained(**kwargs):
        # A task with so much signal that the bound widens
        env = VecNormalize(make_vec_env("CartPole-v1", n_envs=4, seed=0))
        model = R2VPO("MlpPolicy", env, n_steps=256, learning_rate=1e-3, gamma=0.98, seed=0, device="cpu", **kwargs)
        return model.learn(256 * 4 * 5).policy.parameters_to_vector()

    assert np.abs(trained() - trained(**change)).max() > 1e-3


def test_a_coefficient_at_its_bound_says_so():
    keys = ["train/var_coef_at_bound", "train/var_coef"]
    low, _ = logged_during(keys, 8, learning_rate=0.0)
    assert low[-1].tolist() == [-1, pytest.approx(0.15)]
    high, _ = logged_during(keys, 8, learning_rate=1e-2, target_var=1e-6, max_target_var=1e-6, var_coef_bounds=(1.0, 1.5))
    assert high[-1].tolist() == [1, 1.5]


@pytest.mark.parametrize("name", ["target_var", "var_coef", "learning_rate", "clip_range_vf"])
def test_a_schedule_that_fails_later_is_named(name):
    with pytest.raises(ValueError, match=rf"`{name}` is a schedule that gives nan at a remaining progress of 0\.0078"):
        logged_during(["train/var_coef"], 2, **{name: lambda progress: 0.02 if progress > 0.6 else float("nan")})


def test_a_learning_rate_that_grows_too_large_is_named():
    message = r"`learning_rate` is a schedule that gives 2000\.0 at a remaining progress of 0\.0078.*finite and at most 1000$"
    with pytest.raises(ValueError, match=message):
        logged_during(["train/var_coef"], 2, learning_rate=lambda progress: 0.0 if progress > 0.6 else 2000.0)
