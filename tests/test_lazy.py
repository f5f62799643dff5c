"""Names on first use: they are what their modules have, and no others."""

import importlib

import pytest

from tinylm.lazy import on_first_use


@pytest.mark.parametrize("package", ["tinylm", "tinylm.sample", "tinylm.train"])
def test_every_name_of_a_lazy_package_is_there_and_no_other(package):
    module = importlib.import_module(package)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


def test_a_name_is_that_of_the_module_it_maps_to():
    look_up = on_first_use("here", {"dumps": "json", "join": "os.path"})
    assert look_up("dumps") is importlib.import_module("json").dumps
    assert look_up("join") is importlib.import_module("os.path").join
