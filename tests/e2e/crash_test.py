#!/usr/bin/env python3
"""Kills servers and workers while they learn, and looks for what was lost.

Clients store labels, start trainings, activate versions and roll back, while
the worker, the server or both are killed (SIGKILL) at instants aimed at each
stage of the work. What must hold at every moment and in the end:

  - a label that was answered as stored is in the store, and a batch is there
    whole or not at all;
  - a version folder is whole: every file has the size and SHA-256 of its
    manifest;
  - CURRENT names a version, and the server serves it;
  - a job ends, once; no job has published two versions; a job that succeeded
    has its version, and it is offered for activation; one key is one job.

Prints one line of JSON; exits with 1 where anything does not hold.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

import grpc

import harness
import learning
import models
from learning import admin, feedback_pb2

STAGES = ("labelling", "queueing", "training", "judging", "publishing",
          "published", "activating", "starting", "anytime")
CALL_SECONDS = 10
# For what takes a second at most on an idle machine.
AIM_SECONDS = 6
OPEN_JOBS = 2


class Sqlite:
    """The store's file, read past the server."""

    def __init__(self, folder):
        self.path = os.path.join(folder, "labels.db")
        self.url = "sqlite:" + self.path

    def query(self, sql):
        connection = sqlite3.connect("file:%s?mode=ro" % self.path, uri=True,
                                     timeout=30)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def damage(self):
        found = self.query("pragma integrity_check")
        return [] if found == [("ok",)] else ["store: %s" % found[:3]]

    def close(self):
        pass


