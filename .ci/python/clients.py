"""The clients people use, through the proxy to a simulated herd of three: ollama-python, ollama-js, openai in Python and
JavaScript, anthropic, LangChain.

Called by 20-clients.sh with the folder of the JavaScript packages. The truth is the nodes' own account of what they sent
to the end.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import anthropic
import ollama
import openai
from langchain_ollama import ChatOllama, OllamaEmbeddings
from pydantic import BaseModel

from rig import Rig, check, equal, fetch, fetch_json, run, say, until

CHAT = "llama3.2:3b"
EMBED = "nomic-embed-text"
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


class Joke(BaseModel):
    """What structured output is asked for."""

    setup: str
    punchline: str


class Driver:
    """Counts what the clients did, to be held against the proxy's outcomes."""

    def __init__(self):
        self.shown = self.left = self.unknown = self.preloads = self.failed = 0

    def tokens(self, count):
        """Options for an answer of exactly so many tokens."""
        return {"num_predict": count}


def whole(answer, tokens):
    """A finished native answer of exactly so many tokens."""
    check(answer.done and answer.done_reason in ("stop", "length"), f"not done: {answer!r}")
    equal(answer.eval_count, tokens, "eval_count")
    check(answer.prompt_eval_count > 0, f"no prompt_eval_count: {answer!r}")


def streamed(parts, tokens, text_of):
    """A finished native stream: text in several parts, counts in the last alone."""
    check(len(parts) > 2, f"a stream of {len(parts)} parts is no stream")
    check(all(not part.done for part in parts[:-1]), "done before the end")
    check("".join(text_of(part) or "" for part in parts), "a stream without text")
    whole(parts[-1], tokens)


def listings(tags, ps, show):
    equal({model.model for model in tags.models}, {CHAT, "qwen3:8b", f"{EMBED}:latest"}, "list")
    check(all(model.digest and model.size and model.modified_at for model in tags.models), f"list lacks facts: {tags!r}")
    check(CHAT in {model.model for model in ps.models}, f"{CHAT} was used and is not in ps: {ps!r}")
    check(show.details.family and "completion" in show.capabilities, f"show lacks facts: {show!r}")


def refused(error, driver):
    driver.unknown += 1
    equal(error.status_code, 404, "status of an unknown model")
    check("not found" in error.error, f"words for an unknown model: {error.error!r}")


def ollama_sync(url, driver):
    client = ollama.Client(host=url, trust_env=False)
    whole(client.chat(model=CHAT, messages=MESSAGES, options=driver.tokens(12)), 12)
    streamed(list(client.chat(model=CHAT, messages=MESSAGES, options=driver.tokens(20), stream=True)), 20, lambda p: p.message.content)
    called = client.chat(model=CHAT, messages=MESSAGES, tools=[WEATHER]).message
    equal([call.function.name for call in called.tool_calls], ["weather"], "tools called")
    parts = list(client.chat(model=CHAT, messages=MESSAGES, tools=[WEATHER], stream=True))
    check(any(part.message.tool_calls for part in parts), f"a stream without its call: {parts!r}")
    # The result goes back, and the model speaks again.
    turn = [*MESSAGES, called, {"role": "tool", "tool_name": "weather", "content": "rain"}]
    check(client.chat(model=CHAT, messages=turn, tools=[WEATHER]).message.content, "no answer to a tool's result")
    check(client.chat(model="qwen3:8b", messages=MESSAGES, think=True, options=driver.tokens(16)).message.thinking, "no thoughts")
    for call, argument in ((client.chat, {"messages": MESSAGES}), (client.generate, {"prompt": "A joke"})):
        answer = call(model=CHAT, format=Joke.model_json_schema(), **argument)
        Joke.model_validate_json(answer.message.content if call == client.chat else answer.response)
    try:
        client.chat(model=CHAT, messages=MESSAGES, think=True)
        check(False, "a model that cannot think did")
    except ollama.ResponseError as error:
        driver.failed += 1
        equal((error.status_code, "does not support thinking" in error.error), (400, True), "a node's own error")
    whole(client.generate(model=CHAT, prompt="Once", options=driver.tokens(9)), 9)
    streamed(list(client.generate(model=CHAT, prompt="Once", options=driver.tokens(18), stream=True)), 18, lambda p: p.response)
    vectors = client.embed(model=EMBED, input=["one", "two", "three"])
    equal(len(vectors.embeddings), 3, "vectors of three texts")
    check(vectors.prompt_eval_count > 0, "embed without prompt_eval_count")
    driver.shown += 1
    until(f"{CHAT} is listed as loaded", lambda: CHAT in {m.model for m in client.ps().models})
    listings(client.list(), client.ps(), client.show(CHAT))
    for call in (client.chat, client.generate):
        argument = {"messages": MESSAGES} if call == client.chat else {"prompt": "x"}
        for stream in (False, True):
            try:
                answer = call(model="no-such-model", stream=stream, **argument)
                list(answer)
                check(False, f"an unknown model answered: {answer!r}")
            except ollama.ResponseError as error:
                refused(error, driver)
    try:
        client.embed(model="no-such-model", input="x")
        check(False, "an unknown embedding model answered")
    except ollama.ResponseError as error:
        refused(error, driver)
    stream = client.chat(model=CHAT, messages=MESSAGES, options=driver.tokens(4000), stream=True)
    equal(sum(1 for _ in zip(range(3), stream)), 3, "parts before leaving")
    stream.close()
    driver.left += 1


