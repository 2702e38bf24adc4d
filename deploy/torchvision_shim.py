"""Lets a torchvision built for CUDA torch be imported beside torch's CPU build: defines the operators it stumbles over.

`torchvision_cpu.py` copies this file into site-packages beside a `.pth` that imports it, so that it works in every
process of the environment, also in those that other programs start. It runs when the interpreter starts, so it imports
nothing until torchvision itself is imported.
"""

import os
import sys
from typing import Any

MISSING = ("nms", "qnms")
SWITCH = "STAR_R1_TORCHVISION_SHIM"  # "0" turns the shim off, so that the set-up can look at torchvision as it is


class TorchvisionFinder:
    """Finds torchvision as usual, but has the missing operators defined just before its code runs."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torchvision":
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            # Not here, but when the code runs: `find_spec` is how many libraries only ask whether torchvision is there.
            exec_module = spec.loader.exec_module

            def define_and_exec(module: Any) -> None:
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    define_operators()
                exec_module(module)

            spec.loader.exec_module = define_and_exec  # type: ignore[method-assign]
        return spec


def define_operators() -> None:
    """Declare `torchvision::nms` and `qnms`, without kernels: enough for import, and a call fails by name."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in MISSING:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)  # the operators go when the library is collected


_kept: list[Any] = []

if __name__ != "__main__" and os.environ.get(SWITCH) != "0":
    sys.meta_path.insert(0, TorchvisionFinder())
