"""What went wrong on the Hub, as one sentence, and whether it may help to try again."""

import httpx2
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from conversion import ConversionError, Unreachable
from conversion.upload.local_files import unreadable


def explained(error: Exception, endpoint: str, repository: str) -> ConversionError | None:
    """The error to raise instead; None for one that is not the Hub's, a folder's or a network's."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # how it wraps faults of large files
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return Unreachable(
            f"{endpoint} is not asked, since HF_HUB_OFFLINE is set; unset it, or push from a machine with network"
        )
    if isinstance(error, HfHubHTTPError):
        return _refused(error, endpoint, repository)
    if isinstance(error, httpx2.HTTPError | ConnectionError | TimeoutError):
        return Unreachable(f"{endpoint} cannot be reached ({error or type(error).__name__})")
    if isinstance(error, OSError) and error.filename:
        return unreadable(error.filename, error)
    if isinstance(error, OSError | RuntimeError):  # hf_xet's
        return Unreachable(f"{endpoint}: sending to {repository} failed ({error})")
    if type(error) is ValueError:  # huggingface_hub's own words: a quota, the metadata of a README
        return ConversionError(f"{repository}: {_one_line(str(error))}; mend that and push again")
    if isinstance(error, ValueError | LookupError | TypeError | AttributeError):
        return Unreachable(
            f"{endpoint} does not answer as the Hub does ({type(error).__name__}: {error}); look at HF_ENDPOINT and proxies"
        )
    return None


def _refused(error: HfHubHTTPError, endpoint: str, repository: str) -> ConversionError:
    status, headers = error.response.status_code, error.response.headers
    words = _one_line(error.server_message or headers.get("X-Error-Message") or error.response.reason_phrase)
    if status == 401:
        return ConversionError(
            f"{endpoint} does not accept the token ({words}); set HF_TOKEN to a valid one, or: hf auth login"
        )
    if status == 403:
        return ConversionError(f"the token may not write to {repository} ({words}); use one that may write to that namespace")
    if status == 412:
        return Unreachable(f"{repository}: another commit came in between ({words})")
    if status == 429:
        limit, after = parse_ratelimit_headers(headers), headers.get("Retry-After", "")
        wait = limit.reset_in_seconds if limit and not limit.remaining else int(after) if after.isdecimal() else 0
        return Unreachable(f"{endpoint} asks for patience{f' of {wait} s' if wait else ''} ({words})", wait)
    if status in (408, 409) or status >= 500:
        return Unreachable(f"{endpoint} fails with {status} ({words})")
    return ConversionError(f"{endpoint} refuses {repository} with {status} ({words}); mend what it names and push again")


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".;") or "no reason given"
