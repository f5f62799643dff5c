"""The compiled half of TinyLM; checked against the binary by `mypy.stubtest`."""

__all__ = ["__version__", "build_profile"]

__version__: str
build_profile: str
