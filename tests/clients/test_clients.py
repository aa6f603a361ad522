"""The clients people have, each against a running `pleach serve`: openai-python, LiteLLM, `llm` and curl.

Read from the environment:
  BASE_URL    the server, without /v1
  MODEL       the base's name
  NODE        a node's path with a slash in it
  TOKEN       a key, where the server wants one
  BUSY_URL    a server that refuses the second of several requests at once (else tests of 429 are skipped)
  KEYED_URL, KEYED_TOKEN, KEYED_NODE   a server that wants a key, one it knows, a node this key sees (else tests of 401 are skipped)
  KEYED_HIDDEN                         a node this key does not see
  ADMIN_TOKEN, ADAPTER   the token that allows changes to BASE_URL's store, and a PEFT folder that fits beside NODE, here and
                         on the server (else tests of changes are skipped)
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}

import jsonschema_rs  # noqa: E402
import openai  # noqa: E402

URL, MODEL, NODE = os.environ["BASE_URL"].rstrip("/"), os.environ["MODEL"], os.environ["NODE"]
TOKEN = os.environ.get("TOKEN") or "none"
PROMPT, MESSAGES = "Commande : mkdir\nNOM :", [{"role": "user", "content": "Que fait la commande mkdir ?"}]
USAGE = {"include_usage": True}
HERE = Path(__file__).parent


def client(url=URL, key=TOKEN, **options):
    return openai.OpenAI(base_url=url + "/v1", api_key=key, **{"max_retries": 0, "timeout": 120} | options)


CLIENT = client()
complete, chat = CLIENT.completions.create, CLIENT.chat.completions.create


def tearDownModule():
    CLIENT.close()


def greedy(**more):
    return {"model": NODE, "prompt": PROMPT, "max_tokens": 8, "temperature": 0} | more


def greedy_chat(**more):
    return {"model": NODE, "messages": MESSAGES, "max_completion_tokens": 8, "temperature": 0} | more


def raw(path, **options):
    """What openai-python makes of another route."""
    return CLIENT.get(path, cast_to=object, options={"params": options.pop("params", {})}, **options)


def curl(*arguments, token=TOKEN):
    """The answer's status, its headers in small letters, and its body."""
    *options, path = arguments
    command = ["curl", "--silent", "--show-error", "--include", "--max-time", "60", "-H", "expect:"]
    command += ["-H", f"authorization: Bearer {token}"] if token else []
    out = subprocess.run([*command, *options, URL + path], capture_output=True, check=True).stdout.decode()
    head, _, body = out.partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(status.split()[1]), headers, body


def curl_json(path, body, *options):
    text = body if isinstance(body, str) else json.dumps(body)
    return curl("-H", "content-type: application/json", *options, "--data-binary", text, path)


