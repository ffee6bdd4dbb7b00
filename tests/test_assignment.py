"""What is assigned to an argument after construction takes effect, or raises."""

import inspect
from unittest.mock import Mock

import gymnasium as gym
import pytest

from sb3_r2vpo import R2VPO
from sb3_r2vpo.r2vpo import BUILT_WITH

#: A value that each argument can be changed to
CHANGES = dict(
    learning_rate=1e-2,
    batch_size=64,
    n_epochs=1,
    gamma=0.5,
    gae_lambda=0.5,
    var_coef=5.0,
    target_var=0.05,
    max_target_var=0.002,
    quiet_scale=0.1,
    dual_lr=0.25,
    var_coef_bounds=(0.5, 3.0),
    ratio_penalty="variance",
    clip_range_vf=0.1,
    normalize_advantage=False,
    ent_coef=0.1,
    vf_coef=0.1,
    max_grad_norm=0.1,
    sde_sample_freq=2,
    target_kl=1e-4,
    compile=False,
    tensorboard_log=None,
    verbose=0,
)


def make_model(**kwargs) -> R2VPO:
    arguments = dict(n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu", var_coef="auto_1.5", target_var=0.001)
    return R2VPO("MlpPolicy", "Pendulum-v1", **{**arguments, **kwargs})


def parameters_after_training(model: R2VPO) -> dict:
    model.set_random_seed(0)
    model.env.seed(0)
    model.learn(128)
    return {name: x for name, x in model.policy.state_dict().items()} | {"dual": model.dual.value.clone()}


def test_what_fails_leaves_the_model_as_it_was():
    model = make_model()
    with pytest.raises(KeyError):
        model.learning_rate = lambda progress: {}[progress]
    model.learn(64)
    model.clip_range = None
    with pytest.raises(TypeError, match="R2VPO has no clipping"):
        model.clip_range = 0.2


def test_a_schedule_of_ones_own_stays_when_something_else_is_assigned():
    model = make_model()
    model.lr_schedule = lambda progress: 1e-5
    model.ent_coef = 0.01
    assert model.lr_schedule(1.0) == 1e-5
    model.learning_rate = 1e-3
    assert model.lr_schedule(1.0) == 1e-3


def test_each_argument_is_decided():
    arguments = inspect.signature(R2VPO.__init__).parameters.keys()
    assert arguments == CHANGES.keys() | BUILT_WITH | {"self", "policy", "env", "clip_range", "_init_setup_model"}


@pytest.mark.parametrize("name", CHANGES)
def test_as_at_construction(name):
    changed, constructed = make_model(), make_model(**{name: CHANGES[name]})
    setattr(changed, name, CHANGES[name])
    if name in ("dual_lr", "var_coef_bounds"):
        assert changed.dual.value == 1.5
    after, expected = parameters_after_training(changed), parameters_after_training(constructed)
    assert all((after[key] == expected[key]).all() for key in expected)


def test_the_dual_goes_on_where_it_is():
    model = make_model().learn(128)
    value = model.dual.value.item()
    assert value != 1.5
    model.dual_lr = 0.5
    assert model.dual.value == value and model.dual.dual_lr == 0.5
    model.var_coef = "auto_1.75"
    assert model.dual.value == 1.75


def test_the_dual_keeps_to_bounds_that_are_changed(tmp_path):
    model = make_model(var_coef_bounds=(0.15, 2.0))
    model.dual.set(0.2)
    model.save(tmp_path / "model")
    model.var_coef_bounds = (0.5, 2.0)
    assert model.dual.value == 0.5
    assert R2VPO.load(tmp_path / "model", var_coef_bounds=(0.25, 2.0)).dual.value == 0.25
    # They do not bind a fixed one
    model = make_model(var_coef=0.1)
    model.var_coef_bounds = (0.5, 2.0)
    assert model.dual.value == pytest.approx(0.1)


def test_an_interrupt_in_the_middle_leaves_a_whole_model(monkeypatch, tmp_path):
    model = make_model()
    before = vars(model).copy()
    for interrupted in ("_check_arguments", "_setup_lr_schedule", "_setup_dual"):
        with monkeypatch.context() as patch:
            patch.setattr(R2VPO, interrupted, Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                model.learning_rate = 0.1
        assert vars(model) == before
    model.save(tmp_path / "model")


@pytest.mark.parametrize("name", sorted(BUILT_WITH))
def test_what_the_model_is_built_with(name):
    model = make_model()
    before = vars(model).get(name)
    with pytest.raises(AttributeError, match=f"`{name}` cannot be changed any more"):
        setattr(model, name, 1)
    assert vars(model).get(name) is before


def test_bad_values_change_nothing():
    model = make_model()
    dual = model.dual
    for name, value in dict(target_var=-1.0, var_coef="autoo", var_coef_bounds=(5.0, 6.0), batch_size=1).items():
        before = getattr(model, name)
        with pytest.raises(ValueError, match=f"`{name}` is"):
            setattr(model, name, value)
        assert getattr(model, name) is before and model.dual is dual
    with pytest.raises(TypeError, match="no clipping"):
        model.clip_range = 0.2


def test_attributes_can_be_loaded_with_other_values(tmp_path):
    model = make_model().learn(64)
    model.save(tmp_path / "model")
    assert R2VPO.load(tmp_path / "model", num_timesteps=0).num_timesteps == 0
    assert R2VPO.load(tmp_path / "model", n_envs=3).rollout_buffer.n_envs == 3
    assert R2VPO.load(tmp_path / "model", env=gym.make("Pendulum-v1"), n_steps=32).learn(64).num_timesteps == 64
