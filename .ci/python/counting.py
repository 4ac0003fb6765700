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
"""Answers of 64 chunks that come together, of each client."""
STREAMS = 3
"""Paced answers of each client."""
TOKENS = 100
"""Chunks of a paced answer."""
PACE_MS = 5

READS = ("read", "readv", "recvfrom", "recvmsg")
WRITES = ("write", "writev", "sendto", "sendmsg")

# Calls of the worker threads for each request, burst or chunk, at most. The floor is one read and one write a side; a
# worker asks epoll once for each thing it waits for, less often when several are ready together.
BUDGETS = {
    "short request": {
        "read client": 1,
        "read node": 1,
        "write client": 1,
        "write node": 1,
        "epoll_wait": 2,
        "futex": 0,
        "everything": 6,
        "voluntary context switches": 2,
    },
    "burst of 64 chunks": {
        "read client": 1,
        "read node": 8,
        "write client": 8,
        "write node": 1,
        "epoll_wait": 9,
        "futex": 0,
        "everything": 27,
        "voluntary context switches": 9,
    },
    # The requests themselves are in it: one for each hundred chunks.
    "chunk of a paced stream": {
        "read client": 0.01,
        "read node": 1,
        "write client": 1,
        "write node": 0.01,
        "epoll_wait": 2,
        "futex": 0,
        "everything": 4.02,
        "voluntary context switches": 1.01,
    },
}

SLACK = 0.02
"""On top of each budget but that of futex: what the ticks and the poller's new Snapshots cost, and the first bytes of an answer that came in two pieces."""

EVENTFD_WRITES_PER_TICK_MAX = 1
"""tokio writes to its own eventfd when a timer is set that is earlier than all others: once a tick, never a request."""
TICK_S = 0.1


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


def switches(pid, threads):
    """How often these threads went to sleep by themselves. Not asked while they are traced: a trace stops them."""
    status = [Path(f"/proc/{pid}/task/{thread}/status").read_text() for thread in threads]
    return sum(int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", text, re.M).group(1)) for text in status)


def hold(name, units, calls, trace):
    """Prints what was counted and holds it against the budgets of this load."""
    budgets = BUDGETS[name]
    calls = Counter(calls)
    for call in [call for call in calls if call.startswith("epoll_")]:
        calls["epoll_wait" if "wait" in call else "epoll_ctl"] += calls.pop(call)
    calls["everything"] = sum(count for call, count in calls.items() if call != "voluntary context switches")
    say(f"  {name}: {units} counted")
    over = []
    for call in [*budgets, *sorted(set(calls) - set(budgets))]:
        each, most = calls[call] / units, budgets.get(call)
        say(f"    {call:<28} {calls[call]:>7} {each:>8.4f}{'' if most is None else f'   budget {most}'}")
        if most is not None and each > most + (SLACK if most else 0):
            over.append(f"{call}: {each:.4f} for each {name}, {most} at most")
    check(not over, "; ".join(over))
    # Nobody is woken: a worker writes to its own eventfd for its ticks alone.
    wakes, most = calls["write eventfd"], trace.ticks * EVENTFD_WRITES_PER_TICK_MAX
    check(wakes <= most, f"{wakes} writes to an eventfd for {units} of {name}, {most} at most (one a tick)")
    check(most < units, f"too slow to tell ticks ({most}) from what is counted ({units})")


def counted(rig, proxy, connections, name, count, body, lines_each, units_each, fewest_writes):
    """Counts a load twice: its sleeps as it runs, its system calls under strace."""
    pid, port = proxy.process.pid, proxy.url.rsplit(":", 1)[1]
    threads = workers(pid)
    units = count * len(connections) * units_each
    before = switches(pid, threads)
    load(connections, count, body)
    slept = switches(pid, threads) - before
    with Trace(rig, name.split()[0], threads) as trace:
        lines = load(connections, count, body)
    check(min(lines) >= lines_each, f"an answer of {min(lines)} lines, {lines_each} expected")
    calls = trace.calls(port)
    writes = calls["write client"] / units
    check(writes > fewest_writes, f"only {writes:.4f} writes to clients for each {name}: the trace saw no load")
    calls["voluntary context switches"] = slept
    hold(name, units, calls, trace)


def main():
    with Rig() as rig:
        herd = rig.herd("--nodes", "3", "--slots", "64", "--load-time", "0s", "--prompt-time", "0s", "--token-time", "0s", "--model", MODEL)
        proxy = rig.serve(herd.urls, {"HERDGATE_CFG_SLOTS": "64", "HERDGATE_CFG_HEALTH__PS": "200ms"})
        short = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": False, "options": {"num_predict": 8}}
        burst = {**short, "stream": True, "options": {"num_predict": 64}}
        paced = {**short, "stream": True, "options": {"num_predict": TOKENS}, "sim": {"tokens": TOKENS, "pace_ms": PACE_MS}}
        for url in herd.urls:
            equal(fetch(f"{url}/api/generate", {"model": MODEL})[0], 200, f"loading {MODEL} at {url}")
        until("the proxy knows", lambda: len(fetch_json(f"{proxy.url}/api/ps_details")["models"]) == 3)
        connections = [Connection(proxy.url) for _ in range(CLIENTS)]
        # Every connection to a node that the load needs is open before anything is counted.
        load(connections, 50, short)
        load(connections, 5, burst)

        counted(rig, proxy, connections, "short request", SHORT, short, 0, 1, 0.99)
        counted(rig, proxy, connections, "burst of 64 chunks", BURSTS, burst, 64, 1, 0.99)
        counted(rig, proxy, connections, "chunk of a paced stream", STREAMS, paced, TOKENS, TOKENS, 0.5)

        proxy.settle()
        equal(proxy.sum("herdgate_slot_waits_total"), 0, "requests that waited: the load was not below the limits")
        equal(proxy.process.signal(), 0, "exit code after SIGTERM")


run(main)
