"""The gradient step of `Updater` traced, compiled and, on a GPU, replayed as a CUDA graph."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache, partial
from itertools import compress
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_r2vpo.fast.guard import Guard, Refusal, check_traceable, own_code
from sb3_r2vpo.fast.programs import Programs, layout_of
from sb3_r2vpo.fast.tracing import Program, compile_function, replaced
from sb3_r2vpo.rollouts import Samples, from_tensors, to_tensors
from sb3_r2vpo.updater import Coefficients, Metrics, Updater, flatten, step_if, unflatten

#: From the tensors of the minibatch to the metrics and gradients
Step = Callable[..., tuple[th.Tensor, ...]]


class CompiledUpdater:
    """
    `Updater` without its overhead. The result is the same and goes to the same tensors of policy, optimizer and λ,
    so the two may take turns.

    Numbers that change from rollout to rollout (coefficients, learning rate, λ) do not compile anything anew.
    One shape of minibatches is compiled for; others, such as a truncated last one, go the plain way. So do all of
    them when something about the policy cannot be compiled.

    :param plain: The updater of this rollout
    :param programs: What was compiled in earlier rollouts
    :param any_code: Whether to compile code of the user's own
    :param disturbed: Whether code of the user's own runs between two minibatches, so that each step has to make sure that
        nothing has changed
    """

    def __init__(self, plain: Updater, programs: Programs, any_code: bool = True, disturbed: bool = True) -> None:
        self.plain = plain
        self.coefficients = plain.coefficients
        self.programs = programs
        self.any_code = any_code
        self.disturbed = disturbed
        self.layout: tuple[Any, ...] | None = None
        self.guard: Guard | None = None
        self.step: Step | None = None
        self.params: list[nn.Parameter] = []
        self.gradients: list[th.Tensor] = []

    def __call__(self, batch: Samples) -> th.Tensor:
        """
        :param batch: A minibatch
        :return: The metrics before the step as one tensor, in the order of ``Metrics``
        """
        tensors = to_tensors(batch)
        layout = layout_of(tensors)
        # The first minibatch of an epoch is not the truncated one
        if self.layout is None or (self.disturbed and self.guard is not None and not self.guard.holds()):
            self.layout, self.guard = layout, None
            self.step = self.programs.attempt(lambda: self._prepare(batch))
        if self.step is None or layout != self.layout:
            self.gradients = []
            return self.plain(batch)
        metrics, *self.gradients = self.step(*tensors)
        return metrics

    def finish(self) -> None:
        """Leave the gradients of the last step where callbacks look for them; after each step it would cost 2 % of it."""
        for param, gradient in zip(self.params, self.gradients, strict=False):
            param.grad = gradient

    def _prepare(self, batch: Samples) -> Step | None:
        policy = self.plain.policy
        if not self.any_code and own_code(policy):
            return None
        check_traceable(policy)
        check_optimizer(policy)
        guard = self.programs.guard(policy)
        step, self.params = build_step(self.plain, batch, self.programs, guard)
        self.guard = guard
        return step


def build_step(plain: Updater, batch: Samples, programs: Programs, guard: Guard) -> tuple[Step, list[nn.Parameter]]:
    """
    :param plain: The updater of this rollout
    :param batch: A minibatch
    :param programs: What was compiled in earlier rollouts; a missing program is added
    :param guard: What is constant of the policy
    :return: The whole gradient step, and the parameters whose gradients it returns
    """
    policy, optimizer = plain.policy, plain.policy.optimizer
    create_optimizer_state(optimizer)
    state = State.of(plain)
    key = program_key(plain, state, batch)
    compiled, has_gradient = programs.fitting(key, guard, lambda: compile_step(plain, state, batch))
    params = [p for p, has in zip(stepped(optimizer), has_gradient, strict=True) if has]
    state_tensors, adam = state.to_tensors(), FusedAdam(optimizer, params)
    optimizer.zero_grad()

    def on_gpu_captured(function: Step) -> Step:
        return CudaGraph(function, batch, list(policy.buffers())) if plain.dual.value.is_cuda else function

    def rest(program: Program, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        *gradients, found_inf, metrics = program(*state_tensors, *inputs)
        adam(gradients, found_inf)
        return metrics, *gradients

    if plain.average is None:
        return on_gpu_captured(partial(rest, compiled[0])), params
    average, (first, second) = plain.average, compiled
    differentiate = on_gpu_captured(partial(first, *state_tensors))

    def step_of_many(*batch_tensors: th.Tensor) -> tuple[th.Tensor, ...]:
        (vector,) = differentiate(*batch_tensors)
        average(vector[:-1])
        return rest(second, vector)

    return step_of_many, params


def program_key(plain: Updater, state: "State", batch: Samples) -> Any:
    """
    :param plain: The updater of this rollout
    :param state: Its state
    :param batch: A minibatch
    :return: What a program takes for constant besides the policy
    """
    positions = {id(p): position for position, p in enumerate(plain.policy.parameters())}
    own = {name: value for name, value in vars(plain).items() if name not in ("policy", "dual", "coefficients")}
    return (
        type(plain),
        own,
        type(batch),
        tuple(positions[id(p)] for p in stepped(plain.policy.optimizer)),
        tuple(batch.observations) if isinstance(batch.observations, dict) else None,
        layout_of([*state.to_tensors(), *to_tensors(batch)]),
        tuple(value for value in plain.coefficients if not is_variable(value)),
    )


def is_variable(coefficient: Any) -> bool:
    """
    :param coefficient: One of the ``Coefficients``
    :return: Whether it enters a program as a tensor, and is not a choice between two computations
    """
    return coefficient is not None and not isinstance(coefficient, bool)


class State(NamedTuple):
    """
    All that a program reads or writes besides the minibatch: the very tensors of policy, λ and optimizer.

    :param weights: The policy's parameters
    :param buffers: λ, and e.g. the statistics of a batch normalization
    :param steps: The optimizer's counters
    :param coefficients: The numbers among the ``Coefficients``, in one tensor
    """

    weights: list[th.Tensor]
    buffers: list[th.Tensor]
    steps: list[th.Tensor]
    coefficients: th.Tensor

    @classmethod
    def of(cls, plain: Updater) -> "State":
        """
        :param plain: The updater of this rollout
        :return: Its state
        """
        policy, dual = plain.policy, plain.dual
        return cls(
            weights=[p.detach() for p in policy.parameters()],
            buffers=[*policy.buffers(), *dual.buffers()],
            steps=[policy.optimizer.state[p]["step"] for p in stepped(policy.optimizer)],
            coefficients=dual.value.new_tensor([value for value in plain.coefficients if is_variable(value)]),
        )

    def to_tensors(self) -> list[th.Tensor]:
        """
        :return: The tensors in a row
        """
        return [*self.weights, *self.buffers, *self.steps, self.coefficients]

    def like(self, tensors: Sequence[th.Tensor]) -> "State":
        """
        The inverse of `to_tensors`.

        :param tensors: Tensors in a row
        :return: State of the same structure
        """
        rest = iter(tensors)
        weights, buffers, steps = ([next(rest) for _ in part] for part in (self.weights, self.buffers, self.steps))
        return State(weights, buffers, steps, next(rest))


def compile_step(plain: Updater, state: State, batch: Samples) -> tuple[list[Program], list[bool]]:
    """
    Compile all of the gradient step but the optimizer's part: one program, or two where between them gradients and metrics
    become those of several processes.

    :param plain: The updater of this rollout
    :param state: Its state
    :param batch: A minibatch
    :return: The programs, and which parameters of the optimizer get a gradient. The first program takes the tensors of state
        and minibatch, the last one returns the clipped gradients, ``found_inf`` and the metrics. A second one takes the
        tensors of the state, and gradients and metrics in one vector, which the first one returns
    """
    state_tensors, batch_tensors = state.to_tensors(), to_tensors(batch)
    n_state = len(state_tensors)
    has_gradient: dict[str, list[bool]] = {}

    def whole(*tensors: th.Tensor) -> tuple[th.Tensor, ...]:
        with traced(plain, state, tensors[:n_state]) as step:
            outcome = step.updater.backward(from_tensors(tensors[n_state:], like=batch))
            has_gradient["stepped"] = [param.grad is not None for param in step.params]
            return step.results(*outcome)

    def first(*tensors: th.Tensor) -> tuple[th.Tensor, ...]:
        with traced(plain, state, tensors[:n_state]) as step:
            metrics = step.updater.differentiate(from_tensors(tensors[n_state:], like=batch))
            has_gradient["all"] = [weight.grad is not None for weight in step.weights]
            return (flatten([weight.grad for weight in step.weights if weight.grad is not None], metrics),)

    def second(*tensors: th.Tensor) -> tuple[th.Tensor, ...]:
        with traced(plain, state, tensors[:n_state]) as step:
            weights = list(compress(step.weights, has_gradient["all"]))
            gradients, metrics = unflatten(tensors[n_state], like=weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.clone()
            has_gradient["stepped"] = [param.grad is not None for param in step.params]
            return step.results(*step.updater.clip(metrics))

    if plain.average is None:
        programs = [compile_function(whole, [*state_tensors, *batch_tensors])]
    else:
        differentiate = compile_function(first, [*state_tensors, *batch_tensors])
        n_gradients = sum(weight.numel() for weight in compress(state.weights, has_gradient["all"]))
        vector = state.weights[0].new_zeros(n_gradients + len(Metrics._fields))
        programs = [differentiate, compile_function(second, [*state_tensors, vector])]
    return programs, has_gradient["stepped"]


class Traced(NamedTuple):
    """
    A step on other tensors than those of policy, optimizer and λ.

    :param updater: The updater
    :param weights: The policy's parameters
    :param params: Those of the optimizer that may get gradients
    :param steps: The optimizer's counters
    """

    updater: Updater
    weights: list[th.Tensor]
    params: list[th.Tensor]
    steps: list[th.Tensor]

    def results(self, accept: th.Tensor, metrics: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        Count the step.

        :param accept: Whether the optimizer is to take it
        :param metrics: The metrics as one tensor
        :return: The gradients, ``found_inf`` and the metrics
        """
        gradients = [param.grad for param in self.params]
        for step, gradient in zip(self.steps, gradients, strict=True):
            if gradient is not None:
                step.add_(accept)
        return *(gradient for gradient in gradients if gradient is not None), (~accept).float(), metrics


