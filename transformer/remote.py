"""Asking a server: http, https and s3, what it answers, and which failures are worth another try."""

import dataclasses
import os
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from transformer.files import UserError

HUB = "https://huggingface.co"  # HF_ENDPOINT replaces it
TIMEOUT = 20.0  # seconds without an answer
CHUNK = 1 << 16  # bytes; what a cut connection can lose


class Unavailable(UserError):
    """The server cannot be asked, and the cache does not have the file."""


class Refused(Unavailable):
    """The server does not give this file (401, 403)."""


class Missing(Refused):
    """The server does not have this file (404)."""


class Transient(Exception):
    """A failure worth another try, after `wait` seconds if the server named them."""

    def __init__(self, message, wait=None, restart=False):
        super().__init__(message)
        self.wait, self.restart = wait, restart


@dataclasses.dataclass
class Answer:
    """A server's answer: the whole file's size and validator (ETag or date), and its bytes from `start` on."""

    unchanged: bool = False
    start: int = 0
    size: int | None = None
    validator: str | None = None
    sha256: str | None = None
    chunks: Iterator[bytes] = iter(())


def open_http(url, copy, start, part_validator):
    """Ask for `url` from byte `start` of the version `part_validator` on, unless the record `copy` still is current."""
    import requests

    headers = {"Accept-Encoding": "identity"}  # so that lengths are the file's
    if copy.get("validator"):
        headers["If-None-Match" if '"' in copy["validator"] else "If-Modified-Since"] = copy["validator"]
    if start and part_validator and not part_validator.startswith("W/"):
        headers.update({"Range": f"bytes={start}-", "If-Range": part_validator})
    if os.environ.get("HF_TOKEN") and is_hub(url):
        headers["Authorization"] = f"Bearer {os.environ['HF_TOKEN']}"
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.exceptions.SSLError as error:
        raise UserError(f"{url}: no secure connection ({one_line(error)})") from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Transient(f"cannot be reached ({type(error).__name__})") from error
    except requests.RequestException as error:
        raise UserError(f"{url}: {one_line(error)}") from error

    # The hub names the file's sum on its redirect; the storage behind it may have an ETag of its own kind.
    linked = next(
        (r.headers["X-Linked-Etag"].strip('"') for r in [*response.history, response] if "X-Linked-Etag" in r.headers),
        "",
    )
    sha256 = linked if re.fullmatch("[0-9a-f]{64}", linked) else None
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
    same = bool(copy) and (validator == copy["validator"] is not None or sha256 == copy["sha256"])
    if response.status_code == 304 or (response.status_code == 200 and same):
        response.close()
        return Answer(unchanged=True)
    begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if response.status_code == 206 and not (begins and int(begins[1]) == start and validator == part_validator):
        response.close()
        raise Transient("sent another part than was asked for", restart=True)
    if response.status_code not in (200, 206):
        response.close()
        raise _failure(url, response.status_code, response.headers.get("Retry-After"))

    start = start if response.status_code == 206 else 0
    length = response.headers.get("Content-Length")
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"
    size = None if length is None or encoded else start + int(length)

    def chunks():
        try:
            with response:
                yield from response.iter_content(CHUNK)
        except requests.RequestException as error:
            raise Transient("broke off") from error

    return Answer(start=start, size=size, validator=validator, sha256=sha256, chunks=chunks())


def open_s3(url, copy, start, part_validator):
    """As `open_http`, for an s3:// address."""
    client, bucket, key = s3_client(url)
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

    try:
        head = client.head_object(Bucket=bucket, Key=key)
        etag = head["ETag"]
        if copy and copy["validator"] == etag:
            return Answer(unchanged=True)
        start = start if part_validator == etag and start < head["ContentLength"] else 0
        wanted = {"Range": f"bytes={start}-"} if start else {}
        body = client.get_object(Bucket=bucket, Key=key, IfMatch=etag, **wanted)["Body"]
    except ClientError as error:
        raise _failure(url, error.response["ResponseMetadata"]["HTTPStatusCode"]) from error
    except (ConnectionError, HTTPClientError) as error:
        raise Transient(f"cannot be reached ({type(error).__name__})") from error
    except BotoCoreError as error:
        raise UserError(f"{url}: {one_line(error)}") from error

    def chunks():
        try:
            yield from body.iter_chunks(CHUNK)
        except BotoCoreError as error:
            raise Transient("broke off") from error

    return Answer(start=start, size=head["ContentLength"], validator=etag, chunks=chunks())


def _failure(url, status, retry_after=None):
    """The error for an HTTP status that is no success."""
    if status in (404, 410):
        return Missing(f"{url}: no such file on the server ({status})")
    if status in (401, 403):
        hint = "set HF_TOKEN to a token that may read it" if is_hub(url) else "check the address and the credentials"
        return Refused(f"{url}: access refused ({status}); {hint}")
    if status == 416:
        return Transient("does not have the rest of the file that is here", restart=True)
    if status in (408, 412, 429) or status >= 500:
        wait = min(int(retry_after), 60) if (retry_after or "").isdigit() else None
        return Transient(f"the server answered {status}", wait)
    return UserError(f"{url}: the server answered {status}")


def s3_client(url):
    """A client, the bucket and the key of an s3:// address."""
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise UserError(f"{url}: s3:// needs the boto3 package (pip install boto3)") from error
    bucket, _, key = url.removeprefix("s3://").partition("/")  # not urlsplit(): a key may have '?' and '#' in it
    if not bucket:
        raise UserError(f"{url}: expected s3://bucket/key")
    try:
        session = boto3.session.Session()
        # Public buckets are readable without an account.
        signed = {} if session.get_credentials() else {"signature_version": UNSIGNED}
        config = Config(connect_timeout=TIMEOUT, **signed)
        client = session.client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL") or None, config=config)
    except (BotoCoreError, ValueError) as error:
        raise UserError(f"{url}: {one_line(error)}") from error
    return client, bucket, key


def s3_files(url):
    """The addresses of all objects under s3://bucket/prefix, in order. Raises UserError where they cannot be listed."""
    client, bucket, prefix = s3_client(url)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(f"s3://{bucket}/{item['Key']}" for page in pages for item in page.get("Contents", ()))
    except (BotoCoreError, ClientError) as error:
        raise UserError(f"{url}: cannot be listed ({one_line(error)})") from error


def upload_s3(file, data_url, name):
    client, bucket, prefix = s3_client(data_url)
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.upload_file(str(file), bucket, f"{prefix.rstrip('/')}/{name}".lstrip("/"))
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise UserError(f"{file}: cannot be uploaded to {data_url} ({one_line(error)})") from error


def hub():
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def is_hub(url):
    return urlsplit(url).netloc == urlsplit(hub()).netloc


def one_line(error):
    return " ".join(str(error).split())[:300]
