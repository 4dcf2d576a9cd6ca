"""Runs a module of OpenRLHF as `python -m` does, without a GPU: `openrlhf_module.py MODULE ARGUMENT...`."""

import runpy
import sys

import kernels  # noqa: F401  before OpenRLHF

del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