class Completions(unittest.TestCase):
    def test_a_completion_has_openais_fields_and_says_which_node(self):
        answer = complete(**greedy())
        self.assertEqual(answer.object, "text_completion")
        self.assertTrue(answer.id.startswith("cmpl-"), answer.id)
        self.assertLess(abs(answer.created - time.time()), 3600)
        self.assertEqual(answer.model, NODE)
        self.assertEqual(answer.node, NODE)
        self.assertIsInstance(answer.system_fingerprint, str)
        self.assertIn("node_generation", answer.model_extra)
        [choice] = answer.choices
        self.assertTrue(choice.text)
        self.assertIn(choice.finish_reason, ("stop", "length"))
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.assertLessEqual(usage.completion_tokens, 8)
        self.assertGreater(usage.prompt_tokens, 3)

    def test_the_root_has_several_names_and_so_has_a_node(self):
        for name in (MODEL, "/"):
            self.assertEqual(complete(**greedy(model=name, max_tokens=1)).node, "/", name)
        for name in (f"{MODEL}/{NODE}", f"{MODEL}:{NODE}", f"{MODEL}::{NODE}"):
            self.assertEqual(complete(**greedy(model=name, max_tokens=1)).node, NODE, name)

    def test_without_a_model_the_base_answers(self):
        status, _, body = curl_json("/v1/completions", {"prompt": "Bonjour", "max_tokens": 1})
        self.assertEqual((status, json.loads(body)["node"]), (200, "/"))

    def test_a_stream_brings_the_same_text_and_then_the_usage(self):
        whole = complete(**greedy())
        *chunks, last = complete(**greedy(stream=True, stream_options=USAGE))
        self.assertEqual("".join(chunk.choices[0].text for chunk in chunks), whole.choices[0].text)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        self.assertEqual(reasons, [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason])
        self.assertEqual((last.choices, last.usage.total_tokens), ([], whole.usage.total_tokens))
        self.assertEqual(len({chunk.id for chunk in [*chunks, last]}), 1)
        self.assertEqual({chunk.object for chunk in [*chunks, last]}, {"text_completion"})
        self.assertEqual({chunk.node for chunk in [*chunks, last]}, {NODE})

    def test_a_stream_without_usage_has_none_and_a_continuous_one_counts_up(self):
        chunks = list(complete(**greedy(stream=True)))
        self.assertTrue(all(chunk.choices and chunk.usage is None for chunk in chunks))
        chunks = complete(**greedy(stream=True, stream_options=USAGE | {"continuous_usage_stats": True}))
        counted = [chunk.usage.completion_tokens for chunk in chunks]
        self.assertEqual(counted, sorted(counted))
        self.assertGreater(counted[-1], 0)

    def test_a_text_ends_before_a_stop_string_also_in_a_stream(self):
        whole = complete(**greedy(max_tokens=12)).choices[0].text
        stop = whole[len(whole) // 2 :][:2]
        wanted = whole[: whole.index(stop)]
        for given in (stop, ["no such text at all", stop]):
            answer = complete(**greedy(max_tokens=12, stop=given)).choices[0]
            self.assertEqual((answer.text, answer.finish_reason), (wanted, "stop"))
            chunks = [chunk.choices[0] for chunk in complete(**greedy(max_tokens=12, stop=given, stream=True))]
            self.assertEqual("".join(chunk.text for chunk in chunks), wanted)
            self.assertEqual(chunks[-1].finish_reason, "stop")

    def test_n_texts_of_several_prompts_are_numbered_prompt_by_prompt(self):
        options = greedy(prompt=["Bonjour", "Commande : rm\nNOM :"], n=2, temperature=1, seed=1, max_tokens=4)
        answer = complete(**options)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2, 3])
        texts = dict.fromkeys(range(4), "")
        for chunk in complete(**options, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        self.assertEqual(texts, {choice.index: choice.text for choice in answer.choices})
        alike = complete(**greedy(n=2)).choices  # nothing is drawn, so nothing can differ
        self.assertEqual(alike[0].text, alike[1].text)

    def test_a_seed_gives_the_same_text_twice_and_seeds_differ(self):
        drawn = lambda seed: complete(**greedy(model=MODEL, temperature=1, seed=seed)).choices[0].text  # noqa: E731
        texts = [drawn(seed) for seed in (1, 2, 3, 1, 2, 3)]
        self.assertEqual(texts[:3], texts[3:])
        self.assertGreater(len(set(texts)), 1)

    def test_logprobs_are_of_the_tokens_that_make_the_text(self):
        [choice] = complete(**greedy(logprobs=2)).choices
        said = choice.logprobs
        self.assertEqual("".join(said.tokens), choice.text)
        self.assertEqual(said.text_offset, [len("".join(said.tokens[:i])) for i in range(len(said.tokens))])
        for token, logprob, likeliest in zip(said.tokens, said.token_logprobs, said.top_logprobs, strict=True):
            self.assertLessEqual(logprob, 0)
            self.assertIn(token, likeliest)
            self.assertAlmostEqual(likeliest[token], max(likeliest.values()), places=4)
            self.assertLessEqual(len(likeliest), 3)
        streamed = [chunk.choices[0].logprobs for chunk in complete(**greedy(logprobs=2, stream=True))]
        for name in ("tokens", "text_offset"):
            self.assertEqual([each for part in streamed if part for each in getattr(part, name)], getattr(said, name))

    def test_echo_begins_with_the_prompt(self):
        text = complete(**greedy()).choices[0].text
        self.assertEqual(complete(**greedy(echo=True)).choices[0].text, PROMPT + text)

    def test_a_prompt_may_be_its_tokens(self):
        tokens = CLIENT.post(f"{URL}/tokenize", cast_to=object, body={"model": NODE, "prompt": PROMPT})["tokens"]
        answer = complete(**greedy(prompt=tokens))
        self.assertEqual(answer.usage.prompt_tokens, len(tokens))

    def test_null_is_as_if_absent_and_unknown_fields_are_ignored(self):
        names = ["top_k", "min_p", "stop", "seed", "n", "logprobs", "logit_bias", "stream_options", "best_of", "suffix", "merge", "echo"]
        nulls = dict.fromkeys([*names, "deadline_ms", "cache_salt", "request_id", "stop_token_ids", "ignore_eos", "priority"])
        usual = complete(**greedy()).choices[0].text
        self.assertEqual(complete(**greedy(), extra_body=nulls).choices[0].text, usual)
        self.assertEqual(complete(**greedy(), extra_body={"frobnicate": 3}).choices[0].text, usual)

    def test_fields_of_vllms_are_taken(self):
        more = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.0, "ignore_eos": True, "cache_salt": "a", "merge": "root"}
        answer = complete(**greedy(), extra_body=more)
        self.assertEqual((answer.usage.completion_tokens, answer.choices[0].finish_reason), (8, "length"))


