"""Test another build of the compiled kernels: `python -m tests.sanitized PATH_OF_MODULE [pytest options]`."""

import importlib.util
import sys

import pytest


def main() -> int:
    path, *options = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("ray_lir_native", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["ray_lir_native"] = module
    print(f"testing {module.__file__}")
    return pytest.main(["tests/conformance/test_native_kernels.py", "tests/conformance/test_byte_kernels.py", *options])


if __name__ == "__main__":
    sys.exit(main())