async def ollama_async(url, driver):
    client = ollama.AsyncClient(host=url, trust_env=False)

    async def chat(tokens):
        whole(await client.chat(model=CHAT, messages=MESSAGES, options=driver.tokens(tokens)), tokens)

    async def stream(tokens):
        parts = [p async for p in await client.chat(model=CHAT, messages=MESSAGES, options=driver.tokens(tokens), stream=True)]
        streamed(parts, tokens, lambda p: p.message.content)

    async def generate(tokens):
        parts = [p async for p in await client.generate(model=CHAT, prompt="Once", options=driver.tokens(tokens), stream=True)]
        streamed(parts, tokens, lambda p: p.response)

    async def embed():
        equal(len((await client.embed(model=EMBED, input=["one", "two"])).embeddings), 2, "vectors of two texts")

    every = [call(10 + n) for n in range(8) for call in (chat, stream, generate)] + [embed() for _ in range(8)]
    await asyncio.gather(*every)
    whole(await client.generate(model=CHAT, prompt="Once", options=driver.tokens(5)), 5)
    driver.shown += 1
    listings(await client.list(), await client.ps(), await client.show(CHAT))
    try:
        await client.chat(model="no-such-model", messages=MESSAGES)
        check(False, "an unknown model answered")
    except ollama.ResponseError as error:
        refused(error, driver)
    parts = await client.generate(model=CHAT, prompt="Long", options=driver.tokens(4000), stream=True)
    async for _ in parts:
        break
    await parts.aclose()
    driver.left += 1

    # A task cancelled while it waits for an answer that is not streamed.
    task = asyncio.create_task(client.chat(model=CHAT, messages=MESSAGES, options=driver.tokens(4000)))
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    driver.left += 1


