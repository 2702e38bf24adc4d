"""What is said where torch finds no GPU. A machine with one, or with a driver that is too old, is played."""

import pytest
import torch

from learner.device import missing_cuda


def test_nothing_is_missing_where_cuda_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert missing_cuda() is None


def test_a_torch_without_cuda_is_to_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    missing = missing_cuda()
    assert missing is not None
    assert f"torch {torch.__version__} is built without CUDA; make setup DEVICE=gpu" in missing


@pytest.mark.parametrize("cause", ["Found no NVIDIA driver on your system.", "The NVIDIA driver is too old (12040)."])
def test_what_torch_says_of_the_driver_is_passed_on(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError(cause)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", refuse)
    missing = missing_cuda()
    assert missing is not None
    assert cause in missing
    assert "a driver for CUDA 13.0 or later" in missing
