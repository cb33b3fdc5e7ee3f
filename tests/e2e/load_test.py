"""Deadlines, cancellation, overload and fairness: what happens when there is
more to do than time. The work is large enough that it is still going on when
the test looks; nothing here measures time."""

import os
import signal
import subprocess
import sys

import grpc

import harness
from harness import pb

CONFIG = """
    engine { dtype: DTYPE_FP32 batch_threads: 1 inner_threads: 1 }
    batcher { max_batch_tokens: 512 %s }
    limits { %s }
"""


def large_request(items=1000):
    """Some seconds of work for the slow model."""
    request = harness.rank_request(items=items, words=60)
    for item in request.items:
        item.description = item.title
    return request


class LoadTest(harness.TestCase):

    def serve_slow(self, batcher="", limits=""):
        return self.serve(CONFIG % (batcher, limits), model="slow")

    def wait_for_work(self, server):
        harness.wait_until(lambda: server.metric("vitrine_queue_tokens") > 0,
                           "a call in the queue")

    def wait_for_quiet(self, server):
        harness.wait_until(
            lambda: server.metric("vitrine_queue_tokens") == 0 and
            server.metric("vitrine_calls_in_flight") == 0, "an empty queue")

    def assert_most_was_dropped(self, server, before, items):
        """Far fewer tokens were computed than `items` items have."""
        computed = server.metric("vitrine_batch_tokens_sum") - before
        self.assertLess(computed, items * self.tokens_per_item / 2)

    def learn_tokens(self, server, stub):
        stub.Rank(large_request(10), timeout=harness.PATIENCE)
        total = server.metric("vitrine_batch_tokens_sum")
        self.tokens_per_item = total / 10
        self.assertGreater(self.tokens_per_item, 40)
        return total

    def test_a_deadline_ends_the_call_and_its_work(self):
        server = self.serve_slow()
        stub = server.stub()
        before = self.learn_tokens(server, stub)
        with self.assert_code(grpc.StatusCode.DEADLINE_EXCEEDED):
            stub.Rank(large_request(), timeout=0.2)
        self.wait_for_quiet(server)
        self.assert_most_was_dropped(server, before, 1000)
        self.assertEqual(
            len(stub.Rank(large_request(3), timeout=harness.PATIENCE).items), 3)

    def test_a_call_that_arrives_too_late_is_not_computed(self):
        server = self.serve_slow()
        stub = server.stub()
        before = self.learn_tokens(server, stub)
        for _ in range(20):
            with self.assert_code(grpc.StatusCode.DEADLINE_EXCEEDED):
                stub.Rank(large_request(), timeout=0.001)
        self.wait_for_quiet(server)
        self.assert_most_was_dropped(server, before, 1000)

    def test_the_servers_own_deadline_bounds_calls_without_one(self):
        server = self.serve_slow(
            limits="default_deadline { nanos: 200000000 }")
        with self.assert_code(grpc.StatusCode.DEADLINE_EXCEEDED):
            server.stub().Rank(large_request())
        self.wait_for_quiet(server)

    def test_a_cancelled_call_is_not_computed(self):
        server = self.serve_slow()
        stub = server.stub()
        before = self.learn_tokens(server, stub)
        call = stub.Rank.future(large_request(), timeout=harness.PATIENCE)
        self.wait_for_work(server)
        call.cancel()
        self.wait_for_quiet(server)
        self.assert_most_was_dropped(server, before, 1000)
        self.assertGreaterEqual(
            server.metric("vitrine_requests_total", code="CANCELLED"), 1)

    def test_a_caller_that_is_killed_frees_its_work(self):
        server = self.serve_slow()
        before = self.learn_tokens(server, server.stub())
        caller = subprocess.Popen([sys.executable, "-c", """
import sys
sys.path.insert(0, %r)
import grpc, harness, load_test
channel = grpc.insecure_channel(%r)
stub = harness.inference_pb2_grpc.InferenceServiceStub(channel)
stub.Rank(load_test.large_request())
""" % (os.path.dirname(os.path.abspath(__file__)), server.target)])
        try:
            self.wait_for_work(server)
        finally:
            caller.send_signal(signal.SIGKILL)
            caller.wait()
        self.wait_for_quiet(server)
        self.assert_most_was_dropped(server, before, 1000)

    def test_a_full_queue_refuses_and_says_when_to_try_again(self):
        server = self.serve_slow(batcher="max_queue_tokens: 4096")
        stub = server.stub()
        first = stub.Rank.future(large_request(), timeout=harness.PATIENCE)
        self.wait_for_work(server)
        with self.assert_code(grpc.StatusCode.RESOURCE_EXHAUSTED) as caught:
            stub.Rank(large_request(), timeout=harness.PATIENCE)
        delay = harness.retry_delay(caught[0])
        self.assertIsNotNone(delay, "no RetryInfo in the details")
        self.assertGreater(delay, 0)
        self.assertLess(delay, 120)
        self.assertFalse(first.done(), "the queue was full behind this call")
        self.assertEqual(
            server.metric("vitrine_rejected_total", reason="queue_full"), 1)
        self.assertEqual(server.health(), harness.health_pb2.
                         HealthCheckResponse.SERVING)
        first.cancel()
        self.wait_for_quiet(server)
        stub.Rank(large_request(3), timeout=harness.PATIENCE)

    def test_more_calls_than_the_limit_are_refused(self):
        server = self.serve_slow(limits="max_concurrent_calls: 1")
        stub = server.stub()
        first = stub.Rank.future(large_request(), timeout=harness.PATIENCE)
        self.wait_for_work(server)
        with self.assert_code(grpc.StatusCode.RESOURCE_EXHAUSTED) as caught:
            stub.Rank(harness.rank_request(), timeout=harness.PATIENCE)
        self.assertIsNotNone(harness.retry_delay(caught[0]))
        self.assertGreaterEqual(
            server.metric("vitrine_rejected_total", reason="too_many_calls"), 1)
        first.cancel()
        self.wait_for_quiet(server)
        stub.Rank(harness.rank_request(), timeout=harness.PATIENCE)

    def test_overload_answers_every_call_one_way_or_the_other(self):
        server = self.serve_slow(batcher="max_queue_tokens: 8192")
        stub = server.stub()
        request = large_request(50)
        calls = [stub.Rank.future(request, timeout=harness.PATIENCE)
                 for _ in range(60)]
        codes = {}
        for call in calls:
            code = call.code()
            codes[code] = codes.get(code, 0) + 1
            if code == grpc.StatusCode.OK:
                self.assertEqual(len(call.result().items), 50)
        self.assertEqual(set(codes), {grpc.StatusCode.OK,
                                      grpc.StatusCode.RESOURCE_EXHAUSTED})
        self.wait_for_quiet(server)

    def test_a_small_call_does_not_wait_for_a_large_one(self):
        server = self.serve_slow()
        stub = server.stub()
        large = stub.Rank.future(large_request(), timeout=harness.PATIENCE)
        self.wait_for_work(server)
        for _ in range(3):
            stub.Rank(harness.rank_request(items=1), timeout=harness.PATIENCE)
        self.assertFalse(large.done())
        large.cancel()

    def test_the_vitrine_command_tries_again_until_there_is_room(self):
        server = self.serve_slow(limits="max_concurrent_calls: 1")
        stub = server.stub()
        first = stub.Rank.future(large_request(), timeout=harness.PATIENCE)
        self.wait_for_work(server)
        refused = harness.run("vitrine", "rank", "-q", "sofa", "sofa",
                              "--target", server.target, "--json", check=1)
        self.assertIn("RESOURCE_EXHAUSTED", refused.stderr)
        self.assertIn("try again in", refused.stderr)
        # Its own policy tried more than once.
        self.assertGreaterEqual(
            server.metric("vitrine_rejected_total", reason="too_many_calls"), 2)
        first.cancel()
        self.wait_for_quiet(server)


if __name__ == "__main__":
    harness.main()
