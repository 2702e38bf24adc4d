"""The language model's head, as the learner calls it: log-probs of given tokens."""

import torch
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 1 << 26
"""Logits in memory at a time, 256 MB of float32; of a large vocabulary and all answer tokens they would be many GB."""
LOGITS_AT_ONCE_ON_GPU = 1 << 29
"""2 GB: each part adds a gradient of the whole weight, which takes time and, in bfloat16, rounds."""


def logits_at_once(device: torch.device) -> int:
    return LOGITS_AT_ONCE_ON_GPU if device.type == "cuda" else LOGITS_AT_ONCE


class AnswerHead(torch.nn.Linear):
    """Takes the place of a model's `lm_head`, whose weight it keeps under its name; without targets it does the same.

    The parts are in here, behind one call: under ZeRO-3 every call of a module is a collective, and ranks have
    different numbers of tokens, so that they would wait for each other for ever.
    """

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")
        if head.bias is not None:
            raise ValueError("the model's lm_head has a bias, which the learner's does not")
        self.weight = head.weight

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor | None = None, temperature: float = 1.0
    ) -> torch.Tensor:
        """`[M]` float32, nats, of *targets* `[M]` behind *hidden* `[M, D]`, at *temperature*."""
        if targets is None:
            return super().forward(hidden)
        at_once = max(1, logits_at_once(hidden.device) // len(self.weight))
        if len(hidden) <= at_once:
            return self._predict(hidden, targets, temperature)
        parts = zip(hidden.split(at_once), targets.split(at_once), strict=True)
        return torch.cat([checkpoint(self._predict, *part, temperature, use_reentrant=False) for part in parts])

    def _predict(self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
        logits = torch.nn.functional.linear(hidden, self.weight).float() / temperature
        return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
