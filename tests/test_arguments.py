from fractions import Fraction

import numpy as np
import pytest
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_r2vpo import R2VPO


def negative_schedule(progress: float) -> float:
    return -progress


BAD = [
    ("learning_rate", -1e-3),
    ("learning_rate", "3e-4"),
    ("n_steps", 0),
    ("n_steps", 12.5),
    ("batch_size", 0),
    ("batch_size", 1),
    ("n_epochs", 0),
    ("n_steps", 10**30),
    ("batch_size", 10**30),
    ("learning_rate", 10**400),
    ("gamma", Fraction(10**400)),
    ("n_epochs", True),
    ("gamma", 1.1),
    ("gae_lambda", -0.1),
    ("var_coef", -1.0),
    ("var_coef", "autoo"),
    ("var_coef", "auto_0.01"),
    ("var_coef", float("nan")),
    ("var_coef", None),
    ("var_coef", negative_schedule),
    ("target_var", 0.0),
    ("target_var", -0.02),
    ("target_var", float("inf")),
    ("target_var", "0.02"),
    ("target_var", "automatic"),
    ("target_var", negative_schedule),
    ("max_target_var", 0.0),
    ("max_target_var", "lin_0.1"),
    ("ratio_penalty", "log"),
    ("quiet_scale", 0.0),
    ("quiet_scale", 1.5),
    ("dual_lr", 0.0),
    ("var_coef_bounds", (100.0, 2.0)),
    ("var_coef_bounds", (0.0, 2.0)),
    ("var_coef_bounds", (1.0,)),
    ("var_coef_bounds", 3.0),
    ("clip_range_vf", 0.0),
    ("clip_range_vf", -0.2),
    ("ent_coef", float("nan")),
    ("vf_coef", -0.5),
    ("max_grad_norm", 0.0),
    ("target_kl", 0.0),
]


@pytest.mark.parametrize("name, value", BAD)
def test_an_argument_out_of_range_is_named_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is ") as error:
        R2VPO("MlpPolicy", "CartPole-v1", **{name: value})
    assert "schedule that starts at" in str(error.value) if callable(value) else repr(value) in str(error.value)


def test_one_sample_cannot_be_normalized():
    with pytest.raises(ValueError, match=r"`n_steps \* n_envs` is 1 .*n_steps=1 and n_envs=1"):
        R2VPO("MlpPolicy", "CartPole-v1", n_steps=1)


def test_clip_range_gets_a_word_of_what_to_use_instead():
    with pytest.raises(TypeError, match=r"`clip_range` is 0\.2, but R2VPO has no clipping.*`target_var`.*`var_coef`"):
        R2VPO("MlpPolicy", "CartPole-v1", clip_range=0.2)


def test_a_positional_clip_range_is_not_taken_for_something_else():
    with pytest.raises(TypeError, match="positional"):
        R2VPO("MlpPolicy", "CartPole-v1", 3e-4, 2048, 64, 10, 0.99, 0.95, 0.2)


def test_a_truncated_minibatch_is_announced():
    with pytest.warns(UserWarning, match="truncated mini-batch of size 4"):
        R2VPO("MlpPolicy", "CartPole-v1", n_steps=100, batch_size=32)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(learning_rate=0.0),
        dict(var_coef=0.0),
        dict(var_coef=200.0),  # the bounds do not bind a fixed coefficient
        dict(var_coef=np.float32(3.0), target_var=np.float64(0.02), n_steps=np.int64(64)),
        dict(var_coef="auto"),
        dict(var_coef="auto_2"),
        dict(var_coef=LinearSchedule(5.0, 1.0, 0.5), target_var=ConstantSchedule(0.02)),
        dict(var_coef=FloatSchedule(5.0), clip_range_vf=FloatSchedule(0.2), learning_rate=FloatSchedule(1e-3)),
        dict(var_coef_bounds=[3.0, 3.0], var_coef="auto_3.0"),
        dict(batch_size=1, n_steps=1, normalize_advantage=False),
        dict(ent_coef=-0.01, clip_range=None, target_kl=None),
        dict(max_grad_norm=float("inf"), target_kl=float("inf")),
    ],
)
def test_what_is_allowed(kwargs):
    R2VPO("MlpPolicy", "CartPole-v1", **kwargs)


def test_infinite_limits_are_none():
    def weights(**limits):
        model = R2VPO("MlpPolicy", "Pendulum-v1", n_steps=64, seed=0, **limits).learn(128)
        return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])

    infinite = weights(max_grad_norm=float("inf"), target_kl=float("inf"))
    np.testing.assert_array_equal(infinite, weights(max_grad_norm=1e9))
    assert (infinite != weights()).any()


@pytest.mark.parametrize("integer", [np.int64, np.uint8])
@pytest.mark.parametrize("real", [np.float32, np.float64, Fraction])
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_numbers_of_other_types_train_like_pythons(integer, real, compile):
    integers = dict(n_steps=64, batch_size=32, n_epochs=2, seed=1)
    reals = dict(
        learning_rate=0.25,
        gamma=0.5,
        gae_lambda=0.5,
        ent_coef=0.25,
        vf_coef=0.5,
        max_grad_norm=0.5,
        dual_lr=0.5,
        quiet_scale=0.25,
        target_var=0.5,
    )
    reals |= dict(clip_range_vf=0.25, target_kl=4.0)

    def weights(integer, real):
        kwargs = {name: integer(value) for name, value in integers.items()} | {
            name: real(value) for name, value in reals.items()
        }
        model = R2VPO("MlpPolicy", "CartPole-v1", **kwargs, var_coef_bounds=(real(0.5), real(4.0)), compile=compile)
        return model.learn(128).policy.parameters_to_vector()

    np.testing.assert_array_equal(weights(integer, real), weights(int, float))


def test_numbers_of_other_types_can_be_assigned():
    model = R2VPO("MlpPolicy", "CartPole-v1", n_steps=64)
    model.batch_size, model.learning_rate = np.int64(32), Fraction(1, 4)
    model.learn(64)
    assert type(model.batch_size) is int and model.lr_schedule(1.0) == 0.25
