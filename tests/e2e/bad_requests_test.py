"""What is wrong with a request is said; one bad item fails itself alone."""

import grpc

import harness
from harness import pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT
# Replaced, in a serialized message, by bytes of the same length.
MARK = "\x01MARK\x01"


class BadRequestsTest(harness.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = harness.Server(cls.registry, """
            engine { dtype: DTYPE_FP32 }
            limits {
              max_items: 20 max_texts: 10 max_history: 5
              max_field_bytes: 1000 max_attributes: 4
              max_message_bytes: 200000
            }""")
        cls.addClassCleanup(cls.server.close)
        cls.channel = cls.server.channel()
        cls.stub = cls.server.stub()

    def call(self, method, request):
        return getattr(self.stub, method)(request, timeout=harness.PATIENCE)

    def call_raw(self, method, request, bad):
        """`request` with every MARK replaced by the bytes `bad`."""
        self.assertEqual(len(bad), len(MARK))
        call = self.channel.unary_unary(
            "/%s/%s" % (harness.SERVICE, method),
            response_deserializer=getattr(pb, method + "Response").FromString)
        data = request.SerializeToString().replace(MARK.encode(), bad)
        return call(data, timeout=harness.PATIENCE)

    def scores(self, response):
        return {item.item_id: round(item.score, 3) for item in response.items
                if not item.HasField("error")}

    def test_invalid_utf8_fails_its_item_alone(self):
        request = harness.rank_request(items=5)
        expected = self.scores(self.call("Rank", request))
        del expected["item2"]
        for bad in (b"\xff\xfe\xfd\xfc\xfb\xfa", b"abcde\xc3",
                    b"\xed\xa0\x80abc", b"\xc0\x80abcd"):
            for field in ("title", "brand", "description"):
                broken = pb.RankRequest()
                broken.CopyFrom(request)
                setattr(broken.items[2], field, "sofa " + MARK)
                response = self.call_raw("Rank", broken, bad)
                self.assertEqual(self.scores(response), expected)
                last = response.items[-1]
                self.assertEqual(last.item_id, "item2")
                self.assertEqual(last.error.code, INVALID.value[0])
                self.assertIn("items[2]." + field, last.error.message)
                self.assertIn("UTF-8", last.error.message)
                self.assertEqual(last.score, 0)

    def test_invalid_utf8_in_categories_and_attributes_too(self):
        request = harness.rank_request(items=2)
        request.items[0].categories.append(MARK)
        request.items[1].attributes["color"] = MARK
        response = self.call_raw("Rank", request, b"\xff" * 6)
        self.assertEqual([item.HasField("error") for item in response.items],
                         [True, True])

    def test_invalid_utf8_in_score_embed_and_classify(self):
        score = pb.ScoreRequest(context=pb.Context(query="sofa"))
        score.items.add(id="good", title="sofa")
        score.items.add(id="bad", title=MARK)
        items = self.call_raw("Score", score, b"\xff" * 6).items
        self.assertEqual([i.HasField("error") for i in items], [False, True])
        embed = self.call_raw(
            "Embed", pb.EmbedRequest(texts=["sofa", MARK, "lamp"]), b"\xff" * 6)
        self.assertEqual([e.HasField("error") for e in embed.embeddings],
                         [False, True, False])
        self.assertEqual([len(e.values) for e in embed.embeddings], [32, 0, 32])
        results = self.call_raw(
            "Classify", pb.ClassifyRequest(texts=[MARK, "lamp"]),
            b"\xff" * 6).results
        self.assertEqual([r.HasField("error") for r in results], [True, False])

    def test_invalid_utf8_outside_items_fails_the_call(self):
        request = harness.rank_request(query=MARK)
        with self.assert_code(INVALID, "context.query"):
            self.call_raw("Rank", request, b"\xff" * 6)
        request = harness.rank_request()
        request.context.history.add().item.title = MARK
        with self.assert_code(INVALID, "history[0]"):
            self.call_raw("Rank", request, b"\xff" * 6)

    def test_errors_do_not_repeat_what_the_shopper_wrote(self):
        request = harness.rank_request(query="confidential " + MARK)
        with self.assert_code(INVALID) as caught:
            self.call_raw("Rank", request, b"\xff" * 6)
        self.assertNotIn("confidential", caught[0].details())
        self.assertNotIn("confidential", self.server.logged())

    def test_an_item_without_text_or_with_too_much_fails_alone(self):
        request = harness.rank_request(items=3)
        request.items[0].title = ""
        request.items[2].description = "x" * 1001
        items = self.call("Score", pb.ScoreRequest(
            context=request.context, items=request.items)).items
        self.assertEqual([i.HasField("error") for i in items],
                         [True, False, True])
        self.assertIn("1001 bytes > 1000", items[2].error.message)
        self.assertIn("items[2].description", items[2].error.message)

    def test_too_many_attributes_or_categories_fail_their_item(self):
        request = harness.rank_request(items=2)
        for i in range(5):
            request.items[0].attributes["a%d" % i] = "red"
            request.items[1].categories.append("home")
        for item in self.call("Rank", request).items:
            self.assertIn("5 > 4", item.error.message)

    def test_odd_text_does_no_harm(self):
        request = harness.rank_request(items=0)
        for text in ("\0", "a\0b", "\u0378", "\U0010ffff", "👩‍👩‍👧‍👦", "\u202e",
                     "ﷺ" * 10, "a" * 900, "é" * 400, "\ufeff", "沙发",
                     "e" + "\u0301" * 300, "\t\n\r", "#" * 900):
            request.items.add(id="odd", title="sofa " + text)
        response = self.call("Rank", request)
        self.assertEqual([i.error.message for i in response.items
                          if i.HasField("error")], [])

    def test_counts_above_the_limits_name_the_limit(self):
        with self.assert_code(INVALID, "items: 21 > 20"):
            self.call("Rank", harness.rank_request(items=21))
        with self.assert_code(INVALID, "texts: 11 > 10"):
            self.call("Classify", pb.ClassifyRequest(texts=["a"] * 11))
        request = pb.PredictInterestsRequest()
        for _ in range(6):
            request.history.add().item.title = "sofa"
        with self.assert_code(INVALID, "history: 6 > 5"):
            self.call("PredictInterests", request)
        with self.assert_code(INVALID, "1001 bytes > 1000"):
            self.call("Rank", harness.rank_request(query="x" * 1001))

    def test_a_message_above_the_limit_is_refused(self):
        request = harness.rank_request(items=3)
        request.items[0].title = "x" * 200001
        with self.assert_code(grpc.StatusCode.RESOURCE_EXHAUSTED, "200000"):
            self.call("Rank", request)
        # The connection lives on.
        self.call("Rank", harness.rank_request())

    def test_what_is_missing_is_named(self):
        cases = [
            ("Rank", pb.RankRequest(context=pb.Context(query="a")), "items"),
            ("Rank", pb.RankRequest(items=[pb.Item(title="a")]), "context"),
            ("Score", pb.ScoreRequest(), ""),
            ("PredictInterests", pb.PredictInterestsRequest(), "history"),
            ("Embed", pb.EmbedRequest(), "texts"),
            ("Classify", pb.ClassifyRequest(), "texts"),
        ]
        for method, request, field in cases:
            with self.subTest(method), self.assert_code(INVALID, field):
                self.call(method, request)

    def test_values_out_of_range_are_named(self):
        request = harness.rank_request()
        request.top_k = -1
        with self.assert_code(INVALID, "top_k: -1"):
            self.call("Rank", request)
        for weight in (-0.1, 1.1, float("nan")):
            request = harness.rank_request()
            request.context.history.add().item.title = "sofa"
            request.personalization_weight = weight
            with self.subTest(weight), \
                    self.assert_code(INVALID, "personalization_weight"):
                self.call("Rank", request)

    def test_bytes_that_are_no_message_are_refused(self):
        call = self.channel.unary_unary("/%s/Rank" % harness.SERVICE)
        for data in (b"\xff", b"\x0a\xff\xff\xff\xff\x7f", b"\x0b" * 1000,
                     b"\x12\x05\x0a\x09ab"):
            with self.subTest(data), self.assert_code(INVALID):
                call(data, timeout=harness.PATIENCE)


class LargeTextTest(harness.TestCase):

    def test_a_title_of_ten_megabytes_is_cut_like_any_other(self):
        stub = self.serve("""
            limits { max_field_bytes: 20000000 max_message_bytes: 50000000 }
            """).stub()
        request = harness.rank_request(items=1)
        for text in ("sofa " * 2000000, "x" * 10000000, "沙" * 3300000):
            request.items.add(title=text)
        items = stub.Rank(request, timeout=harness.PATIENCE).items
        self.assertEqual(len(items), 4)
        self.assertEqual([i.error.message for i in items], [""] * 4)


if __name__ == "__main__":
    harness.main()
