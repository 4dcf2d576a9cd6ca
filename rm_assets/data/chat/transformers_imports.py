"""Imports transformers without what no tokenizer needs: torch, and a second list of all models.

This only saves time: both are loaded when something uses them.
"""

import contextlib
import importlib
import importlib.util
import sys
import types
from typing import Any
from unittest import mock

_MODELS = "transformers.models"


def import_tokenizers_alone() -> None:
    """Import transformers without torch and the second list of models: two seconds of a processor less."""
    import transformers.utils

    with contextlib.suppress(ImportError):
        _keep_models_unlisted()
        _keep_torch_unloaded(transformers.utils)


class _TorchWhenUsed(types.ModuleType):
    """Replaces torch in a module that imports it and may never use it; imports torch for the first attribute."""

    def __init__(self, user: types.ModuleType) -> None:
        super().__init__("torch")
        self._user = user

    def __getattr__(self, name: str) -> Any:
        torch = importlib.import_module("torch")  # the import that transformers would have done; none of ours
        vars(self._user)["torch"] = torch
        return getattr(torch, name)


def _keep_torch_unloaded(utils: types.ModuleType) -> None:
    """Keep transformers' configurations from loading torch, which no tokenizer needs.

    Of all that AutoTokenizer imports, one module imports torch, for the rotary embeddings of models. It gets torch when
    it uses it. A process that has loaded torch, or a transformers without that module, is left as it is.
    """
    if "torch" in sys.modules or "transformers.modeling_rope_utils" in sys.modules:
        return
    with mock.patch.object(utils, "is_torch_available", lambda: False):
        from transformers import modeling_rope_utils

        vars(modeling_rope_utils)["torch"] = _TorchWhenUsed(modeling_rope_utils)


class _ModelsWhenNamed(types.ModuleType):
    """Replaces transformers.models: finds modules by path, and runs the package's own code for any other attribute.

    That code reads the source of every model to list its classes, as `import transformers` has just done.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks for
            raise AttributeError(name)
        assert self.__spec__ is not None and self.__spec__.loader is not None
        if sys.modules[_MODELS] is self:
            self.__spec__.loader.exec_module(self)  # replaces the entry in sys.modules
        return getattr(sys.modules[_MODELS], name)


def _keep_models_unlisted() -> None:
    """Keep transformers from reading the source of all its models a second time."""
    spec = None if _MODELS in sys.modules else importlib.util.find_spec(_MODELS)
    if spec is not None and spec.loader is not None:
        module = _ModelsWhenNamed(_MODELS)
        module.__spec__, module.__file__ = spec, spec.origin
        module.__package__, module.__path__ = _MODELS, list(spec.submodule_search_locations or [])
        sys.modules[_MODELS] = module
