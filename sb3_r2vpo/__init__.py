from sb3_r2vpo.callbacks import RatioHistogramCallback
from sb3_r2vpo.r2vpo import R2VPO, NonFiniteUpdateError
from sb3_r2vpo.version import __version__

__all__ = ["R2VPO", "NonFiniteUpdateError", "RatioHistogramCallback", "__version__"]
