#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`farskip serve` as clients meet it.

    serve_test.py --farskip FARSKIP --fixtures FOLDER [--mpirun MPIRUN --ranks N] CASE

Runs one case (the functions named case_*), exits 1 if a claim does not hold and 77 if the build has no HTTP. With
--mpirun, N ranks share the model; their texts have to be those that one process makes offline.
"""

import argparse
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from server import Server, gather, in_threads

TEXTS = ["the list of", "In the", "one", "a text and the end of it, and so on until the", "The", "of the list and"]


def serve(args, *options, model=None, **settings):
    return Server(args.farskip, model or args.model, *options, mpirun=args.mpirun, ranks=args.ranks, **settings)


def requests(count):
    """Mixed lengths and settings, each with a seed."""
    for i in range(count):
        yield {"prompt": TEXTS[i % len(TEXTS)], "max_tokens": 1 + i * 7 % 50, "seed": 100 + i,
               "temperature": [0.0, 0.8, 1.3][i % 3], "top_p": [1.0, 0.9][i % 2], "n": 1 + i % 2,
               "stop": [None, "ex", ["and", " l"]][i % 3]}


def offline(args, lines):
    """What `generate` makes of them: text and reason, n of each."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for line in lines:
            file.write(json.dumps({key: value for key, value in line.items() if value is not None}) + "\n")
        file.flush()
        made = subprocess.run([args.farskip, "generate", "--model", args.model, "--prompts", file.name, "--quiet"],
                              check=True, stdout=subprocess.PIPE, text=True).stdout
    texts = iter([json.loads(line) for line in made.splitlines()])
    return [[next(texts) for _ in range(line["n"])] for line in lines]


def expect(answer, made):
    """An answer has the texts that generate made."""
    assert [choice["text"] for choice in answer["choices"]] == [text["text"] for text in made], (answer, made)
    reasons = ["length" if text["finish"] == "context" else text["finish"] for text in made]
    assert [choice["finish_reason"] for choice in answer["choices"]] == reasons, (answer, made)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def case_same_texts(args):
    """Plain, streamed and offline texts are equal; a list of prompts is its prompts; ids are their text."""
    lines = list(requests(12 if args.ranks == 1 else 4))  # on busy cores ranks wait for each other long
    made = offline(args, lines)
    with serve(args) as server:
        for line, texts in zip(lines, made):
            answer = server.complete(**line)
            expect(answer, texts)
            settings = {**line, "logprobs": 2}
            plain = server.complete(**settings)
            expect(plain, texts)
            streamed, reasons, logprobs = gather(server.stream(**settings))
            for choice in plain["choices"]:
                index = choice["index"]
                assert streamed[index] == choice["text"] and reasons[index] == choice["finish_reason"]
                assert logprobs.get(index, choice["logprobs"]) == choice["logprobs"]
                assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["token_logprobs"])
        settings = {"max_tokens": 9, "temperature": 0.7, "seed": 5}
        together = server.complete(prompt=TEXTS, **settings)["choices"]
        for text, choice in zip(TEXTS, together):
            assert server.complete(prompt=text, **settings)["choices"][0]["text"] == choice["text"]
        ids = [[7, 8, 9], [3]]
        by_ids = server.complete(prompt=ids, echo=True, **settings)["choices"]
        for prompt, choice in zip(ids, by_ids):
            alone = server.complete(prompt=prompt, echo=True, **settings)["choices"][0]
            assert alone["text"] == choice["text"]
        usage = server.complete(prompt=ids, n=3, **settings)["usage"]
        assert usage["prompt_tokens"] == 4 and usage["total_tokens"] == 4 + usage["completion_tokens"], usage
        assert server.stop() == 0


def case_likelihoods(args):
    """Echoed prompts with log-probabilities give the likelihoods that eval --tasks gives (those of the harness)."""
    folder = args.fixtures / "tasks"
    wanted = json.loads((folder / "harness.json").read_text())["llama"]["log_likelihoods"]
    items = [json.loads(line) for line in (folder / "small.jsonl").read_text().splitlines()]
    compared = 0
    with serve(args) as server:
        def scores(text):
            answer = server.complete(prompt=text, echo=True, logprobs=1, max_tokens=0)["choices"][0]
            assert answer["text"] == text and answer["finish_reason"] == "length"
            found = answer["logprobs"]
            assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
            for value, likely in zip(found["token_logprobs"][1:], found["top_logprobs"][1:]):
                assert value <= max(likely.values())
            return found["tokens"], found["token_logprobs"]

        for item, row in zip(items, wanted):
            context = item["context"].rstrip()
            if not context or len(item["context"] + max(item["choices"], key=len)) > 300:
                continue  # the harness puts a token in its place, or cuts it
            before, _ = scores(context)
            for choice, expected in zip(item["choices"], row):
                tokens, values = scores(item["context"] + choice)
                if tokens[:len(before)] != before:
                    continue  # a token across the border: the harness keeps those of the context
                found = sum(values[len(before):])
                assert abs(found - expected) <= 1e-5 * abs(expected) + 1e-5, (item, choice, found, expected)
                compared += 1
        assert compared > 20, compared


