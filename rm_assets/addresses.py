"""Finds credentials in addresses: they are refused in settings and masked in messages of libraries.

Addresses are stored and shown: in manifests, in Dagster's database and log. These count as credentials: a user or
password before the host, the query of a web address (as in a presigned URL), and parameters with telling names.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from rm_assets.settings import SettingsError

SERVERS = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HF_ENDPOINT", "WANDB_BASE_URL"),
    *("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"),
)
"""Environment variables with the addresses of servers, which libraries show in their messages."""
ADVICE = (
    "addresses are stored and shown, so give credentials to the library that needs them: AWS_* for s3, HF_TOKEN for "
    'the Hub, FSSPEC_HTTP=\'{"headers": {"Authorization": "..."}}\' for http, else fsspec\'s own configuration'
)
_MASK = "***"
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+([^\s'\"<>]*)", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]?|[^:@]*)(:[0-9]*)?")
_LOCAL = {"file", "local", "memory"}
_CONTAINER_AT_ACCOUNT = {"abfs", "abfss", "adl", "az", "wasb", "wasbs"}
_USER_WITHOUT_PASSWORD = {"hdfs", "sftp", "smb", "ssh", "webhdfs"}
_BUCKETS = {"gcs", "gs", "oss", "r2", "s3", "s3a", "s3n"}
_SECRET_PARAMETER = re.compile(
    r"[?&;#][^?&;#=]*(?:auth|code|credential|hmac|jwt|key|pass|policy|pwd|secret|session|sig|token)[^?&;#=]*=",
    re.IGNORECASE,
)
_GLOB = re.compile(r"[^=&]*\.(jsonl|ndjson|jsonlines|json|parquet|csv|tsv)(\.gz|\.zst)?")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")


def require_no_credentials(name: str, value: Any) -> None:
    """Raise SettingsError if a setting has credentials in an address; the error does not repeat them.

    `value` may be a string, or a mapping or list that contains strings.
    """
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            parts += [*part, *part.values()]
        elif isinstance(part, list | tuple):
            parts += part
        elif isinstance(part, str) and has_credentials(part):
            scheme = part.partition(":")[0] if _ADDRESS.match(part) else ""
            shown = f"{scheme}://{_MASK}" if scheme else _MASK
            raise SettingsError(f"{name} is {shown!r}, an address with credentials in it: take them out; {ADVICE}")


def has_credentials(text: str) -> bool:
    """Whether an address in a setting contains credentials, also percent-encoded or with quotes and spaces in it."""
    whole = re.sub(r"[\s'\"<>]", "_", text)
    once = unquote(whole)
    return any(mask_credentials(form) != form for form in (whole, once, unquote(once)))


def mask_credentials(text: str) -> str:
    """Replace the credentials in all addresses of a text by asterisks."""
    if ":/" in text:
        text = "::".join(_ADDRESS.sub(_mask_address, part) for part in text.split("::"))  # fsspec's chains
    return _HUB_TOKEN.sub(_MASK, text)


def _mask_address(found: re.Match[str]) -> str:
    scheme, rest = found[1].lower(), found[2]
    start = found[0][: len(found[0]) - len(rest)]
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if any(_has_user(scheme, form) for form in (authority, unquote(authority), unquote(unquote(authority)))):
        _, at, rest = rest.rpartition("@")  # a password may contain an unencoded slash
        start += _MASK + at
        rest = rest if at else ""
    place, _, query = rest.partition("?")
    is_query = bool(query) and scheme in ("http", "https") and not _GLOB.fullmatch(query)
    if is_query or _SECRET_PARAMETER.search(unquote(rest)):
        return f"{start}{re.split('[?&;#]|%3f|%26|%3b|%23', place, maxsplit=1, flags=re.IGNORECASE)[0]}?{_MASK}"
    return start + rest


def _has_user(scheme: str, authority: str) -> bool:
    """Whether the part before the path is more than a host and a port, a bucket or a container."""
    if scheme in _LOCAL or scheme == "github" or (scheme in _BUCKETS and authority.startswith("arn:")):
        return False
    user, at, _ = authority.rpartition("@")
    if at:
        may_have_one = scheme in _CONTAINER_AT_ACCOUNT | _USER_WITHOUT_PASSWORD
        return bool(user) and not (may_have_one and ":" not in user and "@" not in user)
    return not _HOST_AND_PORT.fullmatch(authority) or (scheme in _BUCKETS and ":" in authority)
