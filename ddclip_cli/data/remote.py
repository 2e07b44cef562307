"""HTTP to the Hub, GitHub or a bucket: what a source is now, its bytes from an offset on, and errors in a sentence.

Plain urllib, because huggingface_hub changes its HTTP library between versions and does not continue a download that an
earlier run began. Names, login, time limits and the endpoint are huggingface_hub's own (HF_ENDPOINT, HF_TOKEN,
HF_HUB_DOWNLOAD_TIMEOUT, ...), and proxies are those of the environment.
"""

from __future__ import annotations

import http.client
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar
from urllib.error import URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import HTTPErrorProcessor, OpenerDirector, Request, build_opener

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers

from ddclip_cli import console
from ddclip_cli.data.catalogue import Source
from ddclip_cli.errors import UsageError, UserError

T = TypeVar("T")
ATTEMPTS = 5
LONGEST_WAIT = 60.0
REDIRECTS = (301, 302, 303, 307, 308)
KEPT = "what has come is kept, and the same command continues"


class TransferError(UserError):
    """A request that failed. `passing`: it may work when tried again, after `wait` seconds if the server says so."""

    def __init__(self, sentence: str, *, passing: bool = False, wait: float | None = None) -> None:
        super().__init__(f"{sentence} ({KEPT})" if passing else sentence)
        self.reason = sentence
        self.passing = passing
        self.wait = wait


@dataclass(frozen=True)
class Remote:
    """A source as the server has it now."""

    name: str
    url: str
    size: int
    etag: str | None
    digest: str | None
    headers: dict[str, str]


def describe(source: Source, revision: str) -> Remote:
    """Ask the server for size, ETag and digest of a source. Raises TransferError."""
    headers = _headers(source)
    url = source.url or hf_hub_url(source.repo, source.path, repo_type=source.repo_type, revision=revision)
    with persist(lambda: _request("HEAD", url, headers, constants.HF_HUB_ETAG_TIMEOUT)) as response:
        found = response.headers
    commit = found.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
    if source.url is None and commit is None:
        raise TransferError(
            f"{urlsplit(url).netloc} does not answer like a Hugging Face Hub: check HF_ENDPOINT and proxies"
        )
    size = found.get(constants.HUGGINGFACE_HEADER_X_LINKED_SIZE) or found.get("Content-Length") or ""
    if not size.isdigit():
        raise TransferError(f"{urlsplit(url).netloc} does not say how large {source.name} is")
    etag = found.get(constants.HUGGINGFACE_HEADER_X_LINKED_ETAG) or found.get("ETag")
    etag = etag.removeprefix("W/").strip('"') if etag else None
    if source.url is None:
        # The commit, not the branch: all bytes are of one version even if the branch moves meanwhile.
        url = hf_hub_url(source.repo, source.path, repo_type=source.repo_type, revision=commit)
        if etag is None or not re.fullmatch(r"[\w.+-]{1,200}", etag):  # it becomes a file name in the cache
            raise TransferError(f"{urlsplit(url).netloc} gives {source.name} no usable ETag: check HF_ENDPOINT")
    named = etag if source.url is None and etag and _is_digest(etag) else None
    return Remote(source.name, url, int(size), etag, named or source.digest, headers)


def open_from(remote: Remote, position: int) -> http.client.HTTPResponse:
    """GET the bytes from `position` on. Status 206, or 200 with all bytes if the server knows no ranges.

    Raises TransferError.
    """
    headers = dict(remote.headers)
    if position:
        headers["Range"] = f"bytes={position}-"
    response = _request("GET", remote.url, headers, constants.HF_HUB_DOWNLOAD_TIMEOUT)
    if response.status == 206 and not (response.headers.get("Content-Range") or "").startswith(f"bytes {position}-"):
        response.close()
        raise TransferError(
            f"{urlsplit(remote.url).netloc} sent another range of {remote.name} than asked", passing=True
        )
    return response


