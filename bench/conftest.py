"""`bench/test_torch_*.py` compare comarl's updates with PyTorch's, so they need PyTorch."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["test_torch_*.py"]
