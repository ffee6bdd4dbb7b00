"""What compiled code takes for constant of a policy, and whether it still is."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import isroutine
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.utils.hooks import RemovableHandle

#: Packages whose modules are known to compute from inputs, weights, buffers and attributes, and from nothing else
KNOWN_PACKAGES = {"torch", "stable_baselines3", "sb3_contrib", "sb3_r2vpo"}
#: What else their attributes are
VALUES = (type(None), int, float, complex, str, bytes, np.generic, spaces.Space)
CONTAINERS = (dict, list, set)
#: A space does not change, and what distributions are set to is in the key of each program
WATCHED_ELSEWHERE = (spaces.Space, Distribution)
#: The only object of which in a policy stands for the forward pass
OURS = "sb3_r2vpo"
#: What every module has. Hooks are noticed by their handles; weights and buffers are no constants.
COMMON_ATTRIBUTES = vars(nn.Module()).keys() - {"training", "_modules"}


class Refusal(Exception):
    """Why a policy is not compiled as it is now."""


class Guard:
    """
    Every attribute of every module, down to what lists, dictionaries and objects in them hold, and the places of weights and
    buffers in memory. Not what is inside the optimizer: whoever uses it reads it anew.

    :param modules: The modules
    :raises Refusal: When a module keeps something whose changes would not be noticed
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = modules
        self.owners: list[str] = []
        self.containers: list[Any] = []
        named = [(name or type(m).__name__, child) for m in modules for name, child in m.named_modules()]
        seen = {id(child) for _, child in named}
        for name, child in named:
            self._watch(vars(child), name, seen)
        self.contents = [container.copy() for container in self.containers]
        self.n_hooks = RemovableHandle.next_id
        stores = [store for _, child in named for store in (child._parameters, child._buffers)]
        self.places: list[tuple[Any, str]] = [(store, name) for store in stores for name in store]
        self.addresses = self._addresses()

    def _watch(self, container: Any, owner: str, seen: set[int]) -> None:
        seen.add(id(container))
        self.owners.append(owner)
        self.containers.append(container)
        items = container.items() if isinstance(container, dict) else ((type(container).__name__, x) for x in container)
        for name, value in items:
            if name not in COMMON_ATTRIBUTES and name != "optimizer":
                self._watch_value(value, f"{owner}.{name}", seen)

    def _watch_value(self, value: Any, owner: str, seen: set[int]) -> None:
        if isinstance(value, tuple):
            for x in value:
                self._watch_value(x, owner, seen)
        elif id(value) in seen or isinstance(value, type) or isroutine(value):
            return
        elif isinstance(value, CONTAINERS):
            self._watch(value, owner, seen)
        elif isinstance(value, (th.Tensor, nn.Module)) or not is_known(value):
            raise Refusal(f"`{owner}` is a {type(value).__name__}, which could change unnoticed")
        elif hasattr(value, "__dict__") and not isinstance(value, WATCHED_ELSEWHERE) and package(value) != OURS:
            # As SB3's `RunningMeanStd`
            self._watch(vars(value), owner, seen)

    def _addresses(self) -> list[int]:
        return [0 if (x := store[name]) is None else x.data_ptr() for store, name in self.places]

    def holds(self) -> bool:
        """
        :return: Whether nothing has changed. Takes a few microseconds.
        """
        try:
            return (
                self.containers == self.contents
                and self._addresses() == self.addresses
                and self.n_hooks == RemovableHandle.next_id
            )
        except Exception:  # A new value need not like to be compared
            return False

    def same_constants(self, other: "Guard") -> bool:
        """
        :param other: Another guard
        :return: Whether the attributes were the same, wherever weights and buffers were
        """
        try:
            return self.owners == other.owners and self.contents == other.contents
        except Exception:  # As in `holds`
            return False

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """
        A context at the end of which all attributes are what they were.

        :raises NotImplementedError: When they were not
        """
        # As they are now: the stand-in of the forward pass is another in each rollout, and equal to the one before
        before = [container.copy() for container in self.containers]
        try:
            yield
        finally:
            changed = None
            for owner, container, content in zip(self.owners, self.containers, before, strict=True):
                name = difference(container, content)
                if name is not None:
                    changed = changed or f"{owner}.{name}"
                    restore(container, content)
        if changed or self.n_hooks != RemovableHandle.next_id:
            raise NotImplementedError(f"a forward pass changes `{changed or 'hooks'}`, compiled code would not")


def difference(container: Any, content: Any) -> str | None:
    """
    :param container: A list, dictionary or set
    :param content: What was in it
    :return: Name of what is not the same object any more, None when all is
    """
    if not isinstance(container, dict):
        same = len(container) == len(content) and all(x is y for x, y in zip(container, content, strict=True))
        return None if same else type(container).__name__
    names = [*content, *(container.keys() - content.keys())]
    return next((str(n) for n in names if container.get(n) is not content.get(n) or n not in container), None)


def restore(container: Any, content: Any) -> None:
    """
    :param container: A list, dictionary or set
    :param content: What is to be in it
    """
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)


def package(x: Any) -> str:
    """
    :param x: An object, function or class
    :return: The package that its code comes from
    """
    return str(getattr(x, "__module__", None) or type(x).__module__).partition(".")[0]


def is_known(x: Any) -> bool:
    """
    :param x: An object
    :return: Whether it is nothing of the user's own
    """
    return isinstance(x, VALUES) or package(x) in KNOWN_PACKAGES


def own_code(policy: ActorCriticPolicy) -> str | None:
    """
    The rule of what is compiled without being asked for: code of torch, SB3 and sb3-contrib depends on what a `Guard`
    watches. A user's own may depend on anything.

    :param policy: The policy
    :return: Where in the policy there is code of the user's own, None when there is none
    """
    for name, module in policy.named_modules():
        if not is_known(module):
            return type(module).__name__
        for attribute, value in {"forward": module.forward, **vars(module)}.items():
            # Classes were called when the policy was built
            skipped = attribute in COMMON_ATTRIBUTES or isinstance(value, (type, tuple, *CONTAINERS))
            if not skipped and not is_known(value):
                return f"{name or type(module).__name__}.{attribute}"
    return None


def check_traceable(policy: ActorCriticPolicy) -> None:
    """
    :param policy: The policy
    :raises Refusal: When it does what would be lost in tracing
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if nn.modules.module._has_any_global_hook() or any(getattr(m, name) for m in policy.modules() for name in hooks):
        raise Refusal("a module of the policy has hooks")
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in policy.parameters()):
        raise Refusal("a parameter of the policy has hooks")
    if len({(p.dtype, p.device) for p in policy.parameters()}) > 1:
        raise Refusal("the policy's parameters are of several types or on several devices")
