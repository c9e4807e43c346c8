"""Without torch, which training needs and nothing else, the tests of the training loop are not there."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["test_train.py"]
