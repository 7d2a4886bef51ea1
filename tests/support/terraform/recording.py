"""What AWS is really asked for: requests to moto, each as the action, resource and context that IAM would decide on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Request = tuple[str, str, tuple[tuple[str, str], ...]]  # action, resource, context

# Service authorisation reference of S3: an operation's action, by method and the query that names the operation.
BUCKET = {
    ("GET", "versioning"): "s3:GetBucketVersioning",
    ("GET", "object-lock"): "s3:GetBucketObjectLockConfiguration",
    ("GET", "versions"): "s3:ListBucketVersions",
    ("GET", "list-type"): "s3:ListBucket",
}
KEY = {
    ("GET", ""): ["s3:GetObject"],
    ("HEAD", ""): ["s3:GetObject"],
    ("PUT", ""): ["s3:PutObject"],
    ("PUT", "uploadId"): ["s3:PutObject"],
    ("POST", "uploads"): ["s3:PutObject"],
    ("POST", "uploadId"): ["s3:PutObject"],
    ("DELETE", "uploadId"): ["s3:AbortMultipartUpload"],
    ("PUT", "retention"): ["s3:PutObjectRetention"],
}


def asked(method: str, path: str, query: str, target: str, signing_key: str) -> list[Request]:
    """The decisions of one request; one that is not known here becomes an action that no policy allows."""
    if target in ("TrentService.Sign", "TrentService.GetPublicKey"):
        return [(f"kms:{target.removeprefix('TrentService.')}", signing_key, ())]
    bucket, _, key = path.removeprefix("/").partition("/")
    parts = parse_qs(query, keep_blank_values=True)
    operation = next((name for _, name in [*BUCKET, *KEY] if name and name in parts), "")
    if not key and (action := BUCKET.get((method, operation))):
        prefix = (("s3__prefix", parts.get("prefix", [""])[0]),) if action.startswith("s3:List") else ()
        return [(action, f"arn:aws:s3:::{bucket}", prefix)]
    if key and (actions := KEY.get((method, operation))):
        return [(action, f"arn:aws:s3:::{bucket}/{key}", ()) for action in actions]
    return [(f"unknown:{method} {target} {path}?{query}", "*", ())]


@contextmanager
def recording(signing_key: str) -> Iterator[tuple[str, set[Request]]]:
    """An address of this process's moto, and all that is asked there while this lasts.

    Args:
        signing_key: ARN of the key that KMS signs with, whatever it is called in the request.
    """
    seen: set[Request] = set()
    application = DomainDispatcherApplication(create_backend_app)

    def listening(environ: dict[str, Any], respond: Callable[..., Any]) -> Any:
        named = [environ[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING")]
        seen.update(asked(*named, environ.get("HTTP_X_AMZ_TARGET", ""), signing_key))
        return application(environ, respond)

    server = make_server("127.0.0.1", 0, listening, threaded=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
