"""What three servers on one store do behind HAProxy; `tests/scale/run` gets what this needs.

usage: scale.py PROGRAM BASE

Ends with 1 and the claim that does not hold; otherwise prints what was measured.
"""

import json
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from fleet import (ADMIN, NAMES, TREE, Clients, Failed, Fleet, claim, complete, node_route, until)
from serving import ask, import_tree

LEAVES = TREE / "fr" / "sysadmin" / "name-line"
SUBTREES = [f"team-{number:02}" for number in range(12)]
USERS = ("ann", "ben")
MARKED = "fr/sysadmin/name-line/marked"
# Longest time after a server was killed in which a request may still fail: it was being answered.
WINDOW_S = 3.0
# Answers to check at the least, where the machine is not too slow for it.
ANSWERS = 200

measured = []  # what is printed in the end


def note(what, value):
    measured.append((what, str(value)))
    print(f"  {what}: {value}", flush=True)


def make_tree(folder):
    """The shipped tree, and teams with two users each."""
    shutil.copytree(TREE, folder)
    for team in SUBTREES:
        shutil.copytree(LEAVES, folder / team, ignore=shutil.ignore_patterns("alice", "bob"))
        for user, adapter in zip(USERS, ("alice", "bob")):
            shutil.copytree(LEAVES / adapter, folder / team / user)


def users():
    return [f"{team}/{user}" for team in SUBTREES for user in USERS]


def prompt_of(user):
    """Longer than a page of keys and values, so that a second question finds the first one's."""
    return f"{user} asks: " + "a list of what is in the folder, one name a line, please. " * 4


def check_where_requests_go(fleet, title):
    """Every user asks a few times; in whose memory are the deltas then?"""
    began, turns = time.monotonic(), 3
    homes = {}
    for _ in range(turns):
        clients, names = [], users()
        random.Random(1).shuffle(names)
        halves = names[::2], names[1::2]

        def all_of(half, seen):
            for user in half:
                seen.append((user, complete(fleet.url, user, prompt_of(user), 2)))

        seen = []
        for half in halves:
            clients.append(threading.Thread(target=all_of, args=(half, seen)))
            clients[-1].start()
        for client in clients:
            client.join()
        for user, answer in seen:
            claim(answer.is_good(), f"{user}: {answer.status} {answer.text}")
            homes.setdefault(user.split("/")[0], Counter())[answer.server] += 1
    took = time.monotonic() - began
    counts = fleet.metric("vllm:request_success_total")
    claim(sum(counts.values()) == turns * len(users()), f"not all requests are counted: {counts}")
    misses = fleet.metric('pleach_delta_cache_events_total{event="miss"}')
    held = fleet.metric('pleach_delta_cache_nodes{tier="host"}')
    switched = fleet.metric("pleach_switched_bytes_total")
    note(f"{title}: requests by server", ", ".join(f"{counts[name]:.0f}" for name in NAMES))
    note(f"{title}: subtrees on one server", f"{sum(len(home) == 1 for home in homes.values())} of "
         f"{len(homes)}")
    note(f"{title}: deltas read from the store", f"{sum(misses.values()):.0f}")
    note(f"{title}: deltas in memory, all servers", f"{sum(held.values()):.0f}")
    note(f"{title}: weights that switches read and wrote",
         f"{sum(switched.values()) / 1e9:.2f} GB")
    note(f"{title}: time of {turns * len(users())} requests", f"{took:.1f} s")
    return homes, sum(misses.values())


def check_streams(fleet):
    """Tokens come as they are made, not all at the end."""
    body = {"model": "team-00", "prompt": "One, two,", "max_tokens": 30, "ignore_eos": True,
            "stream": True, "temperature": 0}
    data = json.dumps(body).encode()
    arrivals = []
    with socket.create_connection(("127.0.0.1", fleet.front), timeout=60) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                           b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" %
                           len(data) + data)
        while received := connection.recv(65536):
            if b"data: " in received:
                arrivals.append(time.monotonic())
    steps = sum(later - sooner > 0.002 for sooner, later in zip(arrivals, arrivals[1:]))
    claim(steps >= 15, f"30 tokens come in {steps + 1} pieces: they are held back")
    note("a stream of 30 tokens comes in pieces", len(arrivals))