def openai_chat(url, driver):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=openai.DefaultHttpxClient(trust_env=False))
    request = dict(model=CHAT, messages=MESSAGES)
    answer = client.chat.completions.create(max_tokens=11, **request)
    equal(answer.usage.completion_tokens, 11, "completion_tokens")
    for options in ({}, {"stream_options": {"include_usage": True}}):
        chunks = list(client.chat.completions.create(max_tokens=21, stream=True, **options, **request))
        said = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
        equal(said, [21] if options else [], f"usage in a stream with {options}")
        check(all(chunk.choices for chunk in chunks if not chunk.usage), "an event without choices and usage")
        check("".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices), "a stream without text")
        check(any(choice.finish_reason for chunk in chunks for choice in chunk.choices), "a stream without finish_reason")
    called = client.chat.completions.create(tools=[WEATHER], **request).choices[0]
    equal((called.finish_reason, called.message.tool_calls[0].function.name), ("tool_calls", "weather"), "tools called")
    chunks = list(client.chat.completions.create(tools=[WEATHER], stream=True, **request))
    check(any(choice.delta.tool_calls for chunk in chunks for choice in chunk.choices), "a stream without its call")
    equal(type(client.chat.completions.parse(response_format=Joke, **request).choices[0].message.parsed), Joke, "parsed")
    with client.chat.completions.stream(response_format=Joke, **request) as stream:
        equal(type(stream.get_final_completion().choices[0].message.parsed), Joke, "parsed from a stream")
    try:
        client.chat.completions.create(model=CHAT, messages=[])
        check(False, "no messages were answered")
    except openai.BadRequestError:
        driver.failed += 1
    equal(client.completions.create(model=CHAT, prompt="Once", max_tokens=7).usage.completion_tokens, 7, "completion_tokens")
    text = list(client.completions.create(model=CHAT, prompt="Once", max_tokens=8, stream=True, stream_options={"include_usage": True}))
    check(text[-1].usage, "completions: no usage at the end")
    equal(len(client.embeddings.create(model=EMBED, input=["one", "two"]).data), 2, "vectors of two texts")
    equal(client.responses.create(model=CHAT, input="Hello", max_output_tokens=13).usage.output_tokens, 13, "output_tokens")
    events = list(client.responses.create(model=CHAT, input="Hello", max_output_tokens=14, stream=True))
    check(events[-1].type in ("response.completed", "response.incomplete"), f"the last event: {events[-1].type}")
    equal({model.id for model in client.models.list()}, {CHAT, "qwen3:8b", f"{EMBED}:latest"}, "/v1/models")
    equal(client.models.retrieve(CHAT).id, CHAT, "/v1/models/:id")
    try:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
        check(False, "an unknown model answered")
    except openai.NotFoundError as error:
        driver.unknown += 1
        check("not found" in str(error), f"words for an unknown model: {error}")
    stream = client.chat.completions.create(max_tokens=4000, stream=True, **request)
    equal(sum(1 for _ in zip(range(3), stream)), 3, "chunks before leaving")
    stream.close()
    driver.left += 1


def anthropic_chat(url, driver):
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, http_client=anthropic.DefaultHttpxClient(trust_env=False))
    request = dict(model=CHAT, messages=MESSAGES)
    answer = client.messages.create(max_tokens=15, **request)
    equal(answer.usage.output_tokens, 15, "output_tokens")
    with client.messages.stream(max_tokens=22, **request) as stream:
        text = "".join(stream.text_stream)
        end = stream.get_final_message()
    check(text and end.stop_reason, f"a stream without text or stop_reason: {end!r}")
    equal(end.usage.output_tokens, 22, "output_tokens of a stream")
    function = WEATHER["function"]
    tool = {"name": "weather", "description": function["description"], "input_schema": function["parameters"]}
    called = client.messages.create(max_tokens=200, tools=[tool], **request)
    equal((called.stop_reason, called.content[-1].type, called.content[-1].name), ("tool_use", "tool_use", "weather"), "tools called")
    with client.messages.stream(max_tokens=200, tools=[tool], **request) as stream:
        check(stream.get_final_message().content[-1].input["place"], "a streamed call without its argument")
    try:
        client.messages.create(max_tokens=0, **request)
        check(False, "no tokens were answered")
    except anthropic.BadRequestError:
        driver.failed += 1
    try:
        client.messages.create(model="no-such-model", max_tokens=5, messages=MESSAGES)
        check(False, "an unknown model answered")
    except anthropic.NotFoundError as error:
        driver.unknown += 1
        check("not found" in str(error), f"words for an unknown model: {error}")
    with client.messages.stream(max_tokens=4000, **request) as stream:
        equal(sum(1 for _ in zip(range(3), stream.text_stream)), 3, "parts before leaving")
    driver.left += 1


