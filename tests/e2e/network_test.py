"""Clients that are slow, that vanish, and that do not speak the protocol."""

import socket
import struct
import threading

import harness

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


def reset(connection):
    """Closes with RST, as a crashed host or a firewall would."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                          struct.pack("ii", 1, 0))
    connection.close()


# Half-open connections hold up a drain, no longer than this.
CONFIG = "drain_timeout { nanos: 500000000 }"


class NetworkTest(harness.TestCase):

    def assert_serves(self, server):
        server.stub().Rank(harness.rank_request(), timeout=harness.PATIENCE)

    def connect(self, port):
        connection = harness.raw_connection(port)
        self.addCleanup(connection.close)
        return connection

    def test_connections_that_say_nothing_do_no_harm(self):
        server = self.serve(CONFIG)
        for _ in range(200):
            self.connect(server.port)
        self.assert_serves(server)
        self.assertEqual(server.stop(), 0)

    def test_noise_is_not_answered_and_does_no_harm(self):
        server = self.serve(CONFIG)
        for noise in (b"\0" * 1000, b"\xff" * 100000,
                      b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                      PREFACE[:10], PREFACE + b"\xff" * 5000,
                      PREFACE + SETTINGS + b"\0\xff\xff\x01\x25\0\0\0\x01"):
            connection = self.connect(server.port)
            try:
                connection.sendall(noise)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                pass  # a reset is an answer too
            self.assert_serves(server)
        self.assertEqual(server.stop(), 0)

    def test_connections_that_vanish_do_no_harm(self):
        server = self.serve(CONFIG)
        for i in range(100):
            connection = harness.raw_connection(server.port)
            connection.sendall((PREFACE + SETTINGS)[:i % 40])
            reset(connection)
        self.assert_serves(server)
        self.assertEqual(server.stop(), 0)

    def test_a_call_cut_off_in_its_request_is_forgotten(self):
        """HEADERS and half of a DATA frame, then nothing, then a reset."""
        server = self.serve(CONFIG)
        literal = lambda text: bytes([len(text)]) + text
        headers = b"".join(
            b"\0" + literal(name) + literal(value) for name, value in (
                (b":method", b"POST"), (b":scheme", b"http"),
                (b":path", b"/vitrine.v1.InferenceService/Rank"),
                (b":authority", b"localhost"), (b"te", b"trailers"),
                (b"content-type", b"application/grpc")))
        frame = struct.pack(">I", len(headers))[1:] + b"\x01\x04\0\0\0\x01"
        half = b"\0\0\x64\0\0\0\0\0\x01" + b"\0\0\0\0\x5f" + b"\x0a" * 10
        connections = []
        for _ in range(50):
            connection = self.connect(server.port)
            connection.sendall(PREFACE + SETTINGS + frame + headers + half)
            connections.append(connection)
        self.assert_serves(server)
        for connection in connections[:25]:
            reset(connection)
        self.assert_serves(server)
        self.assertEqual(server.metric("vitrine_calls_in_flight"), 0)
        server.signal()
        self.assertEqual(server.wait(), 0)

    def test_a_slow_sender_holds_up_nobody(self):
        server = self.serve(CONFIG)
        connection = self.connect(server.port)
        stop = threading.Event()

        def drip():
            for byte in PREFACE + SETTINGS:
                if stop.wait(0.02):
                    return
                connection.sendall(bytes([byte]))

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            for _ in range(20):
                self.assert_serves(server)
        finally:
            stop.set()
            thread.join()

    def test_a_caller_that_does_not_read_holds_up_nobody(self):
        server = self.serve("limits { max_items: 1000 }")
        # Answers of some 100 KB into a connection that nobody reads.
        channel = server.channel()
        stub = harness.inference_pb2_grpc.InferenceServiceStub(channel)
        request = harness.pb.EmbedRequest(texts=["sofa"] * 1000)
        calls = [stub.Embed.future(request, timeout=harness.PATIENCE)
                 for _ in range(20)]
        self.assert_serves(server)
        for call in calls:
            call.cancel()
        harness.wait_until(
            lambda: server.metric("vitrine_calls_in_flight") == 0,
            "the calls to end")

    def test_the_metrics_port_survives_noise(self):
        server = self.serve(CONFIG)
        for noise in (b"\0" * 100, b"GET /metrics\r\n\r\n", b"\xff" * 10000,
                      b"POST /metrics HTTP/1.1\r\nContent-Length: 99\r\n\r\n"):
            connection = harness.raw_connection(server.metrics_port)
            connection.sendall(noise)
            reset(connection)
        self.assertIn("vitrine_build_info", server.scrape())


if __name__ == "__main__":
    harness.main()
