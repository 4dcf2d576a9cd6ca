"""A real S3 API on loopback, for the tests of remote storages."""

import contextlib
import logging
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

BUCKET = "bucket"
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def s3_server(between: Callable[[Any], Any] = lambda application: application) -> Iterator[str]:
    """Serve an empty bucket to this process and those it starts; gives the bucket's URI.

    `between` wraps the server's WSGI application: it sees every request and every answer.
    """
    from moto.server import ThreadedMotoServer
    from upath import UPath

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    server._server.app = between(server._server.app)
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    cache = tempfile.TemporaryDirectory()  # with the locks of this machine
    os.environ.update(_ENVIRONMENT, AWS_ENDPOINT_URL=f"http://{host}:{port}", XDG_CACHE_HOME=cache.name)
    try:
        reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()  # moto's buckets outlive its servers
        bucket = UPath(f"s3://{BUCKET}")
        type(bucket.fs).clear_instance_cache()  # of a server before this one
        UPath(f"s3://{BUCKET}").fs.mkdir(BUCKET)
        yield f"s3://{BUCKET}"
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.stop()
        cache.cleanup()
