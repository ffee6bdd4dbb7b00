"""RL Zoo hyperparameters, installed as ``sb3_r2vpo.hyperparams``."""
