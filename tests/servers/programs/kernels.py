"""Replaces flash-attn's CUDA kernels, which cannot be built without a GPU, by an empty module, when it is imported.

OpenRLHF imports flash-attn always, for its functions in PyTorch; with `sdpa` attention it calls no kernel.
"""

import sys
import types

sys.modules["flash_attn_2_cuda"] = types.ModuleType("flash_attn_2_cuda")