class Chat(unittest.TestCase):
    def test_an_answer_has_openais_fields_and_says_which_node(self):
        answer = chat(**greedy_chat())
        self.assertEqual((answer.object, answer.model, answer.node), ("chat.completion", NODE, NODE))
        self.assertTrue(answer.id.startswith("chatcmpl-"), answer.id)
        [choice] = answer.choices
        self.assertEqual((choice.message.role, choice.message.refusal), ("assistant", None))
        self.assertTrue(choice.message.content)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_a_stream_begins_with_the_role_and_ends_with_the_usage(self):
        whole = chat(**greedy_chat())
        first, *chunks, last = chat(**greedy_chat(stream=True, stream_options=USAGE))
        self.assertEqual((first.choices[0].delta.role, first.choices[0].delta.content), ("assistant", ""))
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks), whole.choices[0].message.content)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        self.assertEqual(reasons, [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason])
        self.assertEqual((last.choices, last.usage.total_tokens), ([], whole.usage.total_tokens))
        self.assertEqual({chunk.object for chunk in [first, *chunks, last]}, {"chat.completion.chunk"})

    def test_the_stream_helper_puts_the_answer_together(self):
        text = chat(**greedy_chat(max_completion_tokens=12)).choices[0].message.content
        stop = text[len(text) // 2 :][:2]  # the helper takes a text that ends at its limit for an error
        with CLIENT.chat.completions.stream(**greedy_chat(max_completion_tokens=12, stop=stop, stream_options=USAGE)) as stream:
            events = [event.type for event in stream]
            final = stream.get_final_completion()
        self.assertIn("content.delta", events)
        self.assertEqual(final.choices[0].message.content, text[: text.index(stop)])
        self.assertGreater(final.usage.completion_tokens, 0)

    def test_content_may_be_parts_and_max_tokens_the_older_name(self):
        parts = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
        usual = chat(**greedy_chat()).choices[0].message.content
        answer = chat(model=NODE, messages=parts, max_tokens=8, temperature=0)
        self.assertEqual(answer.choices[0].message.content, usual)

    def test_logprobs_are_of_the_tokens_that_make_the_text_also_in_a_stream(self):
        options = greedy_chat(logprobs=True, top_logprobs=3)
        [choice] = chat(**options).choices
        said = choice.logprobs.content
        self.assertEqual(b"".join(bytes(token.bytes) for token in said).decode(errors="ignore"), choice.message.content)
        for token in said:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.top_logprobs[0].token, token.token)
        chunks = [chunk.choices[0] for chunk in chat(**options, stream=True)]
        streamed = [token.token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
        self.assertEqual(streamed, [token.token for token in said])

    def test_n_answers_and_a_seed(self):
        options = greedy_chat(n=3, temperature=1, seed=5)
        one, two = (chat(**options) for _ in range(2))
        contents = lambda answer: [choice.message.content for choice in answer.choices]  # noqa: E731
        self.assertEqual([choice.index for choice in one.choices], [0, 1, 2])
        self.assertEqual(contents(one), contents(two))

    def test_what_would_change_nothing_is_taken(self):
        more = {"tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"], "user": "u", "store": False}
        self.assertTrue(chat(**greedy_chat(), extra_body=more).choices[0].message.content)


