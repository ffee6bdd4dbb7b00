import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.utils import set_random_seed

from sb3_r2vpo import R2VPO

FAST = dict(n_steps=128, batch_size=64, n_epochs=2, device="cpu")


def weights(model) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])


def trained(**kwargs) -> R2VPO:
    # A start away from the lower bound, so that the learned coefficient has moved
    return R2VPO("MlpPolicy", "CartPole-v1", **{**FAST, "seed": 0, "var_coef": "auto_2.0", **kwargs}).learn(256)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.zip"


def test_continued_after_load_equals_continued_without(path):
    def halfway():
        env = gym.make("CartPole-v1")
        return env, R2VPO("MlpPolicy", env, seed=0, var_coef="auto_2.0", **FAST).learn(256)

    _, unbroken = halfway()
    set_random_seed(1)
    unbroken.learn(256, reset_num_timesteps=False)

    _, model = halfway()
    model.save(path)
    loaded = R2VPO.load(path, env=model.env, force_reset=False)
    assert loaded.dual.value == model.dual.value != 2.0
    set_random_seed(1)
    loaded.learn(256, reset_num_timesteps=False)

    np.testing.assert_allclose(weights(loaded), weights(unbroken), rtol=0, atol=1e-7)
    assert loaded.dual.value == unbroken.dual.value
    assert loaded.num_timesteps == unbroken.num_timesteps


def test_the_dual_variable_goes_on_without_reset():
    model = trained(var_coef_bounds=(1e-3, 2.0))
    value = model.dual.value.item()
    model.learn(128, reset_num_timesteps=False)
    # So few gradient steps stay far below the target: the largest step downwards, from where it was
    assert model.dual.value.item() == pytest.approx(value * 0.1**0.5)


def test_the_dual_variable_is_one_of_the_parameters():
    model, other = trained(), trained(var_coef=1.0)
    parameters = copy.deepcopy(model.get_parameters())
    assert parameters["dual"]["value"] == model.dual.value
    other.set_parameters(parameters)
    assert other.dual.value == model.dual.value
    np.testing.assert_array_equal(weights(other), weights(model))


def test_a_var_coef_given_to_load_wins(path):
    model = trained()
    model.save(path)
    assert R2VPO.load(path).dual.value == model.dual.value
    learned = R2VPO.load(path, var_coef="auto_1.25")
    assert learned.dual.learned and learned.dual.value == 1.25
    fixed = R2VPO.load(path, var_coef=0.5, env=gym.make("CartPole-v1"))
    assert not fixed.dual.learned and fixed.dual.value == 0.5
    fixed.learn(128)
    assert fixed.dual.value == 0.5


def test_arguments_given_to_load_count(path):
    trained().save(path)
    model = R2VPO.load(path, target_var=0.5, dual_lr=0.3, var_coef_bounds=(3.0, 4.0), learning_rate=0.0, var_coef="auto")
    assert model.target_var(1.0) == 0.5
    assert (model.dual.dual_lr, model.dual.bounds, model.dual.value) == (0.3, (3.0, 4.0), 3.0)
    assert model.lr_schedule(1.0) == 0.0


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(target_var=-1.0), ValueError, "`target_var` is -1.0"),
        (dict(var_coef="autoo"), ValueError, "`var_coef` is 'autoo'"),
        (dict(var_coef_bounds=(2.0, 1.0)), ValueError, r"`var_coef_bounds` is \(2.0, 1.0\)"),
        (dict(clip_range=0.2), TypeError, "no clipping"),
        (dict(taget_var=0.01), TypeError, "`taget_var` is not an argument of R2VPO, did you mean `target_var`"),
    ],
)
def test_arguments_given_to_load_are_checked(path, kwargs, error, message):
    trained().save(path)
    with pytest.raises(error, match=message):
        R2VPO.load(path, **kwargs)


def test_predict_after_load_without_environment(path):
    model = trained()
    model.save(path)
    obs = np.array([0.01, 0.2, -0.03, 0.1], dtype=np.float32)
    assert R2VPO.load(path).predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]


def test_start_from_a_trained_ppo_model(path):
    ppo = PPO("MlpPolicy", "CartPole-v1", seed=1, **FAST).learn(256)
    ppo.save(path)
    for source in (path, ppo.get_parameters()):
        model = R2VPO("MlpPolicy", "CartPole-v1", var_coef="auto_2.0", seed=0, **FAST)
        model.set_parameters(source, exact_match=False)
        np.testing.assert_array_equal(weights(model), weights(ppo))
        assert model.dual.value == 2.0
        assert model.policy.optimizer.param_groups[0]["fused"] is True
        model.learn(128)


def test_parameters_of_ppo_need_to_be_asked_for(path):
    PPO("MlpPolicy", "CartPole-v1", **FAST).save(path)
    with pytest.raises(ValueError, match=r"no 'dual'.*exact_match=False"):
        R2VPO("MlpPolicy", "CartPole-v1", **FAST).set_parameters(path)
    with pytest.raises(ValueError, match=r"no 'dual'.*exact_match=False"):
        R2VPO.load(path)


def test_what_is_estimated_anew_may_be_missing():
    """As in files of earlier versions."""
    parameters = {name: x for name, x in trained().get_parameters().items() if name not in ("signal", "reward_variation")}
    model = trained()
    model.set_parameters(parameters)
    model.learn(128)
    with pytest.raises(ValueError, match="policy"):
        model.set_parameters({name: x for name, x in parameters.items() if name != "policy"})


def test_the_dual_keeps_to_the_bounds_of_the_model():
    model = R2VPO("MlpPolicy", "CartPole-v1", **FAST)
    model.set_parameters(R2VPO("MlpPolicy", "CartPole-v1", var_coef=7.0, **FAST).get_parameters())
    assert model.dual.value == 2.0


def test_back_to_ppo():
    model = trained()
    ppo = PPO("MlpPolicy", "CartPole-v1", seed=1, **FAST)
    parameters = {name: model.get_parameters()[name] for name in ppo.get_parameters()}
    ppo.set_parameters(parameters)
    ppo.learn(128)


@pytest.mark.parametrize("optimizer, fused", [(th.optim.Adam, True), (th.optim.AdamW, True), (th.optim.RMSprop, None)])
def test_adam_runs_fused(path, optimizer, fused):
    model = trained(policy_kwargs=dict(optimizer_class=optimizer))
    model.save(path)
    for m in (model, R2VPO.load(path)):
        assert m.policy.optimizer.param_groups[0].get("fused") is fused
        # SB3's value for Adam, torch's own default is 1e-8
        assert m.policy.optimizer.param_groups[0]["eps"] == (1e-8 if fused is None else 1e-5) or optimizer is th.optim.AdamW


def test_a_choice_against_fused_adam_is_respected():
    model = trained(policy_kwargs=dict(optimizer_kwargs=dict(eps=1e-5, fused=False)))
    assert model.policy.optimizer.param_groups[0]["fused"] is False


def test_fused_and_plain_adam_agree():
    plain = trained(policy_kwargs=dict(optimizer_kwargs=dict(eps=1e-5, fused=False)))
    np.testing.assert_allclose(weights(trained()), weights(plain), rtol=0, atol=1e-5)
