"""The online search service on Ray Serve: `serve run serving.app:build index=DIR`."""
