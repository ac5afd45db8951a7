"""Serve and ask: start the search service on this machine, ask it with the HTTP client, and stop it.

The service needs `pip install 'ray_lir[cluster]'`; the client needs only pydantic and httpx.
"""

import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import ray_lir

DATA = Path(__file__).parent / "data"

with socket.socket() as probe:  # a free port
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]

with TemporaryDirectory() as folder:
    ray_lir.Index.create(f"{folder}/index", str(DATA))
    command = [Path(sys.executable).with_name("ray-lir"), "serve", "--index", f"{folder}/index", "--port", str(port)]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        print(service.stdout.readline().strip())  # the service prints its address when it is ready
        with ray_lir.Client(f"http://127.0.0.1:{port}") as client:
            print(f"{client.index().num_docs} documents")
            response = client.search("which river floods every year", k=2, filters="topic = geography", highlight=True)
            for hit in response.results[0]:
                print(f"  {hit.score:6.2f}  {hit.title}: {hit.text}")
                words = [
                    (hit.text or "")[mark.start : mark.end] for mark in hit.highlights or [] if mark.field == "text" and mark.strength > 0.2
                ]
                print(f"          matched words: {', '.join(words)}")
            try:
                client.search("river", k=0)
            except ray_lir.ConfigError as error:
                print(f"a mistake is one line: {error}")
    finally:
        service.terminate()
        service.wait(30)