def langchain(url, driver):
    model = ChatOllama(model=CHAT, base_url=url, num_predict=17, validate_model_on_init=True, client_kwargs={"trust_env": False})
    equal(model.invoke("Hello").usage_metadata["output_tokens"], 17, "output_tokens")
    parts = list(model.stream("Hello"))
    check(len(parts) > 2 and "".join(part.content for part in parts), "a stream of LangChain without parts")
    embeddings = OllamaEmbeddings(model=EMBED, base_url=url, client_kwargs={"trust_env": False})
    equal(len(embeddings.embed_documents(["one", "two"])), 2, "vectors of two texts")
    free = ChatOllama(model=CHAT, base_url=url, client_kwargs={"trust_env": False})
    equal([call["name"] for call in free.bind_tools([WEATHER]).invoke("Hello").tool_calls], ["weather"], "tools called")
    equal(type(free.with_structured_output(Joke).invoke("A joke")), Joke, "structured output")
    try:
        ChatOllama(model="no-such-model", base_url=url, client_kwargs={"trust_env": False}).invoke("Hello")
        check(False, "an unknown model answered")
    except ollama.ResponseError as error:
        refused(error, driver)
    stream = model.bind(options=driver.tokens(4000)).stream("Hello")
    equal(sum(1 for _ in zip(range(3), stream)), 3, "parts before leaving")
    stream.close()
    driver.left += 1


def javascript(package):
    """The same with a JavaScript client; it says itself what it did."""

    def body(url, driver):
        script = Path(__file__).parent.parent / "javascript" / "clients.mjs"
        done = subprocess.run(["node", script, url, sys.argv[1], package], capture_output=True, text=True, timeout=120)
        check(done.returncode == 0, f"{package} in JavaScript:\n{done.stdout}{done.stderr}")
        for name, count in json.loads(done.stdout.splitlines()[-1]).items():
            setattr(driver, name, getattr(driver, name) + count)

    return body


def agree(proxy, herd, driver):
    """Every answer is counted on both sides, and each node's tokens are the ledger's to the last one."""
    until("the nodes are at rest", lambda: herd.in_flight() == 0)
    proxy.settle()
    ledgers = dict(zip(herd.urls, herd.ledgers()))
    truth, done, gone, lost = {}, -driver.preloads, 0, 0
    for url, ledger in ledgers.items():
        lost += ledger["sockets_lost"]
        for model, account in ledger["models"].items():
            done += account["requests"].get("done", 0)
            gone += account["requests"].get("client_gone", 0)
            row = account["prompt_tokens"], account["output_tokens"]
            if any(row):
                truth[(url, model)] = row
    equal(proxy.exact(), truth, "tokens by node and model")
    equal(proxy.tokens(), truth, "tokens of the counters")
    wanted = {"completed": done + driver.shown + driver.failed, "client_gone": driver.left, "rejected": driver.unknown}
    equal(proxy.outcomes(), wanted, "requests by outcome")
    equal((gone, lost), (driver.left, 0), "requests that nodes saw leave, and sockets they lost")
    equal(proxy.sum("herdgate_handler_panics_total"), 0, "panics")
    tokens = [sum(column) for column in zip(*truth.values())]
    say(f"  {done} answers on {len(ledgers)} nodes, {tokens[0]} + {tokens[1]} tokens, {gone} left, {driver.unknown} refused: both sides agree")


def progress(parts):
    """A whole stream of progress: numbers only grow, one success, the last."""
    bars = {}
    for part in parts:
        if part.digest:
            before, now = bars.get(part.digest, (0, 0)), (part.total, part.completed or 0)
            check(before[0] <= now[0] and before[1] <= now[1] <= now[0], f"a bar went from {before} to {now}")
            bars[part.digest] = now
    said = [part.status for part in parts]
    equal((said[0], said[-1], said.count("success")), ("pulling manifest", "success", 1), "a pull's statuses")
    check(bars and all(total == completed for total, completed in bars.values()), f"bars that are not full: {bars}")


def on_disk(herd, name):
    """How many nodes have a model, by their own account."""
    return sum(name in {m["name"] for m in fetch_json(f"{url}/api/tags")["models"]} for url in herd.urls)