class Errors(unittest.TestCase):
    def refused(self, kind, param, call, **options):
        """The error: of the client's class, in OpenAI's shape."""
        with self.assertRaises(kind) as caught:
            call(**options)
        error = caught.exception
        self.assertEqual((error.param, error.type), (param, kind.__name__), error)
        self.assertEqual(set(error.body), {"message", "type", "param", "code"})
        self.assertIsInstance(error.code, str | None)
        self.assertTrue(error.request_id)
        return error

    def test_an_unknown_model_is_not_the_base_and_near_names_are_told(self):
        for stream in (False, True):
            error = self.refused(openai.NotFoundError, "model", complete, **greedy(model=NODE + "x", stream=stream))
            self.assertIn(NODE, error.message)
            self.refused(openai.NotFoundError, "model", chat, **greedy_chat(model="nobody", stream=stream))
        self.refused(openai.NotFoundError, "model", CLIENT.models.retrieve, model=NODE + "x")

    def test_a_deadline_that_passes_is_408_once_and_a_streams_last_word(self):
        options = greedy(max_tokens=4000) | {"extra_body": {"deadline_ms": 300, "ignore_eos": True}}
        with self.assertRaises(openai.APIStatusError) as caught:
            complete(**options)
        self.assertEqual((caught.exception.status_code, caught.exception.param), (408, "deadline_ms"))
        self.assertEqual(caught.exception.response.headers["x-should-retry"], "false")
        with self.assertRaises(openai.APIError) as caught:
            list(complete(**options, stream=True))
        self.assertEqual(caught.exception.body["type"], "RequestTimeoutError")

    def test_a_bad_value_is_refused_by_its_name(self):
        bad = {"temperature": -1, "top_p": 0, "min_p": 2, "n": 129, "max_tokens": 100_000_000, "presence_penalty": 3, "top_k": -7}
        bad |= {"merge": "never", "cache_salt": "x" * 129, "deadline_ms": -1, "logit_bias": {"one": 1}, "stop": 7, "seed": "x"}
        for name, value in bad.items():
            with self.subTest(name):
                self.refused(openai.BadRequestError, name, complete, **greedy(), extra_body={name: value})
        self.refused(openai.BadRequestError, "max_tokens", complete, **greedy(max_tokens="many"))
        self.refused(openai.BadRequestError, "logit_bias", complete, **greedy(logit_bias={"999999999": 1}))
        self.refused(openai.BadRequestError, "tokens", CLIENT.post, path=URL + "/detokenize", cast_to=object, body={})

    def test_what_is_not_served_is_refused_by_its_name(self):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        chats = {"tools": [tool], "functions": [{"name": "f"}], "tool_choice": "required", "response_format": {"type": "json_object"}}
        chats |= {"modalities": ["text", "audio"], "audio": {"voice": "a", "format": "wav"}, "min_tokens": 1}
        for name, value in chats.items():
            with self.subTest(name):
                self.refused(openai.BadRequestError, name, chat, **greedy_chat(), extra_body={name: value})
        for name, value in {"suffix": "x", "best_of": 2, "prompt_logprobs": 1}.items():
            with self.subTest(name):
                self.refused(openai.BadRequestError, name, complete, **greedy(), extra_body={name: value})
        with self.assertRaises(openai.BadRequestError):
            complete(**greedy(echo=True, logprobs=1))

    def test_a_prompt_must_be_there_and_fit(self):
        self.refused(openai.BadRequestError, "prompt", complete, **greedy(prompt=[]))
        self.refused(openai.BadRequestError, "messages", chat, **greedy_chat(messages=[]))
        long = "a b c d " * 30_000
        self.refused(openai.BadRequestError, "prompt", complete, **greedy(prompt=long))
        self.refused(openai.BadRequestError, "messages", chat, **greedy_chat(messages=[{"role": "user", "content": long}]))
        for name in ("max_tokens", "max_completion_tokens"):
            self.refused(openai.BadRequestError, name, chat, model=NODE, messages=MESSAGES, **{name: 1_000_000})
        with self.assertRaises(openai.APIStatusError) as caught:
            complete(**greedy(prompt="a b c d " * 1_000_000))  # the answer comes while the body is on its way
        self.assertEqual((caught.exception.status_code, caught.exception.type), (413, "PayloadTooLargeError"))

    def test_stream_options_want_a_stream(self):
        self.refused(openai.BadRequestError, "stream_options", complete, **greedy(), extra_body={"stream_options": USAGE})

    def test_bodies_that_are_no_json_are_400(self):
        for kind, body in [("application/json", '{"prompt":'), ("application/json", "[]"), ("text/plain", '{"prompt":"x"}')]:
            status, _, answer = curl("-H", f"content-type: {kind}", "--data-binary", body, "/v1/completions")
            self.assertEqual((status, json.loads(answer)["error"]["type"]), (400, "BadRequestError"), (kind, body))

    def test_routes_and_methods_that_are_not_there(self):
        status, _, body = curl("/v1/nothing")
        self.assertEqual((status, json.loads(body)["error"]["type"]), (404, "NotFoundError"))
        status, headers, body = curl("/v1/completions")
        self.assertEqual((status, headers["allow"]), (405, "POST"))
        self.assertEqual(json.loads(body)["error"]["type"], "MethodNotAllowedError")
        for end, allowed in {"/move": {"POST"}, "/history": {"GET", "HEAD"}}.items():
            status, headers, _ = curl("-X", "PUT", f"/v1/tree/nodes/{NODE}{end}")
            self.assertEqual((status, set(headers["allow"].split(","))), (405, allowed))

    @unittest.skipIf(TOKEN != "none", "a key is wanted")
    def test_a_header_for_a_proxy_before_an_open_server_is_passed_over(self):
        status, _, body = curl("-H", "authorization: Basic YTpi", "/v1/models", token=None)
        self.assertEqual(status, 200, body)

    @unittest.skipIf(TOKEN != "none", "the key may change the tree")
    def test_changes_without_the_admin_token_are_forbidden_and_the_setting_is_named(self):
        changes = [(CLIENT.post, "/load_lora_adapter", {"lora_name": "x", "lora_path": "/nowhere"})]
        changes += [(CLIENT.post, "/unload_lora_adapter", {"lora_name": NODE}), (CLIENT.delete, "/tree/nodes/" + quote(NODE, safe=""), None)]
        for call, path, body in changes:
            with self.subTest(path), self.assertRaises(openai.PermissionDeniedError) as caught:
                call(path, cast_to=object, body=body)
            self.assertRegex(caught.exception.message, "(?i)admin.?token")
            self.assertEqual(caught.exception.type, "PermissionDeniedError")


