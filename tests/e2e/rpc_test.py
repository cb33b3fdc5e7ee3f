"""Every method, as a caller in another language sees it."""

import math

import grpc

import harness
from harness import pb

# Batches differ in shape, and so in the last bits of a score.
TOLERANCE = 1e-4


class RpcTest(harness.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = harness.Server(
            cls.registry, "engine { dtype: DTYPE_FP32 }", model="shop")
        cls.addClassCleanup(cls.server.close)
        cls.stub = cls.server.stub()

    def call(self, method, request):
        return getattr(self.stub, method)(request, timeout=harness.PATIENCE)

    def score(self, request):
        return self.call("Score", pb.ScoreRequest(
            model=request.model, context=request.context, items=request.items))

    def test_score_keeps_the_order_of_the_request(self):
        request = harness.rank_request(items=20)
        response = self.score(request)
        self.assertEqual([item.item_id for item in response.items],
                         [item.id for item in request.items])
        self.assertEqual([item.index for item in response.items],
                         list(range(20)))
        for item in response.items:
            self.assertFalse(item.HasField("error"))
            self.assertGreaterEqual(item.score, 0)
            self.assertLessEqual(item.score, 1)
        self.assertGreater(len({item.score for item in response.items}), 1)

    def test_rank_returns_the_best_first_with_the_same_scores(self):
        request = harness.rank_request(items=20)
        scores = {item.item_id: item.score
                  for item in self.score(request).items}
        ranked = self.call("Rank", request).items
        self.assertEqual(len(ranked), 20)
        self.assertEqual(sorted(scores), sorted(i.item_id for i in ranked))
        for item in ranked:
            self.assertAlmostEqual(item.score, scores[item.item_id],
                                   delta=TOLERANCE)
        self.assertEqual([item.score for item in ranked],
                         sorted((i.score for i in ranked), reverse=True))

    def test_rank_cuts_to_top_k(self):
        request = harness.rank_request(items=20)
        everything = self.call("Rank", request).items
        request.top_k = 3
        best = self.call("Rank", request).items
        self.assertEqual([item.item_id for item in best],
                         [item.item_id for item in everything[:3]])
        request.top_k = 100
        self.assertEqual(len(self.call("Rank", request).items), 20)

    def test_equal_items_keep_the_order_of_the_request(self):
        request = harness.rank_request(items=1)
        title = request.items[0].title
        del request.items[:]
        for i in range(30):
            request.items.add(id=str(i), title=title)
        self.assertEqual([item.item_id for item in
                          self.call("Rank", request).items],
                         [str(i) for i in range(30)])

    def test_an_item_scores_alone_as_among_many(self):
        request = harness.rank_request(items=50)
        together = [item.score for item in self.score(request).items]
        for i in (0, 7, 49):
            alone = harness.rank_request(items=0)
            alone.items.add().CopyFrom(request.items[i])
            self.assertAlmostEqual(self.score(alone).items[0].score,
                                   together[i], delta=TOLERANCE)

    def test_the_query_matters(self):
        first = self.score(harness.rank_request(query="red sofa"))
        second = self.score(harness.rank_request(query="garden hose"))
        self.assertNotEqual([i.score for i in first.items],
                            [i.score for i in second.items])

    def test_query_and_history_are_blended_by_the_weight(self):
        request = pb.ScoreRequest(items=harness.rank_request(items=5).items)
        request.context.query = "red sofa"
        query_only = self.call("Score", request).items
        request.context.history.add().item.title = "blue chair"
        request.context.history.add().item.title = "oak table"
        both = self.call("Score", request)
        for item, alone in zip(both.items, query_only):
            self.assertTrue(item.HasField("relevance"))
            self.assertTrue(item.HasField("personalization"))
            self.assertAlmostEqual(item.relevance, alone.score, delta=TOLERANCE)
            self.assertAlmostEqual(
                item.score, (item.relevance + item.personalization) / 2,
                delta=TOLERANCE)
        for weight in (0.0, 0.25, 1.0):
            request.personalization_weight = weight
            for item in self.call("Score", request).items:
                self.assertAlmostEqual(
                    item.score, (1 - weight) * item.relevance +
                    weight * item.personalization, delta=TOLERANCE)

    def test_a_history_alone_ranks_too(self):
        request = harness.rank_request(items=10)
        request.context.ClearField("query")
        request.context.history.add().item.title = "blue chair"
        items = self.call("Rank", request).items
        self.assertEqual(len(items), 10)
        for item in items:
            self.assertFalse(item.HasField("relevance"))
            self.assertEqual(item.score, item.personalization)
        # The second time the items' vectors come from the cache.
        again = self.call("Rank", request).items
        self.assertEqual([i.item_id for i in again],
                         [i.item_id for i in items])
        self.assertGreater(
            self.server.metric("vitrine_item_vector_cache_hits_total"), 0)

    def test_skipped_items_are_no_history(self):
        request = harness.rank_request(items=4)
        request.context.ClearField("query")
        request.context.history.add().item.title = "blue chair"
        expected = [i.score for i in self.call("Rank", request).items]
        skipped = request.context.history.add(
            type=pb.INTERACTION_TYPE_SKIP)
        skipped.item.title = "garden hose"
        for score, item in zip(expected, self.call("Rank", request).items):
            self.assertAlmostEqual(item.score, score, delta=TOLERANCE)

    def test_interests_are_sorted_probabilities(self):
        request = pb.PredictInterestsRequest()
        request.history.add().item.title = "oak table"
        request.history.add().item.title = "garden hose"
        response = self.call("PredictInterests", request)
        self.assertEqual(sorted(i.category for i in response.interests),
                         ["garden", "home", "kitchen"])
        found = [i.probability for i in response.interests]
        self.assertEqual(found, sorted(found, reverse=True))
        self.assertTrue(all(0 <= p <= 1 for p in found))
        request.top_k = 1
        best = self.call("PredictInterests", request).interests
        self.assertEqual([i.category for i in best],
                         [response.interests[0].category])

    def test_classify_gives_every_text_its_labels(self):
        request = pb.ClassifyRequest(texts=["good red sofa", "bad", "spam"])
        response = self.call("Classify", request)
        self.assertEqual(len(response.results), 3)
        for result in response.results:
            self.assertEqual(sorted(l.label for l in result.labels),
                             ["normal", "spam"])
            self.assertAlmostEqual(sum(l.probability for l in result.labels),
                                   1, delta=1e-5)
            self.assertGreaterEqual(result.labels[0].probability,
                                    result.labels[1].probability)
        request.head = "classifier"
        request.top_k = 1
        self.assertEqual(
            [len(r.labels) for r in self.call("Classify", request).results],
            [1, 1, 1])

    def test_embeddings_have_length_one(self):
        texts = self.call("Embed", pb.EmbedRequest(texts=["red sofa", "lamp"]))
        items = self.call("Embed", pb.EmbedRequest(
            items=[pb.Item(id="a", title="red sofa"),
                   pb.Item(id="b", title="lamp", brand="oak")]))
        self.assertEqual([e.item_id for e in items.embeddings], ["a", "b"])
        for embedding in list(texts.embeddings) + list(items.embeddings):
            self.assertAlmostEqual(math.fsum(v * v for v in embedding.values),
                                   1, delta=1e-4)
        # A title alone is a text.
        for a, b in zip(texts.embeddings[0].values, items.embeddings[0].values):
            self.assertAlmostEqual(a, b, delta=TOLERANCE)

    def test_cut_texts_are_marked(self):
        request = harness.rank_request(items=2)
        request.items[1].title = " ".join(["sofa"] * 500)
        self.assertEqual([i.truncated for i in self.score(request).items],
                         [False, True])
        response = self.call("Classify", pb.ClassifyRequest(
            texts=["sofa", " ".join(["sofa"] * 500)]))
        self.assertEqual([r.truncated for r in response.results],
                         [False, True])

    def test_answers_name_the_version_and_say_where_time_went(self):
        response = self.call("Rank", harness.rank_request())
        self.assertEqual(response.model.name, "shop")
        self.assertEqual(response.model.version, "2")
        seconds = {name: getattr(response.timings, name).ToNanoseconds() / 1e9
                   for name in ("queue", "tokenize", "compute", "total")}
        self.assertGreater(seconds["compute"], 0)
        self.assertGreater(seconds["total"], seconds["compute"])
        self.assertGreaterEqual(seconds["queue"], 0)

    def test_a_request_may_name_model_and_version(self):
        request = harness.rank_request(model="shop")
        request.model.version = "2"
        self.assertEqual(self.call("Rank", request).model.version, "2")
        request.model.version = "77"
        with self.assert_code(grpc.StatusCode.NOT_FOUND, "77"):
            self.call("Rank", request)
        with self.assert_code(grpc.StatusCode.NOT_FOUND, "cellar"):
            self.call("Rank", harness.rank_request(model="cellar"))

    def test_an_unknown_head_is_not_found(self):
        with self.assert_code(grpc.StatusCode.NOT_FOUND, "mood"):
            self.call("Classify",
                      pb.ClassifyRequest(head="mood", texts=["sofa"]))

    def test_list_models_tells_heads_and_limits(self):
        response = self.call("ListModels", pb.ListModelsRequest())
        self.assertEqual(len(response.models), 1)
        model = response.models[0]
        self.assertEqual((model.model.name, model.model.version), ("shop", "2"))
        self.assertTrue(model.is_default)
        self.assertEqual({h.name: h.kind for h in model.heads}, {
            "relevance": "relevance", "recommendation": "recommendation",
            "interest": "interest", "classifier": "classification"})
        labels = {h.name: list(h.labels) for h in model.heads}
        self.assertEqual(sorted(labels["classifier"]), ["normal", "spam"])
        self.assertEqual(sorted(labels["interest"]),
                         ["garden", "home", "kitchen"])
        self.assertEqual(model.embedding_size, 32)
        self.assertGreater(model.max_tokens, 0)
        self.assertEqual(model.dtype, "fp32")
        self.assertEqual(model.tokenizer, "wordpiece")
        self.assertEqual(response.limits.max_items, 1000)
        self.assertEqual(response.limits.max_message_bytes, 16 << 20)
        self.assertTrue(response.server_version)

    def test_an_unknown_method_is_unimplemented(self):
        call = self.server.channel().unary_unary(
            "/%s/Guess" % harness.SERVICE)
        with self.assert_code(grpc.StatusCode.UNIMPLEMENTED):
            call(b"", timeout=harness.PATIENCE)


class TwoModelsTest(harness.TestCase):

    def test_requests_choose_between_models(self):
        server = self.serve('models { name: "slow" }\n'
                            'default_model: "slow"')
        stub = server.stub()
        request = harness.rank_request()
        self.assertEqual(
            stub.Rank(request, timeout=harness.PATIENCE).model.name, "slow")
        request.model.name = "shop"
        self.assertEqual(
            stub.Rank(request, timeout=harness.PATIENCE).model.name, "shop")
        listed = stub.ListModels(pb.ListModelsRequest(),
                                 timeout=harness.PATIENCE).models
        self.assertEqual({m.model.name: m.is_default for m in listed},
                         {"shop": False, "slow": True})

    def test_a_model_without_the_head_says_so(self):
        stub = self.serve(model="slow").stub()
        request = pb.PredictInterestsRequest()
        request.history.add().item.title = "sofa"
        with self.assert_code(grpc.StatusCode.NOT_FOUND, "interest"):
            stub.PredictInterests(request, timeout=harness.PATIENCE)


if __name__ == "__main__":
    harness.main()
