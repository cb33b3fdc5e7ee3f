"""What keeps a server from starting is said, all of it, in clear lines."""

import os
import shutil
import socket
import subprocess

import harness


class StartTest(harness.TestCase):

    def check(self, config, *flags):
        path = os.path.join(self.temporary_folder(), "config.textproto")
        with open(path, "w", encoding="utf-8") as out:
            out.write(config)
        return harness.run("vitrine-server", "--config", path, "--check",
                           *flags)

    def assert_does_not_start(self, *texts, config="", **options):
        """Exit 1, and a last line with these texts."""
        server = self.serve(config, wait=False, **options)
        self.assertEqual(server.wait(), 1, server.logged())
        last = server.logged().strip().splitlines()[-1]
        for text in texts:
            self.assertIn(text, last)
        self.assertFalse(os.path.exists(server.port_file))
        return last

    def test_check_accepts_a_good_configuration(self):
        done = self.check('registry: "%s" models { name: "shop" }' %
                          self.registry)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_check_lists_every_error(self):
        done = self.check("""
            registry: "/no/such/folder"
            listen: "nonsense"
            batcher { max_batch_tokens: -5 }
            limits { max_items: -1 max_field_bytes: -2 }
            personalization_weight: 3
            """)
        self.assertEqual(done.returncode, 1)
        for text in ("/no/such/folder", "nonsense", "max_batch_tokens", "-5",
                     "max_items", "max_field_bytes", "personalization_weight"):
            self.assertIn(text, done.stderr)

    def test_an_unknown_field_is_an_error_with_its_place(self):
        done = self.check('registry: "%s"\nlimit { }\n' % self.registry)
        self.assertEqual(done.returncode, 1)
        self.assertIn("limit", done.stderr)
        self.assertIn(":2:", done.stderr)

    def test_flags_are_checked_too(self):
        done = self.check('registry: "%s"' % self.registry,
                          "--listen", "nowhere")
        self.assertEqual(done.returncode, 1)
        self.assertIn("nowhere", done.stderr)
        done = harness.run("vitrine-server", "--frobnicate")
        self.assertEqual(done.returncode, 1)
        self.assertIn("frobnicate", done.stderr)

    def test_a_missing_configuration_file_is_named(self):
        done = harness.run("vitrine-server", "--config", "/no/such/file")
        self.assertEqual(done.returncode, 1)
        self.assertIn("/no/such/file", done.stderr)

    def test_help_and_version(self):
        self.assertIn("EXAMPLES", harness.run(
            "vitrine-server", "--help", check=0).stdout)
        self.assertRegex(harness.run(
            "vitrine-server", "--version", check=0).stdout, r"\d+\.\d+")

    def test_a_missing_model_or_version_is_named(self):
        self.assert_does_not_start("cellar", model="cellar")
        self.assert_does_not_start(
            "77", model=None, config='models { name: "shop" version: 77 }')

    def test_an_empty_registry_is_an_error(self):
        self.assert_does_not_start(registry=self.temporary_folder(),
                                   model=None)

    def test_a_damaged_version_does_not_start(self):
        source = os.path.join(self.registry, "shop", "1")
        for name in sorted(os.listdir(source)):
            size = os.path.getsize(os.path.join(source, name))
            for cut in (0, size // 2, size - 1):
                with self.subTest(name=name, cut=cut):
                    folder = self.temporary_folder()
                    version = os.path.join(folder, "shop", "1")
                    shutil.copytree(source, version)
                    os.truncate(os.path.join(version, name), cut)
                    self.assert_does_not_start(name, registry=folder)

    def test_a_missing_file_of_a_version_is_named(self):
        source = os.path.join(self.registry, "shop", "1")
        for name in ("config.json", "model.safetensors", "heads.safetensors",
                     "vocab.txt"):
            with self.subTest(name=name):
                folder = self.temporary_folder()
                version = os.path.join(folder, "shop", "1")
                shutil.copytree(source, version)
                os.remove(os.path.join(version, name))
                self.assert_does_not_start(name, registry=folder)

    def test_a_changed_byte_is_noticed(self):
        folder = self.temporary_folder()
        shutil.copytree(os.path.join(self.registry, "shop", "1"),
                        os.path.join(folder, "shop", "1"))
        path = os.path.join(folder, "shop", "1", "model.safetensors")
        with open(path, "r+b") as file:
            file.seek(-100, os.SEEK_END)
            byte = file.read(1)
            file.seek(-100, os.SEEK_END)
            file.write(bytes([byte[0] ^ 1]))
        self.assert_does_not_start("model.safetensors", registry=folder)

    def test_a_port_in_use_is_named(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = "127.0.0.1:%d" % taken.getsockname()[1]
            self.assert_does_not_start(address, flags=["--listen", address])
            self.assert_does_not_start(address,
                                       flags=["--metrics-listen", address])

    def test_two_servers_do_not_share_a_port(self):
        first = self.serve()
        self.assert_does_not_start(first.target,
                                   flags=["--listen", first.target])
        first.stub().Rank(harness.rank_request(), timeout=harness.PATIENCE)

    def test_flags_override_the_file(self):
        server = self.serve("limits { max_items: 7 }",
                            flags=["--dtype", "fp32"])
        listed = server.stub().ListModels(harness.pb.ListModelsRequest(),
                                          timeout=harness.PATIENCE)
        self.assertEqual(listed.models[0].dtype, "fp32")
        self.assertEqual(listed.limits.max_items, 7)

    def test_metrics_can_be_off(self):
        server = self.serve(flags=["--metrics-listen", "off"])
        self.assertEqual(server.metrics_port, 0)
        server.stub().Rank(harness.rank_request(), timeout=harness.PATIENCE)

    def test_a_plain_hugging_face_folder_is_no_version_by_itself(self):
        # It comes in by vitrine-trainer import, which checks it.
        source = os.path.join(os.path.dirname(self.registry), "slow")
        folder = self.temporary_folder()
        harness.run("vitrine-trainer", "import", "--from", source,
                    "--out", folder, "--model", "mine", check=0)
        server = self.serve(registry=folder, model="mine")
        items = server.stub().Rank(harness.rank_request(),
                                   timeout=harness.PATIENCE).items
        self.assertEqual(len(items), 3)


class TlsTest(harness.TestCase):

    def make_certificate(self):
        folder = self.temporary_folder()
        certificate = os.path.join(folder, "certificate.pem")
        key = os.path.join(folder, "key.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
             "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
             "-keyout", key, "-out", certificate],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return certificate, key

    def test_tls_with_and_without_client_certificates(self):
        certificate, key = self.make_certificate()
        server = self.serve('tls { certificate_file: "%s" key_file: "%s" }' %
                            (certificate, key))
        rank = ["rank", "-q", "sofa", "sofa", "--timeout", "5s",
                "--target", "localhost:%d" % server.port]
        harness.run("vitrine", *rank, "--ca", certificate, check=0)
        harness.run("vitrine", *rank, "--timeout", "1s", check=3)
        harness.run("vitrine", *rank, "--tls", check=3)  # not a known CA

        mutual = self.serve('tls { certificate_file: "%s" key_file: "%s" '
                            'client_ca_file: "%s" }' %
                            (certificate, key, certificate))
        rank[-1] = "localhost:%d" % mutual.port
        harness.run("vitrine", *rank, "--ca", certificate, check=3)
        harness.run("vitrine", *rank, "--ca", certificate, "--cert",
                    certificate, "--key", key, check=0)

    def test_a_key_of_another_certificate_does_not_start(self):
        certificate, _ = self.make_certificate()
        _, other = self.make_certificate()
        server = self.serve(
            'tls { certificate_file: "%s" key_file: "%s" }' %
            (certificate, other), wait=False)
        self.assertEqual(server.wait(), 1)


if __name__ == "__main__":
    harness.main()
