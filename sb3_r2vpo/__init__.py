from sb3_r2vpo.callbacks import RatioHistogramCallback
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
    "__version__",
    "make_envpool_vec_env",
]
