"""Pushes files to a repository of the Hugging Face Hub, in one commit, and explains a failure in one sentence.

The token is found by huggingface_hub (HF_TOKEN, or the login of this machine), and so is the server (HF_ENDPOINT).
"""

import contextlib
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rm_assets.addresses import mask_credentials
from rm_assets.data.storage.files import is_remote
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.snapshots import SnapshotError
from rm_assets.data.storage.writing import download
from rm_assets.display_text import one_line, shorten

CARD = "README.md"
_CURES = {
    401: "set HF_TOKEN to a valid token, or log in with `hf auth login`",
    402: "its plan does not allow that: choose another owner, or ask the owner",
    403: "give the token write access to it (https://huggingface.co/settings/tokens), or correct the name",
    404: "correct the name of the owner, or use a token of one of its members",
    429: "too many requests: run again later",
}
"""What to do, by the status of the Hub's answer."""


class PublishingError(RuntimeError):
    """A repository that cannot be written. The message names the setting and what to do."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What a repository is to hold: files of a snapshot, by their path there, with their sha256, and a card.

    `setting` is the setting that names the repository, for messages.
    """

    setting: str
    kind: Literal["model", "dataset"]
    name: str
    asset: str
    snapshot: str
    files: Mapping[str, tuple[Path, str]]
    card: str

    @property
    def repository(self) -> str:
        """The repository's path on the Hub."""
        return f"datasets/{self.name}" if self.kind == "dataset" else self.name

    @property
    def content(self) -> str:
        """A hash of everything that is pushed."""
        return fingerprint(sorted((path, sha256) for path, (_, sha256) in self.files.items()), self.card)


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """The commit with an upload, and whether this run pushed it."""

    commit: str
    url: str
    now: bool


def push(upload: Upload, *, private: bool, earlier: Collection[str], pushed: Pushed | None) -> Pushed:
    """Push what an upload holds as one commit, unless it is what was `pushed` and the repository still exists.

    The files of an `earlier` upload that this one lacks are removed in the same commit; other files there stay. Raises
    PublishingError, and SnapshotError for a file that is not the one that its snapshot names.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    with _explained(upload):
        present = _list_repository_files(api, upload, private)
    if present is not None and pushed is not None:
        return pushed
    with tempfile.TemporaryDirectory(prefix="rm_assets_upload_") as scratch:
        operations: list[Any] = [CommitOperationAdd(CARD, upload.card.encode())]
        for path, (origin, sha256) in upload.files.items():
            addition = CommitOperationAdd(path, str(_local_file(origin, Path(scratch) / path)))
            if addition.upload_info.sha256.hex() != sha256:
                raise SnapshotError(f"{str(origin)!r} is damaged: materialize {upload.asset} again, with verify=full")
            operations.append(addition)
        stale = sorted({*earlier} & (present or set()) - {CARD, *upload.files})
        operations += [CommitOperationDelete(path) for path in stale]
        with _explained(upload):
            title = f"{upload.asset} {upload.snapshot}"
            commit = api.create_commit(upload.name, operations, commit_message=title, repo_type=upload.kind)
    return Pushed(commit=str(commit.oid), url=str(commit.commit_url), now=True)


def _list_repository_files(api: Any, upload: Upload, private: bool) -> set[str] | None:
    """The files of the repository; None if it is created here. Raises PublishingError if it is public but must not."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.repo_info(upload.name, repo_type=upload.kind)
    except RepositoryNotFoundError:
        api.create_repo(upload.name, repo_type=upload.kind, private=private, exist_ok=True)
        return None
    if private and not found.private:
        raise PublishingError(
            f"{_named(upload)}: it is public, and publish_private is true: make it private on its page on the Hub, or "
            "set publish_private (or RM_PUBLISH_PRIVATE) to false"
        )
    return {sibling.rfilename for sibling in found.siblings or ()}


def _local_file(origin: Path, copy: Path) -> Path:
    if not is_remote(origin):
        return origin
    copy.parent.mkdir(parents=True, exist_ok=True)
    download(origin, copy)
    return copy


@contextlib.contextmanager
def _explained(upload: Upload) -> Iterator[None]:
    try:
        yield
    except (PublishingError, SnapshotError):
        raise
    except Exception as error:  # of huggingface_hub, its HTTP library and its transfer libraries
        raise PublishingError(f"{_named(upload)}: {_reason(error)}") from None


def _named(upload: Upload) -> str:
    return f"{upload.setting} (or RM_{upload.setting.upper()}) is {upload.name!r}"


def _reason(error: BaseException) -> str:
    """What the Hub answered and what to do, or why it did not answer."""
    detail = shorten(mask_credentials(one_line(error)))
    cause: BaseException | None = error
    while cause is not None:  # an upload's error wraps that of its request
        if status := getattr(getattr(cause, "response", None), "status_code", None):
            cure = _CURES.get(status, f"{detail}; fix that and run again, or run again later")
            return f"the Hub answered {status}: {cure}"
        cause = cause.__cause__
    return f"the Hub did not accept it ({type(error).__name__}: {detail}): run again when it can be reached"
