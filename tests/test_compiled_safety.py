"""No policy and no callback behaves differently because something is compiled. See also test_backends and test_acting."""

import copy
import importlib
import pickle
import types
import warnings
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import ConstantSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv
from torch import nn

from sb3_r2vpo import R2VPO
from sb3_r2vpo.fast import compiled, onednn
from sb3_r2vpo.fast.acting import compiled_forward
from sb3_r2vpo.fast.guard import Guard, Refusal, own_code
from sb3_r2vpo.fast.programs import MAX_PROGRAMS, Programs
from sb3_r2vpo.r2vpo import COMPILE_PAYS_FROM


class Extractor(BaseFeaturesExtractor):
    """What users write."""

    def __init__(self, observation_space: spaces.Space, keeps_features: bool = False) -> None:
        super().__init__(observation_space, features_dim=8)
        self.first, self.second = nn.Linear(3, 8), nn.Linear(3, 8)
        self.scale = 1.0
        self.settings = {"second": [True]}
        self.keeps_features = keeps_features
        self.last_features: Any = None

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features = self.first(observations)
        if self.settings["second"][0]:
            features = features + self.second(observations)
        if self.keeps_features:
            self.last_features = features.detach()
        return features * self.scale


class AtRollout(BaseCallback):
    """Does something at the start of rollout ``n``, counted from zero."""

    def __init__(self, n: int, action: Any) -> None:
        super().__init__()
        self.n, self.action = n, action

    def _on_rollout_start(self) -> None:
        if self.n == 0:
            self.action(self.model.policy)
        self.n -= 1

    def _on_step(self) -> bool:
        return True


def make_model(compile: bool | str, **kwargs: Any) -> R2VPO:
    arguments: dict[str, Any] = dict(n_steps=64, batch_size=32, n_epochs=2, learning_rate=1e-2, seed=0, device="cpu")
    arguments["policy_kwargs"] = dict(net_arch=[8], **kwargs.pop("policy_kwargs", {}))
    return R2VPO("MlpPolicy", "Pendulum-v1", compile=compile, **{**arguments, **kwargs})


def own_extractor(compile: bool | str, **kwargs: Any) -> R2VPO:
    return make_model(
        compile, policy_kwargs=dict(features_extractor_class=Extractor, features_extractor_kwargs=kwargs), verbose=1
    )


def learn(model: R2VPO, n_rollouts: int = 3, callback: Any = None) -> dict[str, Any]:
    model.set_random_seed(0)
    model.env.seed(0)
    model.learn(64 * n_rollouts, callback=callback)
    return model.policy.state_dict()


@pytest.fixture
def compiles_early(monkeypatch):
    monkeypatch.setitem(COMPILE_PAYS_FROM, "cpu", 1)
    monkeypatch.setattr("sb3_r2vpo.r2vpo.COMPILE_FORWARD_PAYS_FROM", 1)


# --- What is compiled without being asked for


def make_policy(**kwargs: Any) -> ActorCriticPolicy:
    return ActorCriticPolicy(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), lambda _: 1e-3, **kwargs)


class OwnPolicy(ActorCriticPolicy):
    """Might override anything."""


class OwnAdam(th.optim.Adam):
    """Might do anything in its step."""


def with_own(name: str) -> ActorCriticPolicy:
    policy = make_policy()
    if name == "module":
        policy.mlp_extractor.policy_net[1] = type("OwnTanh", (nn.Tanh,), {"__module__": __name__})()
    elif name == "forward":
        policy.action_net.forward = lambda x: x
    elif name == "function":
        policy.mlp_extractor.policy_net[1].activation = lambda x: x
    elif name == "distribution":
        policy.action_dist = type("OwnDistribution", (type(policy.action_dist),), {"__module__": __name__})(2)
    return policy


