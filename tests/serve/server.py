# SPDX-License-Identifier: Apache-2.0
"""A server of a small model, and a client of it, for tests and measurements."""

import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from pathlib import Path


def launcher_environment():
    return {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}


class Server:
    """`farskip serve` on a free port. Use it in a with block, which leaves no process behind.

    With `mpirun`, `ranks` share the model.
    """

    def __init__(self, farskip, model, *options, environment=(), mpirun=None, ranks=1):
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.is_launched = mpirun is not None
        launcher = [str(mpirun), "--oversubscribe", "-np", str(ranks)] if self.is_launched else []
        layout = ["--tensor", ranks] if self.is_launched else []
        self.process = subprocess.Popen(
            [*launcher, str(farskip), "serve", "--model", str(model), "--port", "0", "--json",
             *map(str, [*layout, *options])],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, **launcher_environment(), **dict(environment)})
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError(f"the server ended with {self.process.returncode}: {Path(self.log.name).read_text()}")
        place = json.loads(line)
        self.port, self.model = place["port"], place["model"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        print(Path(self.log.name).read_text(), end="")

    def connect(self, timeout=60):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def call(self, method, path, body=None, headers=()):
        """Status and body of one request; bodies that are objects are sent as JSON."""
        connection = self.connect()
        try:
            data = json.dumps(body) if isinstance(body, dict) else body
            connection.request(method, path, body=data, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def complete(self, **settings):
        status, body = self.call("POST", "/v1/completions", {"model": self.model, **settings})
        assert status == 200, (status, body)
        return json.loads(body)

    def stream(self, **settings):
        """The events of a streamed answer; a client that goes away leaves the loop over them."""
        connection = self.connect()
        try:
            connection.request("POST", "/v1/completions",
                               body=json.dumps({"model": self.model, "stream": True, **settings}))
            answer = connection.getresponse()
            assert answer.status == 200, (answer.status, answer.read())
            assert answer.getheader("Content-Type").startswith("text/event-stream")
            for line in answer:
                if line.startswith(b"data: "):
                    yield line[len("data: "):].strip().decode()
        finally:
            connection.close()

    def metric(self, name):
        return float(re.search(rf"^{re.escape(name)} (\S+)$", self.call("GET", "/metrics")[1], re.MULTILINE).group(1))

    def ranks(self):
        """Rank -> process id of what mpirun has started and lives."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"PPid:\t{self.process.pid}\n" in (folder / "status").read_text():
                    variables = (folder / "environ").read_bytes().split(b"\0")
                    rank = [v for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK=")][0]
                    found[int(rank.split(b"=")[1])] = int(folder.name)
            except (OSError, IndexError):
                continue  # it has ended meanwhile, or is no rank
        return found

    def errors(self):
        return Path(self.log.name).read_text()

    def ask_to_stop(self):
        """SIGTERM; mpirun would end its ranks after that, but hands SIGUSR1 on to them."""
        self.process.send_signal(signal.SIGUSR1 if self.is_launched else signal.SIGTERM)

    def stop(self):
        """The exit code."""
        self.ask_to_stop()
        return self.process.wait(timeout=60)


def gather(events):
    """Texts, reasons and log-probabilities by index of a stream, which has to end as OpenAI's do."""
    events = list(events)
    assert events[-1] == "[DONE]", events[-1]
    texts, reasons, logprobs = {}, {}, {}
    for event in map(json.loads, events[:-1]):
        for choice in event["choices"]:
            index = choice["index"]
            assert index not in reasons, "a chunk after the last one"
            texts[index] = texts.get(index, "") + choice["text"]
            if choice["finish_reason"]:
                reasons[index] = choice["finish_reason"]
            if choice["logprobs"]:
                for key, values in choice["logprobs"].items():
                    logprobs.setdefault(index, {}).setdefault(key, []).extend(values)
    return texts, reasons, logprobs


def in_threads(functions):
    """Calls all at once; raises what one has raised."""
    errors = []

    def call(function):
        try:
            function()
        except BaseException as error:  # noqa: BLE001: it is raised below
            errors.append(error)

    threads = [threading.Thread(target=call, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
