"""Any server that speaks OpenAI's API: many clients at once, each streaming texts from a model of its own, one after the other.

What makes a client ask for its own model is a JSON object that is put into its requests: with pleach {"model": "fr/sysadmin"},
with llama.cpp's server {"lora": [{"id": 0, "scale": 1.0}]}, with mistral.rs {"model": "…"} or {"adapter": "…"}. Client i takes
line i of the file of these, from the beginning again at its end. Prompts have exactly `--prompt` SmolLM2 tokens, each another text.

First every client asks for two tokens, so that what it needs is resident. Then the clock starts. One line of JSON: times from
sending a request to its first text, and between texts of a request (`token_ms`: the mean of each request; `gap_ms`: each), as
p50 and p99; `tok_s`, all new tokens over the time of all; `client_cpu_s`, this program's own share of a shared machine.
It needs nothing but Python. (Not `http.py`: that name is Python's own.)

usage: http_load.py --url http://127.0.0.1:8000 --fields FILE.jsonl [--clients 16] [--requests 4] [--tokens 64] [--prompt 32]
       http_load.py --url URL --models fr/sysadmin fr ...    the same as a file with {"model": …} a line
"""

import argparse
import http.client
import json
import math
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from common import WORDS


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True, help="without /v1")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--fields", type=Path, help="JSON objects, one a line")
    who.add_argument("--models", nargs="+")
    parser.add_argument("--system", default="", help="what the line of JSON calls the server")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--tokens", type=int, default=64, help="new ones, of each request")
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--key", help="a token, where the server wants one")
    parser.add_argument("--chat", action="store_true", help="/v1/chat/completions in place of /v1/completions")
    options = parser.parse_args()
    lines = options.fields.read_text().splitlines() if options.fields else []
    options.who = [json.loads(line) for line in lines] or [{"model": name} for name in options.models or []]
    return options


class Client:
    """Who asks, each time over a new connection: llama.cpp closes those that were still for five seconds."""

    def __init__(self, options, number):
        self.options, self.number, self.fields = options, number, options.who[number % len(options.who)]
        url = urlsplit(options.url)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self.connect, self.folder = lambda: kind(url.netloc, timeout=600), url.path.rstrip("/")

    def ask(self, salt, tokens):
        """Streams a text: when it was asked for, when each piece came, the text, and the usage that the server tells."""
        prompt = "".join(random.Random(salt).choices(WORDS, k=self.options.prompt))
        body = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        body |= {"messages": [{"role": "user", "content": prompt}]} if self.options.chat else {"prompt": prompt}
        headers = {"content-type": "application/json"}
        headers |= {"authorization": f"Bearer {self.options.key}"} if self.options.key else {}
        path = self.folder + ("/v1/chat/completions" if self.options.chat else "/v1/completions")
        begin = time.perf_counter()
        connection = self.connect()
        try:
            connection.request("POST", path, json.dumps(body | self.fields), headers)
            answer = connection.getresponse()
        except OSError as error:
            raise SystemExit(f"{self.options.url}: {error}") from error
        if answer.status != 200:
            raise SystemExit(f"{self.fields}: status {answer.status}: {answer.read(2000).decode(errors='replace')}")
        times, text, usage = [], "", None
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise SystemExit(f"{self.fields}: {event['error']}")
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                piece = choice["delta"].get("content") if self.options.chat else choice["text"]
                if piece:
                    times.append(time.perf_counter())
                    text += piece
        connection.close()
        if usage is None or usage["completion_tokens"] != tokens or not times:
            raise SystemExit(f"{self.fields}: {tokens} tokens were asked for, the server tells {usage} and sent {text!r}")
        return begin, times, text, usage

    def run(self):
        """All of its requests."""
        return [self.ask(self.number * self.options.requests + i, self.options.tokens) for i in range(self.options.requests)]


def percentiles(name, seconds):
    ordered = sorted(seconds)
    at = lambda share: round(1e3 * ordered[math.ceil(share * len(ordered)) - 1], 2) if ordered else None  # noqa: E731
    return {f"{name}_p50": at(0.5), f"{name}_p99": at(0.99)}


def main():
    options = arguments()
    clients = [Client(options, number) for number in range(options.clients)]
    with ThreadPoolExecutor(options.clients) as pool:
        list(pool.map(lambda client: client.ask(10**6 + client.number, 2), clients))
        begin, begin_cpu = time.perf_counter(), time.process_time()
        answers = [answer for of_one in pool.map(Client.run, clients) for answer in of_one]
        took, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    first = [times[0] - asked for asked, times, _, _ in answers]
    each = [(times[-1] - times[0]) / (options.tokens - 1) for _, times, _, _ in answers if options.tokens > 1]
    gaps = [later - earlier for _, times, _, _ in answers for earlier, later in zip(times, times[1:])]
    line = {"system": options.system or options.url, "clients": options.clients, "models": len(options.who)}
    line |= {"requests": len(answers), "prompt_tokens": sum(usage["prompt_tokens"] for *_, usage in answers)}
    line |= {"tokens": len(answers) * options.tokens, "seconds": round(took, 2)}
    line |= {"tok_s": round(len(answers) * options.tokens / took, 2), "requests_s": round(len(answers) / took, 2)}
    line |= percentiles("first_ms", first) | percentiles("token_ms", each) | percentiles("gap_ms", gaps)
    line |= {"client_cpu_s": round(cpu, 2), "distinct_texts": len({text for _, _, text, _ in answers})}
    print(json.dumps(line | {"load": round(os.getloadavg()[0], 2)}))


if __name__ == "__main__":
    main()
