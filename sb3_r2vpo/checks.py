"""What R2VPO's arguments may be, alone, together and with the policy; the kinds of check are in ``arguments``."""

import difflib
import inspect
import math
import warnings
from typing import TYPE_CHECKING, Any

from sb3_r2vpo.arguments import check_bounds, check_integer, check_number, check_schedule
from sb3_r2vpo.dual import parse_auto

if TYPE_CHECKING:
    from sb3_r2vpo.r2vpo import R2VPO

#: Adam moves a weight by about as much in each step. Far above, its product with a gradient overflows
MAX_LEARNING_RATE = 1000.0
#: What λ is the price of: `objective.two_sided_variance` or the paper's `objective.ratio_variance`
RATIO_PENALTIES = ("two_sided", "variance")
#: Which algorithm is for policies that need these inputs to evaluate actions
ALGORITHM_BY_INPUT = {"action_masks": "MaskableR2VPO", "lstm_states": "RecurrentR2VPO"}


def check_arguments(model: "R2VPO") -> None:
    """
    :param model: R2VPO or one of its variants, before it is set up
    :raises ValueError: When an argument is out of its range, naming it, its value and what is allowed
    """
    check_policy(model)
    positive, not_negative = (lambda x: x > 0), (lambda x: x >= 0)
    check_schedule(
        "learning_rate",
        model.learning_rate,
        f"a number from 0 to {MAX_LEARNING_RATE:g}",
        lambda x: 0 <= x <= MAX_LEARNING_RATE,
    )
    check_integer("n_steps", model.n_steps, minimum=1)
    check_integer("batch_size", model.batch_size, minimum=1)
    model._workers.check_batch_size(model.batch_size)
    check_integer("n_epochs", model.n_epochs, minimum=1)
    check_number("gamma", model.gamma, "a number from 0 to 1", lambda x: 0 <= x <= 1)
    check_number("gae_lambda", model.gae_lambda, "a number from 0 to 1", lambda x: 0 <= x <= 1)
    check_bounds("var_coef_bounds", model.var_coef_bounds)
    if isinstance(model.var_coef, str):
        parse_auto(model.var_coef, model.var_coef_bounds)
    else:
        check_schedule("var_coef", model.var_coef, "a number >= 0, 'auto' or 'auto_<initial value>'", not_negative)
    if model.target_var != "auto":
        check_schedule("target_var", model.target_var, "a number > 0 or 'auto'", positive)
    if model.ratio_penalty not in RATIO_PENALTIES:
        raise ValueError(f"`ratio_penalty` is {model.ratio_penalty!r}: allowed are {' and '.join(map(repr, RATIO_PENALTIES))}")
    if model.max_target_var is not None:
        check_number("max_target_var", model.max_target_var, "None (three times `target_var`) or a number > 0", positive)
    check_number("quiet_scale", model.quiet_scale, "a number above 0 and up to 1", lambda x: 0 < x <= 1)
    check_number("dual_lr", model.dual_lr, "a number > 0", positive)
    if model.clip_range_vf is not None:
        check_schedule("clip_range_vf", model.clip_range_vf, "None (no clipping) or a number > 0", positive)
    check_number("ent_coef", model.ent_coef, "a finite number")
    check_number("vf_coef", model.vf_coef, "a number >= 0", not_negative)
    # Scripts for PPO have an infinite one for no limit
    if model.max_grad_norm != math.inf:
        check_number("max_grad_norm", model.max_grad_norm, "a number > 0", positive)
    if model.target_kl is not None and model.target_kl != math.inf:
        check_number("target_kl", model.target_kl, "None (no early stopping) or a number > 0", positive)
    if not isinstance(model.compile, bool) and model.compile != "auto":
        raise ValueError(f"`compile` is {model.compile!r}: allowed are True, False and 'auto'")
    if model.normalize_advantage:
        check_normalizable(model)
    warn_of_truncated_minibatch(model)


