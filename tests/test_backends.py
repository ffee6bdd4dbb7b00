"""Every way of taking a gradient step gives the same result. Compiling takes seconds: most cases are marked slow."""

import copy
import io
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples
from torch import nn

from sb3_r2vpo import R2VPO, NonFiniteUpdateError
from sb3_r2vpo.dual import DualVariable
from sb3_r2vpo.fast import compiled
from sb3_r2vpo.fast.compiled import CompiledUpdater
from sb3_r2vpo.fast.programs import Programs
from sb3_r2vpo.r2vpo import COMPILE_PAYS_FROM
from sb3_r2vpo.rollouts import Samples, index, shuffled_minibatches
from sb3_r2vpo.updater import Coefficients, Metrics, Updater, use_fused_adam

BATCH_SIZE, N_SAMPLES = 32, 128
BOX = spaces.Box(-1.0, 1.0, (3,))
DICT = spaces.Dict({"position": spaces.Box(-1.0, 1.0, (2,)), "mode": spaces.Discrete(3)})
COEFFICIENTS = Coefficients(target_var=0.02, ent_coef=0.01, vf_coef=0.5, max_grad_norm=0.5)


class OneLayer(BaseFeaturesExtractor):
    """Weights in a module that SB3 knows by three names."""

    def __init__(self, observation_space: spaces.Space, batch_norm: bool = False) -> None:
        super().__init__(observation_space, features_dim=4)
        self.layer = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4) if batch_norm else nn.Identity()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(self.layer(observations.to(self.layer.weight.dtype)))


class Cast(nn.Module):
    def __init__(self, dtype: th.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, features: th.Tensor) -> th.Tensor:
        return features.to(self.dtype)


