r"""A reward that another process or machine computes, over HTTP with JSON.

For rewards whose packages do not go together with those of the sampler, that need another machine,
or that were never published. Version 1 of the protocol is one request, a POST with the content
type ``application/json``::

    {"version": 1, "images": ["iVBORw0KGgo...", ...], "prompts": ["a red apple", ...]}

``images`` holds PNG files, 8-bit RGB, in base64. ``prompts`` holds one string per image, or nothing
if the reward needs no prompt. The answer has status 200, the same content type, and one number per
image in the same order, or null where there is none::

    {"rewards": [0.5, null, ...]}

Any other status means that there are no rewards; the first line of its body is shown. The client
tries 429 and 5xx again, but no other status. Nothing is ever unpickled. :func:`serve` is a server
of any reward of this package, for 256 images at once; in another environment, this is one::

    import base64, io, json
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from PIL import Image

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            files = [io.BytesIO(base64.b64decode(image)) for image in request["images"]]
            rewards = score([Image.open(file) for file in files], request["prompts"])
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps({"rewards": rewards}).encode())

    HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""

__all__ = ["CONTENT_TYPE", "VERSION"]

VERSION = 1
"""Version of the protocol that both ends speak."""

CONTENT_TYPE = "application/json"
"""Content type of requests and answers."""
