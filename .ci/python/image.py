"""The image without a builder: its file system is made by hand, as the Dockerfile says, and its command runs in it.

A root that holds the binary, an empty /data and what every container engine puts into /etc, nothing else; the process is
user 65532, without groups, and may write nowhere but to /data. It must serve, resolve names (by file and by DNS), import,
drain. Needs root, for `chroot`; everything listens on loopback.
"""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
from pathlib import Path

import rig
from rig import check, equal, fetch, fetch_json, say, until

USER = 65532
RESOLVER = "127.9.9.9"
"""An address of this machine's loopback that nobody has a name server on."""


def is_static(binary):
    """Whether an ELF file names no loader of shared libraries."""
    data = Path(binary).read_bytes()
    offset, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    kinds = [struct.unpack_from("<I", data, offset + size * place)[0] for place in range(count)]
    return 3 not in kinds  # PT_INTERP


def dns_server():
    """Answers every question for an IPv4 address with 127.0.0.1, and any other with nothing."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((RESOLVER, 53))
    asked = []

    def serve():
        while True:
            try:
                query, client = server.recvfrom(512)
            except OSError:
                return
            end = query.index(b"\0", 12) + 1
            kind, = struct.unpack_from(">H", query, end)
            question = query[12 : end + 4]
            asked.append(question)
            answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + bytes([127, 0, 0, 1]) if kind == 1 else b""
            head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1 if answer else 0, 0, 0)
            server.sendto(head + question + answer, client)

    threading.Thread(target=serve, daemon=True).start()
    return server, asked


def confined(root):
    """Enters the image as its user; in the child, before it runs."""

    def enter():
        os.chroot(root)
        os.chdir("/")
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)

    return enter


def in_image(root, *args):
    """What a command of the image prints."""
    done = subprocess.run(["/herdgate", *args], preexec_fn=confined(root), env={}, capture_output=True, timeout=60)
    equal(done.returncode, 0, f"{args}: {done.stderr.decode()}")
    return done.stdout.decode()


def command(dockerfile):
    """The arguments that the image runs with."""
    found = re.search(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)
    check(found and 'ENTRYPOINT ["/herdgate"]' in dockerfile, "the Dockerfile has an ENTRYPOINT and a CMD")
    return json.loads(found.group(1))


def body():
    with rig.Rig() as here:
        check(is_static(here.binary), f"{here.binary} needs shared libraries")
        size = os.path.getsize(here.binary)
        root = here.folder / "root"
        (root / "data").mkdir(parents=True)
        (root / "etc").mkdir()
        shutil.copy(here.binary, root / "herdgate")
        # What a container engine writes: names of its own, and where to ask for others.
        (root / "etc/hosts").write_text("127.0.0.1 localhost gpu-file.internal\n")
        (root / "etc/resolv.conf").write_text(f"nameserver {RESOLVER}\n")
        os.chown(root / "data", USER, USER)
        for path in (root, here.folder):
            path.chmod(0o755)

        herd = here.herd("--nodes", "2", "--model", "m", "--load-time", "0s", "--token-time", "0s")
        ports = [url.rsplit(":", 1)[1] for url in herd.urls]
        server, asked = dns_server()
        nodes = [f"http://gpu-file.internal:{ports[0]}", f"http://gpu-dns.internal:{ports[1]}"]

        # Before it serves: the ancestor's database, its log included, without a /tmp to copy it to.
        database = Path("tests/fixtures/ancestor/database/first")
        for file in database.iterdir():
            shutil.copy(file, root / "data" / file.name)
            (root / "data" / file.name).chmod(0o444)
        said = in_image(root, "import", "/data/token_counts.db", "--data", "/data")
        check("written to /data" in said, said)

        port = free_port()
        args = command(in_image(root, "package", "dockerfile"))
        args[args.index("[::]:12434")] = f"[::]:{port}"
        for node in nodes:
            args += ["--node", node]
        log = open(here.folder / "image.err", "wb")
        child = subprocess.Popen(["/herdgate", *args], preexec_fn=confined(root), env={}, stderr=log)
        try:
            base = f"http://127.0.0.1:{port}"
            until("the image is ready", lambda: child.poll() is None and ready(base))
            until("both names lead to their nodes", lambda: all_up(base, nodes))
            check(asked, "the name server was asked")
            before = fetch_json(f"{base}/api/token_counts")["total_tokens"]
            check(before > 0, "what was imported is there")
            status, text = fetch(f"{base}/api/generate", {"model": "m", "prompt": "hi", "stream": False})
            equal(status, 200, text)
            until("counted", lambda: fetch_json(f"{base}/api/token_counts")["total_tokens"] > before)
            equal(fetch(f"http://[::1]:{port}/herdgate/live")[0], 200, "both families")
            child.terminate()
            equal(child.wait(60), 0, "it drains on SIGTERM")
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
                say((here.folder / "image.err").read_text()[-2000:])
            server.close()
        written = {str(path.relative_to(root)) for path in root.rglob("*") if path.stat().st_uid == USER}
        check(all(name.startswith("data") for name in written), f"written outside /data: {written}")
        say(f"{size / 2**20:.1f} MiB, alone in its root as user {USER}: serves, resolves by file and DNS, imports, drains")


def free_port():
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        return probe.getsockname()[1]


def ready(base):
    try:
        return fetch(f"{base}/herdgate/ready")[0] == 200
    except OSError:
        return False


def all_up(base, nodes):
    endpoints = fetch_json(f"{base}/health")["endpoints"]
    return all(endpoints.get(node, {}).get("status") == "ok" for node in nodes)


rig.run(body)
