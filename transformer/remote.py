"""Requests over http, https and s3: the server's answer, and which failures are worth another try."""

import contextlib
import os
import re

from transformer.files import UserError

HUB = "https://huggingface.co"  # HF_ENDPOINT replaces it
TIMEOUT = 20.0  # seconds without an answer
CHUNK = 1 << 16  # bytes; the most that a broken connection can lose
# The headers that S3 supports, under its own names. It has no If-Range; If-Match refuses where If-Range sends all.
S3_NAMES = {"Range": "Range", "If-Range": "IfMatch", "If-None-Match": "IfNoneMatch"}


class Missing(UserError):
    """The server does not have the file or refuses it; or we are offline and the cache has no copy."""


class Transient(Exception):
    """A failure worth another try."""


def ask_http(url, headers):
    """GET an address: (status, headers, the hub's sha256 sum or None, chunks). All may raise Transient or UserError."""
    import requests

    if os.environ.get("HF_TOKEN") and is_hub(url) and url.startswith("https://"):
        headers = {**headers, "Authorization": f"Bearer {os.environ['HF_TOKEN']}"}
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except ValueError as error:  # from None: its message may hold the token
        reason = f"it, HF_TOKEN or where it redirects to is malformed ({type(error).__name__})"
        raise UserError(f"{url}: cannot be asked; {reason}") from None
    except requests.RequestException as error:
        cause = None if "?" in url else error  # --debug would show its message, which has the address in it
        raise Transient(f"cannot be reached ({type(error).__name__})") from cause
    # The hub gives the file's sum in its redirect; the storage behind it may use another kind of ETag.
    sums = [one.headers.get("X-Linked-Etag", "").strip('"') for one in (*response.history, response)]
    sha256 = next((value for value in sums if re.fullmatch("[0-9a-f]{64}", value)), None)
    chunks = _chunks(response.iter_content(CHUNK), requests.RequestException)
    return response.status_code, response.headers, sha256, chunks


def ask_s3(url, headers):
    """Like `ask_http`, for an s3:// address."""
    with s3_client(url, f"{url}: cannot be read") as (client, bucket, key):
        from botocore import exceptions

        wanted = {S3_NAMES[name]: value for name, value in headers.items() if name in S3_NAMES}
        try:
            answer = client.get_object(Bucket=bucket, Key=key, **wanted)
        except exceptions.ClientError as error:
            answer = error.response
        except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:
            raise Transient(f"cannot be reached ({type(error).__name__})") from error
    chunks = _chunks(answer["Body"].iter_chunks(CHUNK) if "Body" in answer else (), exceptions.BotoCoreError)
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["ResponseMetadata"]["HTTPHeaders"], None, chunks


def _chunks(chunks, failure):
    try:
        yield from chunks
    except failure as error:
        raise Transient("broke off") from error


def failure_of(url, status):
    """The error for an HTTP status other than success."""
    if status in (404, 410):
        return Missing(f"{url}: no such file on the server ({status})")
    if status in (401, 403):
        hint = "set HF_TOKEN (sent over https only)" if is_hub(url) else "check the address and the credentials"
        return Missing(f"{url}: access refused ({status}); {hint}")
    if status in (408, 429) or status >= 500:
        return Transient(f"the server answered {status}")
    return UserError(f"{url}: the server answered {status}, expected 200 and the whole file")


@contextlib.contextmanager
def s3_client(url, failure):
    """(client, bucket, key) of an s3:// address; an error from boto3 becomes a UserError that starts with `failure`."""
    import boto3
    from botocore import UNSIGNED, config, exceptions

    bucket, _, key = url.removeprefix("s3://").partition("/")  # not urlsplit(): a key may contain '?' and '#'
    try:
        session = boto3.session.Session()
        # Public buckets are readable without an account.
        signed = {} if session.get_credentials() else {"signature_version": UNSIGNED}
        yield session.client("s3", config=config.Config(connect_timeout=TIMEOUT, **signed)), bucket, key
    except (boto3.exceptions.Boto3Error, exceptions.BotoCoreError, exceptions.ClientError, ValueError) as error:
        raise UserError(f"{failure} ({' '.join(str(error).split())[:300]})") from error


def s3_files(url):
    """The addresses of all objects under s3://bucket/prefix, sorted. Raises UserError if they cannot be listed."""
    with s3_client(url, f"{url}: cannot be listed") as (client, bucket, prefix):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(f"s3://{bucket}/{item['Key']}" for page in pages for item in page.get("Contents", ()))


def upload_s3(file, data_url, name):
    """Copy a file to s3://bucket/prefix as `name`."""
    with s3_client(data_url, f"{file}: cannot be uploaded to {data_url}") as (client, bucket, prefix):
        client.upload_file(str(file), bucket, f"{prefix.rstrip('/')}/{name}".lstrip("/"))


def hub():
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def is_hub(url):
    return url.startswith(f"{hub()}/")
