from importlib import import_module
from typing import Any

from sb3_r2vpo.callbacks import RatioHistogramCallback
from sb3_r2vpo.checkpoints import ResumableCheckpointCallback
from sb3_r2vpo.envpool_vec_env import EnvPoolVecEnv, make_envpool_vec_env
from sb3_r2vpo.nonfinite import NonFiniteObservationError, NonFiniteUpdateError
from sb3_r2vpo.r2vpo import R2VPO
from sb3_r2vpo.version import __version__

__all__ = [
    "R2VPO",
    "EnvPoolVecEnv",
    "NonFiniteObservationError",
    "NonFiniteUpdateError",
    "RatioHistogramCallback",
    "ResumableCheckpointCallback",
    "__version__",
    "make_envpool_vec_env",
]

#: They need sb3-contrib, which is imported when one of them is asked for
_VARIANTS = {"MaskableR2VPO": "sb3_r2vpo.maskable", "RecurrentR2VPO": "sb3_r2vpo.recurrent"}


def __getattr__(name: str) -> Any:
    if name not in _VARIANTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_VARIANTS[name]), name)
    except ModuleNotFoundError as e:
        if e.name != "sb3_contrib":
            raise
        raise ImportError(f"{name} needs sb3-contrib: pip install 'sb3_r2vpo[contrib]'") from e
