import copy
import inspect
import io
import math
import pathlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_r2vpo.arguments import as_schedule, is_number, python_number
from sb3_r2vpo.checks import MAX_LEARNING_RATE, check_arguments, reject_clip_range, reject_unknown_arguments
from sb3_r2vpo.dual import (
    WIDENING,
    DualVariable,
    auto_target_var,
    parse_auto,
    variance_worth_spending,
)
from sb3_r2vpo.fast.acting import compiled_forward, is_compilable
from sb3_r2vpo.fast.compiled import CompiledUpdater
from sb3_r2vpo.fast.guard import own_code
from sb3_r2vpo.fast.programs import Programs
from sb3_r2vpo.files import check_model_file, write_file
from sb3_r2vpo.nonfinite import FiniteObservations, check_finite
from sb3_r2vpo.quiet import RewardVariation, WatchRewards
from sb3_r2vpo.rollouts import Samples, minibatch_source, yields_plain_minibatches
from sb3_r2vpo.signal import StepSignal
from sb3_r2vpo.updater import Coefficients, Metrics, Updater, use_fused_adam
from sb3_r2vpo.workers import find_workers

SelfR2VPO = TypeVar("SelfR2VPO", bound="R2VPO")

#: A `target_var` schedule that reaches zero or below is held here
MIN_TARGET_VAR = 1e-8
#: The last step's signal is measured in minibatches of so many samples, or of `batch_size` where that is more
SIGNAL_BATCH_SIZE = 4096
#: With `compile="auto"`: how many gradient steps earn back the time that compiling takes, by device. On a CPU, with the
#: default policy and batch size, it saves 0.9 ms per step and takes 21 s the first time on a machine (benchmarks/speed.py),
#: 3 s once torch's cache has it (first rollouts in benchmarks/entries_speed.py): 23,000 steps once, 3,000 from then on. This
#: is between them. On an H100 12 s and 4 ms, so 3,000 steps.
COMPILE_PAYS_FROM = {"cpu": 7_500, "cuda": 5_000}
#: The same of the forward pass, in steps of the vectorized environment: 0.1 ms saved, and after the gradient step
#: compiling it takes two to three seconds more (timed once, not by the benchmark).
COMPILE_FORWARD_PAYS_FROM = 30_000


