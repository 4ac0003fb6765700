"""Two real llama.cpp servers behind the proxy, openai-python in front: every answer whole, every token counted.

Called by 10-real-engines.sh with the model's file. The truth is what the servers said to the clients: `usage` where
it was asked for, llama.cpp's own `timings` where it was not.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai

from rig import Failed, Rig, check, equal, fetch, fetch_json, run, say, until

# The SDK raises its transport's own errors when a stream breaks; which library that is depends on the SDK's version.
try:
    import httpx2 as transport
except ImportError:
    import httpx as transport

MODEL = "smollm2:135m"
KINDS = ("whole", "with usage", "without usage")
TOPICS = ("rivers", "bridges", "bread", "winter", "horses", "music", "the sea", "gardens")


class Told(Exception):
    """The stream ended with an error that the proxy worded."""


def client_of(proxy):
    # No retries of its own: what the proxy promises must hold without them.
    return openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0, timeout=120, http_client=openai.DefaultHttpxClient(trust_env=False))


def ask(client, kind, number, max_tokens):
    """One finished answer: (input, output) tokens as the server said them."""
    topic = TOPICS[number % len(TOPICS)]
    request = dict(
        model=MODEL,
        messages=[{"role": "user", "content": f"Request {number}. Write about {topic}."}],
        max_tokens=max_tokens,
        temperature=0,
    )
    if kind == "whole":
        answer = client.chat.completions.create(**request)
        finished(answer.choices[0].finish_reason, answer.choices[0].message.content, kind)
        return answer.usage.prompt_tokens, answer.usage.completion_tokens
    options = {"stream_options": {"include_usage": True}} if kind == "with usage" else {}
    text, reason, usage, timings = [], None, None, None
    try:
        for chunk in client.chat.completions.create(stream=True, **options, **request):
            usage = chunk.usage or usage
            timings = (chunk.model_extra or {}).get("timings") or timings
            for choice in chunk.choices:
                text.append(choice.delta.content or "")
                reason = choice.finish_reason or reason
    except openai.APIError as error:
        raise Told(str(error)) from error
    finished(reason, "".join(text), kind)
    if kind == "with usage":
        check(usage, "a stream with include_usage ended without usage")
        return usage.prompt_tokens, usage.completion_tokens
    check(usage is None, "usage in a stream that did not ask for it")
    check(timings, "llama.cpp sent no timings")
    return timings["prompt_n"] + timings["cache_n"], timings["predicted_n"]


def finished(reason, text, kind):
    check(reason in ("stop", "length"), f"an answer ({kind}) ended without a finish_reason: {reason!r}")
    check(text, f"an answer ({kind}) has no text")


class Truth:
    """What the servers said to the end, in sum."""

    def __init__(self):
        self.input = self.output = self.answers = 0

    def add(self, tokens):
        self.input += tokens[0]
        self.output += tokens[1]
        self.answers += 1


def eight_at_a_time(client, count, max_tokens, first=0):
    """Runs requests of every kind; what each gave, or the exception it ended with."""

    def one(number):
        try:
            return ask(client, KINDS[number % len(KINDS)], number, max_tokens)
        except (Told, openai.APIError, transport.HTTPError) as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(first, first + count)))


def ledger_is(proxy, truth, what):
    """Counters, the ledger, and one model's statistics say the same as the servers did."""
    proxy.settle()
    sums = [tuple(sum(column) for column in zip(*rows.values())) for rows in (proxy.tokens(), proxy.exact())]
    equal(sums, [(truth.input, truth.output)] * 2, f"{what}: tokens by counters and by ledger")
    equal(proxy.outcomes().get("completed"), truth.answers, f"{what}: answers completed")
    stats = fetch_json(f"{proxy.url}/api/stats?model={MODEL}", {})
    counted = proxy.counted().values()
    for at, key in enumerate(("input_tokens", "output_tokens")):
        equal(stats[key], sum(row[at] for row in counted), f"{what}: {key} of /api/stats and /api/token_counts")


def busy(nodes):
    """Requests that the real servers work on now."""
    processing = 0
    for node in nodes:
        text = fetch(f"{node}/metrics")[1].decode()
        processing += sum(int(float(line.split()[1])) for line in text.splitlines() if line.startswith("llamacpp:requests_processing "))
    return processing


