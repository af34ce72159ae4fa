"""A repository on a hub of published models, as huggingface_hub reaches it.

The only module that may import huggingface_hub, and only inside functions: a clinic machine has neither it
nor any other HTTP client. huggingface_hub gives the login, the addresses and the HTTP session; the reading is
ours, because its `hf_hub_download` (2.4.0) deletes the partial file when it fails and never compares the
SHA-256. Called by `fetch.py`.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemed import __version__
from edgemed.errors import EdgemedError, MissingExtra, ModelCorrupt, UsageError
from edgemed.hub_files import HubFile
from edgemed.languages import text as _
from edgemed.models import plain_line
from edgemed.operating_system import fsync_file

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Lost at most when a connection breaks: small enough to get on over a bad line.
_CHUNK_BYTES = 256 * 2**10
_TIMEOUT_SECONDS = 30
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_VARIABLES = {
    # Xet transfers cannot be resumed and go to other hosts than the ones an administrator opened.
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    # Its warnings carry the server's words to the terminal as they are.
    "HF_HUB_VERBOSITY": "critical",
}


class HubError(EdgemedError):
    """The hub cannot be reached, or does not give what was asked for."""


class Broken(Exception):
    """The connection ended too early; another one may do."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Published:
    """What the hub says of a repository at one commit."""

    commit: str
    license: str | None
    base_model: str | None
    files: list[HubFile]


