import pytest
import torch as th


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks are slower on many threads, and results the same on every machine."""
    th.set_num_threads(1)
