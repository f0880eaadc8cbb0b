"""Providers: who lends machines to pilots and to tasks."""
