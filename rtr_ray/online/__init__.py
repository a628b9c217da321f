"""The online endpoint, but for what serves it: requests in, replies out; no Ray, no HTTP server."""
