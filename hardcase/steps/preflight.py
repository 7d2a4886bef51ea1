"""preflight: what a run reads only in its last steps, checked before its first work.

On Kubeflow the first step, `configure` or `fetch`, checks what its pod sees. On one machine the launcher checks it too,
before there is a run. Nothing is left behind but the public key, which every registration stores.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from hardcase.addresses import split_url
from hardcase.errors import HardcaseError, InputError, UnavailableError
from hardcase.provenance.signing import Keyring
from hardcase.registry.mirror import Mirror
from hardcase.report.notify import check_channels
from hardcase.store.s3_errors import is_refusal
from hardcase.store.store import Store


def check_surroundings(store: Store, keys: Keyring, tracking_uri: str, environment: Mapping[str, str]) -> None:
    """Check the signing key, the rights to the store, MLflow's address, and the addresses of notifications.

    Raises:
        InputError: a later step would fail, whenever it is tried.
        UnavailableError: the store does not answer.
    """
    with refused():
        keys.check()
        store.check_rights(*keys.public)
    Mirror(tracking_uri).check()
    check_channels(environment)
    if (ui := environment.get("HARDCASE_UI")) and split_url(ui) is None:
        raise InputError(f"HARDCASE_UI={ui}: no URL of http or https; correct it, or unset it")


@contextmanager
def refused() -> Iterator[None]:
    """Turn an error that remains however often the work is tried into an `InputError`."""
    try:
        yield
    except UnavailableError as error:
        if not is_refusal(error.__cause__):
            raise
        raise InputError(str(error)) from error
    except HardcaseError as error:
        raise InputError(str(error)) from error
