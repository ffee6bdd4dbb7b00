"""R2VPO in RL Zoo (https://github.com/DLR-RM/rl-baselines3-zoo). Importing this package does not import RL Zoo yet."""

from importlib.resources import files
from pathlib import Path

#: R2VPO's name in RL Zoo
ALGO = "r2vpo"


def hyperparameter_file() -> Path:
    """
    :return: R2VPO's hyperparameters in RL Zoo's format
    """
    return Path(str(files("sb3_r2vpo.hyperparams") / f"{ALGO}.yml"))


def register() -> None:
    """
    Put R2VPO into RL Zoo: the algorithm, and its hyperparameter file as the default one.
    Calling it twice is harmless.

    :raises ImportError: When RL Zoo is not installed
    """
    try:
        import rl_zoo3.enjoy
        import rl_zoo3.train
        from rl_zoo3.utils import ALGOS
    except ImportError as e:
        raise ImportError(f"RL Zoo cannot be imported ({e}): pip install 'sb3_r2vpo[zoo]'") from e
    from sb3_r2vpo.r2vpo import R2VPO
    from sb3_r2vpo.zoo.envpool import create_test_env
    from sb3_r2vpo.zoo.experiment import R2VPOExperimentManager

    ALGOS[ALGO] = R2VPO
    # Each command binds the class in its own module
    for module in (rl_zoo3.train, rl_zoo3.enjoy):
        setattr(module, "ExperimentManager", R2VPOExperimentManager)  # noqa: B010
    setattr(rl_zoo3.enjoy, "create_test_env", create_test_env)  # noqa: B010
