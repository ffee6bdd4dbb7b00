"""What a hyperparameter search of RL Zoo tries for R2VPO: PPO's space without the clip, and a fixed or a learned λ."""

import math
from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_onpolicy_params

from sb3_r2vpo.zoo import ALGOS


def register_search_space() -> None:
    """Put R2VPO and its variants into RL Zoo's tables, which has one space for PPO with and without LSTM too."""
    for algo in ALGOS:
        HYPERPARAMS_SAMPLER[algo] = sample_r2vpo_params
        HYPERPARAMS_CONVERTER[algo] = convert_r2vpo_params


def sample_r2vpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sampler of R2VPO's hyperparameters.

    :param trial: The trial
    :param n_actions: Number of actions, not used
    :param n_envs: Number of environments in parallel
    :param additional_args: What RL Zoo tells the samplers of off-policy algorithms, not used
    :return: Arguments of R2VPO
    """
    # No choice, but what a trial was run with: its minibatches depend on it, see the converter
    trial.suggest_int("n_envs", n_envs, n_envs)
    # From 2**5=32 to 2**10=1024
    trial.suggest_int("batch_size_pow", 5, 10)
    # From 2**5=32 to 2**12=4096
    trial.suggest_int("n_steps_pow", 5, 12)
    trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True)
    trial.suggest_float("one_minus_gae_lambda", 0.0001, 0.1, log=True)
    trial.suggest_float("learning_rate", 1e-5, 0.002, log=True)
    trial.suggest_float("ent_coef", 0.00000001, 0.1, log=True)
    trial.suggest_categorical("n_epochs", [1, 5, 10, 20])
    trial.suggest_float("max_grad_norm", 0.3, 2)
    trial.suggest_categorical("net_arch", ["tiny", "small", "medium"])
    trial.suggest_categorical("activation_fn", ["tanh", "relu"])

    if trial.suggest_categorical("var_coef_mode", ["fixed", "learned"]) == "fixed":
        trial.suggest_float("var_coef", 0.1, 10.0, log=True)
    else:
        trial.suggest_float("target_var", 0.005, 0.1, log=True)
        trial.suggest_float("max_target_var", 0.02, 0.5, log=True)

    arguments = convert_r2vpo_params(trial.params)
    # Display true values
    for name in ("gamma", "gae_lambda", "n_steps", "batch_size"):
        trial.set_user_attr(name, arguments[name])
    # RL Zoo has made the environments already
    del arguments["n_envs"]
    return arguments


def convert_r2vpo_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: Parameters of a trial
    :return: ``n_envs``, and the arguments of R2VPO that they stand for
    """
    hyperparams = convert_onpolicy_params(sampled_params)
    # Minibatches of equal size, which the rollout can fill
    hyperparams["batch_size"] = math.gcd(hyperparams["batch_size"], hyperparams["n_steps"] * hyperparams["n_envs"])
    if hyperparams.pop("var_coef_mode") == "learned":
        hyperparams["var_coef"] = "auto"
    return hyperparams