@contextmanager
def traced(plain: Updater, state: State, tensors: Sequence[th.Tensor]) -> Iterator[Traced]:
    """
    A context in which policy and λ consist of other tensors.

    :param plain: The updater of this rollout
    :param state: Its state
    :param tensors: The tensors of another state
    """
    policy, dual, values = plain.policy, plain.dual, state.like(tensors)
    parameters = list(policy.parameters())
    leaves = [w.detach().requires_grad_(p.requires_grad) for w, p in zip(values.weights, parameters, strict=True)]
    numbers = iter(values.coefficients.unbind())
    updater = copy(plain)
    updater.coefficients = Coefficients._make(next(numbers) if is_variable(x) else x for x in plain.coefficients)
    originals = [*parameters, *policy.buffers(), *dual.buffers()]
    replacements = dict(zip(originals, [*leaves, *values.buffers], strict=True))
    with replaced(replacements, policy, dual):
        yield Traced(updater, leaves, [replacements[p] for p in stepped(policy.optimizer)], values.steps)


def check_optimizer(policy: ActorCriticPolicy) -> None:
    """
    :param policy: The policy
    :raises Refusal: When its optimizer does more than `FusedAdam`
    """
    optimizer = policy.optimizer
    parameters = set(policy.parameters())
    if type(optimizer) not in (th.optim.Adam, th.optim.AdamW):
        raise Refusal(f"the optimizer is {type(optimizer).__name__}, not Adam or AdamW")
    if not all(group.get("fused") for group in optimizer.param_groups):
        raise Refusal("the optimizer is not `fused`")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise Refusal("the optimizer has hooks")
    if not all(p in parameters for group in optimizer.param_groups for p in group["params"]):
        raise Refusal("the optimizer has parameters that are not the policy's")


