"""Asking for greedy replies: the file that grows and is gone on with, a chat server, and vLLM's real engine."""

import asyncio
import base64
import io
import json
import os
import re
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.config import ConfigError
from orchestrator.evaluation.ask import (
    Asked,
    Reply,
    ask_all,
    ask_model,
    claim,
    default_replies,
    describe,
    endpoint_asker,
    engine_asker,
)
from orchestrator.loop.stop import cancelled_by_sigterm
from records.samples import Prompt
from rollout.shm import PREFIX, shm_folder
from tasks.tvr.data.config import DataConfig
from tasks.tvr.data.dataset import load
from tasks.tvr.data.rendered import make
from tasks.tvr.language.answer import Answer, parse
from tests.fakes import FakeChatServer, chat_completion, make_prompt

TINY = "deploy/models/tiny"
PROMPTS = [make_prompt(f"{number}/basic/center") for number in range(4)]
ASKED = Asked(
    model="m", endpoint="http://127.0.0.1:1/v1", policy=None, data="recipe 1", split="test", max_answer_tokens=64
)
HERE = replace(ASKED, model="/runs/a/model", endpoint=None, policy="12ab")


class FakeModel:
    """Replies with the id of the prompt, or raises what *failures* has for it; notes who asked."""

    def __init__(self, failures: dict[str, Exception] | None = None) -> None:
        self.asked: list[str] = []
        self.failures = failures or {}

    async def ask(self, prompt: Prompt) -> Reply:
        self.asked.append(prompt.id)
        if prompt.id in self.failures:
            raise self.failures[prompt.id]
        return Reply(text=f"reply to {prompt.id}", num_tokens=5)


def nothing(done: int, total: int) -> None:
    pass


def ids(out: Path) -> list[str]:
    return [json.loads(line)["id"] for line in out.read_text().splitlines()]


def line(prompt_id: str) -> str:
    return json.dumps({"id": prompt_id, "reply": "kept", "num_tokens": 3}) + "\n"


# The file


async def test_a_line_is_the_id_the_reply_and_its_length(tmp_path):
    out = tmp_path / "replies.jsonl"
    await ask_all(PROMPTS[:1], FakeModel().ask, out, concurrency=1, progress=nothing)
    assert json.loads(out.read_text()) == {
        "id": "0/basic/center",
        "reply": "reply to 0/basic/center",
        "num_tokens": 5,
    }


async def test_a_length_that_nobody_counted_is_left_out(tmp_path):
    out = tmp_path / "replies.jsonl"

    async def ask(prompt: Prompt) -> Reply:
        return Reply(text="two\nlines\u2028and a third", num_tokens=None)

    await ask_all(PROMPTS[:1], ask, out, concurrency=1, progress=nothing)
    (only,) = out.read_text().splitlines()
    assert json.loads(only) == {"id": "0/basic/center", "reply": "two\nlines\u2028and a third"}


async def test_a_reply_is_on_disk_before_the_next_prompt_is_asked(tmp_path):
    out = tmp_path / "replies.jsonl"
    on_disk = []

    async def ask(prompt: Prompt) -> Reply:
        on_disk.append(len(ids(out)))
        return Reply(text="", num_tokens=1)

    await ask_all(PROMPTS, ask, out, concurrency=1, progress=nothing)
    assert on_disk == [0, 1, 2, 3]


async def test_after_a_kill_only_the_torn_and_the_missing_replies_are_asked_for(tmp_path):
    out = tmp_path / "replies.jsonl"
    out.write_text(line(PROMPTS[2].id) + line(PROMPTS[0].id)[:-9])
    model, told = FakeModel(), []
    await ask_all(PROMPTS, model.ask, out, concurrency=2, progress=lambda done, total: told.append((done, total)))
    assert model.asked == [PROMPTS[0].id, PROMPTS[1].id, PROMPTS[3].id]
    assert sorted(ids(out)) == [prompt.id for prompt in PROMPTS]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    await ask_all(PROMPTS, model.ask, out, concurrency=2, progress=nothing)
    assert len(model.asked) == 3  # nothing was left to ask


