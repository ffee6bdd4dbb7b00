"""R2VPO in RL Zoo (https://github.com/DLR-RM/rl-baselines3-zoo). Importing this package does not import RL Zoo yet."""

import sys
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any

#: R2VPO's name in RL Zoo
ALGO = "r2vpo"
#: With its variants, named like RL Zoo's ppo_lstm
ALGOS = (ALGO, "maskable_r2vpo", "r2vpo_lstm")
#: Versions of RL Zoo that have the hooks
SUPPORTED = "rl_zoo3>=2.9.2,<3.0"
#: What is replaced, overridden or added to in RL Zoo
HOOKS = (
    "utils.ALGOS",
    "utils.create_test_env",
    "utils.get_model_path",
    "utils.StoreDict",
    "hyperparams_opt.HYPERPARAMS_SAMPLER",
    "hyperparams_opt.HYPERPARAMS_CONVERTER",
    "hyperparams_opt.convert_onpolicy_params",
    "exp_manager.ExperimentManager._preprocess_hyperparams",
    "exp_manager.ExperimentManager._preprocess_schedules",
    "exp_manager.ExperimentManager._preprocess_action_noise",
    "exp_manager.ExperimentManager._create_sampler",
    "exp_manager.ExperimentManager._create_pruner",
    "exp_manager.ExperimentManager.objective",
    "exp_manager.ExperimentManager.setup_experiment",
    "exp_manager.ExperimentManager.hyperparameters_optimization",
    "exp_manager.ExperimentManager.create_envs",
    "exp_manager.ExperimentManager.save_trained_model",
    "exp_manager.ExperimentManager.read_hyperparameters",
    "exp_manager.ExperimentManager.create_log_folder",
    "exp_manager.ExperimentManager.create_callbacks",
    "exp_manager.ExperimentManager.learn",
    "exp_manager.ExperimentManager._maybe_normalize",
    "exp_manager.ExperimentManager._load_pretrained_agent",
    "exp_manager.ExperimentManager._save_config",
    "exp_manager.EvalCallback",
    "exp_manager.SaveVecNormalizeCallback",
)


def hyperparameter_file(algo: str = ALGO) -> Path:
    """
    :param algo: R2VPO or one of its variants
    :return: Its hyperparameters in RL Zoo's format
    """
    return Path(str(files("sb3_r2vpo.hyperparams") / f"{algo}.yml"))


def register() -> None:
    """
    Put R2VPO into RL Zoo: the algorithm, its variants, the place of their hyperparameter files, checks of an experiment, a
    search space, and shimmy's environments when shimmy is installed. It may be called before or after RL Zoo's commands are
    imported, and twice.

    :raises ImportError: When RL Zoo is not installed, or its version is not supported
    """
    import_zoo()
    from rl_zoo3.utils import ALGOS as ZOO_ALGOS

    from sb3_r2vpo.r2vpo import R2VPO
    from sb3_r2vpo.recurrent import RecurrentR2VPO
    from sb3_r2vpo.zoo.envpool import create_test_env
    from sb3_r2vpo.zoo.evaluation import ContinuedEvalCallback, WholeVecNormalizeCallback
    from sb3_r2vpo.zoo.experiment import R2VPOExperimentManager
    from sb3_r2vpo.zoo.masks import MaskableR2VPO
    from sb3_r2vpo.zoo.search_space import register_search_space

    # One and the same dictionary in all of RL Zoo's modules
    ZOO_ALGOS.update(zip(ALGOS, (R2VPO, MaskableR2VPO, RecurrentR2VPO), strict=True))
    register_search_space()
    replace_in_zoo("ExperimentManager", R2VPOExperimentManager)
    replace_in_zoo("create_test_env", create_test_env)
    replace_in_zoo("EvalCallback", ContinuedEvalCallback)
    replace_in_zoo("SaveVecNormalizeCallback", WholeVecNormalizeCallback)
    with suppress(ImportError), warnings.catch_warnings():
        # Of windows, without a screen
        warnings.filterwarnings("ignore", category=UserWarning, module="glfw")
        # Registers its environments with Gymnasium, dm_control/... among them
        import shimmy  # noqa: F401


def import_zoo() -> None:
    """
    Import what RL Zoo's commands have in common.

    :raises ImportError: When RL Zoo is not installed, or its version is not supported
    """
    try:
        installed = version("rl_zoo3")
    except PackageNotFoundError as e:
        raise ImportError("RL Zoo is not installed: pip install 'sb3_r2vpo[zoo]'") from e
    try:
        import rl_zoo3.exp_manager
        import rl_zoo3.utils

        for hook in HOOKS:
            attrgetter(hook)(rl_zoo3)
    except (ImportError, AttributeError) as e:
        raise ImportError(
            f"R2VPO does not fit into the installed rl_zoo3 {installed} ({e}): it needs {SUPPORTED}, "
            "pip install 'sb3_r2vpo[zoo]'"
        ) from e


def replace_in_zoo(name: str, value: Any) -> None:
    """
    Put something in the place of what RL Zoo has under that name, in every one of its modules that holds it.
    Those imported later take it from there.

    :param name: Name in RL Zoo
    :param value: What it shall be
    """
    for module in [module for path, module in sys.modules.items() if path.split(".")[0] == "rl_zoo3"]:
        if hasattr(module, name):
            setattr(module, name, value)
