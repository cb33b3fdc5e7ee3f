"""Health, reflection and metrics: what machines ask of a server."""

import re

import grpc
from google.protobuf import descriptor_pb2

import harness
from harness import health_pb2, health_pb2_grpc, pb
from harness import reflection_pb2, reflection_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING


class ObservabilityTest(harness.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = harness.Server(cls.registry)
        cls.addClassCleanup(cls.server.close)
        cls.stub = cls.server.stub()

    def reflect(self, **request):
        stub = reflection_pb2_grpc.ServerReflectionStub(self.server.channel())
        return next(stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(**request)]),
            timeout=harness.PATIENCE))

    def test_health_of_the_server_and_of_the_service(self):
        for service in ("", harness.SERVICE):
            self.assertEqual(self.server.health(service), SERVING)
        with self.assert_code(grpc.StatusCode.NOT_FOUND):
            self.server.health("no.such.Service")

    def test_health_can_be_watched(self):
        stub = health_pb2_grpc.HealthStub(self.server.channel())
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=""),
                           timeout=harness.PATIENCE)
        self.assertEqual(next(watch).status, SERVING)
        watch.cancel()

    def test_reflection_lists_the_services(self):
        services = {service.name for service in self.reflect(
            list_services="*").list_services_response.service}
        self.assertIn(harness.SERVICE, services)
        self.assertIn("grpc.health.v1.Health", services)

    def test_reflection_gives_the_files_of_the_service(self):
        files = {}

        def add(response):
            for data in response.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(data)
                files[file.name] = file
                for needed in file.dependency:
                    if needed not in files:
                        add(self.reflect(file_by_filename=needed))

        add(self.reflect(file_containing_symbol=harness.SERVICE))
        service = files["vitrine/v1/inference.proto"].service[0]
        self.assertEqual(
            [method.name for method in service.method],
            [method.name for method in
             pb.DESCRIPTOR.services_by_name["InferenceService"].methods])
        self.assertIn("google/rpc/status.proto", files)

    def test_reflection_says_what_it_does_not_know(self):
        response = self.reflect(file_containing_symbol="no.such.Thing")
        self.assertEqual(response.error_response.error_code,
                         grpc.StatusCode.NOT_FOUND.value[0])

    def test_metrics_follow_the_text_format(self):
        text = self.server.scrape()
        types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))
        helped = set(re.findall(r"^# HELP (\w+) \S", text, re.M))
        self.assertEqual(set(types), helped)
        for line in text.splitlines():
            if line and not line.startswith("#"):
                self.assertRegex(
                    line, r'^[a-z_]+(\{(\w+="[^"]*",?)*\})? '
                    r'(-?[0-9.e+-]+|\+Inf|-Inf|NaN|Nan)( \d+)?$')
        for name, kind in types.items():
            if kind == "counter":
                self.assertRegex(name, "_total$")

    def test_metrics_start_at_zero(self):
        server = self.serve()
        for method in ("Score", "Rank", "PredictInterests", "Embed",
                       "Classify"):
            self.assertEqual(
                server.metric("vitrine_requests_total", method=method), 0)
        for reason in ("queue_full", "too_many_calls"):
            self.assertEqual(
                server.metric("vitrine_rejected_total", reason=reason), 0)
        for name in ("vitrine_queue_tokens", "vitrine_calls_in_flight",
                     "vitrine_item_vector_cache_hits_total",
                     "vitrine_batch_tokens_count"):
            self.assertEqual(server.metric(name), 0, name)

    def test_calls_and_items_are_counted(self):
        server = self.serve()
        stub = server.stub()
        request = harness.rank_request(items=7)
        request.items[3].title = ""
        for _ in range(3):
            stub.Rank(request, timeout=harness.PATIENCE)
        with self.assert_code(grpc.StatusCode.INVALID_ARGUMENT):
            stub.Rank(pb.RankRequest(), timeout=harness.PATIENCE)
        stub.PredictInterests(pb.PredictInterestsRequest(history=[
            pb.Interaction(item=pb.Item(title="red sofa"))]),
            timeout=harness.PATIENCE)
        self.assertEqual(server.metric("vitrine_items_total",
                                       method="PredictInterests"), 1)
        self.assertEqual(server.metric("vitrine_requests_total",
                                       method="Rank", code="OK"), 3)
        self.assertEqual(server.metric("vitrine_requests_total", method="Rank",
                                       code="INVALID_ARGUMENT"), 1)
        self.assertEqual(
            server.metric("vitrine_items_total", method="Rank"), 21)
        self.assertEqual(
            server.metric("vitrine_item_errors_total", method="Rank"), 3)
        for name in ("request", "queue", "tokenize", "compute"):
            self.assertEqual(
                server.metric("vitrine_%s_seconds_count" % name, method="Rank",
                              model="shop", version="2", head="relevance"), 3)
        self.assertGreater(server.metric("vitrine_request_seconds_sum",
                                         method="Rank"), 0)
        self.assertGreater(server.metric("vitrine_tokens_total"), 18 * 5)
        self.assertEqual(server.metric("vitrine_model_version"), 2)
        self.assertGreater(server.metric("vitrine_model_load_seconds"), 0)

    def test_the_process_is_described(self):
        for name in ("process_cpu_seconds_total",
                     "process_resident_memory_bytes", "process_open_fds",
                     "process_start_time_seconds"):
            self.assertGreater(self.server.metric(name), 0)
        self.assertEqual(self.server.metric("vitrine_build_info"), 1)

    def test_label_values_do_not_come_from_callers(self):
        request = harness.rank_request(model="made-up-by-the-caller")
        with self.assert_code(grpc.StatusCode.NOT_FOUND):
            self.stub.Rank(request, timeout=harness.PATIENCE)
        self.assertNotIn("made-up-by-the-caller", self.server.scrape())

    def test_logs_hold_no_text_of_shoppers(self):
        server = self.serve(flags=["--log-level", "debug"])
        request = harness.rank_request(query="zanzibar")
        request.items[0].title = "quetzal"
        server.stub().Rank(request, timeout=harness.PATIENCE)
        server.stop()
        self.assertIn("serving", server.logged())
        self.assertNotIn("zanzibar", server.logged())
        self.assertNotIn("quetzal", server.logged())


if __name__ == "__main__":
    harness.main()
