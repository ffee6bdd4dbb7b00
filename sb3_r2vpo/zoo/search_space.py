"""
What a hyperparameter search of RL Zoo tries for R2VPO: PPO's space without the clip, a fixed or a learned λ, the initial
exploration noise, and a learning rate that stays or falls.
"""

import inspect
import itertools
import math
from typing import Any

import numpy as np
import optuna
from gymnasium import spaces
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_onpolicy_params
from torch import nn

from sb3_r2vpo.dual import auto_target_var
from sb3_r2vpo.r2vpo import R2VPO
from sb3_r2vpo.zoo import ALGOS
from sb3_r2vpo.zoo.hyperparameters import SCHEDULES, named_schedules

#: Sampled in the logarithm. With a learning rate below 1e-4 most tasks do not reach the point where the penalty balances the
#: advantages, but MountainCarContinuous needs one of about that (docs/tuned.md). An entropy coefficient above keeps the
#: policy at noise
RANGES = {
    "one_minus_gamma": (1e-4, 0.03),
    "one_minus_gae_lambda": (1e-4, 0.1),
    "learning_rate": (3e-5, 4e-3),
    "ent_coef": (1e-8, 0.01),
    "var_coef": (0.1, 10.0),
    "target_var": (0.005, 0.2),
}
#: Walker2d does best with minibatches of 2**4=16, MountainCar with as many steps (docs/tuned.md, hyperparams/r2vpo.yml)
BATCH_SIZE_POWERS, N_STEPS_POWERS = (4, 10), (4, 12)
#: With one epoch most gradient steps are at ratios near one, where the penalty has no gradient
N_EPOCHS = [5, 10, 20]
MAX_GRAD_NORM = (0.3, 5.0)
LOG_STD_INIT = (-2.5, 0.5)
NETWORKS = {"tiny": [64], "small": [64, 64], "medium": [256, 256]}
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
#: How many values of the entry a trial around it leaves to the sampler
N_FREE = 3


def register_search_space() -> None:
    """Put R2VPO and its variants into RL Zoo's tables, which has one space for PPO with and without LSTM too."""
    for algo in ALGOS:
        HYPERPARAMS_SAMPLER[algo] = sample_r2vpo_params
        HYPERPARAMS_CONVERTER[algo] = convert_r2vpo_params


def sample_r2vpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sampler of R2VPO's hyperparameters. What is not in the space, as ``max_target_var``, is in each trial as the entry has it.

    :param trial: The trial
    :param n_actions: Dimensions of a continuous action, 0 where actions are discrete
    :param n_envs: Number of environments in parallel
    :param additional_args: What RL Zoo tells the samplers of off-policy algorithms, not used
    :return: Arguments of R2VPO
    """
    # No choice, but what a trial was run with: its minibatches depend on it, see the converter
    trial.suggest_int("n_envs", n_envs, n_envs)
    trial.suggest_int("batch_size_pow", *BATCH_SIZE_POWERS)
    trial.suggest_int("n_steps_pow", *N_STEPS_POWERS)
    for name in ("one_minus_gamma", "one_minus_gae_lambda", "learning_rate", "ent_coef"):
        trial.suggest_float(name, *RANGES[name], log=True)
    trial.suggest_categorical("learning_rate_schedule", ["constant", "linear"])
    trial.suggest_categorical("n_epochs", N_EPOCHS)
    trial.suggest_float("max_grad_norm", *MAX_GRAD_NORM)
    trial.suggest_categorical("net_arch", list(NETWORKS))
    trial.suggest_categorical("activation_fn", list(ACTIVATIONS))
    if n_actions > 0:
        trial.suggest_float("log_std_init", *LOG_STD_INIT)

    learned = trial.suggest_categorical("var_coef_mode", ["fixed", "learned"]) == "learned"
    name = "target_var" if learned else "var_coef"
    trial.suggest_float(name, *RANGES[name], log=True)

    arguments = convert_r2vpo_params(trial.params)
    # Display true values
    for name in ("gamma", "gae_lambda", "n_steps", "batch_size"):
        trial.set_user_attr(name, arguments[name])
    # RL Zoo has made the environments already
    del arguments["n_envs"]
    return {**arguments, **named_schedules(arguments)}


def convert_r2vpo_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: Parameters of a trial
    :return: ``n_envs``, and the arguments of R2VPO that they stand for, a schedule by its name
    """
    hyperparams = convert_onpolicy_params(sampled_params)
    # Minibatches of equal size, which the rollout can fill
    hyperparams["batch_size"] = math.gcd(hyperparams["batch_size"], hyperparams["n_steps"] * hyperparams["n_envs"])
    if hyperparams.pop("learning_rate_schedule") == "linear":
        hyperparams["learning_rate"] = f"lin_{hyperparams['learning_rate']}"
    if "log_std_init" in hyperparams:
        hyperparams["policy_kwargs"]["log_std_init"] = hyperparams.pop("log_std_init")
    if hyperparams.pop("var_coef_mode") == "learned":
        hyperparams["var_coef"] = "auto"
    return hyperparams


