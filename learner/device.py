"""Whether CUDA answers here."""


def missing_cuda() -> str | None:
    """What is missing, and the remedy; None if torch can compute on a GPU."""
    import torch

    if torch.cuda.is_available():
        return None
    return "cuda"