def create_optimizer_state(optimizer: th.optim.Optimizer) -> None:
    """
    Let the optimizer create the state that it creates in its first step, without taking one.

    :param optimizer: The policy's optimizer
    """
    missing = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad and p not in optimizer.state]
    if not missing:
        return
    optimizer.zero_grad()
    for param in missing:
        param.grad = th.zeros_like(param)
    step_if(optimizer, th.zeros((), dtype=th.bool, device=missing[0].device))


def stepped(optimizer: th.optim.Optimizer) -> list[nn.Parameter]:
    """
    :param optimizer: The policy's optimizer
    :return: The parameters that may get gradients
    """
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad and p in optimizer.state]


class FusedAdam:
    """
    The kernel of fused Adam without ``optimizer.step``, which takes several times as long to gather its arguments.

    :param optimizer: Adam or AdamW, its state in place
    :param params: The parameters that get gradients, in the optimizer's order
    """

    def __init__(self, optimizer: th.optim.Optimizer, params: list[nn.Parameter]) -> None:
        self.kernels = []
        start = 0
        for group in optimizer.param_groups:
            in_group = {id(p) for p in group["params"]}
            end = start + sum(id(p) in in_group for p in params)
            self.kernels.append((fused_adam(optimizer, group, params[start:end]), slice(start, end)))
            start = end

    def __call__(self, gradients: list[th.Tensor], found_inf: th.Tensor) -> None:
        """
        :param gradients: Gradients of the stepped parameters
        :param found_inf: One where nothing is to be done, else zero
        """
        for kernel, group in self.kernels:
            kernel(gradients[group], found_inf=found_inf)