def hold_a_slow_client(fleet, outcome):
    """Half a body, and then nothing."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", fleet.front), timeout=60) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n"
                           b"content-type: application/json\r\n\r\n{\"model\": \"")
        outcome["answer"] = connection.recv(200).split(b"\r\n")[0].decode()
    outcome["after_s"] = time.monotonic() - began


def homes_of(records):
    homes = {}
    for _, (team, answer) in records:
        if answer.is_good():
            homes.setdefault(team, set()).add(answer.server)
    return homes


def check_a_killed_server(fleet):
    """Kill -9 while everybody asks: who fails, and who is moved?"""
    def asks(at, _):
        team = SUBTREES[at]
        return team, complete(fleet.url, f"{team}/ann", "How are you?", 6)

    clients = Clients(len(SUBTREES), asks)
    time.sleep(6)
    before = homes_of(clients.records)
    victim = Counter(next(iter(home)) for home in before.values()).most_common(1)[0][0]
    killed = time.monotonic()
    fleet.servers[victim].kill()
    time.sleep(8)
    records = clients.end()
    claim(all(len(home) == 1 for home in before.values()), f"subtrees on two servers: {before}")
    claim(not [one for one in records if one[0] < killed and not one[1][1].is_good()],
          "requests failed before anything was killed")
    failed = [(at - killed, team) for at, (team, answer) in records if not answer.is_good()]
    late = [one for one in failed if one[0] > WINDOW_S]
    claim(not late, f"requests failed {WINDOW_S} s after the server was killed: {late}")
    foreign = [team for _, team in failed if before[team] != {victim}]
    claim(not foreign, f"requests failed at servers that live: {foreign}")
    after = homes_of([one for one in records if one[0] > killed + WINDOW_S])
    moved = [team for team in SUBTREES if before[team] == {victim}]
    claim(set(after) == set(SUBTREES), f"nobody answers {set(SUBTREES) - set(after)}")
    claim(all(victim not in home for home in after.values()), "a dead server has answered")
    for team in set(SUBTREES) - set(moved):
        claim(after[team] == before[team], f"{team} was moved from {before[team]} to {after[team]}")
    note("kill -9: requests in all", len(records))
    note("kill -9: subtrees of the killed server", f"{len(moved)} of {len(SUBTREES)}, now on "
         f"{len(set().union(*(after[team] for team in moved)))} others; no other subtree moved")
    last = max([at for at, _ in failed], default=0)
    note("kill -9: requests that failed", f"{len(failed)}, the last after {last:.2f} s; then 0 of "
         f"{sum(at > killed + last for at, _ in records)}")
    return victim, before


def check_a_server_that_comes_back(fleet, victim, before):
    """Its subtrees go back to it, without a failure."""
    fleet.restart(victim)

    def is_home():
        answers = {team: complete(fleet.url, team, "a", 1) for team in SUBTREES}
        claim(all(answer.is_good() for answer in answers.values()), "a request failed")
        return all({answer.server} == before[team] for team, answer in answers.items())

    began = time.monotonic()
    until(is_home, "the subtrees do not go back", 30)
    note("the server is back: its subtrees with it after", f"{time.monotonic() - began:.1f} s")


def check_a_server_that_ends(fleet):
    """SIGTERM while everybody asks, some in streams: nobody fails."""
    def asks(at, turn):
        team = SUBTREES[at]
        return team, complete(fleet.url, f"{team}/ann", "How are you?", 12, stream=turn % 2 == 0)

    clients = Clients(len(SUBTREES), asks)
    time.sleep(3)
    begun = len(clients.records)
    fleet.servers["two"].stop()
    time.sleep(3)
    records = clients.end()
    failed = [(team, answer.status, answer.text) for _, (team, answer) in records
              if not answer.is_good()]
    claim(not failed, f"requests failed while a server ended in order: {failed}")
    claim(len(records) > begun + len(SUBTREES), "nobody asked meanwhile")
    note("SIGTERM: requests that failed", f"0 of {len(records)}")
    fleet.restart("two")


def change(url, name, adapter=None, **more):
    """Publishes or replaces a node (removes it where there is no adapter): status, and answer."""
    method = "PUT" if adapter else "DELETE"
    body = {"path": f"fr/sysadmin/name-line/{adapter}", **more} if adapter else None
    return ask(url, node_route(name), body, key=ADMIN, method=method)


def check_changes_reach_all(fleet):
    """What one server publishes, replaces or removes is so at all three with the next request."""
    name, prompt = "fr/sysadmin/name-line/carol", "Commande : mkdir\nNOM :"
    texts = {adapter: complete(fleet.servers["one"].url, f"fr/sysadmin/name-line/{adapter}", prompt,
                               12, merge="leaf").text for adapter in ("alice", "bob")}
    claim(texts["alice"] != texts["bob"], "the two adapters say the same")
    asked = 0
    for turn in range(6):
        changer = fleet.servers[NAMES[turn % 3]]
        for adapter in ("alice", "bob"):
            status, answer = change(changer.url, name, adapter)
            claim(status in (200, 201), f"{status} {answer}")
            for server in fleet.servers.values():
                got = complete(server.url, name, prompt, 12, merge="leaf")
                claim(got.is_good(), f"{got.status} {got.text}")
                claim(got.body["node_generation"] == answer["generation"],
                      f"generation {got.body['node_generation']} after {answer['generation']}")
                claim(got.text == texts[adapter], f"{adapter} says {got.text!r}")
                asked += 1
        status, answer = change(changer.url, name)
        claim(status == 200, f"{status} {answer}")
        for server in fleet.servers.values():
            got = complete(server.url, name, prompt, 12)
            claim(got.status == 404, f"{got.status} at a removed node")
            asked += 1
    note("changes at one server, asked of all three at once", f"18 changes, {asked} requests, all "
         "of the newest generation")


class Publisher:
    """Puts one of two adapters under one name, again and again, through whoever is alive."""

    def __init__(self, fleet):
        self.fleet, self.is_over = fleet, threading.Event()
        self.adapter_of = {}  # generation -> adapter
        self.unanswered = 0
        self.error = None
        status, answer = change(fleet.url, MARKED, "alice")
        claim(status == 201, f"{status} {answer}")
        self.generation = answer["generation"]
        self.adapter_of[self.generation] = "alice"
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        turn = 1
        try:
            while not self.is_over.is_set():
                self.publish(("alice", "bob")[turn % 2])
                turn += 1
                time.sleep(0.4)
        except Exception as error:
            self.error = error

    def publish(self, adapter):
        try:
            status, answer = change(self.fleet.url, MARKED, adapter,
                                    expected_generation=self.generation)
        except OSError:
            status, answer = 0, None
        if status == 200:
            self.generation = answer["generation"]
            self.adapter_of[self.generation] = adapter
            return
        # Its server was killed: the change is whole or has not happened. Whoever lives says which.
        self.unanswered += 1
        claim(status in (0, 502, 503, 504), f"a change was refused: {status} {answer}")

        def has_looked():
            try:
                status, node = ask(self.fleet.url, node_route(MARKED), wait_s=10)
            except OSError:
                return False
            if status != 200:
                return False
            if node["generation"] != self.generation:
                self.generation = node["generation"]
                self.adapter_of[self.generation] = adapter
            return True

        until(has_looked, "no server says what became of a change")

    def end(self):
        self.is_over.set()
        self.thread.join()
        if self.error:
            raise self.error


def check_nobody_gets_anothers(fleet, seconds):
    """While one name changes its meaning and servers die, every answer is its generation's."""
    prompts = [f"Commande : {word}\nNOM :" for word in ("mkdir", "ls", "grep", "tar")]
    tokens, fixed = 4, {}
    for name in ("alice", "bob"):
        for prompt in prompts:
            answer = complete(fleet.servers["one"].url, f"fr/sysadmin/name-line/{name}", prompt,
                              tokens, merge="leaf")
            claim(answer.is_good(), f"{answer.status} {answer.text}")
            fixed[name, prompt] = answer.text
    prompts = [one for one in prompts if fixed["alice", one] != fixed["bob", one]]
    claim(len(prompts) >= 3, "the two adapters say too often the same")
    publisher = Publisher(fleet)

    def asks(at, turn):
        chance = random.Random(at * 100_003 + turn)
        name = chance.choice([MARKED, MARKED, MARKED, *(f"fr/sysadmin/name-line/{leaf}"
                                                        for leaf in ("alice", "bob"))])
        prompt = chance.choice(prompts)
        # By a header of the platform's own, so that all three serve the one name.
        header = {"x-pleach-node": f"spread-{chance.randrange(64)}"}
        answer = complete(fleet.url, name, prompt, tokens, turn % 3 == 0, header, merge="leaf")
        return name, prompt, turn % 3 == 0, answer

    clients = Clients(8, asks)
    began, kills = time.monotonic(), 0

    def is_enough():
        took = time.monotonic() - began
        return took > 3 * seconds or took > seconds and len(clients.records) > ANSWERS

    try:
        while not is_enough():
            time.sleep(8)
            victim = NAMES[kills % 3]
            fleet.servers[victim].kill()
            kills += 1
            time.sleep(1)
            fleet.restart(victim)
            time.sleep(4)
    finally:
        records = clients.end()
        publisher.end()

    wrong, whole, broken, served = [], 0, Counter(), Counter()
    for _, (name, prompt, is_stream, answer) in records:
        if answer.status != 200:
            broken[answer.status] += 1
            continue
        leaf = name.rsplit("/", 1)[1]
        generation = answer.body.get("node_generation")
        if leaf == "marked" and answer.body:
            claim(generation in publisher.adapter_of, f"nobody published generation {generation}")
            leaf = publisher.adapter_of[generation]
        expected = fixed.get((leaf, prompt))
        if answer.is_whole:
            whole += 1
            served[answer.server] += 1
            if answer.text != expected or answer.body["node"] != name:
                wrong.append((name, generation, prompt, expected, answer.text))
        else:
            broken["a stream broke off"] += 1
            if answer.text and not expected.startswith(answer.text):
                wrong.append((name, generation, prompt, expected, answer.text))
    claim(not wrong, f"{len(wrong)} wrong answers, the first: {wrong[:1]}")
    claim(set(broken) <= {0, 502, 503, "a stream broke off"}, f"refused: {broken}")
    claim(set(served) == set(NAMES), f"not all servers were asked: {served}")
    claim(len(publisher.adapter_of) >= seconds / 2, f"only {len(publisher.adapter_of)} changes")
    used = {answer.body.get("node_generation") for _, (name, _, _, answer) in records
            if name == MARKED and answer.is_good()}
    note("markers: whole answers checked", f"{whole}, wrong: 0")
    causes = {0: "no answer", "a stream broke off": "streams broken off"}
    note("markers: requests that a kill cost", f"{sum(broken.values())} of {len(records)} "
         f"({kills} kills): " + ", ".join(f"{causes.get(cause, cause)} {number}"
                                          for cause, number in broken.items()))
    note("markers: generations published, and seen in answers",
         f"{len(publisher.adapter_of)}, {len(used)}; changes whose server died: "
         f"{publisher.unanswered}")
    note("markers: answers by server", ", ".join(str(served[name]) for name in NAMES))


