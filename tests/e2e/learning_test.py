"""The loop over real processes: labels, a job, a gate, a version, its
activation, and what can go wrong on the way."""

import json
import os
import shutil
import sqlite3
import time

import grpc

import harness
import learning
import models
from learning import admin, feedback_pb2

SUCCEEDED = admin.TRAINING_JOB_STATE_SUCCEEDED
# Far below a lease or a long job's time.
SOON = 120 if harness.SANITIZED else 20
RUNNING = admin.TRAINING_JOB_STATE_RUNNING


class LearningTest(learning.TestCase):

    # Long enough to be met in the middle, ended by whoever asked for it.
    LONG = dict(epochs=2000, batch_size=4)

    def store_labels(self, server, first=0, count=600):
        """Of the classifier; two messages, as an import sends them."""
        def entry(number):
            return feedback_pb2.Feedback(
                feedback_id="label-%d" % number,
                text_label=learning.text_label(number))
        half = count // 2
        answer = server.feedback().ImportFeedback(iter([
            feedback_pb2.ImportFeedbackRequest(
                feedback=[entry(first + i) for i in range(half)]),
            feedback_pb2.ImportFeedbackRequest(
                feedback=[entry(first + i) for i in range(half, count)])]),
            timeout=harness.PATIENCE)
        self.assertEqual(answer.rejected, 0, answer)
        return answer

    def start_both(self, **options):
        server = self.start_server(**options)
        self.store_labels(server)
        return server, server.admin()

    def await_progress(self, stub, number):
        def moving():
            job = stub.job(number)
            self.assertNotIn(job.state, learning.FINAL, job)
            return job if job.progress.step > 0 else None
        return harness.wait_until(moving, "the first steps")

    def train(self, stub, **fields):
        fields.setdefault("recipe", learning.recipe())
        return stub.StartTraining(**fields).job.id

    def outcome(self, stub, **fields):
        return stub.await_end(self.train(stub, **fields))

    def current(self):
        with open(os.path.join(self.models, "shop", "CURRENT")) as lines:
            return int(lines.read())

    def versions(self):
        return sorted(int(name) for name in
                      os.listdir(os.path.join(self.models, "shop"))
                      if name.isdigit())

    def actions(self, stub):
        return [event.action for event in stub.events()]

    # The loop.

    def test_labels_become_a_version_in_service_and_are_undone(self):
        server = self.start_server()
        self.start_worker()
        environment = {"VITRINE_TARGET": server.target,
                       "VITRINE_ADMIN_TARGET": server.admin_target,
                       "VITRINE_ADMIN_TOKEN_FILE": server.token_file}

        def vitrine(*arguments, check=0):
            return harness.run("vitrine", *arguments, check=check,
                               env=environment).stdout

        rows = os.path.join(self.folder, "texts.jsonl")
        models.write_lines(rows, (
            {"text": label.text, "label": label.label}
            for label in map(learning.text_label, range(600))))
        imported = json.loads(vitrine("--json", "label", "import", rows,
                                      "--head", "classifier"))
        self.assertEqual(int(imported["stored"]), 600, imported)
        again = json.loads(vitrine("--json", "label", "import", rows,
                                   "--head", "classifier"))
        self.assertEqual(int(again["duplicates"]), 600, again)

        recipe = os.path.join(self.folder, "recipe.textproto")
        with open(recipe, "w") as out:
            out.write(str(learning.recipe(epochs=12, batch_size=4)))
        watched = vitrine("train", "start", "--recipe", recipe, "--watch")
        self.assertIn("succeeded", watched)
        self.assertIn("3", watched)
        stub = server.stub()

        def serving():
            return stub.Rank(harness.rank_request(),
                             timeout=harness.PATIENCE).model.version

        harness.wait_until(lambda: serving() == "3", "the activation")
        self.assertEqual(self.current(), 3)

        listed = vitrine("model", "list")
        self.assertRegex(listed, r"(?m)^\W*3\b.*\b2\b")
        shown = vitrine("model", "show", "3")
        self.assertIn("accuracy", shown)
        version = server.admin().GetModelVersion(version=3).version
        self.assertEqual((version.parent, version.job, version.label_watermark,
                          version.current, version.serving),
                         (2, 1, 600, True, True))
        accuracy = [metric for metric in version.metrics
                    if metric.name == "accuracy"][0]
        self.assertGreater(accuracy.value, 0.8)
        self.assertLess(accuracy.before, accuracy.value)
        self.assertEqual({report.label for report in version.label_reports},
                         {"spam", "normal"})

        vitrine("model", "rollback")
        self.assertEqual(self.current(), 2)
        # By policy a version is activated once: the rollback stays.
        time.sleep(0.3)
        self.assertEqual(serving(), "2")
        trail = vitrine("audit")
        order = [trail.index(action) for action in (
            "job.queued", "job.running", "job.evaluating", "job.succeeded",
            "model.activated", "model.rolled_back")]
        self.assertEqual(order, sorted(order), trail)
        job = server.admin().job(1)
        self.assertEqual((job.attempts, job.result_version), (1, 3))
        self.assertEqual(job.training_rows + job.validation_rows, 600)
        left = os.listdir(os.path.join(self.models, "shop", ".jobs", "1"))
        self.assertNotIn("data", left)
        self.assertNotIn("checkpoint", left)

    def test_a_second_replica_follows(self):
        first = self.start_server()
        second = self.start_server()
        for version in (1, 2, 1):
            first.admin().ActivateModelVersion(version=version)
            stub = second.admin()
            harness.wait_until(
                lambda: stub.GetModelVersion().version.version == version,
                "the replica", SOON)

    # Workers.

    def test_a_killed_worker_is_replaced(self):
        _, stub = self.start_both()
        first = self.start_worker(lease_ms=500)
        number = self.train(stub, recipe=learning.recipe(
            epochs=60, batch_size=4))
        # The second, so that the first is whole.
        checkpoint = os.path.join(self.models, "shop", ".jobs", str(number),
                                  "checkpoint", "checkpoint-2")
        harness.wait_until(lambda: os.path.exists(checkpoint), "a checkpoint")
        first.kill()
        second = self.start_worker(lease_ms=500)
        job = stub.await_end(number)
        self.assertEqual((job.state, job.attempts, job.worker),
                         (SUCCEEDED, 2, second.name), job)
        self.assertEqual(self.versions(), [1, 2, job.result_version])
        self.assertIn("job.taken_over", self.actions(stub))
        # From its checkpoint.
        self.assertRegex(second.logged(), r"training_resumed .*step=[1-9]")

    def test_a_stopped_worker_gives_its_job_back(self):
        _, stub = self.start_both()
        worker = self.start_worker(lease_ms=60000)
        number = self.train(stub, recipe=learning.recipe(**self.LONG))
        self.await_progress(stub, number)
        self.assertEqual(worker.stop(), 0)
        job = stub.job(number)
        self.assertEqual((job.state, job.worker, job.attempts),
                         (admin.TRAINING_JOB_STATE_QUEUED, "", 0), job)
        self.assertEqual(self.actions(stub)[-1], "job.released")
        # Long before the lease would have run out.
        self.start_worker(lease_ms=60000)
        harness.wait_until(lambda: stub.job(number).state == RUNNING,
                           "the next worker", SOON)
        stub.CancelTrainingJob(id=number)
        stub.await_end(number)

    def test_two_workers_share_jobs(self):
        _, stub = self.start_both()
        workers = [self.start_worker(), self.start_worker()]
        numbers = [self.train(stub, recipe=learning.recipe(
            epochs=20, batch_size=4)) for _ in range(2)]
        jobs = [stub.await_end(number) for number in numbers]
        self.assertEqual([job.state for job in jobs], [SUCCEEDED] * 2)
        self.assertEqual({job.worker for job in jobs},
                         {worker.name for worker in workers})
        self.assertEqual(sorted(job.result_version for job in jobs), [3, 4])

    def test_a_cancelled_job_ends_soon(self):
        _, stub = self.start_both()
        self.start_worker(lease_ms=4000)
        number = self.train(stub, recipe=learning.recipe(**self.LONG))
        self.await_progress(stub, number)
        stub.CancelTrainingJob(id=number)
        job = stub.await_end(number, timeout=SOON)
        self.assertEqual(job.state, admin.TRAINING_JOB_STATE_CANCELLED)
        self.assertEqual(self.versions(), [1, 2])
        # The worker lives on.
        self.assertEqual(self.outcome(stub).state, SUCCEEDED)

    def test_a_queued_job_is_cancelled_without_a_worker(self):
        _, stub = self.start_both()
        number = self.train(stub)
        job = stub.CancelTrainingJob(id=number).job
        self.assertEqual(job.state, admin.TRAINING_JOB_STATE_CANCELLED)
        # Again is no error; the end of one that has ended otherwise is.
        self.assertEqual(stub.CancelTrainingJob(id=number).job.state,
                         admin.TRAINING_JOB_STATE_CANCELLED)
        self.start_worker()
        ended = self.outcome(stub)
        with self.assert_code(grpc.StatusCode.FAILED_PRECONDITION,
                              "succeeded"):
            stub.CancelTrainingJob(id=ended.id)

    # Outcomes.

    def test_a_dry_run_publishes_nothing(self):
        _, stub = self.start_both()
        self.start_worker()
        job = self.outcome(stub, dry_run=True)
        self.assertEqual((job.state, job.result_version), (SUCCEEDED, 0), job)
        self.assertTrue(job.metrics)
        self.assertEqual(self.versions(), [1, 2])

    def test_a_gate_that_nothing_passes_rejects(self):
        _, stub = self.start_both()
        self.start_worker()
        recipe = learning.recipe()
        recipe.gate.rules[0].bound = 2
        job = self.outcome(stub, recipe=recipe)
        self.assertEqual(job.state, admin.TRAINING_JOB_STATE_REJECTED)
        self.assertEqual(len(job.rejections), 1, job.rejections)
        self.assertRegex(job.rejections[0], r"classifier.*accuracy.*2")
        self.assertEqual((job.result_version, self.versions()), (0, [1, 2]))
        self.assertTrue(job.metrics)

    def test_a_base_version_that_is_gone_fails_the_job(self):
        _, stub = self.start_both()
        number = self.train(stub, base_version=1)
        shutil.rmtree(os.path.join(self.models, "shop", "1"))
        self.start_worker()
        job = stub.await_end(number)
        self.assertEqual((job.state, job.attempts),
                         (admin.TRAINING_JOB_STATE_FAILED, 1), job)
        self.assertRegex(job.error, r"version 1|shop/1")

    def test_a_head_without_labels_fails_the_job(self):
        _, stub = self.start_both()
        self.start_worker()
        recipe = learning.recipe()
        recipe.tasks.add(kind=admin.TRAINING_TASK_KIND_RECOMMENDATION)
        job = self.outcome(stub, recipe=recipe)
        self.assertEqual(job.state, admin.TRAINING_JOB_STATE_FAILED)
        self.assertIn("head recommendation", job.error)
        # Where the recipe names none, those with labels are trained.
        recipe = learning.recipe()
        del recipe.tasks[:]
        job = self.outcome(stub, recipe=recipe)
        self.assertEqual(job.state, SUCCEEDED, job)

    def test_a_registry_that_cannot_be_written_fails_the_job(self):
        _, stub = self.start_both()
        jobs = os.path.join(self.models, "shop", ".jobs")
        open(jobs, "w").close()
        self.start_worker()
        job = self.outcome(stub)
        self.assertEqual((job.state, job.attempts),
                         (admin.TRAINING_JOB_STATE_FAILED, 1), job)
        self.assertIn(".jobs", job.error)
        os.remove(jobs)
        self.assertEqual(self.outcome(stub).state, SUCCEEDED)

    def test_labels_older_than_the_base_version_are_no_news(self):
        _, stub = self.start_both()
        self.start_worker()
        self.assertEqual(self.outcome(stub).state, SUCCEEDED)
        recipe = learning.recipe()
        recipe.replay_share = 0.5
        job = self.outcome(stub, recipe=recipe, base_version=3)
        self.assertEqual(job.state, admin.TRAINING_JOB_STATE_FAILED)
        self.assertRegex(job.error, "number 600, and the replay share 0.5")

    # Policies.

    def test_a_policy_trains_once_there_are_labels(self):
        server = self.start_server()
        stub = server.admin()
        self.start_worker("""
            policies { model: "shop" min_new_labels: 300 recipe { %s } }""" %
                          learning.recipe())
        self.store_labels(server, count=200)
        time.sleep(0.5)
        self.assertEqual(stub.jobs(), [])
        self.store_labels(server, first=200, count=200)
        job = harness.wait_until(stub.jobs, "a job by policy")[0]
        job = stub.await_end(job.id)
        self.assertEqual((job.state, job.created_by), (SUCCEEDED, "policy"))
        time.sleep(0.5)
        self.assertEqual(len(stub.jobs()), 1)
        # The job may have begun between the two messages of an import.
        self.store_labels(server, first=400, count=400)
        harness.wait_until(lambda: len(stub.jobs()) == 2, "the next job")

    def test_one_models_damage_does_not_hold_up_another(self):
        _, stub = self.start_both()
        broken = os.path.join(self.models, "broken")
        shutil.copytree(os.path.join(self.models, "shop"), broken)
        with open(os.path.join(broken, "CURRENT"), "w") as out:
            out.write("what?\n")
        worker = self.start_worker(
            'policies { model: "broken" min_new_labels: 1 }')
        self.assertEqual(self.outcome(stub).state, SUCCEEDED)
        self.assertIn("policy_failed", worker.logged())

    # What is left behind.

    def test_files_of_jobs_that_ended_elsewhere_are_removed(self):
        _, stub = self.start_both()
        first = self.start_worker(lease_ms=500)
        number = self.train(stub, recipe=learning.recipe(**self.LONG))
        self.await_progress(stub, number)
        first.kill()
        data = os.path.join(self.models, "shop", ".jobs", str(number), "data")
        self.assertTrue(os.path.isdir(data))
        stub.CancelTrainingJob(id=number)
        staging = os.path.join(self.models, "shop", ".staging-old")
        os.mkdir(staging)
        os.utime(staging, (0, 0))
        self.start_worker(lease_ms=500)
        self.assertEqual(stub.await_end(number).state,
                         admin.TRAINING_JOB_STATE_CANCELLED)
        self.assertEqual(self.outcome(stub).state, SUCCEEDED)
        self.assertFalse(os.path.exists(data))
        self.assertFalse(os.path.exists(staging))

    def test_a_new_store_is_not_taken_for_the_old_one(self):
        server, stub = self.start_both()
        worker = self.start_worker()
        self.assertEqual(self.outcome(stub, base_version=1).result_version, 3)
        self.assertEqual((server.stop(), worker.stop()), (0, 0))
        for suffix in ("", "-wal", "-shm"):
            with_suffix = self.store_file + suffix
            if os.path.exists(with_suffix):
                os.remove(with_suffix)
        server, stub = self.start_both()
        self.start_worker()
        # Job 1 once more; version 3 says that it is job 1's.
        job = self.outcome(stub, base_version=2)
        self.assertEqual((job.id, job.state, job.result_version),
                         (1, SUCCEEDED, 4))

    # Configurations.

    def test_a_store_that_is_newer_is_refused(self):
        server = self.start_server()
        self.assertEqual(server.stop(), 0)
        connection = sqlite3.connect(self.store_file)
        columns = [row[1] for row in connection.execute(
            "pragma table_info(schema_migrations)")]
        connection.execute("insert into schema_migrations values (%s)" %
                           ", ".join(["999"] * len(columns)))
        connection.commit()
        connection.close()
        refused = self.start_server(wait=False)
        self.assertNotEqual(refused.wait(), 0)
        said = "schema is at step 999, and this program knows steps up to"
        self.assertIn(said, refused.logged())
        worker = self.start_worker()
        self.assertNotEqual(worker.process.wait(harness.PATIENCE), 0)
        self.assertIn(said, worker.logged())

    def test_check_lists_every_error(self):
        path = os.path.join(self.folder, "worker.textproto")
        with open(path, "w") as out:
            out.write("""
                lease { seconds: -1 }
                max_attempts: -2
                threads: -3
                models: "../shop"
                policies { model: "shop" }
                policies { model: "" min_new_labels: 5
                           recipe { schedule: "steep" } }""")
        done = harness.run("vitrine-trainer", "work", "--config", path,
                           "--check", check=1)
        for words in ("registry: is required", "store.url: is required",
                      "lease: -1s", "max_attempts: -2", "threads: -3",
                      'models: model name "../shop"', "policies[0]: neither",
                      "policies[1].model", "policies[1].recipe", "steep"):
            self.assertIn(words, done.stderr + done.stdout)
        with open(path, "w") as out:
            out.write('registry: "r" store { url: "mysql:labels" }')
        done = harness.run("vitrine-trainer", "work", "--config", path,
                           "--check", check=1)
        self.assertIn("store.url: database address begins with neither",
                      done.stderr)
        with open(path, "w") as out:
            out.write('registry: "r" store { url: "sqlite:labels.db" }')
        harness.run("vitrine-trainer", "work", "--config", path, "--check",
                    check=0)


if __name__ == "__main__":
    harness.main()
