"""A store in the place of s3fs: a folder behind a key, whose errors repeat what they were given, as some servers' do."""

import hashlib
import os

from fsspec.implementations.local import LocalFileSystem

__version__ = "2026.9.0"  # fsspec asks for it


class S3FileSystem(LocalFileSystem):
    protocol = ("s3",)
    cachable = False

    def __init__(self, key=None, secret=None, endpoint_url=None, **more):
        super().__init__(auto_mkdir=True, **more)
        self.given = (key, secret, endpoint_url)

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(path.replace("s3://", f"{os.environ['STORE_ROOT']}/"))

    def _check(self):
        if hashlib.sha256(f"{self.given[0]} {self.given[1]}".encode()).hexdigest() != os.environ["STORE_KEY_DIGEST"]:
            raise PermissionError(f"InvalidAccessKeyId: {self.given}")

    def info(self, path, **more):
        self._check()
        return super().info(path, **more)

    def find(self, path, **more):
        self._check()
        return super().find(path, **more)

    def _open(self, path, mode="rb", **more):
        self._check()
        return super()._open(path, mode, **more)