class Hub:
    """One repository as huggingface_hub sees it; every error leaves as a named one or as Broken."""

    def __init__(self, repository: str) -> None:
        os.environ.update(_VARIABLES)
        try:
            import httpx2
            import huggingface_hub
            from huggingface_hub import constants, errors, utils
        except ImportError as error:
            raise MissingExtra(
                _("Fetching models needs huggingface_hub 2.4 or newer, which is not installed here."),
                hint=_(
                    'At headquarters: pip install "edgemed[hq]". '
                    "A clinic machine gets models with `edgemed models install PATH`."
                ),
            ) from error
        self._library: Any = huggingface_hub
        self._http: Any = httpx2
        self._errors: Any = errors
        self._utils: Any = utils
        self._repository = repository
        self.endpoint = plain_line(str(constants.ENDPOINT))

    def published(self, revision: str | None) -> Published:
        """Ask for the commit, the licence and the files."""
        api = self._library.HfApi(library_name="edgemed", library_version=__version__)
        with self._named_errors(revision):
            try:
                info = api.model_info(
                    self._repository, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
                )
                return _published(info)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                # What huggingface_hub raises when JSON is no JSON, or not what it knows.
                passed_on = (UnicodeEncodeError, self._errors.HfHubHTTPError, self._errors.HFValidationError)
                if isinstance(error, passed_on):
                    raise
                raise HubError(
                    _("{endpoint} does not answer as a hub does.", endpoint=self.endpoint),
                    hint=_(
                        "Often a login page of the network stands between: open it in a browser. "
                        "If HF_ENDPOINT is set, check it."
                    ),
                ) from error

    def read_into(self, part: Path, start: int, file: HubFile, commit: str) -> Iterator[int]:
        """Read the rest of a file from one connection to its end; yield the partial file's size.

        Args:
            start: bytes that the partial file holds.

        Raises:
            Broken: the connection broke.
            ModelCorrupt: what comes is no GGUF file; the partial file is as it was.
        """
        # Asked of the hub each time, not of the place it points to: that address is good for minutes only.
        url = self._library.hf_hub_url(self._repository, file.path, revision=commit)
        with self._named_errors(commit, transfer=True):
            headers = self._utils.build_hf_headers(library_name="edgemed", library_version=__version__)
            headers["Accept-Encoding"] = "identity"
            if start:
                headers["Range"] = f"bytes={start}-"
            request = self._library.get_session().stream(
                "GET", url, headers=headers, timeout=_TIMEOUT_SECONDS
            )
            with request as response:
                self._utils.hf_raise_for_status(response)
                begin = _begin(response, start)
                chunks = response.iter_bytes(_CHUNK_BYTES)
                first = next(chunks, b"")
                if first and begin == 0 and not first.startswith(b"GGUF"):
                    raise self._foreign(file, first)
                if first:
                    yield from _write(part, begin, first, chunks, file.size_bytes)

    def _foreign(self, file: HubFile, first: bytes) -> ModelCorrupt:
        is_page = first[:1024].lstrip().startswith(b"<")
        return ModelCorrupt(
            _(
                "{endpoint} sent {what} instead of the model {name}.",
                endpoint=self.endpoint,
                what=_("a web page") if is_page else _("something that is no GGUF file"),
                name=plain_line(file.path),
            ),
            hint=_(
                "Often a login page of the network stands between: open {endpoint} in a browser, then run "
                "the same command again. What was downloaded before is kept.",
                endpoint=self.endpoint,
            ),
        )

    @contextmanager
    def _named_errors(self, revision: str | None, *, transfer: bool = False) -> Iterator[None]:
        """Say in one sentence what huggingface_hub says in many; never its text, which may hold addresses."""
        http, errors = self._http, self._errors
        try:
            yield
        except errors.HfHubHTTPError as error:
            if transfer and error.response.status_code in _TRANSIENT:
                raise Broken(
                    _(
                        "{endpoint} answers {status}",
                        endpoint=self.endpoint,
                        status=error.response.status_code,
                    )
                ) from error
            raise self._refused(error, revision) from error
        except (UnicodeEncodeError, http.LocalProtocolError):
            # Without the cause: its text holds the token.
            raise UsageError(
                _("The login token of huggingface_hub holds letters that no token has."),
                hint=_("Set HF_TOKEN anew, or log in again with `hf auth login`."),
            ) from None
        except errors.HFValidationError as error:
            raise no_repository(self._repository) from error
        except errors.OfflineModeIsEnabled as error:
            raise UsageError(
                _("huggingface_hub is told to stay offline."), hint=_("Unset HF_HUB_OFFLINE and run again.")
            ) from error
        except (http.InvalidURL, http.UnsupportedProtocol) as error:
            raise UsageError(
                _("{endpoint} is no address of a hub.", endpoint=self.endpoint),
                hint=_("Set HF_ENDPOINT to one such as https://huggingface.co, or unset it."),
            ) from error
        except http.HTTPError as error:
            if transfer and not isinstance(error, http.TooManyRedirects):
                raise Broken(_reason(http, error)) from error
            raise HubError(
                _(
                    "{endpoint} cannot be reached: {reason}.",
                    endpoint=self.endpoint,
                    reason=_reason(http, error),
                ),
                hint=_("Check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT."),
            ) from error

    def _refused(self, error: Any, revision: str | None) -> HubError:
        errors, repository, status = self._errors, self._repository, error.response.status_code
        login = _("Log in with `hf auth login`, or set HF_TOKEN; then run again.")
        if isinstance(error, errors.GatedRepoError):
            return HubError(
                _("{repository} is open only to those who accepted its terms.", repository=repository),
                hint=_("Accept them on {page}.", page=f"{self.endpoint}/{repository}") + f" {login}",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return HubError(
                _(
                    "{repository} has no revision {revision}.",
                    repository=repository,
                    revision=plain_line(revision or "main"),
                ),
                hint=_("Name a branch, a tag or a whole commit after @."),
            )
        if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
            return HubError(
                _(
                    "{endpoint} has no repository {repository}, or it is private.",
                    endpoint=self.endpoint,
                    repository=repository,
                ),
                hint=_("Check the spelling.") + f" {login}",
            )
        if status in (401, 403):
            return HubError(
                _(
                    "{endpoint} refuses access to {repository}.",
                    endpoint=self.endpoint,
                    repository=repository,
                ),
                hint=login,
            )
        return HubError(
            _("{endpoint} answers with error {status}.", endpoint=self.endpoint, status=status),
            hint=_("Wait some minutes, then run the same command again."),
        )


def _published(info: Any) -> Published:
    """Take from huggingface_hub's ModelInfo what is needed.

    Raises:
        ValueError: it does not say it.
    """
    if not _COMMIT.fullmatch(info.sha):
        raise ValueError("no commit")
    files = [
        HubFile(
            path=str(file.rfilename),
            size_bytes=int(file.lfs.size if file.lfs else file.size or 0),
            sha256=file.lfs.sha256 if file.lfs and _SHA256.fullmatch(file.lfs.sha256) else None,
        )
        for file in info.siblings
    ]
    card = info.card_data
    license_name = getattr(card, "license", None)
    if license_name == "other":
        license_name = getattr(card, "license_name", None) or license_name
    return Published(info.sha, _words(license_name), _words(getattr(card, "base_model", None)), files)


def _words(value: Any) -> str | None:
    """A model card's field may be one text or several."""
    values = value if isinstance(value, list) else [value]
    return ", ".join(text for text in values if isinstance(text, str) and text) or None


def _begin(response: Any, start: int) -> int:
    """Return the position in the file at which a response begins: 0 where a server gives whole files only."""
    if response.status_code != 206:
        return 0
    if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise Broken(_("the server sends another part than was asked for"))
    return start


def _write(part: Path, begin: int, first: bytes, rest: Iterator[bytes], most_bytes: int) -> Iterator[int]:
    if not begin:
        part.write_bytes(b"")
    with part.open("r+b") as file:
        file.seek(begin)
        position, chunk = begin, first
        try:
            while chunk:
                # More than the published size is left out; the SHA-256 judges the rest.
                position += file.write(chunk[: most_bytes - position])
                yield position
                chunk = next(rest, b"") if position < most_bytes else b""
        finally:
            file.flush()
            fsync_file(file.fileno())


def _reason(http: Any, error: Exception) -> str:
    if isinstance(error, http.TimeoutException):
        return _("it does not answer in time")
    if isinstance(error, http.ProxyError):
        return _("the proxy refuses")
    if isinstance(error, http.ConnectError):
        # httpx2 has no class of its own for it.
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return _("its certificate is not trusted; a wrong clock, or a proxy that reads along, does that")
        return _("there is no connection")
    return _("the connection broke")


def no_repository(text: str) -> UsageError:
    """Return the error for what cannot be a repository's name."""
    return UsageError(
        _("{repository!r} names no repository.", repository=plain_line(text)),
        hint=_("Write OWNER/NAME or OWNER/NAME@REVISION, as in the address of its page."),
    )