def case_clients(args):
    """Many clients at once: half leave early, some send nonsense. The others get the texts of generate."""
    lines = list(requests(24 if args.ranks == 1 else 8))
    made = offline(args, lines)
    with serve(args, "--batch", 4, "--max-body-mib", 1) as server:
        def stay(i):
            if i % 4 == 0:
                expect(server.complete(**lines[i]), made[i])
            else:
                texts, reasons, _ = gather(server.stream(**lines[i]))
                assert [texts[k] for k in range(len(made[i]))] == [text["text"] for text in made[i]]

        def leave(i):
            settings = {"prompt": TEXTS[i % len(TEXTS)], "max_tokens": 200, "n": 2}
            if i % 2 == 0:
                for number, _ in enumerate(server.stream(**settings)):
                    if number > i % 5:
                        break
            else:  # before the answer has begun
                connection = server.connect()
                connection.request("POST", "/v1/completions", body=json.dumps({"model": server.model, **settings}))
                connection.close()

        def disturb(i):
            body = [b"\xff\xfe{", b"{", b"[" * 100000, b"{}", b"x" * (2 << 20), b'{"model": "llama", "model": 1}'][i % 6]
            status, answer = server.call("POST", "/v1/completions", body)
            assert status == (413 if len(body) > 1 << 20 else 400), (status, answer)
            assert json.loads(answer)["error"]["message"]

        in_threads([lambda i=i, do=do: do(i) for i in range(len(lines)) for do in (stay, leave)] +
                   [lambda i=i: disturb(i) for i in range(12)])
        wait_for(lambda: server.metric("farskip_texts_running") + server.metric("farskip_texts_waiting") == 0)
        assert server.metric("farskip_cache_blocks_used") == 0
        expect(server.complete(**lines[5]), made[5])
        assert server.stop() == 0


def case_refusals(args):
    """Bad requests get 400 and OpenAI's error object, with the key, the value and what is allowed."""
    with serve(args, "--max-requests", 8) as server:
        def refused(status, message, path="/v1/completions", method="POST", **settings):
            body = {"model": "llama", "prompt": "the", **settings} if method == "POST" else None
            got, answer = server.call(method, path, body)
            error = json.loads(answer)["error"]
            assert got == status and message in error["message"] and error["type"], (got, answer)

        refused(400, "body.max_tokens is -1; allowed: an integer from 0", max_tokens=-1)
        refused(400, "body.temperature is \"hot\"; allowed: a number from 0", temperature="hot")
        refused(400, "body.top_p is 1.5; allowed", top_p=1.5)
        refused(400, "body.n is 0; allowed", n=0)
        refused(400, "body.logprobs is 21; allowed", logprobs=21)
        refused(400, "\"tempurature\" is not known here; allowed: ", tempurature=1)
        refused(400, "supports only 0", presence_penalty=0.5)
        refused(400, "body.prompt is empty", prompt="")
        refused(400, "body.prompt is []", prompt=[])
        refused(400, "body.prompt[1]: 100000 is no token id", prompt=[[1], [100000]])
        refused(400, "body.prompt: -1 is no token id", prompt=[1, -1])
        refused(400, "max_position_embeddings is 256", prompt=[1] * 256)
        refused(400, "without \"stream\": true", stream_options={"include_usage": True})
        refused(400, "has 17 texts; allowed", stop=["a"] * 17)
        refused(400, "9 texts are asked for, and the server takes 8 at once", prompt=["the"] * 9)
        refused(404, "is not served here; allowed: \"llama\"", model="gpt-4")
        refused(404, "is not served", path="/v1/embeddings")
        refused(405, "allowed: POST", method="GET")
        refused(405, "allowed: GET", path="/v1/models")
        status, _ = server.call("GET", "/health")
        assert status == 200