def fused_adam(optimizer: th.optim.Optimizer, group: dict[str, Any], params: list[nn.Parameter]) -> Callable[..., None]:
    """
    :param optimizer: Adam or AdamW
    :param group: One of its parameter groups
    :param params: The parameters to step
    :return: The kernel, a function of the gradients and ``found_inf``
    """
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, th.optim.AdamW))
    state = [optimizer.state[p] for p in params]
    return partial(
        th._fused_adamw_ if decoupled else th._fused_adam_,
        [p.detach() for p in params],
        exp_avgs=[s["exp_avg"] for s in state],
        exp_avg_sqs=[s["exp_avg_sq"] for s in state],
        max_exp_avg_sqs=[s["max_exp_avg_sq"] for s in state] if group["amsgrad"] else [],
        state_steps=[s["step"] for s in state],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        **{name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")},
    )


class CudaGraph:
    """
    The kernels of a step, launched all at once; the gradients are those of the latest step. Captured anew in each rollout,
    which takes no longer than a few plain steps, so that no captured address or learning rate outlives what it stands for.

    :param step: The step
    :param batch: A minibatch
    :param buffers: The policy's buffers
    """

    def __init__(self, step: Step, batch: Samples, buffers: list[th.Tensor]) -> None:
        # The graph knows the addresses of the step's tensors, which must stay theirs
        self.step = step
        self.batch = [tensor.clone() for tensor in to_tensors(batch)]
        device = batch.returns.device
        # Else it is the current device, not the policy's
        with th.cuda.device(device):
            stream, pool = capturing_place(device)
            stream.wait_stream(th.cuda.current_stream())
            with th.cuda.stream(stream):
                warm_up(step, batch, buffers)
            th.cuda.current_stream().wait_stream(stream)
            self.graph = th.cuda.CUDAGraph()
            with th.cuda.graph(self.graph, pool=pool.id, stream=stream):  # type: ignore[arg-type]
                self.metrics, *self.gradients = step(*self.batch)

    def __call__(self, *batch: th.Tensor) -> tuple[th.Tensor, ...]:
        for static, tensor in zip(self.batch, batch, strict=True):
            static.copy_(tensor)
        self.graph.replay()
        return self.metrics.clone(), *self.gradients


@cache
def capturing_place(device: th.device) -> tuple[th.cuda.Stream, th.cuda.MemPool]:
    """
    One for all graphs: on a stream of its own each would keep another workspace of cuBLAS, 32 MiB on an H100, and a pool of
    its own would not be given back.

    :param device: A GPU
    :return: The stream and the memory with which its graphs are captured
    """
    return th.cuda.Stream(device), th.cuda.MemPool()


def warm_up(step: Step, batch: Samples, buffers: list[th.Tensor]) -> None:
    """
    Take a step that changes nothing.

    :param step: The step
    :param batch: A minibatch
    :param buffers: The policy's buffers
    """
    device = batch.returns.device
    before = [buffer.clone() for buffer in buffers]
    with th.random.fork_rng([device] if device.type == "cuda" else []):
        # Without a finite loss weights, optimizer and λ stay as they are, but not the statistics of batch normalizations
        step(*to_tensors(batch._replace(returns=th.full_like(batch.returns, th.nan))))
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)
