"""Runs a real S3 server on this machine behind a proxy that can be shut, which looks to clients like a server outage."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3
import pyarrow.fs as pafs

from cluster.harness.node_processes import free_port

REGION = "us-east-1"
BLOCK = 1 << 16
START_SECONDS = 120


class Door:
    """Proxies connections to a server while open. When shut, it refuses new connections and cuts existing ones."""

    def __init__(self, target):
        self.target, self.port = target, free_port()
        self.cut_after = None
        """Bytes after which the door shuts automatically."""
        self._pairs, self._listener = set(), None
        self.open()

    def open(self):
        self.cut_after = None
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self):
        listener, self._listener = self._listener, None
        if listener:
            # `close` alone would leave a thread that waits in `accept`.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for pair in list(self._pairs):
            self._end(pair)

    def _accept(self, listener):
        while True:
            try:
                inside, _ = listener.accept()
                outside = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            pair = (inside, outside)
            self._pairs.add(pair)
            for way in (pair, pair[::-1]):
                threading.Thread(target=self._pump, args=(pair, *way), daemon=True).start()

    def _pump(self, pair, source, sink):
        with suppress(OSError):
            while block := source.recv(BLOCK):
                if self.cut_after is not None:
                    self.cut_after -= len(block)
                    if self.cut_after < 0:
                        self.shut()
                        return
                sink.sendall(block)
        self._end(pair)

    def _end(self, pair):
        self._pairs.discard(pair)
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class ObjectStore:
    """Moto's server in a separate process, with a bucket."""

    def __init__(self, port, bucket):
        self.port, self.bucket, self.door = port, bucket, Door(port)

    @property
    def environment(self):
        """Environment variables with which a process reaches the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.door.port}",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def uri(self, *parts):
        return "/".join((f"s3://{self.bucket}", *parts))

    def put(self, path, to):
        """Copies a local file or folder into the bucket."""
        fs = pafs.S3FileSystem(
            endpoint_override=f"http://127.0.0.1:{self.port}", access_key="key", secret_key="secret", region=REGION
        )
        pafs.copy_files(str(path), f"{self.bucket}/{to}", destination_filesystem=fs)

    def sizes(self, prefix=""):
        """Returns the bytes of every object below a prefix, by key."""
        return {entry["Key"]: entry["Size"] for entry in self._entries(prefix)}

    def versions(self, prefix=""):
        """Returns an identifier of the current content of every object below a prefix, by key."""
        return {entry["Key"]: (entry["LastModified"], entry["ETag"]) for entry in self._entries(prefix)}

    def _entries(self, prefix):
        pages = self._client("s3").get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        # Folders are empty objects.
        return [entry for page in pages for entry in page.get("Contents", ()) if not entry["Key"].endswith("/")]

    def remove(self, key):
        self._client("s3").delete_object(Bucket=self.bucket, Key=key)

    def read(self, key):
        return self._client("s3").get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def make_bucket(self):
        self._client("s3").create_bucket(Bucket=self.bucket)

    @contextmanager
    def asking_for_keys(self):
        """Requires, within the body, the yielded key id and secret."""
        iam = self._client("iam")
        iam.create_user(UserName="user")
        rule = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [rule]})
        iam.put_user_policy(UserName="user", PolicyName="all", PolicyDocument=policy)
        key = iam.create_access_key(UserName="user")["AccessKey"]
        self._let_pass("0")
        try:
            yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        finally:
            self._let_pass("inf")

    def _let_pass(self, num_calls):
        url, kind = f"http://127.0.0.1:{self.port}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, num_calls.encode(), kind, method="POST")).close()

    def _client(self, service):
        return boto3.client(
            service,
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name=REGION,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )


@contextmanager
def object_store(bucket="bucket"):
    """Runs an S3 server with a bucket until the body ends."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with server(command, lambda: _answers(port)):
        store = ObjectStore(port, bucket)
        store.make_bucket()
        yield store
        store.door.shut()


@contextmanager
def server(command, is_up, log=None, **variables):
    """Starts a server process, waits until it is up, and ends it with the body."""
    with Path(log or os.devnull).open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | variables)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_up():
            assert process.poll() is None, Path(log).read_text()[-2000:] if log else f"{command} ended"
            assert time.monotonic() < deadline, f"{command} does not answer"
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _answers(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