#: Observation space, action space, arguments of the policy, coefficients
CASES: dict[str, tuple[spaces.Space, spaces.Space, dict[str, Any], dict[str, Any]]] = {
    "box": (BOX, BOX, {"features_extractor_class": OneLayer}, {}),
    "batch_norm": (
        BOX,
        BOX,
        {"features_extractor_class": OneLayer, "features_extractor_kwargs": {"batch_norm": True}},
        {},
    ),
    "discrete": (BOX, spaces.Discrete(3), {}, {}),
    "multi_discrete": (BOX, spaces.MultiDiscrete([2, 3]), {}, {}),
    "multi_binary": (spaces.Discrete(4), spaces.MultiBinary(3), {}, {}),
    "dict": (DICT, BOX, {"share_features_extractor": False}, {"normalize_advantage": False}),
    "sde": (BOX, BOX, {"use_sde": True}, {}),
    "variance": (BOX, BOX, {}, {"two_sided": False}),
    "clip_range_vf": (BOX, BOX, {}, {"clip_range_vf": 0.1}),
    "adamw": (BOX, BOX, {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": dict(weight_decay=0.1, amsgrad=True)}, {}),
}


@pytest.fixture
def float64():
    th.set_default_dtype(th.float64)
    yield
    th.set_default_dtype(th.float32)


class Twins:
    """A plain and a compiled updater of equal policies, and samples for both."""

    def __init__(self, case: str, device: str = "cpu") -> None:
        observation_space, action_space, policy_kwargs, coefficients = CASES[case]
        self.coefficients = COEFFICIENTS._replace(**coefficients)
        self.policies = [make_policy(observation_space, action_space, device, policy_kwargs) for _ in range(2)]
        self.duals = [DualVariable(3.0, True, 0.02, (0.1, 100.0)).to(device) for _ in range(2)]
        self.samples = make_samples(self.policies[0])
        self.programs = Programs("gradient step")
        self.new_rollout()

    def new_rollout(self, learning_rate: float = 3e-3, **coefficients: float) -> None:
        """What R2VPO does at the start of `train`."""
        for policy in self.policies:
            policy.optimizer.param_groups[0]["lr"] = learning_rate
        plain, other = (
            Updater(policy, dual, self.coefficients._replace(**coefficients))
            for policy, dual in zip(self.policies, self.duals, strict=True)
        )
        self.updaters = plain, CompiledUpdater(other, self.programs)

    def epoch(self, samples: Samples | None = None, batch_size: int = BATCH_SIZE) -> list[th.Tensor]:
        batches = list(shuffled_minibatches(samples or self.samples, batch_size))
        metrics = [th.stack([update(batch) for batch in batches]) for update in self.updaters]
        th.testing.assert_close(*metrics, equal_nan=True, **tolerance(metrics[0]))
        return metrics

    def state(self, i: int) -> dict[str, Any]:
        policy = self.policies[i]
        optimizer = {name: policy.optimizer.state[p] for name, p in policy.named_parameters()}
        return {"weights": policy.state_dict(), "dual": self.duals[i].state_dict(), "optimizer": optimizer}

    def assert_equal(self) -> None:
        assert not self.programs.failed
        plain, other = self.state(0), self.state(1)
        th.testing.assert_close(plain["weights"], other["weights"], **tolerance(self.duals[0].value))
        th.testing.assert_close(plain, other, **tolerance(self.duals[0].value))


def tolerance(tensor: th.Tensor) -> dict[str, float]:
    return dict(rtol=1e-9, atol=1e-9) if tensor.dtype == th.float64 else dict(rtol=1e-3, atol=1e-4)


def make_policy(
    observation_space: spaces.Space, action_space: spaces.Space, device: str, policy_kwargs: dict[str, Any]
) -> ActorCriticPolicy:
    th.manual_seed(0)
    policy_class = MultiInputActorCriticPolicy if isinstance(observation_space, spaces.Dict) else ActorCriticPolicy
    policy = policy_class(observation_space, action_space, lambda _: 3e-3, net_arch=[8], **policy_kwargs).to(device)
    if policy.use_sde:
        # Its noise is no buffer and stays where it was drawn
        policy.reset_noise()
    dtype = th.get_default_dtype()
    # SB3 turns observations into float32
    policy.mlp_extractor.policy_net.insert(0, Cast(dtype))
    policy.mlp_extractor.value_net.insert(0, Cast(dtype))
    use_fused_adam(policy.optimizer)
    return policy


def make_samples(policy: ActorCriticPolicy) -> Samples:
    policy.observation_space.seed(0)
    observations = [policy.observation_space.sample() for _ in range(N_SAMPLES)]
    device = policy.device
    if isinstance(policy.observation_space, spaces.Dict):
        obs = {key: th.as_tensor(np.array([o[key] for o in observations]), device=device) for key in observations[0]}
        samples_class: Any = DictRolloutBufferSamples
    else:
        obs, samples_class = th.as_tensor(np.array(observations), device=device), RolloutBufferSamples
    policy.set_training_mode(False)
    with th.no_grad():
        actions, values, log_prob = policy(obs)
    policy.set_training_mode(True)
    actions = actions.reshape(N_SAMPLES, -1).to(th.get_default_dtype())
    advantages, returns = th.randn(2, N_SAMPLES, device=device)
    return samples_class(obs, actions, values.flatten(), log_prob, advantages, returns)


def run_case(case: str, **kwargs: Any) -> Twins:
    """100 gradient steps, changing everything that a schedule can change."""
    twins = Twins(case, **kwargs)
    for i in range(5):
        # A clipped and an unclipped gradient
        twins.new_rollout(1e-3 / (i + 1), target_var=10.0 ** -(i % 3 + 1), ent_coef=0.01 * i, max_grad_norm=10.0 ** (i % 2))
        for _ in range(5):
            twins.epoch()
    twins.assert_equal()
    assert len(twins.programs) == 1
    return twins


def test_compiled_equals_plain(float64):
    twins = run_case("box")
    before = [copy.deepcopy(twins.state(i)) for i in range(2)]

    # Neither a minibatch with non-finite values nor one with too large a KL divergence changes anything
    nan = twins.samples._replace(advantages=th.full_like(twins.samples.advantages, th.nan))
    for samples, max_kl in ((nan, np.inf), (twins.samples, -1.0)):
        twins.new_rollout(max_kl=max_kl)
        twins.epoch(samples)
        for i in range(2):
            th.testing.assert_close(twins.state(i), before[i], rtol=0, atol=0)

    # A truncated last minibatch runs plain
    twins.new_rollout()
    twins.epoch(index(twins.samples, slice(0, 2 * BATCH_SIZE + 5)))
    twins.assert_equal()
    assert len(twins.programs) == 1

    # Nothing of the tracing stays in the policy
    assert all(type(p) is nn.Parameter for p in twins.policies[1].parameters())
    policy = copy.deepcopy(twins.policies[1])
    policy(twins.samples.observations)
    # Programs stay where they are
    assert len(copy.deepcopy(twins.programs)) == len(pickle.loads(pickle.dumps(twins.programs))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != "box"])
def test_compiled_equals_plain_in_every_case(float64, case):
    run_case(case)


@pytest.mark.slow
def test_changed_constants_compile_anew(float64):
    """A program is not used for what it was not compiled for."""
    twins = Twins("box")
    twins.epoch()
    for policy in twins.policies:
        policy.mlp_extractor.policy_net.requires_grad_(False)
        policy.optimizer.zero_grad()
    twins.new_rollout()
    weights = [p.clone() for p in twins.policies[1].mlp_extractor.policy_net.parameters()]
    twins.epoch()
    twins.assert_equal()
    th.testing.assert_close(weights, list(twins.policies[1].mlp_extractor.policy_net.parameters()))
    assert len(twins.programs) == 2


def make_model(compile: bool | str, **kwargs: Any) -> R2VPO:
    arguments: dict[str, Any] = dict(n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu", compile=compile)
    arguments["policy_kwargs"] = dict(net_arch=[8], **kwargs.pop("policy_kwargs", {}))
    return R2VPO("MlpPolicy", "Pendulum-v1", **{**arguments, **kwargs})


def weights(model: R2VPO) -> dict[str, Any]:
    return {name: value for name, value in model.get_parameters().items() if name != "policy.optimizer"}


def test_learn(monkeypatch):
    """Whole rollouts: schedules, early stopping, saving and loading."""
    n_compiled = []
    compile_step = compiled.compile_step
    monkeypatch.setattr(compiled, "compile_step", lambda *args: n_compiled.append(1) or compile_step(*args))
    schedules = dict(learning_rate=lambda x: 3e-2 * x, target_var=lambda x: 0.1 * x + 0.01, target_kl=0.003)
    plain, other = (make_model(compile, **schedules) for compile in (False, True))
    for model in (plain, other):
        model.set_random_seed(0)
        model.learn(64 * 4)
    assert len(n_compiled) == 1 and not other._programs.failed
    th.testing.assert_close(weights(plain), weights(other), rtol=1e-3, atol=1e-4)
    th.testing.assert_close(plain.logger.name_to_value, other.logger.name_to_value, rtol=1e-2, atol=1e-3)
    assert other._n_updates == plain._n_updates < 8, "some updates should stop early"

    copy.deepcopy(other.policy)
    pickle.dumps(other.policy.state_dict())

    file = io.BytesIO()
    other.save(file)
    loaded = [R2VPO.load(file, env=make_model(False).env, custom_objects={"compile": c}) for c in (False, True)]
    assert len(loaded[1]._programs) == 0
    for model in loaded:
        model.set_random_seed(1)
        model.learn(64 * 2, reset_num_timesteps=False)
    th.testing.assert_close(weights(loaded[0]), weights(loaded[1]), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_same_rollouts_give_the_same_weights():
    """In float32 and over many updates: runs of the two differ only because the rollouts of a chaotic physics do."""
    pytest.importorskip("mujoco")
    plain, other = (
        R2VPO("MlpPolicy", make_vec_env("HalfCheetah-v5", n_envs=8, seed=0), n_steps=256, seed=0, device="cpu", compile=c)
        for c in (False, True)
    )
    _, callback = plain._setup_learn(10 * 2048)
    other._setup_learn(10 * 2048)
    other.rollout_buffer = plain.rollout_buffer
    for i in range(10):
        plain.collect_rollouts(plain.env, callback, plain.rollout_buffer, n_rollout_steps=256)
        for model in (plain, other):
            np.random.seed(i)
            model.train()
    assert not other._programs.failed and len(other._programs) == 1
    th.testing.assert_close(weights(plain), weights(other), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_loaded_model_continues_like_the_saved_one():
    model = make_model(True).learn(64 * 2)
    file = io.BytesIO()
    model.save(file)
    loaded = R2VPO.load(file, env=make_model(False).env)
    for m in (model, loaded):
        m.set_random_seed(1)
        m.env.reset()
        m._last_obs = None
        m.learn(64 * 2, reset_num_timesteps=False)
    th.testing.assert_close(model.get_parameters(), loaded.get_parameters(), rtol=0, atol=0)


@pytest.mark.slow
def test_non_finite_rollout():
    model = make_model(True).learn(64)
    before = copy.deepcopy(model.get_parameters())
    model.rollout_buffer.advantages[:] = np.nan
    with pytest.raises(NonFiniteUpdateError):
        model.train()
    th.testing.assert_close(model.get_parameters(), before, rtol=0, atol=0)


class OwnAdam(th.optim.Adam):
    """Might do anything in its step."""


def test_runs_plain_with_other_optimizers():
    kwargs: dict[str, Any] = dict(policy_kwargs=dict(optimizer_class=OwnAdam))
    model = make_model(True, **kwargs)
    with pytest.warns(UserWarning, match="the optimizer is OwnAdam") as record:
        model.learn(64 * 3)
    assert len([w for w in record if "compiled" in str(w.message)]) == 1
    # The forward pass is compiled all the same
    th.testing.assert_close(weights(model), weights(make_model(False, **kwargs).learn(64 * 3)), rtol=1e-3, atol=1e-4)


def test_runs_plain_without_compiler():
    model = make_model(True)
    # `monkeypatch` would not put back the second one
    without_compiler = th._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True})
    with without_compiler, pytest.warns(UserWarning, match="cannot be compiled") as record:
        model.learn(64 * 3)
    # Of the gradient step and of the forward pass
    assert len([w for w in record if "compiled" in str(w.message)]) == 2
    th.testing.assert_close(weights(model), weights(make_model(False).learn(64 * 3)), rtol=0, atol=0)


def test_auto_compiles_for_long_runs_only(monkeypatch):
    compiled_at = []

    def compile_step(plain, state, batch):
        compiled_at.append(plain)
        raise NotImplementedError("not in this test")

    monkeypatch.setattr(compiled, "compile_step", compile_step)
    # 4 gradient steps in a rollout of 64 timesteps
    model = make_model("auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(64 * 3)
    monkeypatch.setitem(COMPILE_PAYS_FROM, "cpu", 12)
    with pytest.warns(UserWarning, match="not in this test"):
        model.learn(64 * 3)
    assert len(compiled_at) == 1


@pytest.mark.parametrize(("device", "n_steps"), [("cpu", 7_500), ("cuda", 5_000)])
def test_auto_compiles_from_fewer_steps_on_a_gpu(device, n_steps):
    model = make_model("auto")
    vars(model)["device"] = th.device(device)
    # 4 gradient steps in each of the rollouts left, and in the one that was collected
    for model._total_timesteps, compiles in ((64 * (n_steps // 4 - 2), False), (64 * (n_steps // 4 - 1), True)):
        assert model._compile_step() is compiles
    vars(model)["device"] = th.device("meta")
    assert not model._compile_step()


def test_compile_argument():
    assert make_model("auto").compile == "auto"
    with pytest.raises(ValueError, match="`compile` is 'always'"):
        make_model("always")


def test_metrics_are_in_order():
    twins = Twins("box")
    metrics = Metrics(*twins.updaters[0](twins.samples))
    assert metrics.ratio_max >= 1.0 - 1e-5 and metrics.gradient_norm > 0.0
