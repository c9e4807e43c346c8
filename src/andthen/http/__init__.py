"""HTTP/1.1, both sides, on httptools and asyncio. Knows no route, no API key and no model."""