def administration(proxy, herd):
    """Pull, copy, create and delete reach every node, and the gate knows at once."""
    client = ollama.Client(host=proxy.url, trust_env=False)
    parts = list(client.pull("tiny:1b", stream=True))
    progress(parts)
    check(sum(1 for part in parts if part.digest) > 3, f"a pull without progress: {parts!r}")
    check("tiny:1b" in {model.model for model in client.list().models}, "pulled and not listed")
    equal(on_disk(herd, "tiny:1b"), 3, "nodes that have what was pulled")
    equal(client.pull("tiny:1b").status, "success", "a pull of what is there")
    equal(client.create(model="mine", from_="tiny:1b", system="Be brief.").status, "success", "create")
    equal(client.copy("mine", "yours").status, "success", "copy")
    equal([on_disk(herd, f"{name}:latest") for name in ("mine", "yours")], [3, 3], "nodes that have created and copied")
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"hello\n")
        file.flush()
        digest = client.create_blob(file.name)
    equal(client.create(model="made", files={"m.gguf": digest}).status, "success", "create from an upload")
    for name in ("mine", "yours", "made", "tiny:1b"):
        equal(client.delete(name).status, "success", f"delete {name}")
    equal(len(client.list().models), 3, "models after deletion")
    for call in (lambda: client.pull("no-such-model"), lambda: list(client.pull("no-such-model", stream=True))):
        try:
            call()
            check(False, "a model of no registry was pulled")
        except ollama.ResponseError as error:
            equal(error.error, "pull model manifest: file does not exist", "words for a model of no registry")
    try:
        client.delete("no-such-model")
        check(False, "an unknown model was deleted")
    except ollama.ResponseError as error:
        equal((error.status_code, error.error), (404, "model 'no-such-model' not found"), "deleting an unknown model")
    say("  ollama-python: pull, create, copy, delete, blobs reach three nodes")


def old_embeddings(proxy):
    """`/api/embeddings` says no counts: a vector all the same, and an estimate in the books, never nothing."""
    before = proxy.tokens("herdgate_tokens_estimated_total")
    client = ollama.Client(host=proxy.url, trust_env=False)
    check(len(client.embeddings(model=EMBED, prompt="one").embedding) > 0, "embeddings without a vector")
    proxy.settle()
    check(proxy.tokens("herdgate_tokens_estimated_total") != before, "an answer without counts was counted as nothing")


def main():
    with Rig() as rig:
        herd = rig.herd(
            "--nodes", "3", "--load-time", "50ms", "--prompt-time", "0s", "--token-time", "2ms",
            "--model", f"{CHAT}=completion+tools", "--model", "qwen3:8b=completion+tools+thinking", "--model", f"{EMBED}=embedding",
            "--registry", "tiny:1b", "--pull-time", "600ms",
        )
        # Polled often, so that what `ps` says is not older than a client's last request for long.
        proxy = rig.serve(herd.urls, {"HERDGATE_CFG_HEALTH__PS": "200ms"})
        until("all models are listed", lambda: fetch(f"{proxy.url}/api/tags")[1].count(b'"model":') == 3)
        driver = Driver()
        # Loaded everywhere beforehand, at the nodes themselves, so that all of them take part.
        for url in herd.urls:
            equal(fetch(f"{url}/api/generate", {"model": CHAT})[0], 200, f"loading {CHAT} at {url}")
            driver.preloads += 1
        until("the proxy knows", lambda: len(fetch_json(f"{proxy.url}/api/ps_details")["models"]) == 3)
        for name, body in (
            ("ollama-python", ollama_sync),
            ("ollama-python, async", lambda url, driver: asyncio.run(ollama_async(url, driver))),
            ("openai-python", openai_chat),
            ("anthropic-python", anthropic_chat),
            ("LangChain", langchain),
            ("ollama-js", javascript("ollama")),
            ("openai-js", javascript("openai")),
        ):
            body(proxy.url, driver)
            say(f"  {name}: as with one Ollama")
            agree(proxy, herd, driver)
        equal({node for node, _ in proxy.tokens()}, set(herd.urls), "nodes that took part")
        old_embeddings(proxy)
        administration(proxy, herd)
        equal(proxy.process.signal(), 0, "exit code after SIGTERM")


run(main)
