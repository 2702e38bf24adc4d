"""Whether torch reaches a GPU here. torch is loaded when it is asked, and not before."""


def missing_cuda() -> str | None:
    """What stands between torch and a GPU in this process, with the remedy; None if CUDA answers."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built without CUDA; make setup DEVICE=gpu installs the one that is, in an "
            "environment of its own"
        )
    try:
        torch.cuda.init()
    except Exception as error:  # of several types, and each a sentence of torch's
        return (
            f"torch {torch.__version__} finds none ({error}); nvidia-smi must list a GPU and a driver for CUDA "
            f"{torch.version.cuda} or later, and CUDA_VISIBLE_DEVICES must not hide it"
        )
    return None
