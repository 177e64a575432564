"""What knows HTTP and no model: connections, who may talk, bounds of JSON, streams, errors, TLS, figures."""