class Postgres:
    """A server of Debian's PostgreSQL, by a socket in a folder of its own."""

    def __init__(self, _):
        versions = sorted(os.listdir("/usr/lib/postgresql"), key=int)
        self.programs = "/usr/lib/postgresql/%s/bin" % versions[-1]
        # A socket's path has at most 107 bytes.
        self.folder = tempfile.mkdtemp(prefix="vitrine-pg-", dir="/tmp")
        self.user = {}
        if os.geteuid() == 0:  # as which it refuses to run
            shutil.chown(self.folder, "postgres")
            self.user = {"user": "postgres", "cwd": "/"}
        data = os.path.join(self.folder, "data")
        self.run("initdb", "-D", data, "-U", "vitrine", "-A", "trust", "-E",
                 "UTF8", "--locale=C", "--no-sync")
        self.server = subprocess.Popen(
            [os.path.join(self.programs, "postgres"), "-D", data, "-k",
             self.folder, "-c", "listen_addresses=", "-c", "fsync=off"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self.user)
        address = "postgresql://vitrine@/%s?host=" + self.folder

        def made():
            return subprocess.run(
                ["psql", address % "postgres", "-c", "create database shop"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                check=False).returncode == 0
        harness.wait_until(made, "PostgreSQL")
        self.url = address % "shop"

    def run(self, program, *arguments):
        subprocess.run([os.path.join(self.programs, program), *arguments],
                       stdout=subprocess.DEVNULL, check=True, **self.user)

    def query(self, sql):
        done = subprocess.run(["psql", self.url, "-At", "-F", "\t", "-c", sql],
                              stdout=subprocess.PIPE, text=True, check=True)
        return [tuple(int(cell) if cell.isdigit() else cell
                      for cell in line.split("\t"))
                for line in done.stdout.splitlines()]

    def damage(self):
        return []

    def close(self):
        self.server.terminate()
        self.server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Labels:
    """What clients sent and what they were answered."""

    def __init__(self):
        self.lock = threading.Lock()
        self.batches = {}  # by name: how many entries
        self.acknowledged = set()  # names of batches answered OK
        self.entries = 0  # of those

    def sent(self, name, size):
        with self.lock:
            self.batches[name] = size

    def answered(self, name):
        with self.lock:
            if name not in self.acknowledged:
                self.acknowledged.add(name)
                self.entries += self.batches[name]


class Crash:
    def __init__(self, options):
        self.options = options
        self.random = random.Random(options.seed)
        self.folder = tempfile.mkdtemp(prefix="vitrine-crash-")
        self.cleanup = contextlib.ExitStack()
        self.cleanup.callback(shutil.rmtree, self.folder, True)
        self.registry = os.path.join(self.folder, "registry")
        self.model = os.path.join(self.registry, "shop")
        shutil.copytree(os.path.join(models.ensure_models(), "shop"),
                        self.model)
        self.store = (Sqlite if options.store == "sqlite" else Postgres)(
            self.folder)
        self.cleanup.callback(self.store.close)

        self.labels = Labels()
        self.keys = {}  # of StartTraining: the job that was answered
        self.stopping = threading.Event()
        self.quiet = threading.Event()  # no more work is asked for
        self.server_lock = threading.Lock()
        self.server = self.worker = None
        self.server_log = self.worker_log = ""

        self.violations = []
        self.half_written = set()
        self.checked_versions = set()
        self.label_cursor = 0
        self.stored = collections.Counter()  # by batch
        self.hits = collections.Counter()
        self.kills = 0

    # What runs.

    def start_server(self, wait=True):
        server = learning.Server(self.registry, self.store.url, wait=wait)
        with self.server_lock:
            self.server = server

    def start_worker(self):
        self.worker = learning.Worker(
            self.registry, self.store.url, "max_attempts: 1000",
            lease_ms=1000)

    def kill(self, victim):
        """Both at one moment, as when a host loses its power."""
        with self.server_lock:
            server = worker = None
            if victim in ("server", "both"):
                server, self.server = self.server, None
                server.process.kill()
            if victim in ("worker", "both"):
                worker, self.worker = self.worker, None
                worker.process.kill()
        if server is not None:
            server.wait()
            self.server_log = server.logged()
            server.close()
        if worker is not None:
            worker.kill()
            self.worker_log = worker.logged()
            worker.close()

    def ports(self):
        """Feedback and admin, or None where there is no server now."""
        with self.server_lock:
            server = self.server
            if server is None:
                return None
            if not server.port:
                try:
                    server.wait_for_ports()
                except AssertionError:
                    return None
            return server.target, server.admin_target

    def call(self, work, seconds=CALL_SECONDS):
        """`work` with stubs of the server that runs; None where it failed."""
        found = self.ports()
        if found is None:
            time.sleep(0.02)
            return None
        # Its own channels: one of a killed server waits before it is tried
        # again, and the port is another then.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(found[0], options) as public:
            with grpc.insecure_channel(found[1], options) as private:
                try:
                    return work(
                        learning.feedback_pb2_grpc.FeedbackServiceStub(public),
                        learning.Admin(
                            learning.admin_pb2_grpc.AdminServiceStub(private),
                            seconds))
                except grpc.RpcError as error:
                    self.note(error)
                    return None

    def note(self, error):
        """Whoever calls a server that is killed may be told so, no more."""
        expected = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    grpc.StatusCode.FAILED_PRECONDITION,
                    grpc.StatusCode.RESOURCE_EXHAUSTED)
        if error.code() not in expected and not (
                error.code() == grpc.StatusCode.UNKNOWN and
                "closed" in error.details().lower()):
            self.violate("answered %s: %s" % (error.code(), error.details()))

    def violate(self, what):
        if what not in self.violations:
            self.violations.append(what)
            sys.stderr.write("violation: %s\n" % what)

    # Clients.

    def entries(self, name, pick):
        made = []
        for i in range(pick.randint(1, 12)):
            entry = feedback_pb2.Feedback(feedback_id="%s/%d" % (name, i))
            if pick.random() < 0.7:
                entry.text_label.CopyFrom(
                    learning.text_label(pick.randrange(600)))
            else:
                number = pick.randrange(40)
                entry.relevance.query = pick.choice(models.WORDS[:10])
                entry.relevance.item.id = "i%d" % number
                entry.relevance.item.title = "%s %s" % (
                    models.WORDS[number], models.WORDS[(number * 3) % 40])
                entry.relevance.grade = number % 2
            made.append(entry)
        self.labels.sent(name, len(made))
        return made

    def record(self, seed):
        """Unary calls; one without an answer is made again, as clients do."""
        pick = random.Random(seed)
        turn = 0
        while not self.stopping.is_set():
            name, turn = "r%d-%d" % (seed, turn), turn + 1
            batch = self.entries(name, pick)
            while not self.stopping.is_set():
                response = self.call(lambda stub, _: stub.RecordFeedback(
                    feedback_pb2.RecordFeedbackRequest(feedback=batch),
                    timeout=CALL_SECONDS))
                if response is not None:
                    if response.rejected:
                        self.violate("rejected: %s" % response.results)
                    self.labels.answered(name)
                    break
                if pick.random() < 0.3:
                    break  # stored or not: nobody asks
            time.sleep(0.03)

    def stream(self, seed):
        pick = random.Random(seed)
        turn = 0
        while not self.stopping.is_set():
            names = []

            def messages():
                nonlocal turn
                for _ in range(pick.randint(1, 6)):
                    names.append("s%d-%d" % (seed, turn))
                    turn += 1
                    yield feedback_pb2.ImportFeedbackRequest(
                        feedback=self.entries(names[-1], pick))
                    time.sleep(0.01)

            if self.call(lambda stub, _: stub.ImportFeedback(
                    messages(), timeout=CALL_SECONDS)) is not None:
                for name in names:
                    self.labels.answered(name)
            time.sleep(0.05)

    def train(self, seed):
        """Keeps jobs coming, and asks twice where it got no answer."""
        pick = random.Random(seed)
        key = None
        while self.labels.entries < 100 and not self.quiet.is_set():
            time.sleep(0.01)  # there must be something to learn
        while not self.quiet.is_set():
            jobs = self.call(lambda _, stub: stub.ListTrainingJobs(
                page_size=20).jobs)
            open_jobs = [job for job in jobs or ()
                         if job.state not in learning.FINAL]
            if jobs is not None and (key or len(open_jobs) < OPEN_JOBS):
                if key is None:
                    key = "k%d" % len(self.keys)
                    self.keys[key] = 0
                    dry = pick.random() < 0.1
                    epochs = pick.randint(1, 8)
                answer = self.call(lambda _, stub: stub.StartTraining(
                    recipe=learning.recipe(epochs, batch_size=4),
                    idempotency_key=key, dry_run=dry))
                if answer is not None:
                    self.keys[key] = answer.job.id
                    key = None
            if open_jobs and pick.random() < 0.02:
                self.call(lambda _, stub: stub.CancelTrainingJob(
                    id=pick.choice(open_jobs).id))
            time.sleep(0.1)

    def operate(self, seed):
        """Activates versions and rolls back."""
        pick = random.Random(seed)
        while not self.quiet.is_set():
            if pick.random() < 0.5:
                version = pick.choice(self.versions())
                self.call(lambda _, stub: stub.ActivateModelVersion(
                    version=version))
            else:
                self.call(lambda _, stub: stub.RollbackModel())
            time.sleep(pick.uniform(0, 1))

    # Aims.

    def versions(self):
        return sorted(int(name) for name in os.listdir(self.model)
                      if name.isdigit())

    def open_states(self):
        return [row[0] for row in self.store.query(
            "select state from jobs where state not in "
            "('succeeded', 'rejected', 'failed', 'cancelled')")]

    def staging(self):
        return {name for name in os.listdir(self.model)
                if name.startswith(".staging-")}

    def await_stage(self, condition, pause=0.001):
        """Whether it came about in time."""
        end = time.monotonic() + AIM_SECONDS
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(pause)
        return True

    def aim(self, stage):
        """Waits for the stage and some random moments more. Returns what tells
        after the kill whether it hit."""
        def later(seconds):
            time.sleep(self.random.uniform(0, seconds))

        if stage == "labelling":
            before, wanted = self.labels.entries, self.random.randint(1, 60)
            met = self.await_stage(
                lambda: self.labels.entries >= before + wanted)
            later(0.01)
        elif stage == "queueing":
            before = len(self.keys)
            met = self.await_stage(lambda: len(self.keys) > before)
            later(0.01)
        elif stage == "training":
            self.await_stage(lambda: "running" in self.open_states())
            later(0.3)
            return lambda: "running" in self.open_states()
        elif stage == "judging":
            self.await_stage(lambda: "evaluating" in self.open_states())
            later(0.05)
            return lambda: "evaluating" in self.open_states()
        elif stage == "publishing":
            seen = self.staging()
            self.await_stage(lambda: self.staging() - seen)
            later(0.05)
            return lambda: self.staging() - seen
        elif stage == "published":
            before = self.versions()[-1]
            self.await_stage(lambda: self.versions()[-1] > before, pause=0)
            time.sleep(self.random.choice((0, 0, 0.002, 0.005)))
            # The job has yet to say so.
            return lambda: self.versions()[-1] > before and self.store.query(
                "select count(*) from jobs where result_version = %d" %
                self.versions()[-1])[0][0] == 0
        elif stage == "activating":
            def current():
                return os.stat(os.path.join(self.model, "CURRENT")).st_ino
            before = current()
            met = self.await_stage(lambda: current() != before)
            later(0.05)
        else:
            met = True
            later(1.5)
        return lambda: met

    # Checks.

    def check_labels(self):
        """Takes up what was stored since the last look."""
        for number, entry in self.store.query(
                "select number, feedback_id from labels where number > %d "
                "order by number" % self.label_cursor):
            self.label_cursor = number
            self.stored[entry.rsplit("/", 1)[0]] += 1

    def lost(self):
        with self.labels.lock:
            acknowledged = set(self.labels.acknowledged)
        self.check_labels()
        missing = 0
        for name in acknowledged:
            missing += self.labels.batches[name] - self.stored[name]
        for name, count in self.stored.items():
            if count != self.labels.batches[name]:
                self.violate("batch %s: %d of %d entries are stored" % (
                    name, count, self.labels.batches[name]))
        return missing

    def manifest(self, version):
        with open(os.path.join(self.model, str(version),
                               "manifest.textproto")) as lines:
            return lines.read()

    def job_of(self, version):
        found = re.search(r"^job: (\d+)$", self.manifest(version), re.M)
        return int(found.group(1)) if found else 0

    def check_version(self, version):
        folder = os.path.join(self.model, str(version))
        try:
            text = self.manifest(version)
            named = set()
            for block in re.findall(r"^files \{\n(.*?)^\}", text,
                                    re.M | re.S):
                name = re.search(r'name: "(.*)"', block).group(1)
                named.add(name)
                with open(os.path.join(folder, name), "rb") as file:
                    content = file.read()
                size = int(re.search(r"size_bytes: (\d+)", block).group(1))
                digest = re.search(r'sha256: "(.*)"', block).group(1)
                if (len(content), hashlib.sha256(content).hexdigest()) != (
                        size, digest):
                    raise ValueError("%s differs from the manifest" % name)
            if named | {"manifest.textproto"} != set(os.listdir(folder)):
                raise ValueError("it holds other files than the manifest")
            if "version: %d\n" % version not in text:
                raise ValueError("its manifest is of another version")
        except (OSError, ValueError, AttributeError) as error:
            self.half_written.add(version)
            self.violate("version %d: %s" % (version, error))

    def check_now(self):
        """What holds at any moment, as far as it is cheap to see."""
        for version in self.versions():
            if version not in self.checked_versions:
                self.checked_versions.add(version)
                self.check_version(version)
        with open(os.path.join(self.model, "CURRENT")) as lines:
            text = lines.read()
        if not text.strip().isdigit() or (
                int(text) not in self.versions()):
            self.violate("CURRENT says %r" % text)
        lost = self.lost()
        if lost:
            self.violate("%d labels that were answered OK are lost" % lost)

    def serving(self):
        return self.call(
            lambda _, stub: stub.GetModelVersion().version.version)

    def check_start(self):
        """After a restart the server must come up and serve."""
        try:
            with self.server_lock:
                server = self.server
            if not server.port:
                server.wait_for_ports()
            harness.wait_until(self.serving, "an answer", 60)
        except AssertionError as error:
            self.violate("after a restart: %s" % error)
            raise
        if self.worker.process.poll() is not None:
            self.violate("the worker left with %d: %s" % (
                self.worker.process.returncode, self.worker.logged()))
            raise AssertionError("the worker has left")

    def check_end(self):
        """With servers and workers left alone."""
        self.await_jobs()
        self.check_now()
        self.checked_versions = set()
        self.check_now()  # every version again
        self.violations += self.store.damage()
        jobs = {job.id: job for job in self.call(lambda _, stub: stub.jobs())}
        self.check_jobs(jobs)
        self.check_events(jobs)
        with open(os.path.join(self.model, "CURRENT")) as lines:
            current = int(lines.read())
        serving = self.serving()
        if serving != current:
            self.violate("CURRENT names %d, %s is served" % (current, serving))
        for version in self.versions():
            answer = self.call(
                lambda _, stub: stub.ActivateModelVersion(version=version),
                harness.PATIENCE)
            if answer is None or self.serving() != version:
                self.violate("version %d does not load" % version)
        return jobs

    def await_jobs(self):
        try:
            harness.wait_until(lambda: not self.open_states(),
                               "the end of all jobs")
        except AssertionError as error:
            self.violate(str(error))
        try:
            harness.wait_until(
                lambda: self.store.query(
                    "select coalesce(max(result_version), 0) from jobs where "
                    "state = 'succeeded'") == self.settled(),
                "the activation of the newest version", 30)
        except AssertionError as error:
            self.violate(str(error))

    def settled(self):
        return self.store.query(
            "select coalesce(max(version), 0) from activations")

    def check_jobs(self, jobs):
        by_job = collections.defaultdict(list)
        for version in self.versions():
            if self.job_of(version):
                by_job[self.job_of(version)].append(version)
        for number, versions in by_job.items():
            if len(versions) > 1:
                self.violate("job %d published %s" % (number, versions))
            job = jobs.get(number)
            if job is None:
                self.violate("version %s is of job %d, which is unknown" % (
                    versions, number))
            elif job.result_version != versions[0] and not (
                    # Its end was asked for between publishing and saying so.
                    job.cancel_requested):
                self.violate("job %d (%s) published %s and says %d" % (
                    number, learning.state_name(job.state), versions,
                    job.result_version))
        for number, job in jobs.items():
            succeeded = job.state == admin.TRAINING_JOB_STATE_SUCCEEDED
            if succeeded and not job.dry_run and (
                    job.result_version not in by_job[number]):
                self.violate("job %d succeeded without version %d" % (
                    number, job.result_version))
            if not succeeded and job.result_version:
                self.violate("job %d has a version and is %s" % (
                    number, learning.state_name(job.state)))
            if job.state == admin.TRAINING_JOB_STATE_FAILED:
                self.violate("job %d failed: %s" % (number, job.error))
        keys = collections.Counter(
            job.idempotency_key for job in jobs.values())
        for key, count in keys.items():
            if count > 1:
                self.violate("%d jobs have key %s" % (count, key))
        for key, number in self.keys.items():
            if number and jobs[number].idempotency_key != key:
                self.violate("key %s was answered job %d, which has %s" % (
                    key, number, jobs[number].idempotency_key))

    def check_events(self, jobs):
        ends = collections.Counter()
        for event in self.call(lambda _, stub: stub.events()):
            if event.action in ("job.succeeded", "job.rejected", "job.failed",
                                "job.cancelled"):
                ends[event.job] += 1
                state = learning.state_name(jobs[event.job].state)
                if event.action != "job." + state:
                    self.violate("job %d is %s, the trail says %s" % (
                        event.job, state, event.action))
        for number in jobs:
            if ends[number] != 1:
                self.violate("job %d ended %d times in the trail" % (
                    number, ends[number]))

    # All of it.

    def one_kill(self, stage):
        has_hit = self.aim(stage)
        victims = {
            "labelling": ("server", "server", "both"),
            "queueing": ("server", "worker", "both"),
            "training": ("worker", "worker", "both", "server"),
            "judging": ("worker", "worker", "both"),
            "publishing": ("worker", "worker", "both"),
            "published": ("worker", "worker", "both"),
            "activating": ("server", "server", "both"),
        }.get(stage, ("server", "worker", "both"))
        victim = self.random.choice(victims)
        for turn in range(2 if stage == "starting" else 1):
            if turn:  # at the program's start, too
                time.sleep(self.random.uniform(0, 0.6))
            self.kill(victim)
            if not turn:
                hit = has_hit()
                self.hits[stage] += bool(hit)
                if self.options.verbose:
                    sys.stderr.write("kill %d: %s while %s%s\n" % (
                        self.kills + 1, victim, stage,
                        "" if hit else ", missed"))
                self.check_now()
                time.sleep(self.random.choice((0, 0, 0.3)))
            if victim in ("server", "both"):
                self.start_server(wait=False)
            if victim in ("worker", "both"):
                self.start_worker()
        self.kills += 1
        self.check_start()

    def run(self):
        with self.cleanup:
            self.start_server()
            self.start_worker()
            self.cleanup.callback(lambda: self.worker and self.worker.close())
            self.cleanup.callback(lambda: self.server and self.server.close())
            threads = [threading.Thread(target=work, args=(
                self.options.seed * 100 + i,)) for i, work in enumerate((
                    self.record, self.record, self.stream, self.train,
                    self.operate))]
            for thread in threads:
                thread.start()
            jobs = {}
            try:
                stages = []
                while self.kills < self.options.kills:
                    if not stages:
                        stages = list(STAGES)
                        self.random.shuffle(stages)
                    self.one_kill(stages.pop())
                self.quiet.set()
                self.stopping.set()
                for thread in threads:
                    thread.join()
                jobs = self.check_end()
            except AssertionError as error:
                self.violate(str(error))
            finally:
                self.quiet.set()
                self.stopping.set()
                for thread in threads:
                    thread.join()
            if self.violations:
                for name, process in (("server", self.server),
                                      ("worker", self.worker)):
                    if process is not None:
                        sys.stderr.write("--- %s\n%s" % (
                            name, process.logged()[-5000:]))
                sys.stderr.write("--- killed server\n%s--- killed worker\n%s" %
                                 (self.server_log[-3000:],
                                  self.worker_log[-3000:]))
            return self.summary(jobs)

    def summary(self, jobs):
        states = collections.Counter(
            learning.state_name(job.state) for job in jobs.values())
        return {
            "kills": self.kills, "seed": self.options.seed,
            "store": self.options.store,
            "stages_hit": {stage: self.hits[stage] for stage in STAGES},
            "labels_ok": self.labels.entries, "labels_lost": self.lost(),
            "labels_stored": sum(self.stored.values()),
            "jobs": len(jobs), "job_states": dict(states),
            "attempts": sum(job.attempts for job in jobs.values()),
            "versions": len(self.versions()),
            "half_written": len(self.half_written),
            "staging_left": sum(name.startswith(".staging-")
                                for name in os.listdir(self.model)),
            "violations": self.violations}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=9,
                        help="how often something is killed (default 9)")
    parser.add_argument("--seed", type=int, default=1,
                        help="of the choice of victims and instants")
    parser.add_argument("--store", choices=("sqlite", "postgresql"),
                        default="sqlite")
    parser.add_argument("-v", "--verbose", action="store_true",
                        help="one line for each kill on stderr")
    options = parser.parse_args()
    start = time.monotonic()
    summary = Crash(options).run()
    summary["seconds"] = round(time.monotonic() - start, 1)
    print(json.dumps(summary))
    return 1 if summary["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