def raw_bytes(proxy, node):
    """The bytes of a stream: the proxy adds and takes nothing, and it ends with [DONE]."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "stream": True, "temperature": 0, "seed": 1}
    shapes, tokens = [], None
    for base in (node, proxy.url):
        status, text = fetch(f"{base}/v1/chat/completions", body)
        equal(status, 200, f"a stream from {base}")
        events = [event for event in text.decode().split("\n\n") if event]
        equal(events[-1], "data: [DONE]", f"the last event from {base}")
        read = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
        timings = read[-1]["timings"]
        tokens = timings["prompt_n"] + timings["cache_n"], timings["predicted_n"]
        shapes.append([(sorted(event), event["choices"]) for event in read])
    equal(shapes[1], shapes[0], "events through the proxy, times and ids aside")
    return tokens


def leaves_in_mid_stream(client, proxy, nodes):
    """A client that goes away: the server stops at once, and the stream is counted as left, by estimate."""
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Tell a very long story."}], max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    for _, _chunk in zip(range(5), stream):
        pass
    stream.close()
    until("the server of a client that left stops", lambda: busy(nodes) == 0, 30)
    proxy.settle()
    equal(proxy.outcomes().get("client_gone"), 1, "streams that their client left")
    estimated = sum(row[1] for row in proxy.tokens("herdgate_tokens_estimated_total").values())
    check(0 < estimated < 900, f"the estimate of a stream left early: {estimated}")


def connections_end_as_the_server_says(client, proxy, truth):
    """llama.cpp closes a connection at its 100th answer and after 5 s of idleness: nobody notices."""
    for number in range(110):
        truth.add(ask(client, "whole", number % 2, 1))
    until("idle connections are given up in time", lambda: proxy.sum("herdgate_node_connections_idle") == 0, 30)
    truth.add(ask(client, "whole", 0, 1))
    equal(proxy.sum("herdgate_retries_total"), 0, "retries")


def one_server_dies(client, proxy, servers, truth):
    """SIGKILL in mid-run: each request ends whole elsewhere, or is told, or is refused; none hangs, none is lost."""
    with ThreadPoolExecutor(1) as pool:
        run_of_requests = pool.submit(eight_at_a_time, client, 24, 60, 1000)
        until("both servers work on several", lambda: all(busy([url]) >= 2 for _, url in servers))
        servers[0][0].kill()
        results = run_of_requests.result(300)
    told = refused = 0
    for result in results:
        if isinstance(result, Told):
            told += 1
        elif isinstance(result, openai.APIStatusError) and result.status_code == 503:
            refused += 1
        elif isinstance(result, BaseException):
            raise Failed(f"neither whole nor told: {type(result).__name__}: {result}")
        else:
            truth.add(result)
    proxy.settle()
    outcomes = proxy.outcomes()
    say(f"  after SIGKILL of one server: {len(results) - told - refused} whole, {told} told in their stream, {refused} refused; {outcomes}")
    equal(outcomes.get("node_error_after", 0), told, "streams lost with their server")
    equal(outcomes.get("node_error_before", 0) + outcomes.get("rejected", 0), refused, "requests refused")
    check(told + proxy.sum("herdgate_retries_total") > 0, "the death of a server touched nobody: nothing was shown")


def main():
    model = Path(sys.argv[1])
    check(model.is_file(), f"no model at {model}")
    with Rig() as rig:
        nodes = [rig.start(f"llama{n}", [sys.executable, Path(__file__).with_name("llama_node.py"), model]) for n in (0, 1)]
        servers = [(node, node.wait_for(r"listening (http://\S+)", bound_s=120).group(1)) for node in nodes]
        urls = [url for _, url in servers]
        proxy = rig.serve([f"{url}/v1" for url in urls])
        until("the model is listed", lambda: MODEL in fetch(f"{proxy.url}/v1/models")[1].decode())
        client = client_of(proxy)
        truth = Truth()

        truth.add(raw_bytes(proxy, urls[0]))
        results = eight_at_a_time(client, 24, 24)
        for result in results:
            if isinstance(result, BaseException):
                raise Failed(f"{type(result).__name__}: {result}")
            truth.add(result)
        served = {node for node, _ in proxy.tokens()}
        equal(len(served), 2, "servers that took part")
        ledger_is(proxy, truth, "eight at a time")
        say(f"  eight at a time: {truth.answers} answers, {truth.input} + {truth.output} tokens, all in the ledger")

        leaves_in_mid_stream(client, proxy, urls)
        ledger_is(proxy, truth, "a client that left")
        connections_end_as_the_server_says(client, proxy, truth)
        ledger_is(proxy, truth, "kept connections")
        one_server_dies(client, proxy, servers, truth)
        ledger_is(proxy, truth, "a server killed")

        truth.add(ask(client, "with usage", 1, 8))
        ledger_is(proxy, truth, "the server that is left")
        before = proxy.counted()
        equal(proxy.process.signal(), 0, "exit code after SIGTERM")
        again = rig.serve([f"{url}/v1" for url in urls], name="proxy-again")
        equal(again.counted(), before, "the ledger after a restart")
        say(f"  {truth.answers} answers whole, {truth.input} + {truth.output} tokens: ledger and servers agree")


run(main)
