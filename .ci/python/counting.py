"""Counts the system calls of the proxy's worker threads under steady load, and holds them against the budgets.

Called by 30-counting.sh. strace is attached to the worker threads alone: the ledger and control threads may sleep and
wake as they like. The load is a fixed number of requests on kept connections, below every limit; nothing is timed.
"""

import json
import re
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

from rig import Rig, check, equal, fetch, fetch_json, run, say, until

MODEL = "llama3.2:3b"
CLIENTS = 8
SHORT = 250
"""Short requests of each client."""
BURSTS = 60
"""Answers of 64 chunks of each client."""

READS = ("read", "readv", "recvfrom", "recvmsg")
WRITES = ("write", "writev", "sendto", "sendmsg")

FUTEX_PER_REQUEST_MAX = 0
EVENTFD_WRITES_PER_TICK_MAX = 1
"""tokio writes to its own eventfd when a timer is set that is earlier than all others: once a tick, never a request."""
TICK_S = 0.1
CLIENT_WRITES_PER_BURST_MAX = 8
CLIENT_WRITES_PER_SHORT_MAX = 1
CALLS_PER_SHORT_MAX = 6
"""One read and one write a side is the floor (hotpath: 4.1); epoll and the tick come on top."""


class Connection:
    """A client's kept connection on raw bytes."""

    def __init__(self, url):
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.spare = b""

    def ask(self, body):
        """One answer, read to its end."""
        data = json.dumps(body).encode()
        head = f"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self.socket.sendall(head.encode() + data)
        answer = self._until(b"\r\n\r\n").decode().lower()
        check(" 200 " in answer.split("\r\n")[0], f"an answer of {answer[:100]!r}")
        length = re.search(r"content-length: (\d+)", answer)
        if length:
            return self._take(int(length.group(1)))
        body = b""
        while True:
            size = int(self._until(b"\r\n"), 16)
            body += self._take(size)
            self._take(2)
            if size == 0:
                return body

    def _until(self, end):
        while end not in self.spare:
            self._more()
        found, self.spare = self.spare.split(end, 1)
        return found

    def _take(self, count):
        while len(self.spare) < count:
            self._more()
        found, self.spare = self.spare[:count], self.spare[count:]
        return found

    def _more(self):
        data = self.socket.recv(65536)
        check(data, "the proxy closed a kept connection")
        self.spare += data


def workers(pid):
    """Thread ids of the proxy's workers."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        if re.fullmatch(r"worker-\d+", (task / "comm").read_text().strip()):
            found.append(int(task.name))
    check(found, f"process {pid} has no worker threads")
    return sorted(found)


def load(connections, count, body):
    """Each connection asks so often, all of them at once; the number of chunks that came."""
    lines, errors = [], []

    def one(connection):
        try:
            for _ in range(count):
                lines.append(connection.ask(body).count(b"\n"))
        except Exception as error:  # noqa: BLE001 - told by the main thread
            errors.append(error)

    threads = [threading.Thread(target=one, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(not errors, f"the load failed: {errors[:1]!r}")
    return lines


class Trace:
    """strace on some threads while the block runs."""

    def __init__(self, rig, name, threads):
        self.rig, self.name, self.threads = rig, name, threads
        self.ticks = 0

    def __enter__(self):
        args = ["strace", "-qq", "-yy", "-s", "0", "-o", self.rig.folder / f"{self.name}.trace"]
        for thread in self.threads:
            args += ["-p", str(thread)]
        self.process = self.rig.start(f"strace-{self.name}", args)
        until("strace is attached", self._attached, 30)
        self.began = time.monotonic()
        return self

    def _attached(self):
        check(self.process.child.poll() is None, f"strace ended: {self.process.tail()}")
        traced = [Path(f"/proc/{thread}/status").read_text() for thread in self.threads]
        return all(re.search(rf"^TracerPid:\t{self.process.pid}$", status, re.M) for status in traced)

    def __exit__(self, kind, error, trace):
        self.process.child.send_signal(signal.SIGINT)
        self.process.child.wait(30)
        # How many ticks the threads can have had at most, all together.
        self.ticks = (int((time.monotonic() - self.began) / TICK_S) + 2) * len(self.threads)

    def calls(self, port):
        """System calls by what they are, those on clients' sockets by side; and the chunks."""
        found = Counter()
        for line in (self.rig.folder / f"{self.name}.trace").read_text(errors="replace").splitlines():
            match = re.match(r"(?:\d+ +)?(\w+)\((?:\d+<((?:->|[^>])*)>)?", line)
            if not match or " resumed>" in line.split("(")[0]:
                continue
            call, target = match.group(1), match.group(2) or ""
            side = ""
            if call in READS + WRITES:
                if "eventfd" in target:
                    side = " eventfd"
                elif "TCP" in target:
                    side = " client" if re.search(rf"TCP[^\[]*:\[127\.0\.0\.1:{port}->", target) else " node"
                else:
                    side = " other"
                call = "read" if call in READS else "write"
            found[call + side] += 1
        return found