@pytest.mark.parametrize("kwargs", [{}, dict(use_sde=True), dict(activation_fn=nn.ReLU, optimizer_class=th.optim.AdamW)])
def test_sb3s_policies_are_known(kwargs):
    policy = make_policy(**kwargs)
    assert own_code(policy) is None
    Guard(policy)


@pytest.mark.parametrize("name", ["module", "forward", "function", "distribution"])
def test_own_code_is_found(name):
    assert own_code(with_own(name)) is not None


def test_own_classes_are_found():
    arguments = (spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), lambda _: 1e-3)
    assert own_code(OwnPolicy(*arguments)) == "OwnPolicy"
    assert own_code(ActorCriticPolicy(*arguments, features_extractor_class=Extractor)) == "Extractor"
    assert own_code(ActorCriticPolicy(*arguments, optimizer_class=OwnAdam)) == "ActorCriticPolicy.optimizer"


def test_auto_leaves_own_code_as_it_is(compiles_early, capsys):
    """Annealed by a callback, kept for a callback: as without compiling, bit for bit."""

    def anneal(policy):
        policy.features_extractor.scale = 0.0
        policy.features_extractor.last_features.numpy()
        copy.deepcopy(policy)

    results = []
    for compile in (False, "auto"):
        model = own_extractor(compile, keeps_features=True)
        results.append(learn(model, 4, AtRollout(2, anneal)))
        assert len(model._programs) == len(model._forward_programs) == 0
        assert model.logger.name_to_value["train/ratio_variance"] >= 0.0
    th.testing.assert_close(*results, rtol=0, atol=0)
    assert capsys.readouterr().out.count("`Extractor` is code of your own") == 1
    pickle.dumps(model.policy.state_dict())


# --- What compiled code takes for constant


def change_settings(policy):
    policy.features_extractor.settings["second"][0] = False


def change_scale(policy):
    policy.features_extractor.scale = 0.5


def freeze(policy):
    policy.mlp_extractor.policy_net.requires_grad_(False)


def swap_module(policy):
    net = policy.mlp_extractor.policy_net
    net[1] = None  # the next one may get its address
    net[1] = nn.ReLU()


def write_weights(policy):
    policy.load_from_vector(0.5 * policy.parameters_to_vector())


@pytest.mark.parametrize(
    "change",
    [
        change_settings,
        pytest.param(change_scale, marks=pytest.mark.slow),
        pytest.param(freeze, marks=pytest.mark.slow),
        pytest.param(swap_module, marks=pytest.mark.slow),
        pytest.param(write_weights, marks=pytest.mark.slow),
    ],
)
def test_callbacks_that_change_the_policy(change):
    """A layer that gets no gradient any more (`change_settings`) is left alone, with its optimizer state."""
    plain, other = (own_extractor(compile) for compile in (False, True))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        results = [learn(model, 4, AtRollout(2, change)) for model in (plain, other)]
    # A new module is in training mode until the next update ends: one more forward pass
    n_forward = 3 if change is swap_module else len(other._programs)
    n_programs = 1 if change is write_weights else 2
    assert (len(other._programs), len(other._forward_programs)) == (n_programs, n_forward) or change is freeze
    th.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
    for p, q in zip(plain.policy.parameters(), other.policy.parameters(), strict=True):
        # Callbacks read these
        th.testing.assert_close(p.grad, q.grad, rtol=1e-2, atol=1e-3)


def data(policy):
    policy.action_net.weight.data = policy.action_net.weight.data * 2.0


def assign(policy):
    policy.load_state_dict({name: 2.0 * x for name, x in policy.state_dict().items()}, assign=True)


def module(policy):
    policy.action_net = nn.Linear(8, 1)


def parameter(policy):
    policy.action_net.bias = nn.Parameter(policy.action_net.bias.detach() + 1.0)


def no_bias(policy):
    policy.action_net.bias = None


def hook(policy):
    policy.action_net.register_forward_hook(lambda module, inputs, output: output + 1.0)


