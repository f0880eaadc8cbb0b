"""Server kinds: how a model server is started, or found."""
