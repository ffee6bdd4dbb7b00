"""What RL Zoo's entries of hyperparameters and ours are compared by."""

from typing import Any


def counterparts(ppo_env_id: str) -> list[str]:
    """
    :param ppo_env_id: Name of one of RL Zoo's entries of PPO or RecurrentPPO
    :return: Our entries that should have the same hyperparameters
    """
    name, _, version = ppo_env_id.rpartition("-v")
    # RL Zoo's of RecurrentPPO is v2
    if name.startswith("LunarLander"):
        return [f"{name}-v3"]
    # Of these versions are MuJoCo's environments only
    return [f"{name}-v4", f"{name}-v5"] if version in ("2", "4") else [ppo_env_id]


def complete(entry: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """
    :param entry: An entry of either algorithm
    :param arguments: The defaults that both share
    :return: The entry without the clip, with the defaults, in a form that can be compared
    """
    defaults = {"n_envs": 1, "normalize": False, **arguments}
    values = {**defaults, **{key: value for key, value in entry.items() if key != "clip_range"}}
    return {key: "".join(value.split()) if isinstance(value, str) else value for key, value in values.items()}
