"""On which addresses an endpoint may listen."""

from __future__ import annotations

from ipaddress import ip_address

from rtr_ray.errors import ConfigError


def check_binding(host: str, has_keys: bool, insecure: bool) -> str | None:
    """Whether an endpoint may listen on `host`; gives the warning that is due, None where none is.

    Whoever reaches an endpoint without keys spends its owner's money: so it listens to this machine
    alone, unless somebody insists. A name other than localhost is not resolved: it counts as another
    machine's.

    Raises:
        ConfigError: If there is no key, the host is not this machine's loopback, and nobody insisted.

    Example:
        >>> check_binding("0.0.0.0", has_keys=True, insecure=False)
        >>> check_binding("127.0.0.1", has_keys=False, insecure=False)
        'No API key is configured: whoever is on this machine may spend without a bound.'
    """
    if has_keys:
        return None
    if is_loopback(host):
        return "No API key is configured: whoever is on this machine may spend without a bound."
    if insecure:
        return f"No API key is configured (--insecure): whoever reaches {host} may spend without a bound."
    raise ConfigError(
        f"No API key is configured, so the endpoint may not listen on '{host}', where others reach it. Make "
        "one with rtr-ray keys create, listen on 127.0.0.1, or insist with --insecure."
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it; an empty host means every address."""
    bare = host.strip().removeprefix("[").removesuffix("]").partition("%")[0].lower()
    if bare.rstrip(".") == "localhost":
        return True
    try:
        address = ip_address(bare)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
