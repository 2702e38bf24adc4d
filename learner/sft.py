"""Supervised fine-tuning: the right answer to a prompt, as a sample to imitate."""

import numpy as np

from learner.encode import PictureEncoder
from records.samples import PolicyVersion, Prompt, Sample, SampleGroup, Trace, VersionSpan


def make_example(prompt: Prompt, answer: str, encoder: PictureEncoder) -> SampleGroup:
    """A group of one sample, the right *answer* to *prompt*.

    Nobody sampled it: its log-probs are 0 and mean nothing. Raises ValueError if the tokeniser has no words for it.
    """
    tokenizer = encoder.processor.tokenizer
    token_ids = np.array([*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id], np.int32)
    if tokenizer.unk_token_id in token_ids:
        raise ValueError(f"the tokeniser has no words for all of {answer!r}, the answer to prompt {prompt.id}")
    trace = Trace(
        prompt_token_ids=encoder.tokenise(prompt),
        token_ids=token_ids,
        logprobs=np.zeros(len(token_ids), np.float32),
        versions=(VersionSpan(version=PolicyVersion(0), start=0, end=len(token_ids)),),
        finish="stop",
    )
    return SampleGroup(prompt=prompt, samples=(Sample(id=f"{prompt.id}#gold", trace=trace, text=answer),))
