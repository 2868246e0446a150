"""Buckets of S3, Google Cloud Storage and Azure, by the package obstore; and what their refusals mean."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING

from generator.errors import MissingDependencyError

if TYPE_CHECKING:
    from types import ModuleType

    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config

# Any of these says where S3's credentials come from; without one only Amazon's machines have some.
_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_SET_KEYS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; `aws configure export-credentials` prints those of a profile"
)
_SET_REGION = "set AWS_REGION to the region of the bucket"
# The store's code -> what is wrong, what to do.
_CODES = {
    "NoSuchBucket": ("there is no such bucket", "make the bucket, or correct the address"),
    "ContainerNotFound": ("there is no such container", "make the container, or correct the address"),
    "InvalidAccessKeyId": ("the access key is not known there", _SET_KEYS),
    "SignatureDoesNotMatch": ("the secret key is not that of the access key", _SET_KEYS),
    "ExpiredToken": ("the credentials have expired", _SET_KEYS),
    "InvalidToken": ("the session token is not valid", _SET_KEYS),
    "AccessDenied": ("these credentials may not do that", "give them the right to list the bucket and to read it"),
    "RequestTimeTooSkewed": (
        "the clock of this machine is more than 15 minutes off",
        "set the clock (timedatectl set-ntp true)",
    ),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", _SET_REGION),
    "PermanentRedirect": ("the bucket is in another region", _SET_REGION),
}
# Words of obstore's, where the store did not answer with a code.
_WORDS = {
    r"/latest/(api/token|meta-data)": ("there are no credentials", _SET_KEYS),
    r"Missing (AccessKeyId|SecretAccessKey)": ("the credentials are not complete", _SET_KEYS),
    r"without LOCATION": ("the bucket is in another region", _SET_REGION),
    r"error sending request|operation timed out": (
        "it cannot be reached",
        "check the network; AWS_ENDPOINT_URL names a server other than Amazon's",
    ),
}
_CODE = re.compile(r"<Code>(\w+)</Code>")


def import_obstore() -> ModuleType:
    """Return the package.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise MissingDependencyError("obstore", extra="storage", why="it reads and writes buckets") from error
    return obstore


def open_bucket(url: str) -> ObjectStore:
    """Return obstore's store for a bucket, or a prefix of one, such as s3://photos/2026; nothing is asked yet.

    Credentials, region and endpoint come from the environment.

    Raises:
        MissingDependencyError: obstore is not installed.
        ValueError: It is not a valid address, or the environment has no valid settings.
        obstore.exceptions.BaseError: The same.
    """
    obstore = import_obstore()
    config: S3Config = {}
    options: ClientConfig = {"timeout": "5m"}  # of a part, on a slow line
    retries = 5
    if url.startswith("s3://"):
        config["checksum_algorithm"] = "SHA256"
        endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
        options["allow_http"] = endpoint.startswith("http://")
        if not any(os.environ.get(name) for name in _CREDENTIALS):
            retries = 1  # to ask for those of an Amazon machine takes long where there is none
    retry: RetryConfig = {"max_retries": retries, "retry_timeout": timedelta(minutes=1)}
    store: ObjectStore = obstore.store.from_url(url, config=config, client_options=options, retry_config=retry)
    return store


def find_code(error: Exception) -> str:
    """Return S3's word for what went wrong, such as NoSuchKey; nothing where it has none."""
    found = _CODE.search(str(error))
    return found[1] if found else ""


def is_about_bucket(error: FileNotFoundError) -> bool:
    """Tell whether the bucket is not there, and not only an object."""
    return find_code(error) in ("NoSuchBucket", "ContainerNotFound")


def explain_refusal(error: Exception) -> tuple[str, str]:
    """Return what is wrong with a bucket, in plain words, and what to do, from what obstore raised."""
    text = str(error)
    known = _CODES.get(find_code(error)) or next(
        (known for words, known in _WORDS.items() if re.search(words, text)), None
    )
    said = " ".join(text.partition("\n\nDebug source")[0].split())[:400]
    return known or (said, "look at what the store says")