def check_policy(model: "R2VPO") -> None:
    """
    :param model: The model
    :raises ValueError: When its policy needs inputs that the algorithm does not give it, or the other way round
    """
    evaluate_actions = getattr(model.policy_class, "evaluate_actions", None)
    if evaluate_actions is None:
        raise ValueError(
            f"`policy` is {model.policy_class.__name__}: it must be an actor-critic policy, with `evaluate_actions`"
        )
    inputs = inspect.signature(evaluate_actions).parameters
    needed = next((name for name in ALGORITHM_BY_INPUT if name in inputs), None)
    if needed != model.policy_input:
        algorithm = "R2VPO" if needed is None else ALGORITHM_BY_INPUT[needed]
        raise ValueError(
            f"`policy` is {model.policy_class.__name__}, which is for {algorithm} and not for {type(model).__name__}: "
            "change one of them"
        )


def check_normalizable(model: "R2VPO") -> None:
    """
    :param model: The model
    :raises ValueError: When a minibatch or the rollout has one sample only
    """
    if model.batch_size == 1:
        raise ValueError(
            "`batch_size` is 1: it must be greater than 1 to normalize the advantages, or pass `normalize_advantage=False`"
        )
    if model.n_steps * model.n_envs == 1:
        raise ValueError(
            f"`n_steps * n_envs` is 1 (n_steps={model.n_steps} and n_envs={model.n_envs}): it must be greater than 1 "
            "to normalize the advantages, or pass `normalize_advantage=False`"
        )


def warn_of_truncated_minibatch(model: "R2VPO") -> None:
    """
    :param model: The model, whose minibatches may not divide the rollout
    """
    buffer_size = model._rollout_size
    if buffer_size % model.batch_size > 0:
        processes = f" * {model._workers.world_size} processes" if model._workers.world_size > 1 else ""
        warnings.warn(
            f"You have specified a mini-batch size of {model.batch_size},"
            f" but because the `RolloutBuffer` is of size `n_steps * n_envs{processes} = {buffer_size}`,"
            f" after every {buffer_size // model.batch_size} untruncated mini-batches,"
            f" there will be a truncated mini-batch of size {buffer_size % model.batch_size}\n"
            f"We recommend using a `batch_size` that is a factor of `n_steps * n_envs`.\n"
            f"Info: (n_steps={model.n_steps} and n_envs={model.n_envs})"
        )


def reject_clip_range(clip_range: Any) -> None:
    """
    :param clip_range: What was passed for PPO's argument
    :raises TypeError: When that is anything
    """
    if clip_range is not None:
        raise TypeError(
            f"`clip_range` is {clip_range!r}, but R2VPO has no clipping: remove it. The size of an update is set by "
            "`target_var` (bound on the ratio variance, about twice the KL divergence) "
            "and `var_coef` (weight of the ratio variance)"
        )


def reject_unknown_arguments(cls: "type[R2VPO]", kwargs: dict[str, Any]) -> None:
    """
    SB3 would write a misspelt argument of ``load`` into the model and go on.

    :param cls: R2VPO or one of its variants
    :param kwargs: Keyword arguments of ``load``
    :raises TypeError: When one is neither an argument of the constructor nor an attribute
    """
    arguments = {name for base in cls.__mro__ for name in inspect.signature(base.__init__).parameters}  # type: ignore[misc]
    # As in SB3 attributes can be loaded with other values too, such as `num_timesteps`; `n_envs` comes with an environment
    blank = cls(next(iter(cls.policy_aliases)), None, device="cpu", _init_setup_model=False)  # type: ignore[arg-type]
    known = arguments | vars(blank).keys() | {"n_envs"}
    for name in kwargs.keys() - known:
        similar = difflib.get_close_matches(name, known, n=1)
        suggestion = f", did you mean `{similar[0]}`?" if similar else ""
        raise TypeError(f"`{name}` is not an argument of {cls.__name__}{suggestion}")