@unittest.skipUnless(os.environ.get("KEYED_URL"), "KEYED_URL is not set")
class Keys(unittest.TestCase):
    def test_a_wrong_key_is_401_and_the_right_one_serves(self):
        url, token, node = (os.environ["KEYED_" + name] for name in ("URL", "TOKEN", "NODE"))
        with self.assertRaises(openai.AuthenticationError) as caught, client(url, "wrong") as wrong:
            wrong.models.list()
        self.assertEqual(caught.exception.type, "AuthenticationError")
        with client(url, token) as keyed:
            self.assertTrue(keyed.completions.create(**greedy(model=node)).choices[0].text)
        for path in ("/health", "/ping", "/ready", "/version", "/openapi.json", "/"):
            answer = subprocess.run(["curl", "-sf", "-o", os.devnull, url + path], check=False)
            self.assertEqual(answer.returncode, 0, path)

    @unittest.skipUnless(os.environ.get("KEYED_HIDDEN"), "KEYED_HIDDEN is not set")
    def test_a_node_outside_the_keys_subtrees_is_as_if_not_there(self):
        url, token, hidden = (os.environ["KEYED_" + name] for name in ("URL", "TOKEN", "HIDDEN"))
        with client(url, token) as keyed:
            tops = keyed.get("/tree/children", cast_to=object)["children"]
            self.assertEqual([(top["node"], top["parent"]) for top in tops], [(keyed.models.list().data[0].id, None)])
            with self.assertRaises(openai.PermissionDeniedError):
                keyed.get(url + "/metrics", cast_to=object)
            with self.assertRaises(openai.NotFoundError) as caught:
                keyed.completions.create(**greedy(model=hidden))
            self.assertEqual(caught.exception.message.count(hidden), 1)  # as it was asked for, not as a near name
            with self.assertRaises(openai.NotFoundError):
                keyed.models.retrieve(hidden)
            self.assertNotIn(hidden, [model.id for model in keyed.models.list()])


class Models(unittest.TestCase):
    def test_the_list_begins_with_the_base_and_parents_come_first(self):
        models = CLIENT.models.list().data
        self.assertEqual((models[0].id, models[0].parent, models[0].object, models[0].owned_by), (MODEL, None, "model", "pleach"))
        seen = set()
        for model in models:
            self.assertTrue(model.parent is None or model.parent in seen, model.id)
            seen.add(model.id)
        self.assertEqual(len(seen), len(models))

    def test_a_path_with_slashes_is_retrieved(self):
        model = CLIENT.models.retrieve(NODE)  # the client writes the slashes as %2F
        self.assertEqual((model.id, model.root), (NODE, MODEL))
        self.assertGreater(model.max_model_len, 0)
        self.assertEqual(CLIENT.models.retrieve(MODEL).id, MODEL)
        status, _, body = curl(f"/v1/models/{NODE}")
        self.assertEqual((status, json.loads(body)["id"]), (200, NODE))

    def test_children_are_listed_page_by_page(self):
        parent = CLIENT.models.retrieve(NODE).parent
        page = lambda **query: raw("/models", params={"parent": parent, **query})  # noqa: E731
        everyone = [model["id"] for model in page()["data"]]
        self.assertIn(NODE, everyone)
        walked, after = [], {}
        while True:
            answer = page(limit=1, **after)
            walked += [model["id"] for model in answer["data"]]
            if not answer["has_more"] or len(walked) > len(everyone):
                break
            after = {"after": walked[-1]}
        self.assertEqual(walked, everyone)