def first_trial(entry: dict[str, Any], action_space: spaces.Space, n_envs: int) -> dict[str, Any]:
    """
    What a search begins with: the entry of the environment, as near as the space comes to it. What the space has no value
    for is left to the sampler.

    :param entry: The environment's hyperparameters, as arguments of R2VPO
    :param action_space: The actions
    :param n_envs: Number of environments in parallel
    :return: Parameters of a trial
    """
    defaults = {name: p.default for name, p in inspect.signature(R2VPO.__init__).parameters.items()}
    arguments = {**defaults, **entry}
    # RL Zoo has made schedules of them: what they begin with
    starts = {name: value(1.0) if callable(value) else value for name, value in arguments.items() if name in SCHEDULES}
    policy_kwargs = arguments["policy_kwargs"] or {}
    rate = arguments["learning_rate"]
    falls = callable(rate) and rate(0.0) < rate(1.0)
    params = {
        "batch_size_pow": nearest_power(arguments["batch_size"], BATCH_SIZE_POWERS),
        "n_steps_pow": nearest_power(arguments["n_steps"], N_STEPS_POWERS),
        "one_minus_gamma": 1 - arguments["gamma"],
        "one_minus_gae_lambda": 1 - arguments["gae_lambda"],
        "learning_rate": starts["learning_rate"],
        "learning_rate_schedule": "linear" if falls else "constant",
        "ent_coef": arguments["ent_coef"],
        "n_epochs": min(N_EPOCHS, key=lambda n: abs(n - arguments["n_epochs"])),
        "max_grad_norm": float(np.clip(arguments["max_grad_norm"], *MAX_GRAD_NORM)),
        "var_coef_mode": "learned" if isinstance(starts["var_coef"], str) else "fixed",
    }
    if params["var_coef_mode"] == "fixed":
        params["var_coef"] = starts["var_coef"]
    elif starts["target_var"] != "auto":
        params["target_var"] = starts["target_var"]
    else:
        params["target_var"] = auto_target_var(action_space, arguments["n_steps"] * n_envs)
    params |= {name: float(np.clip(value, *RANGES[name])) for name, value in params.items() if name in RANGES}
    # SB3 has no further layers after a CNN
    layers = policy_kwargs.get("net_arch", [] if arguments.get("policy") == "CnnPolicy" else [64, 64])
    if isinstance(layers, dict) and layers.get("pi") == layers.get("vf"):
        layers = layers.get("pi")
    activation = policy_kwargs.get("activation_fn", nn.Tanh)
    params |= {"net_arch": name for name in NETWORKS if NETWORKS[name] == layers}  # noqa: B035 (one at most)
    params |= {"activation_fn": name for name in ACTIVATIONS if ACTIVATIONS[name] is activation}  # noqa: B035
    if isinstance(action_space, spaces.Box):
        params["log_std_init"] = float(np.clip(policy_kwargs.get("log_std_init", 0.0), *LOG_STD_INIT))
    return params


def trials_around(first: dict[str, Any], n_trials: int, seed: int | None) -> list[dict[str, Any]]:
    """
    What a search goes on with: the first trial again, with a few of its values left to the sampler. Every value has its turn.
    Drawn anew all together, over so many dimensions, they hardly ever come near what is already known to be good.

    :param first: Parameters of the first trial
    :param n_trials: How many
    :param seed: Of the order in which the values have their turn
    :return: Parameters of each trial
    """
    rng = np.random.default_rng(seed)
    turns = itertools.chain.from_iterable(rng.permutation(list(first)) for _ in itertools.count())
    around = []
    for _ in range(n_trials):
        free: set[str] = set()
        while len(free) < min(N_FREE, len(first)):
            free.add(next(turns))
        around.append({name: value for name, value in first.items() if name not in free})
    return around


def nearest_power(number: int, powers: tuple[int, int]) -> int:
    """
    :param number: A number
    :param powers: The least and the largest
    :return: The nearest power of two
    """
    return int(np.clip(round(math.log2(number)), *powers))
