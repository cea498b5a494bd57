import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch

import mmattn

MODULES = [  # of the core
    module.name
    for module in pkgutil.walk_packages(mmattn.__path__, "mmattn.")
    if module.name.split(".")[1] not in ("__main__", "data", "tasks")
]


def test_every_public_name_is_importable():
    for name in mmattn.__all__:
        assert getattr(mmattn, name) is not None
    assert set(mmattn.__all__) <= set(dir(mmattn))
    with pytest.raises(AttributeError, match="no attribute 'Maks'"):
        mmattn.Maks  # noqa: B018


def test_import_is_lazy():
    """The package itself does not import torch, and its contents import nothing beyond torch."""
    code = f"""
import importlib, sys
import mmattn
assert 'torch' not in sys.modules
import torch
before = set(sys.modules)
for name in {MODULES!r}:
    importlib.import_module(name)
new = {{name.split('.')[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
assert new <= {{'mmattn', 'torch'}}, new
assert 'torch._dynamo' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"torch": torch})
    assert failed == 0