def shadowed_method(policy):
    policy.action_net.forward = lambda x: th.ones(len(x), 1)


def test_changes_within_a_rollout():
    model = make_model(False)
    programs = Programs("policy's forward pass")
    obs = th.randn(4, 3)
    for change in (write_weights, data, assign, module, parameter, no_bias, shadowed_method, hook):
        with th.no_grad(), warnings.catch_warnings(), compiled_forward(model.policy, programs):
            warnings.simplefilter("ignore")  # hooks are not compiled
            th.manual_seed(0)
            model.policy(obs)
            change(model.policy)
            th.manual_seed(1)
            actual = model.policy(obs)
            th.manual_seed(1)
            th.testing.assert_close(actual, ActorCriticPolicy.forward(model.policy, obs), msg=change.__name__)
    assert 2 <= len(programs) <= 5


def test_each_attribute_is_watched():
    policy = make_policy(features_extractor_class=Extractor)
    guard = Guard(policy)
    assert guard.holds()
    for change in (change_scale, change_settings, freeze, swap_module, write_weights, data, assign, hook, shadowed_method):
        policy = make_policy(features_extractor_class=Extractor, net_arch=[8])
        guard = Guard(policy)
        assert guard.holds()
        change(policy)
        # Whether it is trained does not matter within a rollout
        assert guard.holds() == (change is freeze), change.__name__


@pytest.mark.parametrize("value", [th.ones(1), np.ones(1), iter([1.0]), types.SimpleNamespace(x=1), [th.ones(1)], [nn.Tanh()]])
def test_what_cannot_be_watched_is_refused(value):
    policy = make_policy(features_extractor_class=Extractor)
    policy.features_extractor.memory = value
    with pytest.raises(Refusal, match=r"`features_extractor\.memory"):
        Guard(policy)


def test_objects_of_sb3_are_looked_into():
    policy = make_policy(features_extractor_class=Extractor)
    policy.features_extractor.schedule = ConstantSchedule(1.0)
    guard = Guard(policy)
    assert guard.holds()
    policy.features_extractor.schedule.val = 2.0
    assert not guard.holds()
    policy.features_extractor.statistics = RunningMeanStd(shape=(3,))
    with pytest.raises(Refusal, match=r"`features_extractor\.statistics\.mean` is a ndarray"):
        Guard(policy)


def test_arguments_that_a_callback_keeps_assigning_compile_nothing_anew():
    def anneal(policy: ActorCriticPolicy) -> None:
        model.ent_coef = 0.5 * model.ent_coef

    model = make_model(True, ent_coef=0.1, target_var=1e-3)
    lambdas = {model.dual.value.item()}
    for _ in range(3):
        learn(model, 1, AtRollout(0, anneal))
        lambdas.add(model.dual.value.item())
    assert model.ent_coef == 0.1 / 8 and len(lambdas) > 1
    assert len(model._programs) == 1


def test_constants_that_keep_changing():
    """Nobody waits for a ninth compilation."""
    programs, layer = Programs("test"), nn.Linear(1, 1)
    for i in range(MAX_PROGRAMS):
        layer.scale = i
        assert programs.attempt(lambda i=i: programs.fitting("key", programs.guard(layer), lambda: i)) == i
    layer.scale = 3
    assert programs.attempt(lambda: programs.fitting("key", programs.guard(layer), lambda: None)) == 3
    layer.scale = -1
    with pytest.warns(UserWarning, match="has changed 8 times"):
        assert programs.attempt(lambda: programs.fitting("key", programs.guard(layer), lambda: -1)) is None


def test_settings_of_the_distribution_are_constants():
    programs, policy = Programs("test"), make_policy(use_sde=True)
    for i, learn_features in enumerate((False, True, False)):
        policy.action_dist.learn_features = learn_features
        programs.fitting("key", programs.guard(policy), lambda: None)
        assert len(programs) == (1 if i == 0 else 2)


