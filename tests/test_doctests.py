"""The examples in docstrings are true, and users' functions of ops, nn, replay and evolution have
some."""

import doctest
import importlib
from pathlib import Path

import jax
import pytest

PACKAGE = Path(__file__).parents[1] / "src/comarl"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name):
    # As a reader has it: the tests' strict promotion of types is for the library alone.
    with jax.numpy_dtype_promotion("standard"):
        results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize("room", ["ops", "nn", "replay", "evolution"])
def test_what_others_build_on_has_examples(room):
    assert any(name.startswith(f"comarl.{room}.") for name in MODULES)
