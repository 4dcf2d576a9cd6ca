"""Pushing to a repository of the Hub: what arrives, what is removed, and the sentences of refusals."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_repositories import TOKEN, Repositories, Repository, hub_repositories

from rm_assets.data.storage.snapshots import SnapshotError
from rm_assets.defs.snapshots.hub import CARD, PublishingError, Pushed, Upload, push

MODEL = "me/rm"
FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repositories]:
    with hub_repositories(tmp_path, monkeypatch) as server:
        yield server


def upload(directory: Path, files: dict[str, bytes] = FILES, **changes: Any) -> Upload:
    written = {}
    for name, content in files.items():
        (directory / name).write_bytes(content)
        written[name] = (directory / name, hashlib.sha256(content).hexdigest())
    fields = {"setting": "publish_model_to", "kind": "model", "name": MODEL, "asset": "reward_model"}
    return Upload(**fields | {"snapshot": "0123456789abcdef", "files": written, "card": "---\n---\n# A\n"} | changes)


def pushed(
    upload: Upload, *, private: bool = True, earlier: tuple[str, ...] = (), before: Pushed | None = None
) -> Pushed:
    return push(upload, private=private, earlier=earlier, pushed=before)


def test_one_commit_with_the_files_and_the_card_makes_a_private_repository(tmp_path: Path, hub: Repositories) -> None:
    found = pushed(upload(tmp_path))
    repository = hub.found[MODEL]
    assert repository.private
    assert repository.files == FILES | {CARD: b"---\n---\n# A\n"}
    assert repository.commits == ["reward_model 0123456789abcdef"]
    assert found == Pushed(commit=repository.commit, url=f"{hub.endpoint}/me/rm/commit/{repository.commit}", now=True)


def test_a_public_repository_is_made_if_it_is_wanted(tmp_path: Path, hub: Repositories) -> None:
    pushed(upload(tmp_path), private=False)
    assert not hub.found[MODEL].private


def test_what_was_pushed_is_not_pushed_again(tmp_path: Path, hub: Repositories) -> None:
    first = pushed(upload(tmp_path))
    hub.requests.clear()
    hub.found[MODEL].files[CARD] = b"edited on the Hub"
    assert pushed(upload(tmp_path), before=first) == first
    assert hub.writes == []
    assert hub.found[MODEL].files[CARD] == b"edited on the Hub"


def test_a_repository_that_was_removed_is_pushed_again(tmp_path: Path, hub: Repositories) -> None:
    first = pushed(upload(tmp_path))
    hub.found.clear()
    assert pushed(upload(tmp_path), before=first).now
    assert hub.found[MODEL].files.keys() == {*FILES, CARD}


def test_without_a_record_unchanged_files_make_no_commit(tmp_path: Path, hub: Repositories) -> None:
    first = pushed(upload(tmp_path))
    assert pushed(upload(tmp_path)).commit == first.commit
    assert len(hub.found[MODEL].commits) == 1


def test_only_files_of_the_earlier_upload_are_removed(tmp_path: Path, hub: Repositories) -> None:
    first = pushed(upload(tmp_path, FILES | {"chat_template.jinja": b"{{ old }}"}))
    hub.found[MODEL].files["LICENSE"] = b"of the owner"
    earlier = ("chat_template.jinja", "gone.json", *FILES)
    pushed(upload(tmp_path, FILES | {"config.json": b"[]"}), earlier=earlier, before=None)
    assert first.now
    assert hub.found[MODEL].files.keys() == {*FILES, CARD, "LICENSE"}
    assert hub.found[MODEL].files["config.json"] == b"[]"
    assert len(hub.found[MODEL].commits) == 2


def test_a_damaged_file_is_not_pushed(tmp_path: Path, hub: Repositories) -> None:
    wanted = upload(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(SnapshotError, match=r"model\.safetensors' is damaged: materialize reward_model again"):
        pushed(wanted)
    assert hub.found[MODEL].files == {}


def test_a_public_repository_takes_nothing_private(tmp_path: Path, hub: Repositories) -> None:
    hub.found[MODEL] = Repository(private=False)
    with pytest.raises(PublishingError, match=r"'me/rm': it is public, and publish_private is true: make it private"):
        pushed(upload(tmp_path))
    assert hub.found[MODEL].files == {}
    pushed(upload(tmp_path), private=False)
    assert hub.found[MODEL].files.keys() == {*FILES, CARD}


@pytest.mark.parametrize(
    ("request_", "status", "cure"),
    [
        (("GET", "/api/models/me/rm"), 403, "write access"),
        (("POST", "/api/repos/create"), 403, "give the token write access"),
        (("POST", "/api/repos/create"), 404, "correct the name of the owner"),
        (("POST", "/api/models/me/rm/preupload/main"), 403, "give the token write access"),
        (("POST", "/api/models/me/rm/commit/main"), 403, "give the token write access"),
        (("POST", "/api/models/me/rm/commit/main"), 400, "fix that and run again"),
        (("POST", "/me/rm.git/info/lfs/objects/batch"), 413, "fix that and run again, or run again later"),
        (("PUT", f"/lfs/{hashlib.sha256(b'weights').hexdigest()}"), 403, "give the token write access"),
    ],
)
def test_a_refusal_says_what_to_do(
    tmp_path: Path, hub: Repositories, request_: tuple[str, str], status: int, cure: str
) -> None:
    hub.refused[request_] = status
    with pytest.raises(PublishingError) as raised:
        pushed(upload(tmp_path))
    text = str(raised.value)
    assert text.startswith(f"publish_model_to (or RM_PUBLISH_MODEL_TO) is 'me/rm': the Hub answered {status}: ")
    assert cure in text and "\n" not in text and TOKEN not in text
    assert MODEL not in hub.found or hub.found[MODEL].commits == []


def test_a_wrong_token_is_named(tmp_path: Path, hub: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", wrong := "hf_" + "y" * 34)
    with pytest.raises(PublishingError, match=r"the Hub answered 401: set HF_TOKEN to a valid token") as raised:
        pushed(upload(tmp_path))
    assert wrong not in str(raised.value)


def test_a_hub_that_does_not_answer_is_said(tmp_path: Path, hub: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PublishingError, match=r"the Hub did not accept it \(.*\): run again when it can be reached"):
        pushed(upload(tmp_path))


def test_offline_mode_is_said(tmp_path: Path, hub: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PublishingError, match="HF_HUB_OFFLINE"):
        pushed(upload(tmp_path))
    assert hub.found == {}
