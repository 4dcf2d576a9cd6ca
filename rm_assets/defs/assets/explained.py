"""Errors that name their cause and cure, as Dagster's `Failure`: its sentence heads the page of the failed run."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import dagster as dg

from rm_assets.data.chat.encoder import EncodingError
from rm_assets.data.chat.tokenizer import TemplateError
from rm_assets.data.compute.ray_cluster import EngineError
from rm_assets.data.storage.files import StorageError
from rm_assets.data.storage.snapshots import SnapshotError
from rm_assets.defs.launchers.kubernetes import PodNotDeletedError
from rm_assets.defs.launchers.resource import TrainingFailedError
from rm_assets.defs.results.stages import NothingLeftError
from rm_assets.defs.snapshots.hub import PublishingError
from rm_assets.defs.snapshots.promotions import NothingToPromoteError
from rm_assets.display_text import one_line
from rm_assets.settings import SettingsError
from rm_assets.training.jobs.result import TrainingResultError

EXPLAINED = (
    *(SettingsError, StorageError, SnapshotError, EngineError, TemplateError, EncodingError, NothingLeftError),
    *(TrainingFailedError, TrainingResultError, PodNotDeletedError, NothingToPromoteError, PublishingError),
)
"""The errors whose text is written for users; others keep their traceback at the top."""

STOPPED = "the run was stopped. Finished work and the latest checkpoint are kept: materialize again to resume"
Body = TypeVar("Body", bound=Callable[..., Any])


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    try:
        yield
    except dg.DagsterExecutionInterruptedError:
        raise dg.DagsterExecutionInterruptedError(STOPPED) from None
    except EXPLAINED as error:
        raise dg.Failure(one_line(error), allow_retries=False) from error


def explained(body: Body) -> Body:
    """Have the errors of an asset's function raised as `Failure`, and let an interrupt say how to resume."""

    @functools.wraps(body)
    def explaining(*arguments: Any, **named: Any) -> Any:
        with _explaining():
            return body(*arguments, **named)

    @functools.wraps(body)
    def explaining_generator(*arguments: Any, **named: Any) -> Iterator[Any]:
        with _explaining():
            yield from body(*arguments, **named)

    return explaining_generator if inspect.isgeneratorfunction(body) else explaining  # type: ignore[return-value]