def main():
    program, base = sys.argv[1:3]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pleach-scale-") as work:
        tree, store = Path(work) / "tree", Path(work) / "store"
        make_tree(tree)
        import_tree(program, base, store, tree)
        fleet = None
        try:
            print("round robin, to compare with", flush=True)
            fleet = Fleet(program, base, store, balance="roundrobin")
            _, spread = check_where_requests_go(fleet, "round robin")
            fleet.end()

            print("by subtree", flush=True)
            fleet = Fleet(program, base, store)
            homes, kept = check_where_requests_go(fleet, "by subtree")
            claim(all(len(home) == 1 for home in homes.values()), f"a subtree moved: {homes}")
            claim(kept < spread, f"as many deltas were read as by round robin: {kept}, {spread}")
            check_streams(fleet)
            outcome = {}
            slow = threading.Thread(target=hold_a_slow_client, args=(fleet, outcome))
            slow.start()
            victim, before = check_a_killed_server(fleet)
            check_a_server_that_comes_back(fleet, victim, before)
            check_a_server_that_ends(fleet)
            slow.join()
            claim(" 408 " in outcome["answer"] and outcome["after_s"] < 15, f"slow: {outcome}")
            note("a client with half a body", f"{outcome['answer']} after {outcome['after_s']:.0f} s")
            until(lambda: all(server.is_ready() for server in fleet.servers.values()), "not ready")
            check_changes_reach_all(fleet)
            check_nobody_gets_anothers(fleet, 60)
        except Failed as failure:
            if fleet:
                fleet.log.seek(0)
                print(fleet.log.read().decode()[-2000:], file=sys.stderr)
            sys.exit(f"FAILED: {failure}")
        finally:
            if fleet:
                fleet.end()
    wide = max(len(what) for what, _ in measured)
    print("\n" + "\n".join(f"{what:{wide}}  {value}" for what, value in measured))
    print(f"ok: all of it in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