class R2VPO(OnPolicyAlgorithm):
    """
    Ratio-Variance Regularized Policy Optimization (R2VPO)

    PPO with a constraint on the variance of the policy ratio in the place of the clip:
    ``max E[ρ Â]`` subject to ``V = E[(ρ − 1)²] <= target_var``, by the Lagrangian
    ``E[ρ Â] − var_coef · (V − target_var)``. As V is about twice the KL divergence, ``target_var``
    is about twice the KL divergence that a rollout's updates may cause.

    Paper: https://arxiv.org/abs/2605.26784
    Code: the rollouts, the losses other than the policy's, and the arguments are those of SB3's PPO.

    Every argument not about the variance has PPO's meaning and default. Arguments after ``gae_lambda``
    are keyword-only, so that no positional ``clip_range`` of a PPO script is taken for something else.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function
        of the current progress remaining (from 1 to 0; the last rollout can pass the end of training, and counts as 0).
        Negative values of this and every other schedule count as zero
    :param n_steps: The number of steps to run for each environment per update
        (i.e. rollout buffer size is n_steps * n_envs where n_envs is number of environment copies running in parallel)
        NOTE: n_steps * n_envs must be greater than 1 (because of the advantage normalization)
    :param batch_size: Minibatch size, of several processes (``torchrun``) together; the environments are those of each
    :param n_epochs: Number of epoch when optimizing the surrogate loss
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param var_coef: The dual variable λ, the coefficient of the ratio variance. A float or a function of the current
        progress remaining (from 1 to 0) fixes it (the paper's choice on robotics).
        ``"auto"`` learns it, ``"auto_0.5"`` learns it from that start. A sample with Â > 0 rests at
        ``ρ = 1 + Â / (2 var_coef)``.
    :param target_var: The bound δ on the ratio variance after a rollout's gradient steps, which a learned ``var_coef`` holds.
        It can be a function of the current progress remaining, held at a small positive value where it reaches zero.
        ``"auto"``: ``0.001 · N^(1/4)`` with N the samples of a rollout, for each degree of freedom of an action, which are the
        dimensions of a Box, the bits of a MultiBinary, and for each Discrete one less than it has choices.
    :param max_target_var: The same where fresh samples show that the last steps were signal and not noise: with c the
        correlation of the last steps' log-ratio with the advantages of the next rollouts (``train/signal``, a running mean,
        the newest counts a fifth) and N the number of a rollout's samples, the bound is ``target_var · c√N / 3``, but no less
        than ``target_var`` and no more than this (``train/target_var``). By default three times ``target_var``
    :param quiet_scale: With a learned ``var_coef``, what advantages are normalized to in the place of one after a quiet
        rollout: no episode has terminated in it, and the rewards vary by less than a fiftieth of what they usually do, so
        that advantages are mostly the critic's errors. The bound on the ratio variance is multiplied by the square of it.
        1 makes no difference between rollouts
    :param dual_lr: Step of the dual ascent of a learned ``var_coef``, per rollout: ``λ ← λ · clip(V/δ, 0.1, 10)^dual_lr``,
        with V that of the last epoch. 0.5 is Newton's step, less is smoother.
    :param var_coef_bounds: Smallest and largest value of a learned ``var_coef``. They do not bind a fixed one. Where the
        gradient steps of a rollout are too few to reach the bound, λ would fall until it brakes nothing, and the next
        update could go anywhere. Part of V is the optimizer's noise, which no λ can take away: where that alone is above
        the bound, λ would rise without end.
        ``train/var_coef_at_bound`` tells when it rests on the smallest (-1) or largest (1).
    :param ratio_penalty: What ``var_coef`` is the price of and ``target_var`` bounds. ``"variance"`` is the paper's
        ``V = E[(ρ − 1)²]``. ``"two_sided"`` has ``(log ρ)²`` in its place where ρ < 1, which agrees with it for small steps,
        bounds it, does not let go of samples whose probability vanishes, and takes no entropy for noise in the mean.
    :param clip_range_vf: Clipping parameter for the value function,
        it can be a function of the current progress remaining (from 1 to 0).
        If None is passed (default), no clipping will be done on the value function.
        IMPORTANT: this clipping depends on the reward scaling.
    :param normalize_advantage: Whether to normalize or not the advantage
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
        instead of action noise exploration (default: False)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        Default: -1 (only sample at the beginning of the rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected.
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Stop the updates of a rollout at the first minibatch whose KL divergence is above
        1.5 times this, before its gradient step. By default, there is no limit on the kl div.
    :param compile: Whether to compile the gradient step, which takes about 20 s once on a machine, 3 s from then on, and
        makes it several times as fast where the networks are small, with the same result up to rounding. ``"auto"`` does so
        when ``learn`` has 7,500 gradient steps or more ahead (with the other arguments at their defaults: from 48,000
        timesteps), on CUDA 5,000, and all of the policy's modules are classes of torch, SB3 or sb3-contrib.
        With it goes the policy's forward pass in rollouts, when 30,000 steps of the vectorized environment are ahead.
        ``True`` compiles modules of your own too: what they compute may depend on their inputs, weights, buffers, mode and
        attributes, which are watched, but not on global variables or on random numbers that are not torch's.
        On a GPU the step is captured as a CUDA graph. It needs Adam or AdamW and, on the CPU, a C++ compiler;
        where it is not possible a warning says why and the step runs as it is. Compiling for minibatches of some
        1,000 samples lets glibc keep up to 64 MiB of freed memory.
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param clip_range: Not an argument of R2VPO: here to tell who passes it what to pass instead
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: When an argument is out of its range
    :raises TypeError: When ``clip_range`` is passed
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }
    #: What takes a gradient step: replaced where only the objective is another
    updater_class: Callable[..., Updater] = Updater
    supported_action_spaces: ClassVar[tuple[type[spaces.Space], ...]] = (
        spaces.Box,
        spaces.Discrete,
        spaces.MultiDiscrete,
        spaces.MultiBinary,
    )
    #: What its policies need to evaluate actions besides the observations
    policy_input: ClassVar[str | None] = None
    dual: DualVariable
    signal: StepSignal
    reward_variation: RewardVariation

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        *,
        var_coef: float | str | Schedule = "auto_1.0",
        target_var: float | str | Schedule = "auto",
        max_target_var: float | None = None,
        quiet_scale: float = 0.3,
        dual_lr: float = 0.5,
        var_coef_bounds: tuple[float, float] = (0.15, 2.0),
        ratio_penalty: str = "two_sided",
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        compile: bool | str = "auto",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        clip_range: None = None,
        _init_setup_model: bool = True,
    ):
        reject_clip_range(clip_range)
        # Before anything asks for the device
        self._workers = find_workers(device)
        # Not `super()`: the variants have an algorithm of sb3-contrib in between, with another clip range to set
        OnPolicyAlgorithm.__init__(
            self,
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose if self.rank == 0 else 0,
            device=device,
            seed=seed,
            _init_setup_model=False,
            supported_action_spaces=self.supported_action_spaces,
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.var_coef = var_coef
        self.target_var = target_var
        self.max_target_var = max_target_var
        self.quiet_scale = quiet_scale
        self.dual_lr = dual_lr
        self.var_coef_bounds = var_coef_bounds
        self.ratio_penalty = ratio_penalty
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.compile = compile
        self._programs = Programs("gradient step")
        self._forward_programs = Programs("policy's forward pass")
        self._told_of_own_code = False

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        # Not in the constructor: `load` writes its arguments over the constructor's and then comes here
        self._check_arguments()
        if self.rank > 0:
            self.verbose = 0
        vars(self).update({name: python_number(value) for name, value in vars(self).items()})
        # The variants have an algorithm of sb3-contrib in between, which makes a schedule of it
        vars(self)["clip_range"] = 0.0
        super()._setup_model()
        del vars(self)["clip_range"]
        self.signal = StepSignal(self.policy)
        self.reward_variation = RewardVariation()
        self._apply_arguments()
        use_fused_adam(self.policy.optimizer)

    def _apply_arguments(self) -> None:
        """What follows from arguments that can be assigned later: schedules, discounting, λ at its initial value."""
        if not isinstance(self.target_var, str):
            self.target_var = as_schedule(self.target_var)
        if not isinstance(self.var_coef, str):
            self.var_coef = as_schedule(self.var_coef)
        if self.clip_range_vf is not None:
            self.clip_range_vf = as_schedule(self.clip_range_vf)
        self._setup_dual()
        self.rollout_buffer.gamma, self.rollout_buffer.gae_lambda = self.gamma, self.gae_lambda

    def __setattr__(self, name: str, value: Any) -> None:
        # `dual` is what construction ends with
        if name in ARGUMENTS and "dual" in vars(self):
            self._change_argument(name, value)
        else:
            super().__setattr__(name, value)

    def _change_argument(self, name: str, value: Any) -> None:
        """
        An argument assigned after construction counts from the next rollout on. λ goes on where it is, unless
        it is ``var_coef`` that is assigned.

        :param name: Name of the argument
        :param value: Its new value
        :raises AttributeError: When the model is built with the argument
        :raises ValueError: When the value is out of its range; the argument stays as it is
        """
        if name == "clip_range":
            return reject_clip_range(value)
        if name in BUILT_WITH:
            raise AttributeError(
                f"`{name}` cannot be changed any more, the model is built with it: "
                f"pass it to the constructor or, for a saved model, to `{type(self).__name__}.load`"
            )
        before = vars(self).copy()
        try:
            del self.dual
            super().__setattr__(name, value)
            self._check_arguments()
            vars(self)[name] = python_number(value)
            if name == "learning_rate":
                self._setup_lr_schedule()
            self._apply_arguments()
            if name != "var_coef":
                self.dual.load_state_dict(before["dual"].state_dict())
                self.dual.stay_in_bounds()
        except BaseException:
            # Ctrl+C too: what is saved then must be whole
            vars(self).update(before)
            raise

    def _setup_dual(self) -> None:
        """Create the dual variable at its initial value; it exists for a fixed ``var_coef`` too."""
        if isinstance(self.var_coef, str):
            learned, initial_value = True, parse_auto(self.var_coef, self.var_coef_bounds)
        else:
            learned, initial_value = False, self.var_coef(1.0)  # type: ignore[operator]
        self.dual = DualVariable(initial_value, learned, self.dual_lr, self.var_coef_bounds).to(self.device)

    def _maybe_recommend_cpu(self, mlp_class_name: str = "ActorCriticPolicy") -> None:
        # Who asks for the compiled step on a GPU knows what for; without it SB3's advice holds
        if self.compile is not True:
            super()._maybe_recommend_cpu(mlp_class_name)

    def _check_arguments(self) -> None:
        check_arguments(self)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(
                f"`policy` is {policy_name!r}: {type(self).__name__} has {', '.join(self.policy_aliases)}. "
                "LSTM policies need RecurrentR2VPO, action masks MaskableR2VPO"
            )
        return self.policy_aliases[policy_name]

    @property
    def rank(self) -> int:
        """
        :return: The number of this process among those that train the model, 0 for the first or only one, which writes files
        """
        return self._workers.rank

    @property
    def _rollout_size(self) -> int:
        """
        :return: Number of timesteps in a rollout, of all processes
        """
        return self.n_steps * self.n_envs * self._workers.world_size

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """
        Collect experiences as in SB3. In long runs on the CPU the policy's forward pass is compiled.

        :param env: The training environment
        :param callback: Callback that will be called at each step
            (and at the beginning and end of the rollout)
        :param rollout_buffer: Buffer to fill with rollouts
        :param n_rollout_steps: Number of experiences to collect per environment
        :return: True if function returned with at least `n_rollout_steps`
            collected, False if callback terminated rollout prematurely.
        """
        any_code = self.compile is True
        compiled = self._compile_forward()
        self._workers.before_rollout(self)
        with compiled_forward(self.policy, self._forward_programs, any_code) if compiled else nullcontext():
            finished = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        return self._workers.after_rollout(self, finished)

    def _compile_forward(self) -> bool:
        """
        :return: Whether to compile the forward pass: always, never, or when it pays once the gradient step is compiled
        """
        vector_steps_left = (self._total_timesteps - self.num_timesteps) / self._rollout_size * self.n_steps
        pays = len(self._forward_programs) > 0 or (len(self._programs) > 0 and vector_steps_left >= COMPILE_FORWARD_PAYS_FROM)
        return is_compilable(self.policy) and (self.compile is True or (self.compile == "auto" and pays))

    def train(self) -> None:
        """
        Update policy and dual variable using the currently gathered rollout buffer.

        :raises NonFiniteUpdateError: After the update, when a minibatch had to be skipped
        """
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        # Update optimizer learning rate
        self._update_learning_rate(self.policy.optimizer)
        if not self.dual.learned:
            self.dual.set(self._value_now("var_coef", self.var_coef))
        # The rollout goes to the device once, the metrics stay there until all epochs are done
        minibatches = minibatch_source(self.rollout_buffer)
        scale = self._advantage_scale()
        target_var = max(scale**2 * self._target_var_now(minibatches), MIN_TARGET_VAR)
        update = self._make_updater(target_var, scale)
        metrics: list[list[th.Tensor]] = []

        continue_training = True
        # train for n_epochs epochs
        for epoch in range(self.n_epochs):
            metrics.append([])
            # Do a complete pass on the rollout buffer
            for rollout_data in self._workers.minibatches(minibatches, self.batch_size, self.normalize_advantage):
                step_metrics = update(rollout_data)
                metrics[-1].append(step_metrics)
                # Only a limit is worth waiting for the device
                if self.target_kl is None:
                    continue
                approx_kl = Metrics(*step_metrics).approx_kl
                if approx_kl > update.coefficients.max_kl:
                    continue_training = False
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl:.2f}")
                    break
            self._n_updates += 1
            if not continue_training:
                break

        update.finish()
        every, last_epoch = self._read_back(metrics)
        self.dual.ascend(float(np.mean(last_epoch.ratio_penalty)), target_var)
        self._log_update(every, last_epoch, update.coefficients)

    def _advantage_scale(self) -> float:
        """
        :return: What normalized advantages are multiplied by: less than one after a quiet rollout, where λ is learned
        """
        quiet = self.reward_variation.observe(self._workers.total)
        if not self.dual.learned or not self.normalize_advantage:
            return 1.0
        self.logger.record("train/quiet", int(quiet))
        return self.quiet_scale if quiet else 1.0

    def _target_var_now(self, minibatches: Callable[[int], Iterable[Samples]]) -> float:
        """
        :param minibatches: From the minibatch size to the samples of this rollout
        :return: The bound on the ratio variance for this rollout. Where λ is learned, the last step's signal decides
        """
        if self.target_var == "auto":
            target_var = auto_target_var(self.action_space, self._rollout_size)
        else:
            target_var = self._value_now("target_var", self.target_var)
        if not self.dual.learned:
            # Should λ be learned later, the first step to be measured is the last one
            self.signal.remember(self.policy)
            return target_var
        rollout = minibatches(max(self.batch_size, SIGNAL_BATCH_SIZE))
        correlation = self.signal.observe(self.policy, rollout, self._workers.correlation)
        self.logger.record("train/signal", correlation)
        max_target_var = WIDENING * target_var if self.max_target_var is None else self.max_target_var
        return variance_worth_spending(correlation, self._rollout_size, target_var, max_target_var)

    def _make_updater(self, target_var: float, advantage_scale: float = 1.0) -> Updater | CompiledUpdater:
        """
        :param target_var: The bound on the ratio variance for this rollout
        :param advantage_scale: What its normalized advantages are multiplied by
        :return: What takes the gradient steps of this rollout
        """
        updater = self.updater_class(self.policy, self.dual, self._current_coefficients(target_var, advantage_scale))
        updater.average = self._workers.average
        if self._compile_step():
            disturbed = not yields_plain_minibatches(self.rollout_buffer)
            return CompiledUpdater(updater, self._programs, any_code=self.compile is True, disturbed=disturbed)
        return updater

    def _compile_step(self) -> bool:
        """
        :return: Whether to compile the gradient step: always, never, or when there is enough left to do in this call of
            ``learn`` or the work of compiling is already done
        """
        rollouts_left = 1 + max(0, math.ceil((self._total_timesteps - self.num_timesteps) / self._rollout_size))
        gradient_steps_left = rollouts_left * self.n_epochs * math.ceil(self._rollout_size / self.batch_size)
        pays = len(self._programs) > 0 or gradient_steps_left >= COMPILE_PAYS_FROM.get(self.device.type, math.inf)
        return self.compile is True or (self.compile == "auto" and pays and self._only_known_code())

    def _only_known_code(self) -> bool:
        """
        :return: Whether the policy can be compiled without being asked for, else it says once how to ask
        """
        own = own_code(self.policy)
        if own is not None and self.verbose >= 1 and not self._told_of_own_code:
            self._told_of_own_code = True
            print(f"`{own}` is code of your own, which runs as it is: `compile=True` compiles it too")
        return own is None

    def _current_coefficients(self, target_var: float, advantage_scale: float = 1.0) -> Coefficients:
        """
        :param target_var: The bound on the ratio variance for this rollout
        :param advantage_scale: What its normalized advantages are multiplied by
        :return: What the gradient steps of this rollout have in common
        """
        return Coefficients(
            target_var=target_var,
            ent_coef=self.ent_coef,
            vf_coef=self.vf_coef,
            max_grad_norm=self.max_grad_norm,
            advantage_scale=advantage_scale,
            two_sided=self.ratio_penalty == "two_sided",
            # Several processes have done so for all their minibatches at once
            normalize_advantage=self.normalize_advantage and self._workers.world_size == 1,
            clip_range_vf=None if self.clip_range_vf is None else self._value_now("clip_range_vf", self.clip_range_vf),
            max_kl=float("inf") if self.target_kl is None else 1.5 * self.target_kl,
        )

    def _value_now(self, name: str, schedule: Any, largest: float = math.inf) -> float:
        """
        :param name: Name of the argument
        :param schedule: The schedule that the argument has become
        :param largest: The largest value that is allowed
        :return: Its value at the current progress, zero where it is negative
        :raises ValueError: When that is not a finite number, or larger
        """
        value = schedule(self._current_progress_remaining)
        if not is_number(value) or value > largest:
            raise ValueError(
                f"`{name}` is a schedule that gives {value} at a remaining progress of "
                f"{self._current_progress_remaining:.4f}: its values must be finite"
                f"{f' and at most {largest:g}' if largest < math.inf else ''}"
            )
        return max(value, 0.0)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        # Before the user's, which then never see what ends the training
        first, callback, progress_bar = self._workers.callbacks(callback, progress_bar)
        callbacks = CallbackList(
            [
                *first,
                FiniteObservations(self._workers.world_size),
                WatchRewards(),
                super()._init_callback(callback, progress_bar),
            ]
        )
        callbacks.model = self
        for each in callbacks.callbacks[:-1]:
            each.init_callback(self)
        return callbacks

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # A rollout is not cut short, so that the last one can pass the end
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        learning_rate = self._value_now("learning_rate", self.lr_schedule, MAX_LEARNING_RATE)
        self.logger.record("train/learning_rate", learning_rate)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            update_learning_rate(optimizer, learning_rate)

    def _read_back(self, metrics: list[list[th.Tensor]]) -> tuple[Metrics, Metrics]:
        """
        Read the metrics back from the device, once.

        :param metrics: The metrics of each gradient step, by epoch
        :return: The metrics of all gradient steps and those of the last epoch, as arrays
        :raises NonFiniteUpdateError: When a minibatch had to be skipped
        """
        steps = th.stack([step for epoch in metrics for step in epoch]).cpu().numpy()
        is_largest = Metrics._fields.index("ratio_max")
        steps[:, is_largest] = self._workers.after_update(self.policy, steps[:, is_largest])
        check_finite(steps, self.rollout_buffer, self.num_timesteps, self._workers.everywhere)
        return Metrics(*steps.T), Metrics(*steps[-len(metrics[-1]) :].T)

    def _log_update(self, every: Metrics, last_epoch: Metrics, coefficients: Coefficients) -> None:
        """
        :param every: The metrics of all gradient steps
        :param last_epoch: Those of the last epoch
        :param coefficients: What the gradient steps had in common
        """
        explained_var = self._workers.explained_variance(
            self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()
        )

        self.logger.record("train/entropy_loss", np.mean(every.entropy_loss))
        self.logger.record("train/policy_gradient_loss", np.mean(every.policy_gradient_loss))
        self.logger.record("train/value_loss", np.mean(every.value_loss))
        self.logger.record("train/approx_kl", np.mean(last_epoch.approx_kl))
        self.logger.record("train/ratio_variance", np.mean(every.ratio_variance))
        self.logger.record("train/ratio_variance_last_epoch", np.mean(last_epoch.ratio_variance))
        self.logger.record("train/ratio_max", np.max(every.ratio_max))
        self.logger.record("train/ratio_penalty_last_epoch", np.mean(last_epoch.ratio_penalty))
        self.logger.record("train/var_coef", self.dual.value.item())
        if self.dual.learned:
            self.logger.record("train/var_coef_at_bound", self.dual.at_bound)
            self.logger.record("train/target_var", coefficients.target_var)
        self.logger.record("train/loss", every.loss[-1])
        self.logger.record("train/explained_variance", explained_var)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if coefficients.clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", coefficients.clip_range_vf)

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Set the seed of the pseudo-random generators, as in SB3. Of several processes each has its own.

        :param seed: The seed of the model
        """
        super().set_random_seed(self._workers.own_seed(seed))

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self._workers.begin(self, total_timesteps, reset_num_timesteps)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def learn(
        self: SelfR2VPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "R2VPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfR2VPO:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_programs", "_forward_programs", "_workers"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "dual", "signal", "reward_variation"], variables

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file, as in SB3. A file of that name is
        replaced when the new one is whole on the disk, and unchanged until then.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        :raises OSError: When the file cannot be written
        """
        if not isinstance(path, (str, pathlib.Path)):
            super().save(path, exclude, include)
            return
        # As SB3 has it
        file = str(path) if pathlib.Path(path).suffix else f"{path}.zip"
        self._workers.write_once(file, lambda: write_file(file, self._saved(exclude, include)))

    def _saved(self, exclude: Iterable[str] | None, include: Iterable[str] | None) -> bytes:
        buffer = io.BytesIO()
        super().save(buffer, exclude, include)
        return buffer.getvalue()

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, Any],
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Load parameters from a zip-file or a nested dictionary, as in SB3. With ``exact_match=False`` those of a
        trained PPO model fit too: policy and optimizer state are taken over, λ stays as it is.

        :param load_path_or_dict: Location of the saved data (path or file-like, see ``save``), or a nested
            dictionary containing nn.Module parameters used by the policy.
        :param exact_match: If True, the given parameters should include parameters for each
            module and each of their parameters, otherwise raises an Exception.
        :param device: Device on which the code should run.
        :raises ValueError: When the parameters do not match or the file is damaged; the model is then as it was
        """
        if not isinstance(load_path_or_dict, dict):
            check_model_file(load_path_or_dict)
            _, load_path_or_dict, _ = load_from_zip_file(load_path_or_dict, device=device, load_data=False)
        if exact_match and "dual" not in load_path_or_dict:
            raise ValueError(
                f"The parameters to load hold {sorted(load_path_or_dict)} but no 'dual', so they are not those of R2VPO. "
                "To start from a trained PPO model: `R2VPO(policy, env).set_parameters(path, exact_match=False)`"
            )
        before: dict[str, Any] = copy.deepcopy(self.get_parameters())
        # What is estimated anew as training goes on may be missing: files of earlier versions have less of it
        estimates = {name: before[name] for name in ("signal", "reward_variation")}
        try:
            super().set_parameters({**estimates, **load_path_or_dict}, exact_match=exact_match, device=device)
        except Exception:
            super().set_parameters(before)
            raise
        finally:
            use_fused_adam(self.policy.optimizer)
        if "signal" not in load_path_or_dict:
            self.signal.remember(self.policy)
        self.dual.stay_in_bounds()

    @classmethod
    def load(
        cls: type[SelfR2VPO],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfR2VPO:
        """
        Load the model from a zip-file, as in SB3. λ is part of the model and continues where it was, unless
        ``var_coef`` is passed, which then counts like at construction.

        :param path: path to the file (or a file-like) where to load the agent from
        :param env: the new environment to run the loaded model on
            (can be None if you only need prediction from a trained model) has priority over any saved environment
        :param device: Device on which the code should run.
        :param custom_objects: Dictionary of objects to replace upon loading.
        :param print_system_info: Whether to print system info from the saved model
            and the current system info (useful to debug loading issues)
        :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior.
        :param kwargs: arguments of the constructor or attributes, to change the model when loading
        :return: new model instance with loaded parameters
        :raises TypeError: When a keyword argument is neither
        :raises ValueError: When an argument is out of its range, or the file is damaged or was not saved by R2VPO
        """
        check_model_file(path)
        reject_clip_range(kwargs.pop("clip_range", None))
        reject_unknown_arguments(cls, kwargs)
        model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        if "var_coef" in {**(custom_objects or {}), **kwargs}:
            model._setup_dual()
        return model


#: What may be assigned after construction
ARGUMENTS = inspect.signature(R2VPO.__init__).parameters.keys() - {"self", "policy", "env", "_init_setup_model"}
#: Those that cannot be changed afterwards
BUILT_WITH = {
    "device",
    "n_steps",
    "policy_kwargs",
    "rollout_buffer_class",
    "rollout_buffer_kwargs",
    "seed",
    "stats_window_size",
    "use_sde",
}
