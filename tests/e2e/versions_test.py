"""Versions come and go under load, and no caller notices but by the number."""

import itertools
import os
import shutil

import harness


def set_current(registry, version, model="shop"):
    """As an operator would: a new file, renamed over the old one."""
    path = os.path.join(registry, model, "CURRENT")
    with open(path + ".new", "w") as out:
        out.write("%d\n" % version)
    os.rename(path + ".new", path)


class VersionsTest(harness.TestCase):

    def serve_copy(self, current):
        self.folder = self.copy_of_registry("shop")
        if current:
            set_current(self.folder, current)
        return self.serve("""
            engine { dtype: DTYPE_FP32 }
            poll_interval { nanos: 20000000 }""", registry=self.folder)

    def version_of(self, stub):
        return stub.Rank(harness.rank_request(),
                         timeout=harness.PATIENCE).model.version

    def wait_for_version(self, stub, version):
        harness.wait_until(lambda: self.version_of(stub) == version,
                           "version " + version)

    def test_the_newest_is_served_where_nothing_is_current(self):
        server = self.serve_copy(current=0)
        self.assertEqual(self.version_of(server.stub()), "2")
        with open(os.path.join(self.folder, "shop", "CURRENT")) as current:
            self.assertEqual(current.read().strip(), "2")

    def test_a_change_under_load_fails_no_call(self):
        request = harness.pb.EmbedRequest(
            items=harness.rank_request(items=5).items)

        def vectors(response):
            return [value for embedding in response.embeddings
                    for value in embedding.values]

        expected = {}
        for version in (1, 2):
            stub = self.serve_copy(current=version).stub()
            expected[str(version)] = vectors(
                stub.Embed(request, timeout=harness.PATIENCE))
        self.assertGreater(max(abs(a - b) for a, b in zip(
            expected["1"], expected["2"])), 0.01)

        server = self.serve_copy(current=1)
        stubs = [server.stub() for _ in range(4)]
        turn = itertools.count()

        def work():
            response = stubs[next(turn) % 4].Embed(
                request, timeout=harness.PATIENCE)
            return response.model.version, vectors(response)

        with harness.Background(work) as load:
            for version in ("2", "1", "2", "1", "2"):
                set_current(self.folder, int(version))
                self.wait_for_version(stubs[0], version)
        self.assertEqual(load.errors[:3], [])
        self.assertEqual({version for version, _ in load.results}, {"1", "2"})
        # Never one version's name with the other's weights, or its vectors out
        # of the cache.
        for version, values in load.results:
            self.assertLess(max(abs(a - b) for a, b in zip(
                values, expected[version])), 1e-3)
        self.assertEqual(server.metric("vitrine_model_version", model="shop"),
                         2)

    def test_a_version_that_does_not_load_leaves_the_old_one_serving(self):
        server = self.serve_copy(current=2)
        stub = server.stub()
        broken = os.path.join(self.folder, "shop", "3")
        shutil.copytree(os.path.join(self.folder, "shop", "2"), broken)
        os.truncate(os.path.join(broken, "model.safetensors"), 1000)
        self.assertEqual(
            server.metric("vitrine_model_load_failures_total", model="shop"), 0)
        set_current(self.folder, 3)
        harness.wait_until(
            lambda: server.metric("vitrine_model_load_failures_total",
                                  model="shop") > 0, "a failed load")
        self.assertEqual(self.version_of(stub), "2")
        self.assertEqual(server.health(),
                         harness.health_pb2.HealthCheckResponse.SERVING)
        set_current(self.folder, 1)
        self.wait_for_version(stub, "1")

    def test_nonsense_in_current_changes_nothing(self):
        server = self.serve_copy(current=2)
        stub = server.stub()
        path = os.path.join(self.folder, "shop", "CURRENT")
        for text in ("", "many", "-1", "../../etc", "99", "2 1"):
            with open(path + ".new", "w") as out:
                out.write(text)
            os.rename(path + ".new", path)
            for _ in range(5):
                self.assertEqual(self.version_of(stub), "2")
        set_current(self.folder, 1)
        self.wait_for_version(stub, "1")

    def test_a_version_published_while_serving_waits_for_current(self):
        server = self.serve_copy(current=1)
        stub = server.stub()
        models = os.path.dirname(self.registry)
        harness.run("vitrine-trainer", "import", "--from",
                    os.path.join(models, "slow"), "--out", self.folder,
                    "--model", "shop", check=0)
        self.assertEqual(self.version_of(stub), "1")
        set_current(self.folder, 3)
        self.wait_for_version(stub, "3")

    def test_a_pinned_version_does_not_follow_current(self):
        folder = self.copy_of_registry("shop")
        set_current(folder, 1)
        server = self.serve("""
            models { name: "shop" version: 2 }
            poll_interval { nanos: 20000000 }""", registry=folder, model=None)
        stub = server.stub()
        set_current(folder, 1)
        for _ in range(20):
            self.assertEqual(self.version_of(stub), "2")


if __name__ == "__main__":
    harness.main()
