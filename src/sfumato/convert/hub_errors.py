"""What goes wrong with the Hugging Face Hub, in one sentence each."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, SfumatoError
from ..files import write_errors
from .hub_id import HubId

AGAIN = "run the same command again: whole files that arrived are kept"


@contextmanager
def hub_errors(source: HubId) -> Iterator[None]:
    """Turn what `huggingface_hub` raises into one-line errors, and keep its own log off the terminal."""
    from httpx2 import HTTPError
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, XetDownloadError

    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    except SfumatoError:
        raise
    except (HTTPError, OSError, HFValidationError, XetDownloadError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, HTTPError):
            with write_errors(Path(constants.HF_HUB_CACHE)):
                raise
        raise explain(source, error) from error
    finally:
        log.setLevel(level)


def explain(source: HubId, error: BaseException) -> SfumatoError:
    """The error to raise instead: what was refused, and what to do."""
    from huggingface_hub import constants, errors

    address = f"{constants.ENDPOINT}/{source.repo}"
    match error:
        case errors.GatedRepoError():
            return SfumatoError(
                f"{source}: gated; accept its licence at {address}, then set HF_TOKEN to a token of that "
                "account (or run `hf auth login`)"
            )
        case errors.RepositoryNotFoundError():
            return CheckpointError(
                f"{source}: no such file or folder here, and no such model on the Hub; check the name, or, "
                "for a private model, set HF_TOKEN"
            )
        case errors.RevisionNotFoundError():
            return CheckpointError(
                f"{source}: the model has no revision {source.revision!r}; {address}/tree/main lists them"
            )
        case errors.EntryNotFoundError() if isinstance(error, errors.HfHubHTTPError):
            return CheckpointError(f"{source}: the model has no such file; see {address}/tree/main")
        case errors.HfHubHTTPError():
            return _refused(source, error.response.status_code, address)
        case errors.OfflineModeIsEnabled():
            return SfumatoError(
                f"{source}: not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set; unset it "
                "to download"
            )
        case errors.HFValidationError():
            return CheckpointError(f"{source}: no such file or folder, and no name of a model on the Hub")
        case errors.LocalEntryNotFoundError() if error.__cause__ is not None:
            return explain(source, error.__cause__)
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return SfumatoError(
        f"{source}: no connection to {constants.ENDPOINT} ({reason}); check the network, then {AGAIN}"
    )


def _refused(source: HubId, status: int, address: str) -> SfumatoError:
    match status:
        case 401:
            return SfumatoError(f"{source}: the Hub does not know this token; correct HF_TOKEN, or unset it")
        case 403:
            return SfumatoError(
                f"{source}: access is refused; see {address} for its terms, and give HF_TOKEN the right to "
                "read this model"
            )
        case 429:
            return SfumatoError(f"{source}: too many requests; wait some minutes, or set HF_TOKEN; {AGAIN}")
    return SfumatoError(f"{source}: the Hub answers with error {status}; wait some minutes, then {AGAIN}")