def case_end(args):
    """SIGTERM: what runs is finished, what is new is refused, exit code 0."""
    count = 40 if args.ranks == 1 else 10  # long enough to run when the signal comes
    long = {"prompt": "the list", "max_tokens": 230, "n": count, "seed": 1, "temperature": 1.0}
    made = offline(args, [long])[0]
    with serve(args, "--batch", 2) as server:
        texts = {}

        def run():
            texts.update(gather(server.stream(**long))[0])

        thread = threading.Thread(target=run)
        thread.start()
        wait_for(lambda: server.metric("farskip_texts_running") > 0)
        server.ask_to_stop()
        time.sleep(0.2)
        assert server.process.poll() is None, "it ended while a text ran"
        status, body = server.call("POST", "/v1/completions", {"model": server.model, "prompt": "the"})
        assert status == 503, (status, body)
        assert server.call("GET", "/health")[0] == 503
        thread.join()
        assert [texts[i] for i in range(len(made))] == [text["text"] for text in made]
        assert server.process.wait(timeout=30) == 0


def case_time(args):
    """A text that takes too long ends as it is, and one whose turn does not come is refused."""
    long = {"prompt": "the list", "max_tokens": 230, "n": 120, "temperature": 1.0}
    with serve(args, "--batch", 1, "--timeout", 1) as server:
        def cut():
            answer = server.complete(**long)
            assert {choice["finish_reason"] for choice in answer["choices"]} <= {"length", "stop"}
            assert answer["choices"][-1]["text"] == "", "it had the time"

        def late():
            wait_for(lambda: server.metric("farskip_texts_running") > 0)
            status, body = server.call("POST", "/v1/completions", {"model": server.model, "prompt": "the"})
            assert status in (200, 503), (status, body)

        in_threads([cut, late])
        wait_for(lambda: server.metric("farskip_texts_waiting") == 0)


def case_key(args):
    """Without the key there is no answer but health and metrics."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("secret-key\n")
        file.flush()
        for options, environment in ([["--api-key-file", file.name], {}], [[], {"FARSKIP_API_KEY": "secret-key"}]):
            with serve(args, *options, environment=environment) as server:
                for given in (None, "secret-key", "Bearer secret-ke", "Bearer secret-key1", "Bearer ", "Basic secret-key"):
                    headers = {"Authorization": given} if given else {}
                    status, body = server.call("GET", "/v1/models", headers=headers)
                    assert status == 401 and json.loads(body)["error"]["code"] == "invalid_api_key", (given, body)
                assert server.call("GET", "/v1/models", headers={"Authorization": "Bearer secret-key"})[0] == 200
                assert server.call("GET", "/health")[0] == 200


def case_starts(args):
    """What is wrong at the start is said, with its exit code; ids serve a folder without a tokenizer."""
    def fails(code, message, *options):
        done = subprocess.run([args.farskip, "serve", *map(str, options)], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == code and message in done.stderr, (done.returncode, done.stderr)

    fails(66, "nowhere", "--model", "nowhere")
    fails(64, "--port", "--model", args.model, "--port", 70000)
    fails(66, "no-key", "--model", args.model, "--api-key-file", "no-key")
    with tempfile.NamedTemporaryFile("w") as empty:
        fails(64, "holds no API key", "--model", args.model, "--api-key-file", empty.name)
    with serve(args, model=args.fixtures / "llama") as server:
        fails(74, "cannot listen on 127.0.0.1 port", "--model", args.model, "--port", server.port)
        fails(74, "cannot listen on no.such.host.invalid", "--model", args.model, "--host", "no.such.host.invalid")
        answer = server.complete(prompt=[5, 6], max_tokens=3, logprobs=1, echo=True)["choices"][0]
        assert answer["text"] == "" and answer["logprobs"]["tokens"][:2] == ["token_id:5", "token_id:6"]
        for settings, message in (({"prompt": "the"}, "give token ids"),
                                  ({"prompt": [1], "stop": "x"}, "no tokenizer")):
            status, body = server.call("POST", "/v1/completions", {"model": server.model, **settings})
            assert status == 400 and message in body, body


def case_chat(args):
    """A conversation is continued as the text that the model's template makes of it."""
    messages = [{"role": "user", "content": "the list"}, {"role": "assistant", "content": " of"},
                {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " more"}]}]
    settings = {"messages": messages, "seed": 3, "temperature": 0.9, "n": 2, "max_tokens": 12}
    path = "/v1/chat/completions"

    def refused(server, message, **changes):
        status, body = server.call("POST", path, {"model": server.model, **settings, **changes})
        assert status == 400 and message in json.loads(body)["error"]["message"], body

    with serve(args) as server:
        refused(server, "the model brings no chat template")
    (args.model / "chat_template.jinja").write_text("{% macro a() %}{% endmacro %}")
    with serve(args) as server:
        refused(server, "chat_template.jinja:1: the statement 'macro' is not supported")
    (args.model / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "{{ m.role }} . {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}the{% endif %}")
    with serve(args) as server:
        expected = server.complete(prompt="<|begin|>user . the list\nassistant .  of\nuser . one more\nthe",
                                   **{k: v for k, v in settings.items() if k != "messages"})
        status, body = server.call("POST", path, {"model": server.model, "logprobs": True, "top_logprobs": 2, **settings})
        answer = json.loads(body)
        assert status == 200 and answer["object"] == "chat.completion" and answer["usage"] == expected["usage"], body
        for choice, text in zip(answer["choices"], expected["choices"]):
            assert choice["message"] == {"role": "assistant", "content": text["text"]}, (choice, text)
            assert choice["finish_reason"] == text["finish_reason"]
            assert all(len(token["top_logprobs"]) == 2 for token in choice["logprobs"]["content"])
        refused(server, "body.tools is [1]; this server supports only []", tools=[1])
        refused(server, "body.messages is []; allowed", messages=[])
        refused(server, "body.messages[0]: \"role\" is missing", messages=[{"content": "a"}])
        refused(server, "has a part of type \"image_url\"",
                messages=[{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}])
        refused(server, "the template says: no tools", messages=[{"role": "tool", "content": "a"}])
        try:
            import openai
        except ImportError:
            return
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="k", max_retries=0)
        texts = ["", ""]
        for chunk in client.chat.completions.create(model=server.model, stream=True, **settings):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == [choice["text"] for choice in expected["choices"]]


