"""What the tests of learning share: a server with a label store and an admin,
workers, and labels to learn from."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile

import harness
import models

from vitrine.v1 import admin_pb2 as admin  # noqa: E402
from vitrine.v1 import (  # noqa: E402
    admin_pb2_grpc, feedback_pb2, feedback_pb2_grpc)

TOKEN = "a-token-for-the-tests"
TOKEN_METADATA = (("authorization", "Bearer " + TOKEN),)
FINAL = (admin.TRAINING_JOB_STATE_SUCCEEDED, admin.TRAINING_JOB_STATE_REJECTED,
         admin.TRAINING_JOB_STATE_FAILED, admin.TRAINING_JOB_STATE_CANCELLED)


def state_name(state):
    return admin.TrainingJobState.Name(state)[
        len("TRAINING_JOB_STATE_"):].lower()


class Server(harness.Server):
    """A server that stores labels and takes an admin's calls."""

    def __init__(self, registry, store, activation="ACTIVATION_AUTOMATIC",
                 config="", **options):
        # Not the server's own folder, which goes with it.
        folder = tempfile.mkdtemp(prefix="vitrine-e2e-")
        self.token_file = os.path.join(folder, "token")
        with open(self.token_file, "w", encoding="utf-8") as out:
            out.write(TOKEN + "\n")
        os.chmod(self.token_file, 0o600)
        super().__init__(registry, """
            models { name: "shop" activation: %s }
            engine { dtype: DTYPE_FP32 }
            poll_interval { nanos: 50000000 }
            store { url: "%s" }
            admin { listen: "127.0.0.1:0" token_file: "%s" }
            %s""" % (activation, store, self.token_file, config), model=None,
                         **options)

    def feedback(self):
        return feedback_pb2_grpc.FeedbackServiceStub(self.channel())

    def admin(self):
        return Admin(admin_pb2_grpc.AdminServiceStub(
            self.channel(self.admin_target)))

    def close(self):
        super().close()
        shutil.rmtree(os.path.dirname(self.token_file), ignore_errors=True)


class Admin:
    """The stub, with the token and a deadline in every call."""

    def __init__(self, stub, timeout=harness.PATIENCE):
        self.stub, self.timeout = stub, timeout

    def __getattr__(self, method):
        def call(**fields):
            request = getattr(admin, method + "Request")(**fields)
            return getattr(self.stub, method)(
                request, timeout=self.timeout, metadata=TOKEN_METADATA)
        return call

    def job(self, number):
        return self.GetTrainingJob(id=number).job

    def jobs(self):
        """All of them, the newest first."""
        found, token = [], ""
        while True:
            page = self.ListTrainingJobs(page_size=1000, page_token=token)
            found += page.jobs
            token = page.next_page_token
            if not token:
                return found

    def events(self):
        """The trail, the oldest first."""
        found, after = [], 0
        while True:
            page = self.ListAuditEvents(after=after, page_size=1000).events
            if not page:
                return found
            found += page
            after = page[-1].id

    def await_end(self, number, timeout=harness.PATIENCE):
        def ended():
            job = self.job(number)
            return job if job.state in FINAL else None
        return harness.wait_until(ended, "the end of job %d" % number, timeout)


class Worker:
    """A vitrine-trainer work process."""

    def __init__(self, registry, store, config="", lease_ms=1000):
        self.folder = tempfile.mkdtemp(prefix="vitrine-e2e-")
        self.log_file = os.path.join(self.folder, "log")
        path = os.path.join(self.folder, "worker.textproto")
        with open(path, "w", encoding="utf-8") as out:
            out.write("""
                registry: "%s"
                store { url: "%s" }
                lease { seconds: %d nanos: %d }
                poll_interval { nanos: 100000000 }
                checkpoint_interval { nanos: 100000000 }
                threads: 1
                %s""" % (registry, store, lease_ms // 1000,
                         lease_ms % 1000 * 1000000, config))
        self.log = open(self.log_file, "wb")
        self.process = subprocess.Popen(
            [os.path.join(models.BIN_DIR, "vitrine-trainer"), "work",
             "--config", path], stdout=self.log, stderr=subprocess.STDOUT)

    @property
    def name(self):
        """As jobs name it."""
        return "%s:%d" % (os.uname().nodename, self.process.pid)

    def logged(self):
        with open(self.log_file, encoding="utf-8", errors="replace") as lines:
            return lines.read()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(harness.PATIENCE)

    def close(self):
        if self.process.poll() is None:
            self.kill()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class TestCase(harness.TestCase):
    """One registry, one SQLite store, any number of servers and workers."""

    def setUp(self):
        self.folder = self.temporary_folder()
        self.models = os.path.join(self.folder, "registry")
        shutil.copytree(os.path.join(self.registry, "shop"),
                        os.path.join(self.models, "shop"))
        self.store_file = os.path.join(self.folder, "labels.db")
        self.store = "sqlite:" + self.store_file

    def start_server(self, **options):
        server = Server(self.models, self.store, **options)
        self.addCleanup(server.close)
        self.addCleanup(self.show_log, server)
        return server

    def start_worker(self, config="", **options):
        worker = Worker(self.models, self.store, config, **options)
        self.addCleanup(worker.close)
        self.addCleanup(self.show_worker_log, worker)
        return worker

    def show_worker_log(self, worker):
        if not self._outcome.success:
            sys.stderr.write("--- vitrine-trainer work\n%s---\n" %
                             worker.logged())


def text_label(number, count=600):
    """One of `count` texts with a label that can be learnt."""
    words = models.WORDS
    number %= count
    text = "%s %s %s" % (words[number % 40], words[(number * 7 + 3) % 40],
                         words[number // 40])
    label = "spam" if number % 40 < 20 else "normal"
    return feedback_pb2.TextLabel(head="classifier", text=text, label=label)


def recipe(epochs=1, **fields):
    """Trains the classifier, on all labels, under a gate that all pass."""
    made = admin.TrainingRecipe(epochs=epochs, learning_rate=1e-3,
                                replay_share=1, **fields)
    if not made.tasks:
        made.tasks.add(kind=admin.TRAINING_TASK_KIND_CLASSIFICATION,
                       head="classifier")
    if not made.HasField("gate"):
        made.gate.rules.add(metric="accuracy", bound=0)
        made.gate.max_latency_ratio = -1
        made.gate.min_validation_rows = 1
    return made
