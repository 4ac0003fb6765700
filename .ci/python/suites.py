"""Published test suites of client libraries, pointed at the proxy in front of a simulated herd of three.

Called by 20-clients.sh with a folder of unpacked source packages, one `NAME-VERSION` each. Two suites take a host:
langchain-ollama's integration tests (`OLLAMA_HOST`) and openai's tests of API resources (`TEST_API_BASE_URL`, as its own
script says). Those of ollama-python (tests/test_client.py) start a scripted server of their own (pytest_httpserver) for
each test; ollama-js has tests of helpers alone (test/utils.test.ts, no server), and neither npm package holds any.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as Tree
from pathlib import Path

from rig import Rig, check, equal, fetch_json, run, say, until

MODELS = {
    "llama3.1": "completion+tools+vision+embedding",
    "deepseek-r1:1.5b": "completion+thinking",
    "gpt-oss:20b": "completion+tools+thinking",
    "gpt-6-astra": "completion+tools+vision",
    "gpt-3.5-turbo-instruct": "completion+insert",
    "text-embedding-3-small": "embedding",
    "model": "completion",
}

LANGCHAIN_NOT = {
    "test_image_inputs": "fetches its picture from elsewhere",
    "test_tool_streaming": "wants the city that the question names: the simulated model understands nothing",
    "test_tool_astreaming": "the same",
    "test_agent_loop": "wants what the tool told it",
    "test_unicode_tool_call_integration": "wants the customer that the question names",
    "test_json_mode": "wants the keys that the question names, without a schema that says them",
    "test_stream_time": "measures",
}
"""Tests of LangChain's that ask for more than the wire."""

OPENAI_FILES = ["test_completions.py", "test_models.py", "chat/test_completions.py"]
OPENAI_ONLY = "(create or (Models and (list or retrieve))) and not Async and not all_params"
"""What Ollama has of that API; stored completions, fine-tuned models and the parameters it does not know are OpenAI's.

Its tests of embeddings fail against any server that honours the base64 they ask for: they expect a list, as from a mock.
"""


def pytest(name, folder, tests, chosen, at_least, env):
    """Runs tests of a suite; all that run pass, and enough of them run."""
    home = next((found for found in folder.glob(f"{name}-*") if found.is_dir()), None)
    check(home, f"no source of {name} in {folder}")
    report = folder / f"{name}.xml"
    args = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-o", "addopts=", "-k", chosen]
    done = subprocess.run(
        [*args, f"--junitxml={report}", *tests], cwd=home, env={**os.environ, **env}, capture_output=True, text=True, timeout=200
    )
    check(done.returncode == 0, f"{home.name}:\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
    cases = Tree.parse(report).getroot().iter("testcase")
    passed = sum(1 for case in cases if all(child.tag not in ("failure", "error", "skipped") for child in case))
    check(passed >= at_least, f"{home.name}: only {passed} tests ran")
    say(f"  {home.name}: {passed} of its own tests pass")


def agree(proxy, herd):
    """Each node's tokens are the ledger's, and no socket was lost."""
    until("the nodes are at rest", lambda: herd.in_flight() == 0)
    proxy.settle()
    truth = {}
    for url, ledger in zip(herd.urls, herd.ledgers()):
        equal(ledger["sockets_lost"], 0, f"sockets that {url} lost")
        for model, account in ledger["models"].items():
            row = account["prompt_tokens"], account["output_tokens"]
            if any(row):
                truth[(url, model)] = row
    equal(proxy.exact(), truth, "tokens by node and model")
    equal(proxy.sum("herdgate_handler_panics_total"), 0, "panics")


def main():
    folder = Path(sys.argv[1])
    with Rig() as rig:
        models = [part for name, can in MODELS.items() for part in ("--model", f"{name}={can}")]
        herd = rig.herd("--nodes", "3", "--load-time", "20ms", "--prompt-time", "0s", "--token-time", "500us", *models)
        proxy = rig.serve(herd.urls)
        until("all models are listed", lambda: len(fetch_json(f"{proxy.url}/api/tags")["models"]) == len(MODELS))
        chosen = " and ".join(f"not {name}" for name in LANGCHAIN_NOT)
        pytest("langchain_ollama", folder, ["tests/integration_tests"], chosen, 60, {"OLLAMA_HOST": proxy.url})
        agree(proxy, herd)
        # OpenAI's leave streams unread: what a node had said by then is the node's to know.
        tests = [f"tests/api_resources/{name}" for name in OPENAI_FILES]
        pytest("openai", folder, tests, OPENAI_ONLY, 25, {"TEST_API_BASE_URL": f"{proxy.url}/v1"})
        equal(sum(ledger["sockets_lost"] for ledger in herd.ledgers()), 0, "sockets lost")
        equal(proxy.sum("herdgate_handler_panics_total"), 0, "panics")


run(main)
