"""What the end-to-end tests share: servers that stop with their test, stubs,
and raw connections."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

import grpc

import models

BIN_DIR = models.BIN_DIR
SANITIZED = os.environ.get("VITRINE_SANITIZED") == "1"
GEN_PY = os.environ.get("VITRINE_GEN_PY", "build/release/gen_py")

# Generated modules live beside the packages of the same names.
sys.path.append(GEN_PY)
grpc.__path__.append(os.path.join(GEN_PY, "grpc"))

from google.rpc import error_details_pb2, status_pb2  # noqa: E402
from grpc.health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from grpc.reflection.v1alpha import (  # noqa: E402
    reflection_pb2, reflection_pb2_grpc)
from vitrine.v1 import inference_pb2 as pb  # noqa: E402
from vitrine.v1 import inference_pb2_grpc  # noqa: E402

SERVICE = "vitrine.v1.InferenceService"
# Far above what anything here takes: what hangs fails, what is slow does not.
PATIENCE = 600 if SANITIZED else 120

for name in ("http_proxy", "https_proxy", "grpc_proxy"):
    os.environ.pop(name, None)
    os.environ.pop(name.upper(), None)


def wait_until(condition, what, timeout=PATIENCE):
    """The first true value of `condition`; an AssertionError after `timeout`."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("waited %d s in vain for %s" % (timeout, what))
        time.sleep(0.01)


class Server:
    """A vitrine-server process of its own, on free ports."""

    def __init__(self, registry, config="", flags=(), model="shop",
                 wait=True):
        self.folder = tempfile.mkdtemp(prefix="vitrine-e2e-")
        self.port_file = os.path.join(self.folder, "ports")
        self.config_file = os.path.join(self.folder, "server.textproto")
        self.log_file = os.path.join(self.folder, "log")
        with open(self.config_file, "w", encoding="utf-8") as out:
            out.write('registry: "%s"\n' % registry)
            if model:
                out.write('models { name: "%s" }\n' % model)
            out.write('listen: "127.0.0.1:0"\nmetrics_listen: "127.0.0.1:0"\n'
                      'port_file: "%s"\n' % self.port_file)
            out.write(config + "\n")
        self.log = open(self.log_file, "wb")
        self.process = subprocess.Popen(
            [os.path.join(BIN_DIR, "vitrine-server"),
             "--config", self.config_file, *flags],
            stdout=self.log, stderr=subprocess.STDOUT)
        self.channels = []
        self.port = self.metrics_port = self.admin_port = 0
        if wait:
            try:
                self.wait_for_ports()
            except BaseException:
                self.close()
                raise

    def wait_for_ports(self):
        def ports():
            if self.process.poll() is not None:
                raise AssertionError("vitrine-server left with %d:\n%s" % (
                    self.process.returncode, self.logged()))
            try:
                with open(self.port_file) as lines:
                    return lines.read().split()
            except FileNotFoundError:
                return None
        found = wait_until(ports, "the port file")
        self.port = int(found[0])
        self.metrics_port = int(found[1]) if len(found) > 1 else 0
        self.admin_port = int(found[2]) if len(found) > 2 else 0

    @property
    def target(self):
        return "127.0.0.1:%d" % self.port

    @property
    def admin_target(self):
        return "127.0.0.1:%d" % self.admin_port

    def logged(self):
        with open(self.log_file, encoding="utf-8", errors="replace") as lines:
            return lines.read()

    def channel(self, target=None, **options):
        """A connection of its own."""
        arguments = [("grpc.use_local_subchannel_pool", 1),
                     ("grpc.max_receive_message_length", -1),
                     ("grpc.max_send_message_length", -1)]
        arguments += [(name, value) for name, value in options.items()]
        channel = grpc.insecure_channel(target or self.target, arguments)
        self.channels.append(channel)
        return channel

    def stub(self):
        return inference_pb2_grpc.InferenceServiceStub(self.channel())

    def health(self, service=SERVICE):
        stub = health_pb2_grpc.HealthStub(self.channel())
        return stub.Check(health_pb2.HealthCheckRequest(service=service),
                          timeout=PATIENCE).status

    def scrape(self):
        with urllib.request.urlopen(
                "http://127.0.0.1:%d/metrics" % self.metrics_port,
                timeout=PATIENCE) as response:
            return response.read().decode()

    def metric(self, name, **labels):
        """The sum of the series of this name that have these labels."""
        total, found = 0.0, False
        for line in self.scrape().splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)(?: \d+)?", line)
            if not match or match.group(1) != name:
                continue
            got = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"',
                                  match.group(2) or ""))
            if all(got.get(key) == value for key, value in labels.items()):
                total += float(match.group(3))
                found = True
        if not found:
            raise AssertionError("no series %s%s" % (name, labels or ""))
        return total

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self):
        return self.process.wait(PATIENCE)

    def stop(self):
        """SIGTERM and the exit code."""
        if self.process.poll() is None:
            self.signal()
        return self.wait()

    def close(self):
        for channel in self.channels:
            channel.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def run(program, *arguments, stdin="", check=None, env=None, timeout=PATIENCE):
    """A program of the build to its end: exit code, stdout, stderr."""
    done = subprocess.run(
        [os.path.join(BIN_DIR, program), *map(str, arguments)], input=stdin,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        timeout=timeout, env=dict(os.environ, **(env or {})))
    if check is not None and done.returncode != check:
        raise AssertionError("%s %s: exit %d, not %d\n%s%s" % (
            program, " ".join(map(str, arguments)), done.returncode, check,
            done.stdout, done.stderr))
    return done


