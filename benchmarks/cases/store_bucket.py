"""An object store within the process: each request waits, and a connection carries only so much."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import fsspec
from fsspec.asyn import AsyncFileSystem


class Bucket(AsyncFileSystem):
    """Objects in memory behind a slow line, `bucket://…`; requests at one time wait beside each other."""

    protocol = "bucket"
    objects: ClassVar[dict[str, bytes]] = {}
    latency_s: ClassVar[float] = 0.03
    bytes_per_s: ClassVar[float] = 80e6
    fast: ClassVar[bool] = False  # while a case makes its data

    async def _wait(self, count: int = 0) -> None:
        if not self.fast:
            await asyncio.sleep(self.latency_s + count / self.bytes_per_s)

    async def _cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        data = self.objects.get(self._strip_protocol(path))
        part = b"" if data is None else data[start:end]
        await self._wait(len(part))
        if data is None:
            raise FileNotFoundError(path)
        return part

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        await self._wait(len(value))
        self.objects[self._strip_protocol(path)] = bytes(value)

    async def _info(self, path: str, **options: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        await self._wait()
        if path in self.objects:
            return {"name": path, "size": len(self.objects[path]), "type": "file"}
        if any(name.startswith(path + "/") for name in self.objects):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    async def _ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        await self._wait()
        path = self._strip_protocol(path).rstrip("/")
        below = [name[len(path) + 1 :] for name in self.objects if name.startswith(path + "/")]
        found = []
        for first in sorted({name.split("/")[0] for name in below}):
            name = f"{path}/{first}"
            kind = "file" if name in self.objects else "directory"
            found.append({"name": name, "size": len(self.objects.get(name, b"")), "type": kind})
        return found if detail else [entry["name"] for entry in found]

    async def _rm_file(self, path: str, **options: Any) -> None:
        await self._wait()
        self.objects.pop(self._strip_protocol(path), None)


def bucket_url(name: str) -> str:
    """Register the file system and return a folder of it."""
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    return f"bucket://{name}"
