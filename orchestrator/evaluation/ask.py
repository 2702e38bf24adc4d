"""Greedy replies to the prompts of a split, from a model folder or a server, in the file that `star-r1 score` reads.

A line of the file is `{"id": ..., "reply": ..., "num_tokens": ...}`, in the order of arrival; the number is left out
where nobody counted. Always: a reply is on disk as soon as it came, no prompt is asked twice, and the replies of two
policies, data sets or settings never stand in one file: `<file>.asked.json` beside it says whose they are. A policy in
a folder is known by its files, since a run that goes on writes its next one into the same folder.
"""

import asyncio
import base64
import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import xxhash
from openai import APIError, AsyncOpenAI
from openai.types.chat import ChatCompletion

from orchestrator.config import ConfigError
from orchestrator.loop.stop import cancelled_by_sigterm
from records.samples import Prompt
from rollout.actor import RolloutWorker
from rollout.config import RolloutConfig
from rollout.engine import on_cpu

logger = logging.getLogger(__name__)

ENGINE_PROMPTS = 64
ENDPOINT_PROMPTS = 16
# Room for a prompt beside the answer. To a Qwen2.5-VL, two pictures of 640x480 are about 800 tokens.
PROMPT_TOKENS = 2048
CPU_KV_CACHE_MIB = 256
POLICY_FILES = (".safetensors", ".bin", ".pt", ".json", ".jinja", ".model", "merges.txt", "vocab.txt")
"""How the names of the files end that make a policy: weights, config, tokenizer, processor."""
PICTURE_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What came back for one prompt. *num_tokens* is None if the server did not say."""

    text: str
    num_tokens: int | None


Ask = Callable[[Prompt], Awaitable[Reply]]
Progress = Callable[[int, int], None]
"""Called with the number of prompts answered and their total, also for those that an earlier call has answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Who is asked, and what: replies of one file agree in all that is `told_apart`. Build it with `describe`."""

    model: str  # a folder, or a name that the endpoint knows
    endpoint: str | None
    policy: str | None  # XXH3 of the folder's files; None of an endpoint, which must be believed
    data: str
    split: str
    max_answer_tokens: int

    @property
    def told_apart(self) -> dict[str, Any]:
        """By what two are told apart: a folder by what is in it, wherever it lies."""
        return {key: value for key, value in asdict(self).items() if key != "model" or self.policy is None}


def describe(model: str, endpoint: str | None, data: str, split: str, max_answer_tokens: int) -> Asked:
    """*data* is the identity of the data set. Raises ConfigError if there is no such model.

    Reads a model folder through, which takes as long as its disk does.
    """
    policy = None
    if endpoint is None:
        if not (Path(model) / "config.json").exists():
            raise ConfigError(f"--model {model}: has no config.json; give a model folder, or also an --endpoint")
        model = str(Path(model).resolve())
        try:
            policy = policy_digest(Path(model))
        except OSError as error:
            raise ConfigError(
                f"--model {error.filename}: cannot be read ({error.strerror}); mend the folder"
            ) from error
    return Asked(
        model=model,
        endpoint=endpoint,
        policy=policy,
        data=data,
        split=split,
        max_answer_tokens=max_answer_tokens,
    )


def policy_digest(folder: Path) -> str:
    """Of the files that make the policy, by name. They are read in pieces: weights may be larger than the memory."""
    digest = xxhash.xxh3_64()
    for path in sorted(folder.iterdir()):
        if path.name.endswith(POLICY_FILES) and path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, xxhash.xxh3_64)
            digest.update(f"{path.name} {content.hexdigest()}\n".encode())
    return digest.hexdigest()


def default_replies(asked: Asked, data: Path) -> Path:
    """A file of its own for each `Asked`, named after the run directory whose `model/` it is, or after the model."""
    folder = Path(asked.model)
    name = folder.parent.name if asked.policy and folder.name == "model" else folder.name
    digest = xxhash.xxh3_64_hexdigest(json.dumps(asked.told_apart).encode())[:8]
    return Path("output") / "eval" / f"{name}-{data.resolve().name}-{asked.split}-{digest}.jsonl"


async def ask_model(asked: Asked, prompts: Sequence[Prompt], out: Path, progress: Progress) -> None:
    """Ask all of *prompts* and leave the replies in *out*; a later call with the same arguments goes on.

    Raises ConfigError for what a user can mend, alone or in an ExceptionGroup.
    """
    claim(out, asked)
    if len(resume(out, {prompt.id for prompt in prompts})) == len(prompts):
        progress(len(prompts), len(prompts))  # and no engine is started
        return
    concurrency = ENGINE_PROMPTS if asked.endpoint is None else ENDPOINT_PROMPTS
    async with open_asker(asked) as ask:
        await ask_all(prompts, ask, out, concurrency=concurrency, progress=progress)


def open_asker(asked: Asked) -> AbstractAsyncContextManager[Ask]:
    if asked.endpoint is None:
        return engine_asker(asked.model, asked.max_answer_tokens)
    return endpoint_asker(asked.endpoint, asked.model, asked.max_answer_tokens)


def claim(out: Path, asked: Asked) -> None:
    """Write beside *out* whose replies it holds. Raises ConfigError if it holds replies of another `Asked`."""
    beside = out.with_name(out.name + ".asked.json")
    try:
        if out.is_dir():
            raise ConfigError(f"{out}: is a folder; name another --replies file")
        if out.exists():
            _check_same(out, beside, asked)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(asdict(asked), indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; name another --replies file") from error


def _check_same(out: Path, beside: Path, asked: Asked) -> None:
    remedy = "name another --replies file, or remove this one"
    if not beside.exists():
        raise ConfigError(f"{out}: holds replies, and no {beside.name} says whose they are; {remedy}")
    try:
        found = dict(json.loads(beside.read_text()))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{out}: holds replies, and {beside.name} is damaged ({error}); {remedy}") from error
    now = asked.told_apart
    changed = [key for key in now if found.get(key) != now[key]]
    if changed == ["policy"]:
        before = found.get("policy") or "not noted"
        raise ConfigError(
            f"{out}: holds replies of another policy than {asked.model} has now (digest of its files: {before} then, "
            f"{asked.policy} now); {remedy}"
        )
    if changed:
        said = ", ".join(f"{key} = {found.get(key)!r}, not {now[key]!r}" for key in changed)
        raise ConfigError(f"{out}: holds replies for {said}; {remedy}")


def resume(out: Path, known: Collection[str]) -> set[str]:
    """The ids answered in *out*. A last line that a kill has torn is cut off.

    Raises ConfigError for a line that is no reply, or that answers a prompt which is not *known*.
    """
    if not out.exists():
        return set()
    content = out.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        logger.warning("%s ended in the middle of a line, which is asked again", out)
        os.truncate(out, end)
    answered = set()
    for number, line in enumerate(content[:end].splitlines(), start=1):
        try:
            prompt_id = json.loads(line)["id"]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{out}:{number}: {line[:80]!r} is not a reply; remove the line") from error
        if prompt_id not in known:
            raise ConfigError(
                f"{out}:{number}: answers {prompt_id!r}, which is not in the data; name another --replies file"
            )
        answered.add(prompt_id)
    return answered


async def ask_all(prompts: Sequence[Prompt], ask: Ask, out: Path, *, concurrency: int, progress: Progress) -> None:
    """Append to *out* the reply to each of *prompts* that has none there, *concurrency* at once.

    The first failure cancels the prompts in flight and is raised in an ExceptionGroup; what came before is on disk.
    Raises ConfigError for a file that cannot be gone on with, see `resume`.
    """
    ids = [prompt.id for prompt in prompts]
    answered = resume(out, set(ids))
    done = len(answered)
    waiting = (index for index, prompt_id in enumerate(ids) if prompt_id not in answered)
    progress(done, len(ids))
    with _appending(out) as file:

        async def ask_one_after_another() -> None:
            nonlocal done
            for index in waiting:  # shared by all: each takes the next
                prompt = prompts[index]
                file.write(_to_line(prompt, await ask(prompt)))
                file.flush()
                done += 1
                progress(done, len(ids))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(ask_one_after_another())


@asynccontextmanager
async def engine_asker(model: str, max_answer_tokens: int) -> AsyncIterator[Ask]:
    """The model in a folder, in vLLM's engine on this machine, for as long as the context is open.

    Starting blocks for seconds to minutes. Raises ConfigError if the model cannot write so long an answer.
    """
    # vLLM would write some forty lines about its start; what goes wrong comes as an exception.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    worker = RolloutWorker(_engine_config(model, max_answer_tokens), model, "eval")

    async def ask(prompt: Prompt) -> Reply:
        try:
            sample = await worker.answer(prompt)
        except ValueError as error:  # the prompt cannot be asked, and it says which and why
            raise ConfigError(str(error)) from error
        return Reply(text=sample.text, num_tokens=len(sample.trace.token_ids))

    with cancelled_by_sigterm():
        try:
            await worker.ready()
            yield ask
        finally:
            await worker.shutdown()


@asynccontextmanager
async def endpoint_asker(url: str, model: str, max_answer_tokens: int) -> AsyncIterator[Ask]:
    """*model* behind an OpenAI-compatible chat API, for example at `http://127.0.0.1:8000/v1`.

    The key is that of OPENAI_API_KEY, if set. Time-outs and retries are the client library's.
    """
    async with AsyncOpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY") or "none") as client:

        async def ask(prompt: Prompt) -> Reply:
            try:
                completion = await client.chat.completions.create(
                    model=model, messages=to_chat(prompt), temperature=0.0, max_tokens=max_answer_tokens
                )
            except APIError as error:
                cause = f"{error} {error.__cause__ or ''}".strip()
                raise _not_answered(prompt, url, cause) from error
            return _to_reply(prompt, url, completion)

        yield ask


def to_chat(prompt: Prompt) -> list[Any]:
    """The messages of *prompt* as a chat API takes them: its pictures, in order, where the placeholders stand."""
    pictures = iter([_data_url(prompt, number, encoded) for number, encoded in enumerate(prompt.pictures, 1)])
    chat = [
        {
            "role": message["role"],
            "content": [
                {"type": "image_url", "image_url": {"url": next(pictures)}} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in prompt.messages
    ]
    assert next(pictures, None) is None, prompt.id
    return chat


def _data_url(prompt: Prompt, number: int, encoded: bytes) -> str:
    for magic, kind in PICTURE_TYPES.items():
        if encoded.startswith(magic):
            return f"data:{kind};base64,{base64.b64encode(encoded).decode()}"
    raise ConfigError(
        f"prompt {prompt.id}: its picture {number} begins with {encoded[:8]!r} and is neither PNG nor JPEG; convert it"
    )


def _to_reply(prompt: Prompt, url: str, completion: ChatCompletion) -> Reply:
    """Raises ConfigError if there is no text, or if anything but the model or the length limit ended it."""
    if not isinstance(completion, ChatCompletion) or not completion.choices:  # the library lets it pass
        raise _not_answered(prompt, url, f"it sent {str(completion)[:200]!r}, which is no chat completion")
    choice = completion.choices[0]
    if choice.finish_reason not in ("stop", "length"):
        raise _not_answered(prompt, url, f"the reply ended with {choice.finish_reason!r}")
    if choice.message.content is None:
        raise _not_answered(prompt, url, "the reply has no text (a server must not take the reasoning out of it)")
    usage = completion.usage
    return Reply(text=choice.message.content, num_tokens=None if usage is None else usage.completion_tokens)


def _not_answered(prompt: Prompt, url: str, cause: str) -> ConfigError:
    return ConfigError(
        f"prompt {prompt.id} was not answered by {url}: {cause}; check --endpoint, --model and the server, then give "
        "the same command again: it goes on where it stopped"
    )


def _engine_config(model: str, max_answer_tokens: int) -> RolloutConfig:
    """Exact arithmetic on a CPU, bfloat16 on a GPU. Not yet run on a GPU."""
    from transformers import AutoConfig

    try:
        positions = AutoConfig.from_pretrained(model).get_text_config().max_position_embeddings
    except Exception as error:  # transformers raises nearly anything for what it cannot read
        cause = str(error).partition("\n")[0]
        raise ConfigError(
            f"--model {model}: its config.json cannot be used ({cause}); mend the model folder"
        ) from error
    if max_answer_tokens >= positions:
        raise ConfigError(
            f"--max-answer-tokens {max_answer_tokens}: {model} has room for {positions}, prompt included; lower it"
        )
    lengths = {
        "max_answer_tokens": max_answer_tokens,
        "max_model_len": min(positions, max_answer_tokens + PROMPT_TOKENS),
    }
    on_device = {"dtype": "float32", "kv_cache_mib": CPU_KV_CACHE_MIB} if on_cpu() else {"dtype": "bfloat16"}
    return RolloutConfig.model_validate(lengths | on_device)


def _to_line(prompt: Prompt, reply: Reply) -> str:
    counted = {} if reply.num_tokens is None else {"num_tokens": reply.num_tokens}
    return json.dumps({"id": prompt.id, "reply": reply.text, **counted}) + "\n"


def _appending(out: Path) -> TextIO:
    return out.open("a", encoding="utf-8")
