"""The servers of tests/serve, for commands that talk to one."""

from tests.serve.conftest import live_server, reference, tiny_path, tiny_server, wire  # noqa: F401