async def test_no_more_prompts_than_the_limit_are_in_flight(tmp_path):
    out = tmp_path / "replies.jsonl"
    gates = {prompt.id: asyncio.Event() for prompt in PROMPTS}
    started: asyncio.Queue[str] = asyncio.Queue()

    async def ask(prompt: Prompt) -> Reply:
        started.put_nowait(prompt.id)
        await gates[prompt.id].wait()
        return Reply(text="", num_tokens=1)

    asking = asyncio.create_task(ask_all(PROMPTS, ask, out, concurrency=2, progress=nothing))
    assert [await started.get(), await started.get()] == ["0/basic/center", "1/basic/center"]
    for _ in range(20):  # time enough for a third to start, if it could
        await asyncio.sleep(0)
    assert started.empty()
    gates["1/basic/center"].set()
    assert await started.get() == "2/basic/center"
    assert started.empty()
    for gate in gates.values():
        gate.set()
    await asking
    assert ids(out)[0] == "1/basic/center"  # the order of arrival


async def test_a_failure_is_raised_and_what_was_answered_before_is_kept(tmp_path):
    out = tmp_path / "replies.jsonl"
    failing = FakeModel({PROMPTS[2].id: RuntimeError("the engine died")})
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="the engine died")):
        await ask_all(PROMPTS, failing.ask, out, concurrency=1, progress=nothing)
    assert ids(out) == [PROMPTS[0].id, PROMPTS[1].id]
    model = FakeModel()
    await ask_all(PROMPTS, model.ask, out, concurrency=1, progress=nothing)
    assert model.asked == [PROMPTS[2].id, PROMPTS[3].id]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (line("0/basic/center") + line("99/view/left"), r":2: answers '99/view/left', which is not in the data"),
        ("{}\n", ":1: .* is not a reply"),
        ("[1]\n", ":1: .* is not a reply"),
        ("no JSON\n" + line("0/basic/center"), ":1: b'no JSON' is not a reply"),
    ],
)
async def test_a_file_that_cannot_be_gone_on_with_is_refused_and_left_as_it_is(tmp_path, content, message):
    out, model = tmp_path / "replies.jsonl", FakeModel()
    out.write_text(content)
    with pytest.raises(ConfigError, match=message):
        await ask_all(PROMPTS, model.ask, out, concurrency=2, progress=nothing)
    assert not model.asked
    assert out.read_text() == content


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", "other"), ("endpoint", None), ("data", "recipe 2"), ("split", "train"), ("max_answer_tokens", 65)],
)
def test_replies_of_other_arguments_are_not_gone_on_with(tmp_path, key, value):
    out = tmp_path / "new folder" / "replies.jsonl"
    claim(out, ASKED)
    out.write_text(line("0/basic/center"))
    claim(out, ASKED)
    with pytest.raises(ConfigError, match=f"holds replies for {key} = .*, not {value!r}; name another --replies"):
        claim(out, replace(ASKED, **{key: value}))
    out.unlink()
    claim(out, replace(ASKED, **{key: value}))  # nothing is left that could be mixed


def answered(out: Path, asked: Asked) -> None:
    claim(out, asked)
    out.write_text(line("0/basic/center"))