class Connections(unittest.TestCase):
    def test_a_client_that_leaves_a_stream_frees_its_row(self):
        before = raw("/status")["requests"]["cancelled"]
        stream = complete(**greedy(max_tokens=2000, stream=True), extra_body={"ignore_eos": True})
        for _ in zip(range(2), stream):
            pass
        stream.close()
        for _ in range(50):
            status = raw("/status")
            if status["running"] == 0 and status["requests"]["cancelled"] == before + 1:
                return
            time.sleep(0.1)
        self.fail(f"five seconds later: {status}")

    def test_sixteen_at_once_each_get_their_own_answer(self):
        async def every():
            many = openai.AsyncOpenAI(base_url=URL + "/v1", api_key=TOKEN, max_retries=0, timeout=300)
            models = [MODEL, NODE, NODE.partition("/")[0], NODE]
            one = lambda i: many.completions.create(**greedy(model=models[i % 4], prompt=f"{i} : {PROMPT}"))  # noqa: E731
            answers = await asyncio.gather(*(one(i) for i in range(16)))
            await many.close()
            return [(models[i % 4], answer) for i, answer in enumerate(answers)]

        answers = asyncio.run(every())
        self.assertEqual(len({answer.id for _, answer in answers}), 16)
        for model, answer in answers:
            self.assertEqual(answer.node, "/" if model == MODEL else model)
            self.assertTrue(answer.choices[0].text)

    def test_the_request_id_comes_back(self):
        answer = CLIENT.chat.completions.with_raw_response.create(**greedy_chat(), extra_headers={"X-Request-Id": "mine-7"})
        self.assertEqual(answer.headers["x-request-id"], "mine-7")
        self.assertTrue(complete(**greedy())._request_id)
        self.assertEqual(complete(**greedy(), extra_body={"request_id": "mine-8"}).id, "cmpl-mine-8")

    @unittest.skipUnless(os.environ.get("BUSY_URL"), "BUSY_URL is not set")
    def test_a_full_server_says_429_and_clients_that_wait_are_served(self):
        url = os.environ["BUSY_URL"]

        def several(retries):
            def one(busy):
                try:
                    return busy.completions.create(**greedy(model="/", max_tokens=64)).choices[0].text
                except openai.RateLimitError as error:
                    return error

            with client(url, max_retries=retries) as busy, ThreadPoolExecutor(8) as pool:
                return list(pool.map(one, [busy] * 8))

        refused = [answer for answer in several(0) if isinstance(answer, openai.RateLimitError)]
        self.assertTrue(refused)
        for error in refused:
            self.assertEqual(error.type, "RateLimitError")
            self.assertGreaterEqual(int(error.response.headers["retry-after"]), 1)
        self.assertEqual([answer for answer in several(60) if not isinstance(answer, str)], [])


class LiteLlm(unittest.TestCase):
    def test_chat_and_streams_under_both_prefixes(self):
        import litellm  # takes seconds

        litellm.suppress_debug_info = True
        for prefix in ("openai/", "hosted_vllm/"):
            with self.subTest(prefix):
                options = {"model": prefix + NODE, "api_base": URL + "/v1", "api_key": TOKEN, "max_tokens": 8, "temperature": 0}
                answer = litellm.completion(messages=MESSAGES, **options)
                text = answer.choices[0].message.content
                self.assertTrue(text)
                self.assertGreater(answer.usage.completion_tokens, 0)
                chunks = litellm.completion(messages=MESSAGES, stream=True, stream_options=USAGE, **options)
                self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), text)
                with self.assertRaises(litellm.NotFoundError):
                    litellm.completion(messages=MESSAGES, num_retries=0, **options | {"model": prefix + "nobody"})

    def test_completions_under_the_prefixes_that_have_them(self):
        import litellm  # takes seconds

        litellm.suppress_debug_info = True
        options = {"api_base": URL + "/v1", "api_key": TOKEN, "max_tokens": 8, "temperature": 0}
        for prefix in ("text-completion-openai/", "hosted_vllm/"):
            with self.subTest(prefix):
                self.assertTrue(litellm.text_completion(model=prefix + NODE, prompt=PROMPT, **options).choices[0].text)


