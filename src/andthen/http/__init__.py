"""HTTP/1.1: the connections to clients and to upstream servers."""