def table(name, requests, calls):
    say(f"  {name}: {requests} requests, calls of the worker threads per request")
    for call, count in calls.most_common():
        say(f"    {call:<16} {count:>7} {count / requests:>9.4f}")


def per_request(calls, requests, prefixes):
    return sum(count for call, count in calls.items() if call.startswith(prefixes)) / requests


def budget(what, value, most):
    check(value <= most, f"{what}: {value:.4f} per request, {most} at most")


def no_wakes(calls, requests, trace):
    """Nobody sleeps on a lock, and nobody is woken."""
    budget("futex", per_request(calls, requests, "futex"), FUTEX_PER_REQUEST_MAX)
    wakes, most = calls["write eventfd"], trace.ticks * EVENTFD_WRITES_PER_TICK_MAX
    check(wakes <= most, f"{wakes} writes to an eventfd in {requests} requests, {most} at most (one a tick)")
    check(most < requests, f"too slow to tell ticks ({most}) from requests ({requests})")


def main():
    with Rig() as rig:
        herd = rig.herd("--nodes", "3", "--slots", "64", "--load-time", "0s", "--prompt-time", "0s", "--token-time", "0s", "--model", MODEL)
        proxy = rig.serve(herd.urls, {"HERDGATE_CFG_SLOTS": "64", "HERDGATE_CFG_HEALTH__PS": "200ms"})
        port = proxy.url.rsplit(":", 1)[1]
        short = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": False, "options": {"num_predict": 8}}
        burst = {**short, "stream": True, "options": {"num_predict": 64}}
        for url in herd.urls:
            equal(fetch(f"{url}/api/generate", {"model": MODEL})[0], 200, f"loading {MODEL} at {url}")
        until("the proxy knows", lambda: len(fetch_json(f"{proxy.url}/api/ps_details")["models"]) == 3)
        connections = [Connection(proxy.url) for _ in range(CLIENTS)]
        # Every connection to a node that the load needs is open before anything is counted.
        load(connections, 50, short)
        chunks = load(connections, 5, burst)
        check(min(chunks) >= 64, f"an answer of {min(chunks)} chunks is no burst of 64")
        threads = workers(proxy.process.pid)

        with Trace(rig, "short", threads) as trace:
            load(connections, SHORT, short)
        requests = SHORT * CLIENTS
        calls = trace.calls(port)
        table("short answers", requests, calls)
        no_wakes(calls, requests, trace)
        writes = per_request(calls, requests, "write client")
        check(writes > 0.99, f"only {writes:.4f} writes to clients per request: the trace saw no load")
        # A hundredth on top for what the poller and the ticks stir up.
        budget("writes to clients", writes, CLIENT_WRITES_PER_SHORT_MAX + 0.01)
        budget("all calls", per_request(calls, requests, ""), CALLS_PER_SHORT_MAX)

        with Trace(rig, "burst", threads) as trace:
            load(connections, BURSTS, burst)
        requests = BURSTS * CLIENTS
        calls = trace.calls(port)
        table("bursts of 64 chunks", requests, calls)
        no_wakes(calls, requests, trace)
        writes = per_request(calls, requests, "write client")
        check(writes > 0.99, f"only {writes:.4f} writes to clients per burst: the trace saw no load")
        budget("writes to clients per burst", writes, CLIENT_WRITES_PER_BURST_MAX)

        proxy.settle()
        equal(proxy.sum("herdgate_slot_waits_total"), 0, "requests that waited: the load was not below the limits")
        equal(proxy.process.signal(), 0, "exit code after SIGTERM")


run(main)