class LlmCommand(unittest.TestCase):
    def test_a_model_of_extra_openai_models_answers(self):
        with tempfile.TemporaryDirectory() as folder:
            entry = "- model_id: {id}\n  model_name: {node}\n  api_base: {url}/v1\n{more}"
            models = [("tree", ""), ("tree-text", "  completion: true\n")]
            text = "".join(entry.format(id=name, node=json.dumps(NODE), url=URL, more=more) for name, more in models)
            (Path(folder) / "extra-openai-models.yaml").write_text(text)
            environment = os.environ | {"LLM_USER_PATH": folder}
            for name, _ in models:
                for stream in ([], ["--no-stream"]):
                    command = [Path(sys.executable).with_name("llm"), "-m", name, "--key", TOKEN, "--no-log", *stream]
                    command += ["-o", "max_tokens", "8", "-o", "temperature", "0", PROMPT]
                    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    self.assertTrue(done.stdout.strip(), (name, stream))


class Curl(unittest.TestCase):
    def test_a_stream_is_server_sent_events_and_ends_with_done(self):
        status, headers, body = curl_json("/v1/chat/completions", greedy_chat(stream=True), "--no-buffer")
        self.assertEqual(status, 200)
        self.assertTrue(headers["content-type"].startswith("text/event-stream"), headers["content-type"])
        *events, done, nothing = body.split("\n\n")
        self.assertEqual((done, nothing), ("data: [DONE]", ""))
        for event in events:
            self.assertEqual(json.loads(event.removeprefix("data: "))["object"], "chat.completion.chunk")

    def test_tokens_come_back_as_the_text(self):
        _, _, body = curl_json("/tokenize", {"model": NODE, "prompt": "Bonjour", "return_token_strs": True})
        answer = json.loads(body)
        self.assertEqual(answer["count"], len(answer["tokens"]))
        self.assertEqual("".join(answer["token_strs"]), "Bonjour")
        self.assertEqual(json.loads(curl_json("/tokenize", {"prompt": "Bonjour"})[2])["token_strs"], None)
        self.assertEqual(json.loads(curl_json("/detokenize", {"tokens": answer["tokens"]})[2]), {"prompt": "Bonjour"})

    def test_the_small_routes_answer(self):
        for path in ("/health", "/ping", "/ready"):
            status, headers, body = curl(path)
            self.assertEqual((status, body), (200, ""), path)
            self.assertIn("x-request-id", headers)
        self.assertEqual(curl("-X", "POST", "/ping")[0], 200)
        self.assertIn("version", json.loads(curl("/version")[2]))
        self.assertIsInstance(json.loads(curl("/load")[2])["server_load"], int)
        status, headers, body = curl("/metrics")
        self.assertEqual((status, headers["content-type"].split(";")[0]), (200, "text/plain"))
        self.assertIn("vllm:num_requests_running", body)


