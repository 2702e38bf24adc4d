"""Fakes of the three roles, for tests of timing and failure. They wait for events, never for the clock. And of a chat
server, which answers as the test says."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Self

import numpy as np
from aiohttp import web

from orchestrator.run.evaluate import Evaluation, HeldOutReply
from records.samples import (
    PolicyVersion,
    Prompt,
    Sample,
    SampleGroup,
    Score,
    ScoredGroup,
    StepReport,
    Trace,
    VersionSpan,
)
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.prompt import build_messages
from tasks.tvr.language.scene import Scene, SceneObject, Transformation
from tasks.tvr.task import TASK

SCENE: Scene = (
    SceneObject(color="red", shape="cube", size="large", material="metal", position=(-1.0, 0.0)),
    SceneObject(color="blue", shape="sphere", size="small", material="glass", position=(1.0, 0.0)),
)
GOLD = Gold(setting="basic", scene=SCENE, transformations=(Transformation(index=0, attribute="color", value="blue"),))
TRUE_REPLY = "<think> 0 turned blue </think> <answer> 0.color.blue </answer>"


def make_prompt(name: str = "0/basic/center") -> Prompt:
    return Prompt(id=name, images=(b"initial", b"final"), messages=build_messages(SCENE), gold=GOLD)


def make_group(prompt: Prompt, version: int, num_samples: int = 2, reply: str = TRUE_REPLY) -> SampleGroup:
    trace = Trace(
        prompt_token_ids=np.arange(3, dtype=np.int32),
        token_ids=np.arange(2, dtype=np.int32),
        logprobs=np.full(2, -0.5, dtype=np.float32),
        versions=(VersionSpan(version=PolicyVersion(version), start=0, end=2),),
        finish="stop",
    )
    samples = tuple(Sample(id=f"{prompt.id}#{index}", trace=trace, text=reply) for index in range(num_samples))
    return SampleGroup(prompt=prompt, samples=samples)


def make_score(reward: float, reply: str = TRUE_REPLY, gold: Gold = GOLD) -> Score:
    return Score(total=reward, parts={"all": reward}, judgement=TASK.judge(reply, gold, {}))


def make_scored(group: SampleGroup, rewards: Sequence[float]) -> ScoredGroup:
    assert len(group.samples) == len(rewards)
    return ScoredGroup(group=group, scores=tuple(map(make_score, rewards)))


def make_held_out_reply(prompt: Prompt, text: str, num_tokens: int = 9) -> HeldOutReply:
    return HeldOutReply(id=prompt.id, text=text, num_tokens=num_tokens, score=make_score(1.0, text, prompt.gold))


def make_evaluation(
    report: Mapping[str, Any], oldest: int, newest: int | None = None, replies: tuple[HeldOutReply, ...] = ()
) -> Evaluation:
    """With a *report* as told, whatever the *replies*; of one version unless a *newest* is given."""
    return Evaluation(
        report=report,
        replies=replies,
        oldest=PolicyVersion(oldest),
        newest=PolicyVersion(oldest if newest is None else newest),
    )


class FakeScorer:
    """Pays 1 to every sample, as a reward worker with no rule would."""

    async def score(self, gold: Gold, sample: Sample) -> Score:
        return make_score(1.0, sample.text, gold)


class FakePrompts:
    """An endless order of numbered prompts, of which some are *given* already."""

    def __init__(self, given: int = 0) -> None:
        self.given = given

    def next(self) -> Prompt:
        self.given += 1
        return make_prompt(f"{self.given - 1}/basic/center")


class FakeRollouts:
    """Stamps groups with the version served when sampling began, and pays 1 to the first sample, 0 to the others.

    Every group passes *gate*, every version *publish_gate*.
    """

    def __init__(self, events: list[str], version: int = 0) -> None:
        self.events = events
        self.version = PolicyVersion(version)
        self.seeds: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.publish_gate = asyncio.Event()
        self.publish_gate.set()

    async def sample(self, prompt: Prompt, *, seed: int) -> ScoredGroup:
        began_under = self.version
        self.events.append(f"sample {prompt.id.split('/')[0]} under {began_under}")
        self.seeds.append(seed)
        await self.gate.wait()
        group = make_group(prompt, began_under)
        return make_scored(group, [1.0] + [0.0] * (len(group.samples) - 1))

    async def answer(self, prompt: Prompt) -> Sample:
        return make_group(prompt, self.version, num_samples=1).samples[0]

    async def receive(self, version: PolicyVersion) -> float:
        self.events.append(f"publish {version} begins")
        await self.publish_gate.wait()
        self.version = version
        self.events.append(f"publish {version} done")
        return 0.0


class FakePublisher:
    """Straight to the fake rollouts."""

    def __init__(self, rollouts: FakeRollouts) -> None:
        self.rollouts = rollouts

    async def send(self, version: PolicyVersion) -> Coroutine[Any, Any, float]:
        self.rollouts.events.append(f"send {version}")
        return self.rollouts.receive(version)


class FakeLearner:
    """Counts versions, from *version* on; every step passes the gate."""

    def __init__(self, events: list[str], version: int = 0) -> None:
        self.events = events
        self.version = version
        self.gate = asyncio.Event()
        self.gate.set()
        self.seen: list[tuple[int, tuple[int, ...]]] = []

    async def step(self, groups: tuple[ScoredGroup, ...]) -> StepReport:
        self.events.append(f"learn {self.version} begins")
        await self.gate.wait()
        self.seen.append((self.version, tuple(group.group.oldest_version for group in groups)))
        self.version += 1
        return StepReport(version=PolicyVersion(self.version), loss=0.0, grad_norm=1.0, tokens=4)

    async def checkpoint(self) -> None:
        self.events.append(f"checkpoint {self.version}")


class FakeJournal:
    """Keeps what it is told in *events*, if they are given."""

    def __init__(self, events: list[str] | None = None) -> None:
        self.events = events

    def admitted(self, ticket: int, prompt_id: str) -> None:
        self.write("admitted", ticket=ticket, prompt=prompt_id)

    async def keep(self, step: PolicyVersion, groups: Sequence[ScoredGroup]) -> None:
        self.write("keep", step=step)

    def trained(self, step: PolicyVersion) -> None:
        self.write("trained", step=step)

    def write(self, event: str, **facts: Any) -> None:
        if self.events is not None:
            self.events.append(" ".join([event, *map(str, facts.values())]))


class FakeChatServer:
    """An OpenAI-compatible server on the loopback: gives *answers*, a status and a body each, in turn; keeps what came.

    Clients are told to try again after a millisecond.
    """

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self._answers = iter(answers)
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _complete(self, request: web.Request) -> web.Response:
        self.requests.append(await request.json())
        self.keys.append(request.headers["Authorization"])
        status, body = next(self._answers)
        if isinstance(body, str):
            return web.Response(status=status, text=body)
        return web.json_response(body, status=status, headers={"retry-after-ms": "1"})


def chat_completion(text: str | None, finish: str = "stop", num_tokens: int | None = 7) -> tuple[int, dict[str, Any]]:
    """A good answer of a chat server; without *num_tokens*, one that does not count."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    body: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    if num_tokens is not None:
        body["usage"] = {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": 1 + num_tokens}
    return 200, body
