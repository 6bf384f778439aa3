"""Where questions and keys are sent to, and who has agreed to that."""

import json
import os
from collections.abc import Collection, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from calibration.artifacts import Store
from calibration.errors import ConfigurationError
from calibration.schema import Schema

CONFIRMED = "endpoints.json"
FLAG = "--confirm-endpoint"


class Endpoint(Schema):
    """A place outside of this process that is sent something."""

    address: str
    """Scheme, host and port."""
    receives: str
    """What is sent there, in words."""
    key: str = ""
    """Name of the variable whose value is sent there as a key; empty if none is."""
    setting: str = ""
    """The setting that names it; empty where this project or the environment does, which need no consent."""

    def __str__(self) -> str:
        """In one line for a person."""
        key = f", with the key in {self.key}" if self.key else ""
        return f"{self.receives} go to {self.address}{key}"


def hub_endpoints() -> tuple[Endpoint, ...]:
    """The Hugging Face hub, or the mirror that HF_ENDPOINT names, if it is sent a token."""
    if not os.environ.get("HF_TOKEN"):
        return ()
    address = origin(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    return (Endpoint(address=address, receives="names of models and data sets", key="HF_TOKEN"),)


def origin(url: str) -> str:
    """Scheme, host and port of an address, which decide who receives what is sent there.

    >>> origin("https://Host.example/v1?x=1"), origin("http://localhost:8000/v1")
    ('https://host.example', 'http://localhost:8000')
    """
    place = urlsplit(url)
    return f"{place.scheme}://{place.netloc.rpartition('@')[2].lower()}"


def is_local(url: str) -> bool:
    """Whether an address is on this machine.

    >>> is_local("http://localhost:8000/v1"), is_local("http://127.0.0.2"), is_local("https://127.0.0.1.org")
    (True, True, False)
    """
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(url: str, setting: str) -> None:
    """Refuse an address to which nothing should be sent.

    Args:
        url: Where requests would go.
        setting: What a person who gives the address types for it.

    Raises:
        ConfigurationError: It is none, holds a password, or is neither encrypted nor on this machine.
    """
    try:
        place = urlsplit(url)
        has_password = "@" in place.netloc
        is_whole = place.scheme in ("http", "https") and bool(place.hostname) and place.port != 0
    except ValueError as error:
        raise ConfigurationError(f"{setting} must be an address; {error}") from None
    if has_password:
        bare = place._replace(netloc=f"[user and password]@{place.netloc.rpartition('@')[2]}").geturl()
        raise ConfigurationError(
            f"{setting} must be an address without a password; got {bare!r}. Give a key in a variable"
        )
    if not is_whole:
        raise ConfigurationError(
            f"{setting} must be an http or https address with a host, such as https://host/v1; got {url!r}"
        )
    if place.scheme == "http" and not is_local(url):
        raise ConfigurationError(
            f"{setting} must be https, or on this machine: what is sent by http can be read on the way; got "
            f"{url!r}. A server without https can be reached by a tunnel: ssh -N -L "
            f"{place.port or 80}:localhost:{place.port or 80} {place.hostname}"
        )


def endpoints_of(settings: object) -> list[Endpoint]:
    """Where work with these settings sends something: what each of them says, however deep it is."""
    if isinstance(settings, Mapping):
        return endpoints_of([*settings.values()])
    if isinstance(settings, list | tuple):
        return [*dict.fromkeys(endpoint for inner in settings for endpoint in endpoints_of(inner))]
    if not isinstance(settings, Schema):
        return []
    own: tuple[Endpoint, ...] = getattr(settings, "endpoints", ())
    return [*own, *endpoints_of([getattr(settings, name) for name in type(settings).model_fields])]


def addresses_in(settings: object) -> list[str]:
    """The addresses that settings name, however deep they are.

    >>> addresses_in({"judge": {"model": {"base_url": "https://a/v1"}}, "data": {"path": "b"}})
    ['https://a/v1']
    """
    if isinstance(settings, list | tuple):
        return [address for inner in settings for address in addresses_in(inner)]
    if not isinstance(settings, dict):
        return []
    named = settings.get("base_url")
    own = [named] if isinstance(named, str) else []
    return own + [address for inner in settings.values() for address in addresses_in(inner)]


def check_confirmed(endpoints: Collection[Endpoint], confirmed: Collection[str], store: Store) -> None:
    """See that somebody has agreed to every endpoint that a setting names.

    Whoever wrote an experiment file decides in it where questions go, and with which key.

    Args:
        endpoints: Where something would be sent.
        confirmed: Addresses that the person who begins this has agreed to, just now.
        store: Where earlier consent is kept.

    Raises:
        ConfigurationError: Nobody has agreed to one.
    """
    known, now = _confirmed(store), {origin(url) for url in confirmed}
    for endpoint in endpoints:
        is_known = (endpoint.address, endpoint.key) in known or endpoint.address in now
        if endpoint.setting and not is_known:
            raise ConfigurationError(
                f"{endpoint.setting} must be an endpoint that somebody has confirmed here: {endpoint}. If "
                f"that is what you want, say so once: {FLAG} {endpoint.address}"
            )


def remember_confirmed(endpoints: Collection[Endpoint], store: Store) -> None:
    """Keep the consent to endpoints that settings name; nobody is asked for it again with this store."""
    known = _confirmed(store)
    now = known.union((endpoint.address, endpoint.key) for endpoint in endpoints if endpoint.setting)
    if now == known:
        return
    place = store.root / CONFIRMED
    draft = place.with_name(f".{CONFIRMED}.{uuid4().hex}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(sorted(now), file, indent=1)
    draft.replace(place)


def _confirmed(store: Store) -> set[tuple[str, str]]:
    """Address and key of each endpoint that was confirmed; a list that cannot be read holds none."""
    try:
        content = (store.root / CONFIRMED).read_bytes()
        return TypeAdapter(set[tuple[str, str]]).validate_json(content)
    except (OSError, ValidationError):
        return set()
