"""The HTTP server. app.py puts it together from a Server (server.py) and its models (models.py).

The way of a request: http/ (connection, guard, bounds) -> api/ (one dialect a file) -> answers/ (messages to tokens to
text, constraints, calls, images) -> engine. pages/ is what browsers get; vllm/ the same front before vLLM.
"""
