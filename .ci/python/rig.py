"""What the steps with real clients share: processes that end with the step, the proxy under test, its figures.

Standard library only. Everything listens on loopback, on ports the system picks, and nothing outlives the `Rig`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE_S = 60
"""No wait of a step takes longer: a bound against hanging, not a measurement."""


class Failed(Exception):
    """Something is not as it must be; its text says what and where."""


def check(holds, text):
    """Fails the step unless it holds."""
    if not holds:
        raise Failed(text)


def equal(got, expected, what):
    """Fails the step unless both are the same."""
    check(got == expected, f"{what}: got {got!r}, expected {expected!r}")


def say(text):
    print(text, flush=True)


def until(what, holds, bound_s=PATIENCE_S):
    """Waits until `holds()` gives something true and returns it; fails by name when it never does."""
    end = time.monotonic() + bound_s
    while True:
        value = holds()
        if value:
            return value
        check(time.monotonic() < end, f"never: {what}")
        time.sleep(0.02)


# The machine may have a proxy of its own set up; nothing here goes through it.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(url, body=None, method=None, timeout_s=PATIENCE_S):
    """Status and body of one request; `body` as JSON."""
    data = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with _direct.open(request, timeout=timeout_s) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def fetch_json(url, body=None, method=None):
    """The JSON of a 200."""
    status, text = fetch(url, body, method)
    equal(status, 200, f"{url} ({text[:300]!r})")
    return json.loads(text)


class Process:
    """A child with its output in files."""

    def __init__(self, name, args, folder, env=None):
        self.name = name
        self.folder = Path(folder)
        self.out = self.folder / f"{name}.out"
        self.err = self.folder / f"{name}.err"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HERDGATE_CFG_", "NOMYO_"))}
        clean.update(env or {})
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.child = subprocess.Popen(
                [str(arg) for arg in args], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=self.folder, env=clean
            )

    @property
    def pid(self):
        return self.child.pid

    def wait_for(self, pattern, file=None, bound_s=PATIENCE_S):
        """The first match of a pattern in its output."""

        def found():
            match = re.search(pattern, (file or self.out).read_text(errors="replace"))
            check(match or self.child.poll() is None, f"{self.name} ended with {self.child.poll()}:\n{self.tail()}")
            return match

        return until(f"{self.name} says {pattern}", found, bound_s)

    def tail(self):
        return (self.out.read_text(errors="replace") + self.err.read_text(errors="replace"))[-1500:]

    def kill(self):
        """SIGKILL."""
        self.child.kill()
        self.child.wait()

    def signal(self, number=signal.SIGTERM, bound_s=PATIENCE_S):
        """Sends a signal and gives the exit code."""
        self.child.send_signal(number)
        return self.child.wait(bound_s)

    def end(self):
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()


class Rig:
    """A folder and the processes of a step; both are gone when it is left."""

    def __init__(self):
        binary = os.environ.get("HERDGATE_BIN")
        check(binary and os.access(binary, os.X_OK), "HERDGATE_BIN names no program; run .ci/run")
        self.binary = binary
        self._folder = tempfile.TemporaryDirectory(prefix="herdgate-ci-")
        self.folder = Path(self._folder.name)
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None:
            for process in self.processes:
                say(f"--- {process.name} (pid {process.pid}, exit {process.child.poll()})\n{process.tail()}")
        for process in self.processes:
            process.end()
        self._folder.cleanup()

    def start(self, name, args, env=None):
        process = Process(name, args, self.folder, env)
        self.processes.append(process)
        return process

    def serve(self, nodes, env=None, name="proxy"):
        """The proxy in front of these nodes; the ledger is in the rig's folder."""
        args = [self.binary, "serve", "--listen", "127.0.0.1:0", "--data", self.folder / "data"]
        for node in nodes:
            args += ["--node", node]
        process = self.start(name, args, env)
        address = process.wait_for(r'"address":"([0-9.:]+)"', process.err).group(1)
        proxy = Proxy(process, f"http://{address}")
        until("the proxy is ready", lambda: fetch(f"{proxy.url}/herdgate/ready")[0] == 200)
        return proxy

    def herd(self, *args):
        """Simulated nodes."""
        process = self.start("herd", [self.binary, "sim", "--port", "0", "--for", "600", *args])
        control = process.wait_for(r"control (http://\S+)").group(1)
        return Herd(re.findall(r"node \d+ (http://\S+)", process.out.read_text()), control)


