"""Keeps what schemathesis sends small: a few tokens, a text or two. Half of the nodes it names become real ones, since no
generator guesses a path, and half of the adapters the one that there is.

Read from the environment: PLEACH_NODES, names with commas between them; PLEACH_ADAPTER, a PEFT folder that the server reads.
Requests that would change the tree keep the names they have where there is no PLEACH_ADAPTER.
"""

import json
import os
import zlib
from urllib.parse import quote

import schemathesis

ADAPTER = os.environ.get("PLEACH_ADAPTER")
NODES = [node for node in os.environ.get("PLEACH_NODES", "").split(",") if node]
GENERATING = ("/v1/completions", "/v1/chat/completions")
MOST_TOKENS, MOST_TEXTS = 8, 2


def drawn(value):
    """A number that is always the same for the same value, so that a run can be repeated."""
    return zlib.crc32(json.dumps(value, sort_keys=True, default=repr).encode())


def real_node(value):
    number = drawn(value)
    return NODES[number // 2 % len(NODES)] if NODES and number % 2 else None


def bounded(body):
    body = dict(body)
    limits = ("max_tokens", "max_completion_tokens")
    for name in limits:
        if type(body.get(name)) in (int, float) and body[name] > MOST_TOKENS:
            body[name] = MOST_TOKENS
    if all(body.get(name) is None for name in limits):
        body["max_tokens"] = MOST_TOKENS
    if type(body.get("n")) is int and MOST_TEXTS < body["n"] <= 128:  # more is refused, which is worth seeing
        body["n"] = MOST_TEXTS
    if drawn(body) % 4 < 3:  # most go without what fields forbid each other, so that they get as far as the model
        if body.get("stream") is not True:
            body.pop("stream_options", None)
        body.pop("best_of", None)
        if body.get("logprobs") is not None:
            body.pop("echo", None)
    for name in ("prompt", "messages"):
        if isinstance(body.get(name), list):
            body[name] = body[name][:MOST_TEXTS]
    return body


def changed(case):
    """Lets most changes be whatever generation the node has, and most rollbacks go to one of the first: guesses never fit."""
    conditions = ("expected_generation", "trained_on", "If-Match", "If-None-Match")
    if drawn([case.path_parameters, case.body]) % 4 == 3:
        return
    for part in (case.query, case.headers):
        for name in conditions:
            if part and name in part:
                del part[name]
    if isinstance(case.body, dict):
        case.body = {name: value for name, value in case.body.items() if name not in conditions}
        if type(case.body.get("generation")) is int:
            case.body["generation"] %= 8


@schemathesis.hook
def before_call(context, case, kwargs):
    if ADAPTER and case.method.upper() != "GET":
        changed(case)
    body = case.body
    if isinstance(body, dict):
        if case.operation.path in GENERATING:
            body = bounded(body)
        if isinstance(body.get("model"), str) and (node := real_node(body)):
            body = body | {"model": node}
        for name in ("lora_path", "path"):
            if ADAPTER and name in body and drawn(body) % 2:
                body = body | {name: ADAPTER}
        for name in ("lora_name", "target"):
            if ADAPTER and name in body and drawn(body) % 3:
                body = body | {name: NODES[-1] + ("-moved" if drawn(body) % 2 else "")}
        case.body = body
    if ADAPTER or case.method.upper() == "GET":
        for name, value in dict(case.path_parameters or {}).items():
            if node := real_node(value):
                case.path_parameters[name] = quote(node, safe="")
