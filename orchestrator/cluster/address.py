"""Whether there is a cluster where RAY_ADDRESS says."""

import socket

from orchestrator.config import ConfigError

ADDRESS_TIMEOUT_S = 10.0


def check_address(address: str) -> None:
    """Ray itself would log for minutes before it gives up. What names no host and port is left to it."""
    host, colon, port = address.rpartition(":")
    remedy = "start a cluster there, or unset RAY_ADDRESS to use a local one"
    if address == "auto" or "://" in address:
        return
    if not (colon and host and port.isdigit()):
        raise ConfigError(f"RAY_ADDRESS={address}: is not HOST:PORT, for example 127.0.0.1:6379; {remedy}")
    try:
        socket.create_connection((host, int(port)), ADDRESS_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"RAY_ADDRESS={address}: no Ray answers there ({error}); {remedy}") from error
