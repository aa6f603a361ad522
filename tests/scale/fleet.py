"""Three servers on one store, HAProxy before them, and clients that ask."""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from serving import ADMIN, ROOT, TREE, Failed, Server, claim, node_route, until

CONFIGURATION = ROOT / "deploy" / "haproxy.cfg"
NAMES = ("one", "two", "three")  # as the configuration calls them


def free_ports(number):
    """Ports that nobody has; they are found again after a restart."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Fleet:
    """Three servers, each of one thread, behind HAProxy."""

    def __init__(self, program, base, store, balance=None):
        self.program, self.base, self.store = program, base, store
        *self.ports, self.front = free_ports(4)
        self.url = f"http://127.0.0.1:{self.front}"
        self.servers = {name: self.start(name) for name in NAMES}
        text = CONFIGURATION.read_text()
        if balance:
            claim(text.count("balance hash var(txn.key)") == 1, "the configuration has changed")
            text = text.replace("balance hash var(txn.key)", f"balance {balance}")
        self.file = tempfile.NamedTemporaryFile("w", suffix=".cfg")
        self.file.write(text)
        self.file.flush()
        self.log = tempfile.TemporaryFile()
        addresses = {f"PLEACH_{at}": f"127.0.0.1:{port}" for at, port in enumerate(self.ports, 1)}
        self.haproxy = subprocess.Popen(
            ["haproxy", "-f", self.file.name], stdout=self.log, stderr=self.log,
            env={**os.environ, **addresses, "PLEACH_LISTEN": f"127.0.0.1:{self.front}",
                 "PLEACH_SUBTREE_DEPTH": "1"})
        until(self.is_up, "HAProxy does not answer")

    def start(self, name):
        listen = f"127.0.0.1:{self.ports[NAMES.index(name)]}"
        return Server(self.program, self.base, self.store, "--threads", "1", "--kv-budget", "128",
                      "--adapter-root", TREE, listen=listen)

    def restart(self, name):
        self.servers[name] = self.start(name)

    def is_up(self):
        try:
            return get(self.url, "/health")[0] == 200
        except OSError:
            return False

    def metric(self, beginning):
        """The sum of the series whose names begin so, by server."""
        sums = {}
        for name, server in self.servers.items():
            lines = server.ask("/metrics")[1].splitlines()
            sums[name] = sum(float(line.rsplit(" ", 1)[1]) for line in lines
                             if line.startswith(beginning))
        return sums

    def end(self):
        self.haproxy.kill()
        self.haproxy.wait()
        for server in self.servers.values():
            server.kill()


def get(url, route):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request("GET", route)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders())


class Answer:
    """What came of a request: a status, or 0 where the connection broke."""

    def __init__(self, status=0, server=None, body=None, text="", is_whole=True):
        self.status, self.server, self.body = status, server, body or {}
        self.text, self.is_whole = text, is_whole

    def is_good(self):
        return self.status == 200 and self.is_whole


def complete(url, model, prompt, tokens, stream=False, headers=None, **more):
    """A completion at temperature 0."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "stream": stream, **more}
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body).encode(),
                           {"content-type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        server = answer.getheader("x-served-by")
        if stream and answer.status == 200:
            return read_stream(answer, server)
        data = answer.read()
    except (OSError, http.client.HTTPException):
        return Answer(is_whole=False)
    finally:
        connection.close()
    if answer.status != 200:  # HAProxy's own are no JSON.
        return Answer(answer.status, server, text=data.decode(errors="replace"))
    data = json.loads(data)
    return Answer(200, server, data, data["choices"][0]["text"])


def read_stream(answer, server):
    """A stream; one that breaks off is kept as far as it came."""
    text, body, is_whole = "", {}, False
    try:
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                is_whole = True
                break
            chunk = json.loads(line[6:])
            if "error" in chunk:
                break
            body = {**body, **chunk}
            text += "".join(choice["text"] for choice in chunk["choices"])
    except (OSError, http.client.HTTPException, ValueError):
        is_whole = False
    return Answer(200, server, body, text, is_whole)


class Clients:
    """Threads that ask in a loop until they are told to end; what they got, in order of time."""

    def __init__(self, number, ask):
        """`ask(at, turn)` gives a record for the list; an error in it ends the test."""
        self.records, self.errors, self.is_over = [], [], threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(at, ask)) for at in range(number)]
        for thread in self.threads:
            thread.start()

    def run(self, at, ask):
        turn = 0
        try:
            while not self.is_over.is_set():
                record = ask(at, turn)
                self.records.append((time.monotonic(), record))
                turn += 1
        except Exception as error:  # It belongs to the test and not to a thread.
            self.errors.append(error)

    def end(self):
        self.is_over.set()
        for thread in self.threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return self.records
