"""Write over HTTP: start a service that accepts writes, add and delete documents while it runs, and search for them.

The service needs `pip install 'ray_lir[cluster]'`; the client needs only pydantic and httpx.
"""

import secrets
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
    token = secrets.token_hex(16)
    Path(f"{folder}/tokens.yaml").write_text(f"write: [{token}]\n")
    command = [Path(sys.executable).with_name("ray-lir"), "serve", "--index", f"{folder}/index", "--port", str(port)]
    command += ["--writes", "true", "--tokens", f"{folder}/tokens.yaml"]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        print(service.stdout.readline().strip())  # the service prints its address when it is ready
        with ray_lir.Client(f"http://127.0.0.1:{port}", token) as client:
            added = client.add(
                [
                    {
                        "_id": "kea",
                        "title": "Kea",
                        "text": "The kea is a parrot that lives in the mountains.",
                        "metadata": {"topic": "birds"},
                    },
                    {"_id": "kiwi", "title": "Kiwi", "text": "The kiwi cannot fly and sleeps by day.", "metadata": {"topic": "birds"}},
                ]
            )  # returns when searches see the documents; wait_s=0 returns as soon as they are durable
            print(f"{added.accepted} documents added, version {client.index().version}")
            [hit] = client.search("which parrot lives in the mountains", k=1).results[0]
            print(f"{hit.title}: {hit.text}")
            client.add([{"_id": "kea", "title": "Kea", "text": "The kea is the only parrot of the Alps of New Zealand."}])
            print(f"replaced: {client.document('kea').text}")
            deleted = client.delete(["kea", "kiwi"], key="delete the birds")  # with a key, a repeated call changes nothing
            again = client.delete(["kea", "kiwi"], key="delete the birds")
            print(f"deleted; {client.index().num_docs} documents; a repeated call gets the first answer: {deleted == again}")
            try:
                client.add([{"_id": "moa"}])
            except ray_lir.InvalidDocument as error:
                print(f"a mistake is one line: {error}")
    finally:
        service.terminate()
        service.wait(30)
