"""Credentials in addresses are refused without being repeated, and masked in what libraries say."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from support import polite_rows, write_lines

from rm_assets.addresses import has_credentials, mask_credentials
from rm_assets.data.storage.files import describe_error
from rm_assets.settings import LaunchSettings, Settings, SettingsError, TrainingSettings, setting_fields
from rm_assets.settings_loading import load_settings

CANARY = "kingfisher4711"
WITH_CREDENTIALS = [
    f"http://user:{CANARY}@host/a.jsonl",
    f"HTTPS://{CANARY}@host/a.jsonl",
    f"http://user:{CANARY}/with/slashes@host/a.jsonl",
    f"http://user:{CANARY}@@host:80/a.jsonl",
    f"http://us er:{CANARY} with spaces@host/a.jsonl",
    f"http://user%3A{CANARY}%40host/a.jsonl",
    f"http://user%253A{CANARY}%2540host/a.jsonl",
    f"http%3A%2F%2Fuser%3A{CANARY}%40host/a.jsonl",
    f"http:/user:{CANARY}@host/a.jsonl",
    f"http:////user:{CANARY}@host/a.jsonl",
    f"http://user:{CANARY}@[::1]:80/a.jsonl",
    f"s3://AKIA123:{CANARY}@bucket/annotations",
    f"s3://AKIA123:{CANARY}/x+y@bucket/part-*.jsonl",
    f"s3://AKIA123:{CANARY}",
    f"sftp://user:{CANARY}@host/a",
    f"abfs://container:{CANARY}@account.dfs.core.windows.net/a",
    f"simplecache::https://user:{CANARY}@host/a.jsonl",
    f"zip://a.jsonl::https://user:{CANARY}@host/a.zip",
    f"hf://{CANARY}@datasets/owner/name",
    f"https://host/a.jsonl?X-Amz-Algorithm=x&X-Amz-Signature={CANARY}",
    f"https://host/a.jsonl?sv=1&sig={CANARY}",
    f"https://host/a.jsonl?token={CANARY}",
    f"https://host/a.jsonl?{CANARY}",
    f"https://host/a.jsonl%3Ftoken%3D{CANARY}",
    f"https://host/a.jsonl#access_token={CANARY}",
    f"https://host/a.jsonl;jsessionid={CANARY}",
    f"abfs://container@account.dfs.core.windows.net/a?sv=1&sig={CANARY}",
    f"s3://bucket/a?AWSAccessKeyId=a&Signature={CANARY}",
    f"https://huggingface.co/hf_{CANARY}{CANARY}{CANARY}/a.jsonl",
]
WITHOUT = [
    *("a.jsonl", "/data/a@b:c/x?.jsonl", "~/x", "owner/name", "C:/data/a", "file:///data/a@b/c:d.jsonl", "."),
    *("s3://bucket/a@b:c/part-?.jsonl", "s3://bucket", "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/a"),
    *("http://127.0.0.1:8080/a.jsonl", "http://[::1]:80/a.jsonl", "https://host/part-?.jsonl", "https://host/~a/b@c"),
    *("abfs://container@account.dfs.core.windows.net/a", "sftp://user@host:22/a", "hf://datasets/owner/name@main/a"),
    *("github://org:repo@main/a.jsonl", "s3://bucket/key=1/token=2/a.jsonl", "memory://a@b", "simplecache::s3://b/a"),
    *("registry.example:5000/rm@sha256:1", "plain", "gs://bucket/a?versionId=3"),
]
PLACES = ["annotations", "storage", "model", "tokenizer", "chat_template", "pod_spec", "image"]


@pytest.mark.parametrize("address", WITH_CREDENTIALS)
def test_credentials_in_an_address_are_refused_without_being_told(address: str) -> None:
    for name in PLACES:
        with pytest.raises(SettingsError) as error:
            load_settings({}, {f"RM_{name.upper()}": address})
        told = str(error.value)
        assert told.startswith(f"{name} (or RM_{name.upper()}) is '") and "an address with credentials in it" in told
        assert CANARY not in told
        with pytest.raises(SettingsError, match=f"^{name} .* an address with credentials in it"):
            load_settings({name: address}, {})


@pytest.mark.parametrize("address", WITHOUT)
def test_other_addresses_are_taken(address: str) -> None:
    assert not has_credentials(address)
    assert mask_credentials(address) == address
    settings = load_settings({"annotations": address, "evaluation_files": {"a": address}}, {})
    assert (settings.annotations, settings.evaluation_files) == (address, {"a": address})


@pytest.mark.parametrize("address", WITH_CREDENTIALS)
def test_credentials_are_found_in_evaluation_files_in_any_spelling_of_json(address: str) -> None:
    plain = json.dumps({"held": address, "other": "a.jsonl"})
    escaped = json.dumps(address).replace("/", "\\/").replace(":", "\\u003a")
    for given in (plain, f'{{"held": {escaped}}}', f'{{"held": {escaped}, "other"}}', f'["{address}"'):
        with pytest.raises(SettingsError) as error:
            load_settings({}, {"RM_EVALUATION_FILES": given})
        assert CANARY not in str(error.value), given
    with pytest.raises(SettingsError, match="an address with credentials in it") as error:
        load_settings({"evaluation_files": {"held": address}}, {})
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "WANDB_BASE_URL"])
def test_the_addresses_of_servers_have_none_either(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name} is 'http://\*\*\*', an address with credentials in it"):
        load_settings({}, {name: f"http://user:{CANARY}@head:8265"})
    assert load_settings({}, {name: "http://head:8265"})


def test_what_a_library_says_of_an_address_is_masked() -> None:
    error = OSError(f'Could not connect to "http://user:{CANARY}@minio:9000/b?list-type=2" via https://{CANARY}@proxy/')
    assert describe_error(error) == 'Could not connect to "http://***@minio:9000/b?***" via https://***@proxy/'


@pytest.mark.parametrize("model", [Settings, TrainingSettings, LaunchSettings])
def test_no_error_of_pydantic_repeats_what_was_given(model: Any) -> None:
    name = next(name for name, _ in setting_fields() if name in model.model_fields)
    with pytest.raises(ValueError, match=name) as error:
        model(**{name: [CANARY]})
    assert CANARY not in str(error.value)


# --- real commands -------------------------------------------------------------------------------------------

AUTHORIZATION = "Basic " + base64.b64encode(f"user:{CANARY}".encode()).decode()


class Closed(SimpleHTTPRequestHandler):
    """Files for those who know the canary."""

    def send_head(self) -> Any:
        if self.headers.get("Authorization") != AUTHORIZATION:
            self.send_error(401)
            return None
        return super().send_head()

    def log_message(self, *_: Any) -> None:
        """Nothing: the test reads its own output."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    write_lines(tmp_path / "served" / "a.jsonl", polite_rows(20))
    http = HTTPServer(("127.0.0.1", 0), partial(Closed, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def materialized(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["from dagster._cli import main; main()", "asset", "materialize", "-m", "rm_assets.definitions"]
    own = {"DAGSTER_HOME": str(directory), "RM_STORAGE": str(directory / "snapshots"), "TMPDIR": str(directory)}
    return subprocess.run(
        [sys.executable, "-c", *command, "--select", "raw_preferences"],
        env={**os.environ, **own, **environment},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_told_nowhere(run: subprocess.CompletedProcess[str], directory: Path) -> None:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    for secret in (CANARY, AUTHORIZATION.split()[1]):
        assert secret not in run.stdout + run.stderr
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_a_run_at_an_address_with_a_password_ends_before_any_work_and_tells_it_nowhere(
    tmp_path: Path, server: str
) -> None:
    run = materialized(tmp_path, RM_ANNOTATIONS=f"http://user:{CANARY}@{server}/a.jsonl")
    last = "error: annotations (or RM_ANNOTATIONS) is 'http://***', an address with credentials in it:"
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(last)
    assert not (tmp_path / "snapshots").exists()
    assert_told_nowhere(run, tmp_path)


@pytest.mark.soak
def test_a_run_whose_password_comes_by_the_environment_tells_it_nowhere(tmp_path: Path, server: str) -> None:
    given = json.dumps({"headers": {"Authorization": AUTHORIZATION}})
    run = materialized(tmp_path, RM_ANNOTATIONS=f"http://{server}/a.jsonl", FSSPEC_HTTP=given)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "snapshots" / "raw_preferences" / "latest.json").is_file()
    assert_told_nowhere(run, tmp_path)