def test_replies_of_an_earlier_policy_in_the_same_folder_are_not_gone_on_with(tmp_path):
    out = tmp_path / "replies.jsonl"
    answered(out, HERE)
    with pytest.raises(ConfigError, match=r"another policy than /runs/a/model has now .*: 12ab then, 34cd now\); name"):
        claim(out, replace(HERE, policy="34cd"))
    claim(out, replace(HERE, model="/moved/model"))  # the same policy, in another place


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {key: value for key, value in asdict(HERE).items() if key != "policy"},
            r"\(digest of its files: not noted then",
        ),
        ("{", r"replies\.jsonl\.asked\.json is damaged"),
        ("7", r"replies\.jsonl\.asked\.json is damaged"),
    ],
    ids=["of an earlier version", "no JSON", "no object"],
)
def test_replies_that_do_not_say_of_which_weights_are_not_gone_on_with(tmp_path, asked, says):
    out = tmp_path / "replies.jsonl"
    answered(out, HERE)
    (tmp_path / "replies.jsonl.asked.json").write_text(asked if isinstance(asked, str) else json.dumps(asked))
    with pytest.raises(ConfigError, match=f"{says}.*; name another --replies file, or remove this one"):
        claim(out, HERE)


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder with the names of one; nothing here loads it."""
    folder = tmp_path / "output" / "try" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    for part in (1, 2):
        (folder / f"model-{part}.safetensors").write_bytes(bytes([part]) * 3_000_000)
    return folder


def describe_folder(model: Path) -> Asked:
    return describe(str(model), None, "recipe 1", "test", 64)


def test_a_policy_is_known_by_its_files_wherever_they_lie(model, tmp_path):
    first = describe_folder(model)
    assert describe_folder(model) == first
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "copy" / "curve.png").write_bytes(b"beside the policy")
    assert describe_folder(tmp_path / "copy").policy == first.policy
    weights = model / "model-2.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    os.utime(weights, (0, 0))
    weights.write_bytes(changed)
    assert describe_folder(model).policy != first.policy


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "model.bin"])
def test_another_tokenizer_or_template_is_another_policy(name, model):
    before = describe_folder(model).policy
    (model / name).write_text('{"other": 1}')
    assert describe_folder(model).policy != before


def test_the_same_content_under_another_name_is_another_policy(model):
    before = describe_folder(model).policy
    (model / "tokenizer.json").rename(model / "tokenizer_config.json")
    assert describe_folder(model).policy != before


def test_the_policy_of_an_endpoint_is_not_known(tmp_path):
    assert describe("org/name", "http://127.0.0.1:1/v1", "recipe 1", "test", 64).policy is None


def test_no_two_runs_share_a_replies_file_by_default(model, tmp_path):
    other = shutil.copytree(model, tmp_path / "elsewhere" / "try" / "model")
    (other / "model-1.safetensors").write_bytes(b"other weights")
    data = Path("data/tiny")
    names = [default_replies(describe_folder(folder), data).name for folder in (model, other)]
    assert len(set(names)) == 2
    assert all(re.fullmatch(r"try-tiny-test-[0-9a-f]{8}\.jsonl", name) for name in names)
    assert default_replies(describe_folder(model), data).name == names[0]
    served = [default_replies(replace(ASKED, endpoint=url), data) for url in ("http://a/v1", "http://b/v1")]
    assert served[0] != served[1]
    assert served[0].name.startswith("m-tiny-test-")
    assert default_replies(replace(HERE, model="/models/tiny"), data).name.startswith("tiny-tiny-test-")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("folder", "folder: is a folder"),
        ("file/replies.jsonl", "file: File exists"),
        ("/proc/replies.jsonl", r"/proc/replies\.jsonl\.asked\.json: No such file or directory"),
    ],
)
def test_a_place_where_no_replies_can_lie_is_said_at_once(tmp_path, name, cause):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"{cause}; name another --replies file"):
        claim(tmp_path / name, HERE)


def test_replies_of_unknown_origin_are_not_gone_on_with(tmp_path):
    out = tmp_path / "replies.jsonl"
    out.write_text(line("0/basic/center"))
    with pytest.raises(ConfigError, match=r"no replies\.jsonl\.asked\.json says whose"):
        claim(out, ASKED)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        describe(str(tmp_path), None, "recipe 1", "test", 64)


# A chat server


def encoded(kind: str, color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, format=kind)
    return buffer.getvalue()


def seen_prompt(name: str = "0/view/left") -> Prompt:
    return replace(make_prompt(name), images=(encoded("PNG", "red"), encoded("JPEG", "blue")))


async def test_a_server_gets_both_pictures_in_order_in_place_of_the_placeholders():
    prompt = seen_prompt()
    async with (
        FakeChatServer(chat_completion("a reply")) as server,
        endpoint_asker(server.url, "some model", 99) as ask,
    ):
        assert await ask(prompt) == Reply(text="a reply", num_tokens=7)
    (request,) = server.requests
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("some model", 0, 99)
    system, user = request["messages"]
    assert system == prompt.messages[0]
    assert [part["type"] for part in user["content"]] == ["text", "image_url", "text", "image_url", "text"]
    assert user["content"][::2] == prompt.messages[1]["content"][::2]
    urls = [part["image_url"]["url"].partition(",") for part in user["content"][1::2]]
    assert [head for head, _, _ in urls] == ["data:image/png;base64", "data:image/jpeg;base64"]
    assert [base64.b64decode(data) for _, _, data in urls] == list(prompt.images)


async def test_the_key_is_taken_from_the_environment(monkeypatch):
    async with FakeChatServer(chat_completion(""), chat_completion("")) as server:
        for key in ("", "secret"):
            monkeypatch.setenv("OPENAI_API_KEY", key)
            async with endpoint_asker(server.url, "m", 9) as ask:
                await ask(seen_prompt())
    assert server.keys == ["Bearer none", "Bearer secret"]


async def test_a_reply_cut_off_by_length_is_a_reply_and_need_not_be_counted():
    async with (
        FakeChatServer(chat_completion("<think> it", finish="length", num_tokens=None)) as server,
        endpoint_asker(server.url, "m", 9) as ask,
    ):
        assert await ask(seen_prompt()) == Reply(text="<think> it", num_tokens=None)


async def test_a_server_that_recovers_is_asked_again():
    trouble = (500, {"error": {"message": "busy"}})
    async with (
        FakeChatServer(trouble, trouble, chat_completion("at last")) as server,
        endpoint_asker(server.url, "m", 9) as ask,
    ):
        assert (await ask(seen_prompt())).text == "at last"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, {"error": {"message": "no picture, please"}}), "no picture, please"),
        ((200, "<html>a front page</html>"), "which is no chat completion"),
        ((200, {"id": "1", "choices": []}), "which is no chat completion"),
        (chat_completion("half", finish="content_filter"), "ended with 'content_filter'"),
        (chat_completion(None), "has no text"),
    ],
)
async def test_what_is_no_reply_is_an_error_that_names_the_prompt(answer, message):
    async with FakeChatServer(answer) as server, endpoint_asker(server.url, "m", 9) as ask:
        with pytest.raises(ConfigError, match=f"prompt 0/view/left was not answered by {server.url}.*{message}"):
            await ask(seen_prompt())
    assert len(server.requests) == 1


async def test_a_server_that_is_not_there_is_an_error_that_names_the_prompt():
    async with FakeChatServer() as server:
        pass
    async with endpoint_asker(server.url, "m", 9) as ask:
        with pytest.raises(
            ConfigError, match=r"prompt 0/view/left was not answered .*Connection error.*check --endpoint"
        ):
            await ask(seen_prompt())


async def test_a_picture_of_unknown_type_is_an_error_that_names_the_prompt():
    async with endpoint_asker("http://127.0.0.1:1/v1", "m", 9) as ask:
        with pytest.raises(ConfigError, match="prompt 0/basic/center: its picture 1 begins with b'initial'"):
            await ask(make_prompt())


async def test_a_split_is_asked_through_an_endpoint_and_not_again_when_all_is_answered(tmp_path):
    prompts = [seen_prompt(f"{number}/view/left") for number in range(3)]
    out = tmp_path / "replies.jsonl"
    async with FakeChatServer(*(chat_completion(f"reply {number}") for number in range(3))) as server:
        asked = replace(ASKED, endpoint=server.url)
        for _ in range(2):
            await ask_model(asked, prompts, out, nothing)
    assert len(server.requests) == 3
    assert sorted(ids(out)) == [prompt.id for prompt in prompts]
    assert json.loads((tmp_path / "replies.jsonl.asked.json").read_text())["max_answer_tokens"] == 64


# vLLM's engine


async def test_sigterm_cancels_so_that_the_engine_can_be_stopped():
    async def asking() -> None:
        with cancelled_by_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    task = asyncio.create_task(asking())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def left_in_shared_memory() -> set[str]:
    return {name for name in os.listdir(shm_folder()) if name.startswith(f"{PREFIX}eval_")}


@pytest.mark.slow
async def test_a_model_folder_answers_the_same_twice_and_leaves_nothing_in_shared_memory(tmp_path):
    make(DataConfig(path=tmp_path / "data", settings=("basic",), train=1, test=4, size=(112, 80), spp=8, seed=1))
    prompts = load(tmp_path / "data", "test")
    before = left_in_shared_memory()
    async with engine_asker(TINY, 128) as ask:
        for name in ("first", "again"):
            await ask_all(prompts, ask, tmp_path / name, concurrency=4, progress=nothing)
        assert left_in_shared_memory() - before
    assert left_in_shared_memory() == before
    first, again = (
        {row["id"]: row for row in map(json.loads, (tmp_path / name).read_text().splitlines())}
        for name in ("first", "again")
    )
    assert first == again
    assert set(first) == {prompt.id for prompt in prompts}
    assert all(isinstance(parse(row["reply"]), Answer) and 5 < row["num_tokens"] < 128 for row in first.values())


@pytest.mark.parametrize("config", ["", "no JSON", "[]", "{}", '{"model_type": "none_such"}', '{"model_type": 3}'])
async def test_a_model_whose_config_cannot_be_used_is_refused(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=r"its config\.json cannot be used .*; mend the model folder") as raised:
        async with engine_asker(str(tmp_path), 64):
            pass
    assert "\n" not in str(raised.value)


async def test_an_answer_longer_than_the_model_can_write_is_refused():
    with pytest.raises(ConfigError, match=f"--max-answer-tokens 4096: {TINY} has room for 4096, prompt included"):
        async with engine_asker(TINY, 4096):
            pass
