"""The policy's forward pass in rollouts, compiled: actions, values and log-probabilities of one vector of observations."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_r2vpo.fast.tracing import Program, Programs, check_traceable, compile_function, constants_of, layout_of, replaced
from sb3_r2vpo.updater import unchanged

#: A tensor, or a dictionary of tensors
Observations = Any


@contextmanager
def compiled_forward(policy: ActorCriticPolicy, programs: Programs) -> Iterator[None]:
    """
    A context in which the policy's forward pass is compiled. Random numbers are the same.

    :param policy: The policy
    :param programs: What was compiled in earlier rollouts
    """
    policy.forward = CompiledForward(policy, programs)  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        del policy.forward


class CompiledForward:
    """
    ``ActorCriticPolicy.forward`` without its overhead, for one shape of observations; others go the plain way.
    So do all of them when compiling fails, after a warning.

    :param policy: The policy
    :param programs: What was compiled in earlier rollouts
    """

    def __init__(self, policy: ActorCriticPolicy, programs: Programs) -> None:
        self.policy = policy
        self.programs = programs
        self.plain = partial(type(policy).forward, policy)
        self.layout: tuple[Any, ...] | None = None
        self.program: Program | None = None
        self.state: list[th.Tensor] = []

    def __call__(self, obs: Observations, deterministic: bool = False) -> tuple[th.Tensor, ...]:
        """
        :param obs: Observations, of shape (n_envs, ...)
        :param deterministic: Whether to take the most probable actions
        :return: Actions, values and log-probabilities, of leading dimension n_envs
        """
        tensors = list(obs.values()) if isinstance(obs, dict) else [obs]
        layout = layout_of(tensors)
        if self.layout is None:
            self.layout, self.program = layout, self._prepare(obs, tensors)
        if self.program is None or deterministic or layout != self.layout or th.is_grad_enabled():
            return self.plain(obs, deterministic)
        return self.program(*self.state, *tensors)

    def _prepare(self, obs: Observations, tensors: list[th.Tensor]) -> Program | None:
        if self.programs.failed:
            return None
        self.state = [x.detach() for x in (*self.policy.parameters(), *self.policy.buffers())]
        key = (constants_of(self.policy), layout_of([*self.state, *tensors]))
        try:
            check_traceable(self.policy)
            if key not in self.programs:
                self.programs[key] = compile_forward(self.policy, obs, [*self.state, *tensors])
        except Exception as error:  # There is nothing that compilers do not raise
            self.programs.give_up(error)
            return None
        return self.programs[key]

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the policy has the plain forward pass
        return partial, (type(self.policy).forward, self.policy)


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
            return type(policy).forward(policy, observations)

    return compile_function(forward, inputs)