class Documented(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.document = json.loads(curl("/openapi.json")[2])

    def fits(self, name, answer):
        """The answer has every field that the document's schema has, and none more."""

        def closed(schema):
            """The same, with fields that it does not name forbidden."""
            if isinstance(schema, dict):
                schema = {key: closed(value) for key, value in schema.items()}
                if "allOf" in schema or "properties" in schema and schema.get("type") == "object":
                    schema.setdefault("unevaluatedProperties", False)
            return [closed(part) for part in schema] if isinstance(schema, list) else schema

        schemas = self.document["components"]["schemas"]
        parts = {part for one in schemas.values() for part in (rule["$ref"] for rule in one.get("allOf", []))}
        whole = {part: one if f"#/components/schemas/{part}" in parts else closed(one) for part, one in schemas.items()}
        schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": whole}}
        jsonschema_rs.Draft202012Validator(schema).validate(answer)


class Document(Documented):
    def test_it_is_the_one_of_this_project(self):
        self.assertEqual(self.document, json.loads((HERE / "../../crates/serve/src/openapi.json").read_text()))

    def test_our_own_routes_keep_to_it(self):
        path = quote(NODE, safe="")
        routes = {"/v1/status": "Status", "/v1/models": "ModelList", f"/v1/models/{path}": "Model", "/v1/tree/children": "Children"}
        routes |= {f"/v1/tree/nodes/{path}": "Node", f"/v1/tree/nodes/{NODE}": "Node", "/version": "ServerVersion", "/load": "Load"}
        routes |= {f"/v1/tree/nodes/{NODE.rpartition('/')[0]}/children": "Children"}
        for route, name in routes.items():
            with self.subTest(route):
                status, _, body = curl(route)
                self.assertEqual(status, 200, body)
                self.fits(name, json.loads(body))
        with self.subTest("an error"):
            self.fits("Error", json.loads(curl("/v1/models/nobody")[2]))


@unittest.skipUnless(os.environ.get("ADMIN_TOKEN") and os.environ.get("ADAPTER"), "ADMIN_TOKEN or ADAPTER is not set")
class Changes(Documented):
    def change(self, method, path, *options, json_body=None, status=200):
        sent = [] if json_body is None else ["-H", "content-type: application/json", "-d", json.dumps(json_body)]
        key = ["-H", f"authorization: Bearer {os.environ['ADMIN_TOKEN']}"]
        got, headers, body = curl("-X", method, *key, *options, *sent, path, token=None)
        self.assertEqual(got, status, body)
        if status == 409:
            self.assertEqual(headers["x-should-retry"], "false")
        return json.loads(body) if headers.get("content-type") == "application/json" else body

    def test_a_nodes_life_with_curl(self):
        name, moved = f"{NODE}-new", f"{NODE}-moved"
        path, files = f"/v1/tree/nodes/{quote(name, safe='')}", ("adapter_config.json", "adapter_model.safetensors")
        form = [part for file in files for part in ("-F", f"{file}=@{os.environ['ADAPTER']}/{file}")]
        form += ["-F", 'labels={"team":"support"}']
        first = self.change("PUT", path, *form, status=201)
        self.fits("Published", first)
        node = json.loads(curl(path)[2])
        self.fits("Node", node)
        self.assertEqual((node["generation"], node["labels"]), (first["generation"], {"team": "support"}))
        self.assertEqual(complete(**greedy(model=name)).node_generation, first["generation"])

        self.change("PUT", path, *form, "-H", "if-none-match: *", status=409)
        second = self.change("PUT", path, *form, "-H", f"if-match: {first['generation']}")
        self.assertGreater(second["generation"], first["generation"])
        self.change("PUT", path, *form, "-H", f"if-match: {first['generation']}", status=409)
        history = self.change("GET", path + "/history")
        self.fits("History", history)
        [past] = history["versions"]
        self.assertEqual((past["generation"], past["ending"], past["ended"]), (first["generation"], "replaced", second["generation"]))

        third = self.change("POST", path + "/rollback", json_body={"generation": first["generation"]})
        self.fits("Changed", third)
        node = json.loads(curl(path)[2])
        self.assertEqual((node["generation"], node["content_generation"]), (third["generation"], first["generation"]))
        self.change("POST", path + "/move", json_body={"target": moved})
        self.assertEqual((curl(path)[0], curl(f"/v1/tree/nodes/{moved}")[0]), (404, 200))
        self.fits("Changed", self.change("DELETE", f"/v1/tree/nodes/{moved}"))
        self.assertEqual(curl_json("/v1/completions", greedy(model=moved))[0], 404)

    def test_vllms_routes_load_and_unload(self):
        name = f"{NODE}-loaded"
        load = {"lora_name": name, "lora_path": os.environ["ADAPTER"]}
        said = self.change("POST", "/v1/load_lora_adapter", json_body=load)
        self.assertEqual(said, f"Success: LoRA adapter '{name}' added successfully.")
        self.change("POST", "/v1/load_lora_adapter", json_body=load, status=400)
        nowhere = self.change("POST", "/v1/load_lora_adapter", json_body=load | {"lora_name": name + "x", "lora_path": "no"}, status=404)
        self.assertEqual(nowhere["error"]["param"], "lora_path")
        self.change("POST", "/v1/load_lora_adapter", json_body=load | {"load_inplace": True})
        said = self.change("POST", "/v1/unload_lora_adapter", json_body={"lora_name": name})
        self.assertEqual(said, f"Success: LoRA adapter '{name}' removed successfully.")
        self.change("POST", "/v1/unload_lora_adapter", json_body={"lora_name": name}, status=404)


if __name__ == "__main__":
    unittest.main()