def case_rank_lost(args):
    """A rank that dies, or stops, ends the job within seconds, with one message; an idle server is no such case."""
    with serve(args, "--rank-timeout", 3) as server:
        pid = server.ranks()[1]

        def ticks():
            return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[11:13]))

        server.complete(prompt="the", max_tokens=5)
        time.sleep(1)
        before = ticks()
        time.sleep(4)
        took = (ticks() - before) / os.sysconf("SC_CLK_TCK")
        assert took < 0.4, f"an idle rank computed for {took} of 4 seconds"
        server.complete(prompt="the", max_tokens=5)
        os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        assert server.process.wait(timeout=20) == 75
        assert time.monotonic() - start < 12
        wait_for(lambda: not server.ranks())
        errors = [line for line in server.errors().splitlines() if "error:" in line]
        assert len(errors) == 1 and "rank 0: no progress for " in errors[0], errors
    long = {"prompt": "the list", "max_tokens": 230, "n": 40}
    with serve(args) as server:
        def left_alone():
            try:
                list(server.stream(**long))
            except (OSError, http.client.HTTPException):
                pass  # the answer is cut off

        thread = threading.Thread(target=left_alone)
        thread.start()
        wait_for(lambda: server.metric("farskip_texts_running") > 0)
        os.kill(server.ranks()[1], signal.SIGKILL)
        assert server.process.wait(timeout=10) != 0
        thread.join(timeout=10)
        assert not thread.is_alive()


def case_openai(args):
    """The OpenAI client, where it is installed."""
    try:
        import openai
    except ImportError:
        print("skipped: the package openai is not installed")
        sys.exit(77)
    with serve(args, environment={"FARSKIP_API_KEY": "k"}) as server:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="k", max_retries=0)
        assert [model.id for model in client.models.list()] == [server.model]
        for line, made in zip(requests(6), offline(args, list(requests(6)))):
            answer = client.completions.create(model=server.model, **line)
            assert [choice.text for choice in answer.choices] == [text["text"] for text in made]
            texts = [""] * line["n"]
            for chunk in client.completions.create(model=server.model, stream=True, **line):
                for choice in chunk.choices:
                    texts[choice.index] += choice.text
            assert texts == [text["text"] for text in made]
        scored = client.completions.create(model=server.model, prompt="the list", echo=True, logprobs=1, max_tokens=0)
        assert scored.choices[0].logprobs.token_logprobs[0] is None
        try:
            client.completions.create(model=server.model, prompt="the", max_tokens=-1)
            raise AssertionError("it was not refused")
        except openai.BadRequestError as error:
            assert "max_tokens" in error.message


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--farskip", required=True)
    parser.add_argument("--fixtures", type=Path, required=True)
    parser.add_argument("--mpirun")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("case", choices=[name[len("case_"):] for name in globals() if name.startswith("case_")])
    args = parser.parse_args()
    probe = subprocess.run([args.farskip, "serve", "--model", "nowhere"], stderr=subprocess.PIPE, text=True)
    if "has no HTTP" in probe.stderr:
        print("skipped: this build has no HTTP")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        args.model = Path(folder) / "llama"  # a model with a tokenizer whose ids it has
        shutil.copytree(args.fixtures / "llama", args.model)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(args.fixtures / "tasks" / name, args.model)
        globals()[f"case_{args.case}"](args)


if __name__ == "__main__":
    main()
