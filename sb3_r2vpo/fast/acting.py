"""The policy's forward pass in rollouts, compiled: actions, values and log-probabilities of one vector of observations."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_r2vpo.fast.guard import Guard, check_traceable, own_code
from sb3_r2vpo.fast.programs import Programs, layout_of
from sb3_r2vpo.fast.tracing import Program, compile_function, replaced
from sb3_r2vpo.updater import unchanged

#: A tensor, or a dictionary of tensors
Observations = Any


def is_compilable(policy: ActorCriticPolicy) -> bool:
    """
    :param policy: The policy
    :return: Whether its forward pass is SB3's own, neither overridden nor replaced on the instance
    """
    # gSDE's noise is drawn outside of the forward pass
    return (
        policy.device.type == "cpu" and not policy.use_sde and policy.forward == MethodType(ActorCriticPolicy.forward, policy)
    )


@contextmanager
def compiled_forward(policy: ActorCriticPolicy, programs: Programs, any_code: bool = True) -> Iterator[None]:
    """
    A context in which the policy's forward pass is compiled. Random numbers are the same.

    :param policy: A policy that `is_compilable`
    :param programs: What was compiled in earlier rollouts
    :param any_code: Whether to compile code of the user's own
    """
    forward = CompiledForward(policy, programs, any_code)
    policy.forward = forward  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        # A callback may have put something else there
        if vars(policy).get("forward") is forward:
            del policy.forward


class CompiledForward:
    """
    ``ActorCriticPolicy.forward`` without its overhead, for one shape of observations; others go the plain way.
    So do all of them when something about the policy changes and cannot be compiled.

    :param policy: The policy
    :param programs: What was compiled in earlier rollouts
    :param any_code: Whether to compile code of the user's own
    """

    def __init__(self, policy: ActorCriticPolicy, programs: Programs, any_code: bool) -> None:
        self.policy = policy
        self.programs = programs
        self.any_code = any_code
        self.layout: tuple[Any, ...] | None = None
        self.guard: Guard | None = None
        self.program: Program | None = None
        self.state: list[th.Tensor] = []

    def __call__(self, obs: Observations, deterministic: bool = False) -> tuple[th.Tensor, ...]:
        """
        :param obs: Observations, of shape (n_envs, ...)
        :param deterministic: Whether to take the most probable actions
        :return: Actions, values and log-probabilities, of leading dimension n_envs
        """
        tensors = list(obs.values()) if isinstance(obs, dict) else [obs]
        layout = (*obs, *layout_of(tensors)) if isinstance(obs, dict) else layout_of(tensors)
        if self.layout is None or (self.guard is not None and not self.guard.holds()):
            self.layout, self.guard = layout, None
            self.program = self.programs.attempt(lambda: self._prepare(obs, tensors))
        if self.program is None or deterministic or layout != self.layout or th.is_grad_enabled():
            return ActorCriticPolicy.forward(self.policy, obs, deterministic)
        return self.program(*self.state, *tensors)

    def _prepare(self, obs: Observations, tensors: list[th.Tensor]) -> Program | None:
        if not self.any_code and own_code(self.policy):
            return None
        check_traceable(self.policy)
        guard = self.programs.guard(self.policy)
        self.state = [x.detach() for x in (*self.policy.parameters(), *self.policy.buffers())]
        inputs = [*self.state, *tensors]
        program = self.programs.fitting(
            (self.layout, layout_of(self.state)), guard, lambda: compile_forward(self.policy, obs, inputs)
        )
        self.guard = guard
        return program

    def __eq__(self, other: object) -> bool:
        # To a guard that of the next rollout is no change
        return isinstance(other, CompiledForward) and other.policy is self.policy

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the policy has the plain forward pass
        return ActorCriticPolicy.forward.__get__, (self.policy,)


def compile_forward(policy: ActorCriticPolicy, obs: Observations, inputs: list[th.Tensor]) -> Program:
    """
    :param policy: The policy
    :param obs: Observations, of shape (n_envs, ...)
    :param inputs: The tensors of the policy, then those of the observations
    :return: From such tensors to actions, values and log-probabilities
    """
    originals = [*policy.parameters(), *policy.buffers()]

    @th.no_grad()
    def forward(*tensors: th.Tensor) -> tuple[th.Tensor, ...]:
        rest = tensors[len(originals) :]
        observations: Observations = dict(zip(obs, rest, strict=True)) if isinstance(obs, dict) else rest[0]
        with replaced(dict(zip(originals, tensors, strict=False)), policy), unchanged(policy.action_dist):
            return ActorCriticPolicy.forward(policy, observations)

    return compile_function(forward, inputs)