# --- What tracing would lose


def test_side_effects_are_refused_and_undone():
    plain, other = (own_extractor(compile, keeps_features=True) for compile in (False, True))
    with pytest.warns(UserWarning, match="changes `features_extractor.last_features`"):
        result = learn(other)
    other.policy.features_extractor.last_features.numpy()
    pickle.dumps(copy.deepcopy(other.policy))
    th.testing.assert_close(learn(plain), result, rtol=0, atol=0)


class Constant(nn.Module):
    """Reads a tensor that no guard sees."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [th.ones(20)]
        self.read = lambda: hidden[0]

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x * self.read().sum()


def test_hidden_tensors_are_refused():
    model = make_model(True)
    model.policy.action_net = nn.Sequential(model.policy.action_net, Constant())
    with pytest.warns(UserWarning, match="cannot be compiled"):
        learn(model, 1)


# --- What belongs to the user


def test_a_forward_of_the_users_own():
    """Set before training or by a callback in the middle of it, it is called, and stays."""
    n_calls = 0

    def forward(policy, *args, **kwargs):
        nonlocal n_calls
        n_calls += 1
        return ActorCriticPolicy.forward(policy, *args, **kwargs)

    def replace(policy):
        policy.forward = types.MethodType(forward, policy)

    model = make_model(True)
    replace(model.policy)
    own = model.policy.forward
    learn(model, 1)
    assert model.policy.forward is own and n_calls == 64

    model = make_model(True)
    learn(model, 2, AtRollout(1, replace))
    assert model.policy.forward == types.MethodType(forward, model.policy) and n_calls == 64 + 64


def test_gpu_advice():
    model = make_model("auto")
    vars(model)["device"] = th.device("cuda")
    with pytest.warns(UserWarning, match="primarily intended to run on the CPU"):
        model._maybe_recommend_cpu()
    vars(model)["compile"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model._maybe_recommend_cpu()


def test_reload():
    importlib.reload(importlib.reload(onednn))
    assert th.ops.sb3_r2vpo.product(th.ones(2, 3), th.ones(1, 3), None).tolist() == [[3.0], [3.0]]


@pytest.mark.slow
def test_subprocesses_after_compiling():
    learn(make_model(True), 1)
    env = make_vec_env("Pendulum-v1", n_envs=2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method="fork"))
    R2VPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu", compile=True).learn(64)
    env.close()


# --- CUDA graphs, as far as they can be looked at without a card


def test_warming_up_changes_nothing():
    """Batch normalization keeps statistics of every minibatch that it sees, dropout draws random numbers."""
    norm, random_state = nn.BatchNorm1d(1), th.get_rng_state()

    def step(returns):
        th.rand(1)
        return (norm(returns),)

    batch = MagicMock(returns=th.zeros(4, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "to_tensors", lambda samples: [th.full((4, 1), th.nan)])
        compiled.warm_up(step, batch, list(norm.buffers()))
    assert norm.running_mean.item() == 0.0 and norm.num_batches_tracked == 0
    assert th.equal(th.get_rng_state(), random_state)


def test_the_graph_is_captured_on_the_policys_device(monkeypatch):
    cuda = MagicMock()
    monkeypatch.setattr(compiled.th, "cuda", cuda)
    monkeypatch.setattr(compiled, "to_tensors", lambda samples: [])
    monkeypatch.setattr(compiled, "warm_up", lambda *args: None)
    compiled.CudaGraph(lambda: (th.zeros(1),), MagicMock(returns=MagicMock(device=th.device("cuda:1"))), [])
    compiled.capturing_place.cache_clear()
    cuda.device.assert_called_once_with(th.device("cuda:1"))
    # All the rest happens inside
    names = [name for name, *_ in cuda.mock_calls]
    assert names[:2] == ["device", "device().__enter__"] and names[-1] == "device().__exit__"
