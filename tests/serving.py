"""Starts and asks `pleach serve` for the tests in browser/ and scale/. Python's own modules alone."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "trees" / "smollm2"
ADMIN = "the-token-of-a-test-0123456789"
# How long a server may take to read the base, and a request to end, on a busy machine.
START_S, ANSWER_S = 120, 120


class Failed(Exception):
    """A claim that does not hold."""


def claim(holds, words):
    if not holds:
        raise Failed(words)


def node_route(name, about=""):
    return f"/v1/tree/nodes/{quote(name, safe='')}{about}"


def ask(url, route, body=None, key=None, method=None, headers=None, wait_s=ANSWER_S):
    """Calls a route: the status and the answer as JSON (as text where it is none)."""
    headers = {"content-type": "application/json", **(headers or {})}
    if key:
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = Request(url.rstrip("/") + route, data, headers, method=method)
    try:
        with urlopen(request, timeout=wait_s) as answer:
            status, text = answer.status, answer.read()
    except HTTPError as error:
        with error:
            status, text = error.code, error.read()
    try:
        return status, json.loads(text or b"null")
    except ValueError:
        return status, text.decode(errors="replace")


def import_tree(program, base, store, tree=TREE):
    command = [program, "store", "import", tree, store, "--base", base, "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Server:
    """One `pleach serve`, on a port of its own unless it is told one."""

    def __init__(self, program, base, tree, *options, listen="127.0.0.1:0"):
        self.log = tempfile.TemporaryFile()
        command = [program, "serve", "--base", base, "--tree", tree, "--device", "cpu", "--json",
                   "--log", "off", "--listen", listen, *options]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, "PLEACH_ADMIN_TOKEN": ADMIN})
        told = self.process.stdout.readline()
        if not told:
            self.log.seek(0)
            sys.exit(f"the server has not started: {self.log.read().decode()[-2000:]}")
        told = json.loads(told)
        self.address, self.url, self.model = told["address"], told["url"], told["model"]

    def ask(self, route, body=None, **more):
        return ask(self.url, route, body, **more)

    def is_ready(self):
        try:
            return self.ask("/ready", wait_s=5)[0] == 200
        except OSError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """Ends it in order; it has to end, and to say so."""
        self.process.terminate()
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed("the server did not end within 60 s of SIGTERM") from None
        claim(code == 0, f"the server ended with {code}")


def until(holds, words, wait_s=30, pause_s=0.05):
    """Waits until something holds."""
    end = time.monotonic() + wait_s
    while not holds():
        claim(time.monotonic() < end, f"{words} (waited {wait_s} s)")
        time.sleep(pause_s)
