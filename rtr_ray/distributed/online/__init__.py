"""The online endpoint."""
