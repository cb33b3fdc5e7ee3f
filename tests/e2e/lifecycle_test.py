"""Stopping: what was admitted is answered, what comes later is refused."""

import itertools
import signal
import socket

import grpc

import harness
from harness import health_pb2, health_pb2_grpc
from load_test import CONFIG, large_request

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class LifecycleTest(harness.TestCase):

    def serve_slow(self, config=""):
        return self.serve(CONFIG % ("", "") + config, model="slow")

    def wait_for_calls(self, server, count):
        harness.wait_until(
            lambda: server.metric("vitrine_calls_in_flight") == count,
            "%d calls in flight" % count)

    def wait_for_log(self, server, event):
        harness.wait_until(lambda: event in server.logged(), event)

    def test_stops_at_once_when_idle(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            server = self.serve()
            server.stub().Rank(harness.rank_request(),
                               timeout=harness.PATIENCE)
            server.signal(number)
            self.assertEqual(server.wait(), 0)

    def test_a_watcher_and_a_silent_connection_do_not_hold_the_stop_up(self):
        server = self.serve("drain_timeout { seconds: 600 }")
        watch = health_pb2_grpc.HealthStub(server.channel()).Watch(
            health_pb2.HealthCheckRequest(service=harness.SERVICE),
            timeout=harness.PATIENCE)
        self.assertEqual(next(watch).status, SERVING)
        with socket.create_connection(("127.0.0.1", server.port)):
            server.signal()
            self.assertEqual(next(watch).status, NOT_SERVING)
            self.assertEqual(server.wait(), 0)

    def test_every_admitted_call_is_answered(self):
        server = self.serve_slow()
        stubs = [server.stub() for _ in range(4)]
        calls = [stubs[i % 4].Rank.future(large_request(10),
                                          timeout=harness.PATIENCE)
                 for i in range(16)]
        self.wait_for_calls(server, 16)
        server.signal()
        for call in calls:
            self.assertEqual(call.code(), grpc.StatusCode.OK, call.details())
            self.assertEqual(len(call.result().items), 10)
        self.assertEqual(server.wait(), 0)

    def test_under_load_a_call_is_answered_or_refused(self):
        server = self.serve_slow()
        stubs = [server.stub() for _ in range(4)]
        turn = itertools.count()

        def work():
            return len(stubs[next(turn) % 4].Rank(
                large_request(2), timeout=harness.PATIENCE).items)

        with harness.Background(work, threads=8) as load:
            harness.wait_until(lambda: len(load.results) > 20, "20 answers")
            server.signal()
            self.assertEqual(server.wait(), 0)
        self.assertEqual(set(load.results), {2})
        # CANCELLED is gRPC's own answer to a call that came in after its
        # server began to shut down, before the caller had heard of it.
        for error in load.errors:
            self.assertIn(error.code(), (grpc.StatusCode.UNAVAILABLE,
                                         grpc.StatusCode.CANCELLED),
                          error.details())

    def test_health_turns_before_the_drain(self):
        server = self.serve_slow()
        watch = health_pb2_grpc.HealthStub(server.channel()).Watch(
            health_pb2.HealthCheckRequest(service=harness.SERVICE),
            timeout=harness.PATIENCE)
        self.assertEqual(next(watch).status, SERVING)
        call = server.stub().Rank.future(large_request(100),
                                         timeout=harness.PATIENCE)
        self.wait_for_calls(server, 1)
        server.signal()
        self.assertEqual(next(watch).status, NOT_SERVING)
        self.assertFalse(call.done())
        watch.cancel()
        self.assertEqual(call.code(), grpc.StatusCode.OK)
        self.assertEqual(server.wait(), 0)

    def test_the_drain_has_a_limit(self):
        server = self.serve_slow("drain_timeout { nanos: 200000000 }")
        call = server.stub().Rank.future(large_request(),
                                         timeout=harness.PATIENCE)
        self.wait_for_calls(server, 1)
        server.signal()
        self.assertIn(call.code(), (grpc.StatusCode.UNAVAILABLE,
                                    grpc.StatusCode.CANCELLED))
        self.assertEqual(server.wait(), 0)

    def test_a_second_signal_leaves_at_once(self):
        server = self.serve_slow("drain_timeout { seconds: 600 }")
        calls = [server.stub().Rank.future(large_request(500),
                                           timeout=harness.PATIENCE)
                 for _ in range(3)]
        self.wait_for_calls(server, 3)
        server.signal()
        self.wait_for_log(server, "stopping")
        server.signal()
        self.assertEqual(server.wait(), 1)
        for call in calls:
            self.assertEqual(call.code(), grpc.StatusCode.UNAVAILABLE)

    def test_the_port_is_free_again_after_a_stop(self):
        first = self.serve()
        port = first.port
        self.assertEqual(first.stop(), 0)
        second = self.serve(flags=["--listen", "127.0.0.1:%d" % port])
        self.assertEqual(second.port, port)
        second.stub().Rank(harness.rank_request(), timeout=harness.PATIENCE)


if __name__ == "__main__":
    harness.main()