class TestCase(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.registry = models.ensure_models()

    def serve(self, config="", registry=None, **options):
        """A server that stops with the test; its log is shown on a failure."""
        server = Server(registry or self.registry, config, **options)
        self.addCleanup(server.close)
        self.addCleanup(self.show_log, server)
        return server

    def show_log(self, server):
        if not self._outcome.success:
            sys.stderr.write("--- vitrine-server\n%s---\n" % server.logged())

    def temporary_folder(self):
        folder = tempfile.mkdtemp(prefix="vitrine-e2e-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def copy_of_registry(self, *names):
        """Models of the registry, to be damaged or added to."""
        folder = self.temporary_folder()
        for name in names:
            shutil.copytree(os.path.join(self.registry, name),
                            os.path.join(folder, name))
        return folder

    @contextlib.contextmanager
    def assert_code(self, code, text=""):
        """The block's call fails with this gRPC code; yields the error in a
        list once it has."""
        caught = []
        try:
            yield caught
        except grpc.RpcError as error:
            caught.append(error)
            self.assertEqual(error.code(), code, error.details())
            self.assertIn(text, error.details())
            return
        self.fail("the call did not fail with %s" % code)


class Background:
    """Calls `work` again and again in threads until stopped; keeps what it
    returned and raised."""

    def __init__(self, work, threads=4):
        self.results, self.errors = [], []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.loop, args=(work,))
                        for _ in range(threads)]

    def loop(self, work):
        while not self.stopping.is_set():
            try:
                self.results.append(work())
            except Exception as error:  # pylint: disable=broad-except
                self.errors.append(error)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join()


def rank_request(items=3, words=3, query="red sofa", model=""):
    """`items` items, no two alike, with titles of `words` words."""
    request = pb.RankRequest()
    request.model.name = model
    request.context.query = query
    for i in range(items):
        title = " ".join(models.WORDS[(i + w) % 40] for w in range(words))
        request.items.add(id="item%d" % i, title="%d %s" % (i, title))
    return request


def retry_delay(error):
    """RetryInfo of an error's details, in seconds; None where it has none."""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        status = status_pb2.Status.FromString(value)
        for detail in status.details:
            info = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                return info.retry_delay.ToTimedelta().total_seconds()
    return None


def raw_connection(port):
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def main():
    unittest.main(verbosity=2)
