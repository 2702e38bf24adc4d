"""STAR-SFT, the supervised baseline: the right answer to a prompt, as a sample to imitate.

It has the form that the policy must answer in, with nothing to think: the paper's baseline learns from answers alone.
"""

import numpy as np

from learner.encode import PairEncoder
from tvr.answer import format_answer
from tvr.records import PolicyVersion, Prompt, Sample, SampleGroup, Trace, VersionSpan


def make_example(prompt: Prompt, encoder: PairEncoder) -> SampleGroup:
    """A group of one sample, the right answer. Nobody sampled it: its log-probs are 0 and mean nothing.

    Raises ValueError if the tokeniser has no words for it.
    """
    text = format_answer(prompt.gold.changes, reasoning="")
    tokenizer = encoder.processor.tokenizer
    token_ids = np.array([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id], np.int32)
    if tokenizer.unk_token_id in token_ids:
        raise ValueError(f"the tokeniser has no words for all of {text!r}, the answer to prompt {prompt.id}")
    trace = Trace(
        prompt_token_ids=encoder.tokenise(prompt),
        token_ids=token_ids,
        logprobs=np.zeros(len(token_ids), np.float32),
        versions=(VersionSpan(version=PolicyVersion(0), start=0, end=len(token_ids)),),
        finish="stop",
    )
    return SampleGroup(prompt=prompt, samples=(Sample(id=f"{prompt.id}#gold", trace=trace, text=text),))
