"""STAR-SFT, the supervised baseline: the right answer to a prompt, as a sample to imitate.

It has the form that the policy must answer in, with nothing to think: the paper's baseline learns from answers alone.
With the reasoning written out it is an upper line: who has that needs no reinforcement.
"""

import numpy as np

from learner.config import Imitation
from learner.encode import PairEncoder
from tvr.language.answer import format_answer
from tvr.language.reasoning import careful_reply
from tvr.language.scene import apply
from tvr.records import PolicyVersion, Prompt, Sample, SampleGroup, Trace, VersionSpan


def make_example(prompt: Prompt, encoder: PairEncoder, imitation: Imitation = "answer") -> SampleGroup:
    """A group of one sample, the right answer, with *imitation* "reasoning" behind a careful reasoning.

    Nobody sampled it: its log-probs are 0 and mean nothing. Raises ValueError if the tokeniser has no words for it.
    """
    gold = prompt.gold
    if imitation == "answer":
        text = format_answer(gold.changes, reasoning="")
    else:
        text = careful_reply(gold.scene, apply(gold.scene, gold.changes))
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
