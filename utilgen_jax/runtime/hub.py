"""Asks the Hugging Face hub for a repository: once, and without a long wait where there is no connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from utilgen_jax.errors import InputError

SECONDS_TO_ANSWER = 4.0


def list_files(repository: str, revision: str | None, kind: Literal["model", "dataset"] = "model") -> list[str] | None:
    """Lists a repository's files; None where the hub cannot be reached.

    Args:
        repository: 'owner/name'.
        revision: branch, tag or commit; None for the newest.
        kind: of the repository.

    Raises:
        InputError: there is no such repository or revision, or it is not for everyone; the message has the way out.
    """
    # Imported here, as only downloads need the hub.
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    info: Callable[..., Any] = huggingface_hub.model_info if kind == "model" else huggingface_hub.dataset_info
    try:
        # One request: the downloads themselves, and lists by pages, try again for half a minute.
        found = info(repository, revision=revision, timeout=SECONDS_TO_ANSWER)
    except GatedRepoError as error:
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"
        steps = f"accept its licence at {page}, then `hf auth login`"
        raise InputError(f"{repository}: its licence must be accepted first; {steps}") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{repository}: has no revision {revision!r} on the Hugging Face hub") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        private = "if it is private, `hf auth login` first"
        raise InputError(f"{repository}: neither a local folder nor a {kind} on the hub; {private}") from error
    except HfHubHTTPError as error:
        raise InputError(f"{repository}: the Hugging Face hub answers with an error ({error}); try again") from error
    except Exception:  # no connection; the HTTP library depends on the version of huggingface_hub
        return None
    return [sibling.rfilename for sibling in found.siblings or ()]


@contextmanager
def offline() -> Iterator[None]:
    """Makes huggingface_hub read its cache alone, in the block."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
