"""Where an endpoint may listen."""

from __future__ import annotations

import pytest

from rtr_ray.errors import ConfigError
from rtr_ray.keys import check_binding

LOOPBACK = [
    "127.0.0.1",
    "127.1.2.3",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "::1",
    "[::1]",
    "::ffff:127.0.0.1",
]
ELSEWHERE = [
    "0.0.0.0",
    "",
    "::",
    "192.168.1.7",
    "10.0.0.1",
    "example",
    "127.0.0.1.example",
    "::ffff:10.0.0.1",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_without_keys_this_machine_is_listened_to_with_a_warning(host):
    warning = check_binding(host, has_keys=False, insecure=False)
    assert warning is not None
    assert "No API key is configured" in warning


@pytest.mark.parametrize("host", ELSEWHERE)
def test_without_keys_other_machines_are_not_listened_to(host):
    with pytest.raises(ConfigError, match=r"may not listen on .* insist with --insecure"):
        check_binding(host, has_keys=False, insecure=False)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_who_insists_gets_a_warning(host):
    warning = check_binding(host, has_keys=False, insecure=True)
    assert warning is not None
    assert "--insecure" in warning


@pytest.mark.parametrize("host", LOOPBACK + ELSEWHERE)
@pytest.mark.parametrize("insecure", [False, True])
def test_with_keys_every_address_is_fine(host, insecure):
    assert check_binding(host, has_keys=True, insecure=insecure) is None
