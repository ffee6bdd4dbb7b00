"""Whatever the arguments are: a clear error before training, or weights that stay finite."""

from fractions import Fraction

import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sb3_r2vpo import R2VPO, NonFiniteUpdateError

JUNK = [float("nan"), float("inf"), -1, "x", "lin_x", [], {}, 1j, 10**30, -(10**400), Fraction(10**400), np.nan, object()]
SIZES = [2, 7, 32, np.int64(32), np.uint8(64)]
FRACTIONS = [0, 1e-30, 0.5, np.float32(0.9), Fraction(1, 3), 1]
POSITIVE = [1e-30, 1e-3, 0.5, 1, np.float32(0.1), Fraction(1, 3), 30.0, 1e10, 1e30]
SCHEDULES = [lambda p: p, lambda p: 1e-3 * p, lambda p: 2 * p - 1, lambda p: 1e30 * (1 - p) + 1e-3]
GOOD = {
    **{name: SIZES for name in ("n_steps", "batch_size", "n_epochs")},
    **{name: FRACTIONS for name in ("gamma", "gae_lambda")},
    **{name: POSITIVE for name in ("dual_lr", "ent_coef", "vf_coef", "max_grad_norm")},
    "quiet_scale": [x for x in FRACTIONS if x > 0],
    "learning_rate": [x for x in POSITIVE if x <= 1000] + SCHEDULES,
    "target_var": ["auto", *POSITIVE, *SCHEDULES],
    "max_target_var": [None, *POSITIVE],
    "target_kl": [None, *POSITIVE],
    "clip_range_vf": [None, *POSITIVE, *SCHEDULES],
    "var_coef": ["auto", *POSITIVE, *SCHEDULES],
    "var_coef_bounds": [(1e-3, 1e3), [1, 1], (Fraction(1, 2), np.float32(3.0)), (1e-30, 1e30)],
    "ratio_penalty": ["two_sided", "variance"],
    "normalize_advantage": [True, False],
}
ARGUMENTS = st.fixed_dictionaries(
    {"n_steps": st.sampled_from(SIZES)},
    optional={name: st.sampled_from(values) for name, values in GOOD.items() if name != "n_steps"},
)
CHECKED = sorted(GOOD.keys() - {"normalize_advantage"})


def check_training(env_id, kwargs):
    model = R2VPO("MlpPolicy", env_id, **kwargs, seed=0, compile=False)
    try:
        model.learn(2 * model.n_steps)
    except NonFiniteUpdateError:
        pass
    except ValueError as e:
        # A standard deviation of exp(-1000): torch refuses it
        assert "Expected parameter scale" in str(e) or "`learning_rate` is a schedule that gives" in str(e)
    tensors = [*model.policy.parameters(), model.dual.value]
    tensors += [x for state in model.policy.optimizer.state.values() for x in state.values()]
    assert all(th.isfinite(x).all() for x in tensors)


def examples(n):
    # The same in every run; a busy machine is no failure
    return settings(max_examples=n, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


IGNORED = ("ignore:You have specified a mini-batch size", "ignore:divide by zero", "ignore:overflow", "ignore:invalid value")


@pytest.mark.filterwarnings(*IGNORED)
@pytest.mark.parametrize("n_examples", [20, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_what_is_allowed_leaves_finite_weights(env_id, n_examples):
    examples(n_examples)(given(ARGUMENTS)(lambda kwargs: check_training(env_id, kwargs)))()


@pytest.mark.filterwarnings(*IGNORED)
@pytest.mark.parametrize("n_examples", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_one_bad_argument_is_named_or_does_no_harm(n_examples):
    def check(kwargs, name, junk):
        try:
            R2VPO("MlpPolicy", "CartPole-v1", **{**kwargs, name: junk}, seed=0, compile=False)
        except ValueError as e:
            assert f"`{name}` is " in str(e)
        else:
            # Some is not junk for all
            check_training("CartPole-v1", {**kwargs, name: junk})

    examples(n_examples)(given(ARGUMENTS, st.sampled_from(CHECKED), st.sampled_from(JUNK))(check))()