def persist(action: Callable[[], T], *, position: Callable[[], int] = lambda: 0) -> T:
    """Run `action`, again after a growing pause while it fails in passing; attempts count anew when `position` grew.

    DDCLIP_RETRY_WAIT is the first pause in seconds (1).
    """
    try:
        first_wait = max(float(os.environ.get("DDCLIP_RETRY_WAIT", "1")), 0.0)
    except ValueError:
        raise UsageError("DDCLIP_RETRY_WAIT is not a number of seconds: mend or unset it") from None
    attempt, reached = 0, position()
    while True:
        try:
            return action()
        except TransferError as error:
            if position() > reached:
                attempt, reached = 0, position()
            attempt += 1
            if not error.passing or attempt == ATTEMPTS:
                raise
            wait = min(error.wait if error.wait is not None else first_wait * 2 ** (attempt - 1), LONGEST_WAIT)
            console.log(f"{error.reason}; trying again in {wait:g} s ({attempt} of {ATTEMPTS - 1})")
            time.sleep(wait)


def unreachable(url: str, error: BaseException) -> TransferError:
    """The sentence for a connection that could not be made or broke."""
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError):
        text = "no answer in time"
    else:
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return TransferError(
        f"cannot reach {urlsplit(url).netloc}: {text}; check the network and HF_ENDPOINT", passing=True
    )


class _AnyStatus(HTTPErrorProcessor):
    """Hand every answer back: statuses and redirects are dealt with here."""

    def http_response(self, request, response):  # type: ignore[no-untyped-def]
        return response

    https_response = http_response


@cache
def _opener() -> OpenerDirector:
    return build_opener(_AnyStatus)


def _request(method: str, url: str, headers: dict[str, str], timeout: float) -> http.client.HTTPResponse:
    """An answer of status 200 or 206; a HEAD stops at the redirect that already describes the file."""
    asked = url
    for _ in range(10):
        try:
            response = _opener().open(Request(url, headers=headers, method=method), timeout=timeout)
        except (URLError, OSError, http.client.HTTPException) as error:
            raise unreachable(url, error) from error
        if response.status not in REDIRECTS:
            break
        if method == "HEAD" and constants.HUGGINGFACE_HEADER_X_LINKED_SIZE in response.headers:
            return response
        response.close()
        target = urljoin(url, response.headers.get("Location", ""))
        before, after = urlsplit(url), urlsplit(target)
        if after.scheme not in ("http", "https") or (before.scheme, after.scheme) == ("https", "http"):
            raise TransferError(f"{before.netloc} redirects to {target[:80]}, where no file is fetched from")
        if (before.scheme, before.netloc) != (after.scheme, after.netloc):  # a login is for the Hub, not for its CDN
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        url = target
    if response.status in (200, 206):
        return response
    response.close()
    raise _refused(asked, response)


def _refused(url: str, response: http.client.HTTPResponse) -> TransferError:
    status, host = response.status, urlsplit(url).netloc
    code, message = response.headers.get("X-Error-Code"), response.headers.get("X-Error-Message")
    page, _, place = url.partition("/resolve/")
    revision, _, path = place.partition("/")
    if status == 401 and "Invalid credentials" in (message or ""):
        return TransferError(
            f"{host} does not know your login (401): log in anew with `hf auth login`, or mend HF_TOKEN"
        )
    if status == 401:
        return TransferError(
            f"{page} asks for a login (401): accept its terms on that page if it has any, then run `hf auth login`"
        )
    if status == 403:
        return TransferError(f"{page} is closed to you (403): ask for access on that page, then run `hf auth login`")
    if status == 404:
        if not place:
            return TransferError(f"{url} does not exist (404)")
        what = {"RevisionNotFound": f"has no revision {revision}", "RepoNotFound": "does not exist"}.get(
            code or "", f"has no {path} at revision {revision}"
        )
        return TransferError(f"{page} {what} (404): check --revision and HF_ENDPOINT")
    if status == 429:
        pause = response.headers.get("Retry-After") or ""
        wait = float(pause) if pause.isdigit() else None
        return TransferError(
            f"{host} asks for fewer requests (429): log in with `hf auth login` for a higher limit, or come back later",
            passing=True,
            wait=wait,
        )
    if status >= 500 or status in (408, 416, 425):
        return TransferError(f"{host} is in trouble ({status}): try again later", passing=True)
    if status in REDIRECTS:
        return TransferError(f"{host} redirects without end")
    return TransferError(f"{host} answers {url} with {status} {response.reason}")


def _headers(source: Source) -> dict[str, str]:
    headers = build_hf_headers(library_name="ddclip")
    if source.url is not None:
        headers.pop("authorization", None)
    return {**headers, "Accept-Encoding": "identity"}  # no compression: offsets and sizes are of the file itself


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", text) is not None