class Herd:
    """Simulated nodes and their own accounts."""

    def __init__(self, urls, control):
        self.urls = urls
        self.control = control

    def ledgers(self):
        return fetch_json(f"{self.control}/sim/ledger")

    def in_flight(self):
        return sum(ledger["in_flight"] for ledger in self.ledgers())


class Proxy:
    """The proxy under test and what it says of itself."""

    def __init__(self, process, url):
        self.process = process
        self.url = url

    def metrics(self):
        """Every sample of `/metrics`: (name, labels) to value."""
        status, text = fetch(f"{self.url}/metrics")
        equal(status, 200, "/metrics")
        samples = {}
        for line in text.decode().splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match:
                labels = frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match.group(2) or ""))
                samples[(match.group(1), labels)] = float(match.group(3))
        return samples

    def sum(self, name, **labels):
        """The sum of a metric's samples that have these labels."""
        wanted = set(labels.items())
        return int(sum(v for (n, have), v in self.metrics().items() if n == name and wanted <= have))

    def outcomes(self):
        """Requests by how they ended, the empty ones left out."""
        found = {dict(have)["outcome"]: int(v) for (n, have), v in self.metrics().items() if n == "herdgate_requests_total"}
        return {outcome: count for outcome, count in found.items() if count}

    def settle(self):
        """Waits until nothing is in flight and every event has reached the store."""

        def quiet():
            usage = fetch_json(f"{self.url}/api/usage")["usage_counts"]
            if any(count for models in usage.values() for count in models.values()):
                return False
            metrics = self.metrics()
            zero = ("herdgate_in_flight", "herdgate_queue_length", "herdgate_ledger_rows_unwritten")
            if any(value for (name, _), value in metrics.items() if name in zero):
                return False
            ended = sum(value for (name, _), value in metrics.items() if name == "herdgate_requests_total")
            return metrics[("herdgate_ledger_events_total", frozenset())] == ended

        until("the proxy is at rest and its ledger written", quiet)

    def counted(self):
        """All-time tokens of `/api/token_counts`, exact and estimated together: (node, model) to (input, output)."""
        counts = fetch_json(f"{self.url}/api/token_counts")
        rows = {(r["endpoint"], r["model"]): (r["input_tokens"], r["output_tokens"]) for r in counts["breakdown"]}
        equal(counts["total_tokens"], sum(a + b for a, b in rows.values()), "total_tokens and the sum of its breakdown")
        return rows

    def tokens(self, name="herdgate_tokens_total"):
        """Tokens since the start of one kind of metric: (node, model) to (input, output), the empty ones left out."""
        rows = {}
        for (metric, have), value in self.metrics().items():
            labels = dict(have)
            if metric == name and labels["kind"] in ("input", "output"):
                row = rows.setdefault((labels["node"], labels["model"]), [0, 0])
                row[labels["kind"] == "output"] += int(value)
        return {key: tuple(row) for key, row in rows.items() if any(row)}

    def exact(self):
        """The ledger's exact part: what `/api/token_counts` says less the estimates since the start."""
        estimated = self.tokens("herdgate_tokens_estimated_total")
        rows = {
            key: tuple(a - b for a, b in zip(row, estimated.get(key, (0, 0)))) for key, row in self.counted().items()
        }
        return {key: row for key, row in rows.items() if any(row)}


def run(body):
    """Runs a step; its failure is told in one line after what led to it."""
    # A time-out's SIGTERM unwinds like everything else, so that the step's processes end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    try:
        body()
    except Failed as failure:
        say(f"FAILED: {failure}")
        sys.exit(1)
